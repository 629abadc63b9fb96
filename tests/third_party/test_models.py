"""Models of other people's packages that contain nn.LSTM or nn.LSTMCell: swapped, they compute what they did.

All are small and have random weights; nothing is downloaded.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import sb3_contrib.common.recurrent.policies as recurrent
import snntorch
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stanza.models.common.char_model import CharacterLanguageModel
from stanza.models.common.hlstm import HighwayLSTM
from stanza.models.tokenization.model import Tokenizer
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import EncodecConfig, EncodecModel, ParakeetForRNNT, ParakeetRNNTConfig

import torchlstm
from torchlstm.parity import check

with warnings.catch_warnings():
    # At its import, torch_geometric scripts two functions.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from torch_geometric.nn import JumpingKnowledge, LSTMAggregation, Set2Set

LSTM, CELL = torchlstm.LSTM, torchlstm.LSTMCell
DOUBLE_TOLERANCE = 1e-9  # of the largest element
SINGLE_TOLERANCE = 1e-5
CANCELLED = 1e-6  # of the largest element of all tensors


class Call(NamedTuple):
    """A model, the arguments of one call, and what is in it to be swapped."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: dict[str, Any]
    swapped: list[type[nn.Module]]
    double: bool = True  # whether the model can compute in float64

    def to(self, dtype: torch.dtype) -> "Call":
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, (self.args, self.kwargs)
        )
        return self._replace(model=copy.deepcopy(self.model).to(dtype), args=args, kwargs=kwargs)


def _encodec() -> EncodecModel:
    config = EncodecConfig(
        hidden_size=8,
        num_filters=2,
        upsampling_ratios=[2, 2],
        codebook_size=16,
        target_bandwidths=[16.0],
        sampling_rate=8000,
        num_lstm_layers=2,
    )
    model = EncodecModel(config)
    for quantizer in model.quantizer.layers:
        # Without a checkpoint they are zero, and so would be all that is decoded.
        quantizer.codebook.embed.normal_()
    return model


def encodec() -> Call:
    """An audio codec.  Its codes are integers: no gradient reaches the encoder, which the next one is for."""
    return Call(_encodec(), (torch.randn(2, 1, 64),), {}, [LSTM, LSTM])


def encodec_encoder() -> Call:
    return Call(_encodec().encoder, (torch.randn(2, 1, 64),), {}, [LSTM])


def parakeet() -> Call:
    """Speech recognition: a conformer and an LSTM that predicts the next token."""
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_mel_bins": 8,
        "subsampling_conv_channels": 4,
        "subsampling_factor": 4,
        "conv_kernel_size": 3,
    }
    config = ParakeetRNNTConfig(
        vocab_size=11,
        decoder_hidden_size=12,
        num_decoder_layers=2,
        encoder_config=encoder,
        blank_token_id=10,
        pad_token_id=9,
    )
    kwargs = {"input_features": torch.randn(2, 24, 8), "decoder_input_ids": torch.randint(0, 9, (2, 5))}
    return Call(ParakeetForRNNT(config), (), kwargs, [LSTM])


def jumping_knowledge() -> Call:
    return Call(
        JumpingKnowledge("lstm", channels=6, num_layers=3), ([torch.randn(5, 6) for _ in range(3)],), {}, [LSTM]
    )


def _graph_nodes() -> tuple[Tensor, Tensor]:
    """The features of nine nodes and the graph that each belongs to."""
    return torch.randn(9, 5), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])


def set2set() -> Call:
    """The LSTM steps one by one, its state carried by the model."""
    return Call(Set2Set(5, processing_steps=3, num_layers=2), _graph_nodes(), {}, [LSTM])


def lstm_aggregation() -> Call:
    return Call(LSTMAggregation(5, 6, bidirectional=True), _graph_nodes(), {}, [LSTM])


def stanza_tokenizer() -> Call:
    """Packed sequences, two layers, both directions, dropout."""
    options = {
        "feat_dim": 3,
        "rnn_layers": 2,
        "conv_res": "1,3",
        "use_mwt": True,
        "hierarchical": True,
        "hier_invtemp": 0.5,
        "tok_noise": 0.02,
    }
    model = Tokenizer(options, nchars=12, emb_dim=5, hidden_dim=6, dropout=0.3, feat_dropout=0.1)
    return Call(model, (torch.randint(1, 12, (3, 7)), torch.randn(3, 7, 3), [7, 5, 2]), {}, [LSTM, LSTM])


def stanza_character_model() -> Call:
    """Packed sequences with a learned initial state; returns output, states and logits."""
    options = {
        "char_emb_dim": 5,
        "char_hidden_dim": 6,
        "char_num_layers": 2,
        "char_dropout": 0.2,
        "char_rec_dropout": 0,
    }
    model = CharacterLanguageModel(options, {"char": list("abcdefgh")})
    return Call(model, (torch.randint(0, 8, (3, 7)), [7, 5, 2]), {}, [LSTM])


def _highway(rec_dropout: float, swapped: list[type[nn.Module]]) -> Call:
    model = HighwayLSTM(
        5, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3, rec_dropout=rec_dropout,
        highway_func=torch.tanh,
    )  # fmt: skip
    return Call(model, (torch.randn(3, 7, 5), [7, 5, 2]), {}, swapped)


def stanza_highway() -> Call:
    """Returns a PackedSequence."""
    return _highway(0, [LSTM, LSTM])


def stanza_highway_cells() -> Call:
    """The same with recurrent dropout, a loop over cells whose batch shrinks and grows."""
    return _highway(0.3, [CELL, CELL, CELL, CELL])


def spiking_cell() -> Call:
    """As wide as its input: it resets states of another shape."""
    model = snntorch.SLSTM(6, 6, threshold=0.1, reset_mechanism="subtract", learn_threshold=True)
    return Call(model, (torch.randn(3, 6), torch.randn(3, 6), torch.randn(3, 6)), {}, [CELL])


def recurrent_policy() -> Call:
    """Reinforcement learning: actor and critic, the states reset where an episode starts; it samples its actions."""
    observations, actions = (gymnasium.spaces.Box(-1, 1, (size,), np.float32) for size in (4, 2))
    model = recurrent.RecurrentActorCriticPolicy(
        observations, actions, lambda _: 1e-3, net_arch=[8], lstm_hidden_size=6, n_lstm_layers=2
    )
    states = RNNStates(*((torch.randn(2, 3, 6), torch.randn(2, 3, 6)) for _ in range(2)))
    starts = torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    # It casts observations to float32.
    return Call(model, (torch.randn(12, 4), states, starts), {}, [LSTM, LSTM], double=False)


BUILDERS = (
    encodec,
    encodec_encoder,
    parakeet,
    jumping_knowledge,
    set2set,
    lstm_aggregation,
    stanza_tokenizer,
    stanza_character_model,
    stanza_highway,
    stanza_highway_cells,
    spiking_cell,
    recurrent_policy,
)
every_model = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def _build(build: Callable[[], Call], training: bool = True) -> Call:
    torch.manual_seed(1)
    call = build()
    call.model.train(training)
    if call.double:
        return call.to(torch.float64)
    return call


def _swapped(call: Call) -> Call:
    ours = torchlstm.swap(copy.deepcopy(call.model))
    assert [type(module) for module in ours.modules() if type(module) in (LSTM, CELL)] == call.swapped
    assert not any(isinstance(module, nn.LSTM | nn.LSTMCell) for module in ours.modules())
    return call._replace(model=ours)


def _observe(call: Call) -> dict[str, Tensor]:
    """Every output, and the gradient of every input and parameter, by name."""

    def leaf(value: Tensor) -> Tensor:
        return value.clone().requires_grad_(value.is_floating_point())

    args, kwargs = pytree.tree_map_only(Tensor, leaf, (call.args, call.kwargs))
    torch.manual_seed(2)
    outputs = [value for value in pytree.tree_leaves(call.model(*args, **kwargs)) if isinstance(value, Tensor)]
    torch.manual_seed(3)
    loss = sum((value * torch.randn_like(value)).sum() for value in outputs if value.requires_grad)
    loss.backward()
    seen = {f"output {index}": value.detach() for index, value in enumerate(outputs)}
    leaves = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    named = [(f"input {index}", value) for index, value in enumerate(leaves)] + list(call.model.named_parameters())
    return seen | {f"grad {name}": value.grad for name, value in named if value.grad is not None}


def _largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Over all tensors, in units of the largest element of each."""
    assert list(ours) == list(theirs)
    # A gradient that cancels out, as that of a bias before a softmax, is only rounding: its own size is no scale.
    least = CANCELLED * max(tensor.abs().max().item() for tensor in theirs.values())
    worst = 0.0
    for name, expected in theirs.items():
        mine = ours[name]
        assert (mine.dtype, mine.shape) == (expected.dtype, expected.shape), name
        assert expected.isfinite().all(), name
        assert mine.isfinite().all(), name
        worst = max(worst, (mine - expected).abs().max().item() / max(expected.abs().max().item(), least))
    return worst


@every_model
@every_mode
def test_outputs_and_gradients(build: Callable[[], Call], training: bool) -> None:
    call = _build(build, training)
    tolerance = DOUBLE_TOLERANCE if call.double else SINGLE_TOLERANCE
    # Copied before the first call: some models keep tensors of it that cannot be.
    swapped = _swapped(call)
    theirs, ours = _observe(call), _observe(swapped)
    assert any("weight_hh" in name for name in theirs)
    assert _largest_difference(ours, theirs) < tolerance


@every_model
def test_parity_check(build: Callable[[], Call]) -> None:
    """The package's own judge, in the model's own dtype."""
    torch.manual_seed(1)
    call = build()
    report = check(call.model, *call.args, **call.kwargs)
    assert report.passed, str(report)
    assert len(report.swapped) == len(call.swapped)
    assert not report.left_alone


@every_model
def test_swap_and_restore(build: Callable[[], Call]) -> None:
    """Restored, the model has its classes and its numbers again, to the bit."""
    call = _build(build)
    restored = torchlstm.restore(_swapped(call).model)
    assert [type(module) for module in restored.modules()] == [type(module) for module in call.model.modules()]
    assert _largest_difference(_observe(call._replace(model=restored)), _observe(call)) == 0


@every_model
def test_a_wrong_weight_is_caught(build: Callable[[], Call]) -> None:
    """The comparison bites: one weight of the swapped model off by 1e-3."""
    call = _build(build)
    ours = _swapped(call)
    with torch.no_grad():
        module = [module for module in ours.model.modules() if type(module) in (LSTM, CELL)][-1]
        next(parameter for name, parameter in module.named_parameters() if name.startswith("weight_hh"))[-1, 0] += 1e-3
    tolerance = DOUBLE_TOLERANCE if call.double else SINGLE_TOLERANCE
    assert _largest_difference(_observe(ours), _observe(call)) > tolerance
