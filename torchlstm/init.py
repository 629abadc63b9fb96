"""How an LSTM starts: forget-gate bias, orthogonal recurrent weights, chrono initialisation, a learned initial state.

The functions that end in _ change parameters in place and return the module.  They take torchlstm's LSTM and LSTMCell,
torch.nn's, cells of `torchlstm.cells` with four gates and stacks of them; also a model that contains some of these.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call.packing import batch_of
from .cells.gated import GatedCell
from .cells.norm import LayerNormLSTMCell
from .cells.stack import CellStack

Model = TypeVar("Model", bound=nn.Module)
_INPUT, _FORGET = 0, 1  # places of these gates along the 4H axis


@torch.no_grad()
def forget_bias_(module: Model, value: float) -> Model:
    """Set the bias of every forget gate (Gers et al. 2000; Jozefowicz et al. 2015: 1).

    value  what the two biases of an LSTM add up to: bias_ih gets it, bias_hh zero; the other gates keep theirs

    Raises ValueError where there is no LSTM with biases in the module.
    """
    for biases in _biases(module):
        for index, bias in enumerate(biases):
            bias.chunk(4)[_FORGET].fill_(0 if index else value)
    return module


@torch.no_grad()
def chrono_(module: Model, longest: float) -> Model:
    r"""Spread the memory of the units over time scales of 1 to `longest` steps (Tallec and Ollivier 2018, equation 16).

        b_f = \log u,   u uniform in [1, longest - 1]        b_i = -b_f

    longest  the longest dependency that is expected, in steps; at least 2

    The paper's b is the sum of the two biases of an LSTM; of the other gates it says nothing, and they keep theirs.
    Raises ValueError for a smaller `longest`, and where there is no LSTM with biases in the module.
    """
    if not longest >= 2:
        raise ValueError(f"longest must be at least 2 steps, got {longest}")
    for biases in _biases(module):
        drawn = torch.empty_like(biases[0].chunk(4)[_FORGET]).uniform_(1, longest - 1).log_()
        for index, bias in enumerate(biases):
            bias.chunk(4)[_FORGET].copy_(drawn if index == 0 else torch.zeros_like(drawn))
            bias.chunk(4)[_INPUT].copy_(-drawn if index == 0 else torch.zeros_like(drawn))
    return module


@torch.no_grad()
def orthogonal_(module: Model, gain: float = 1.0) -> Model:
    """Make the recurrent weights of every gate orthogonal, times a gain (Saxe et al. 2014).

    Each gate's part of weight_hh, (H, R), gets orthonormal columns: W^T W = gain^2 I, as R is at most H.
    Raises ValueError where there is no LSTM in the module.
    """
    for cell in _cells(module):
        for gate in cell["weight_hh"].chunk(4):
            if gate.dtype in (torch.float16, torch.bfloat16):
                gate.copy_(nn.init.orthogonal_(gate.float(), gain))  # torch has no QR in half precision
            else:
                nn.init.orthogonal_(gate, gain)
    return module


class LearnedState(nn.Module):
    """An LSTM, or a stack of cells, whose initial state is learned, one for all sequences.

    lstm     torchlstm.LSTM, torch.nn.LSTM, a `CellStack`, or any module called as they are
    sizes    the sizes of its states; by default those that the module is known to have

    It is called as the module is.  Without hx it starts from `initial`, parameters (L*D, size) that begin at zero;
    with hx from that.
    """

    def __init__(self, lstm: nn.Module, sizes: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if sizes is None:
            sizes = _state_sizes(lstm)
        count = int(lstm.num_layers) * (2 if lstm.bidirectional else 1)  # type: ignore[arg-type]
        like = next(lstm.parameters())
        self.lstm = lstm
        self.initial = nn.ParameterList(
            nn.Parameter(torch.zeros(count, size, dtype=like.dtype, device=like.device)) for size in sizes
        )

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """See the class."""
        return self.lstm(input, self.state(input) if hx is None else hx)

    def state(self, input: Tensor | PackedSequence) -> tuple[Tensor, ...]:
        """The learned state as an hx for this input: (L*D, B, size), or (L*D, size) for unbatched input."""
        if isinstance(input, PackedSequence):
            batch = batch_of(input, None)
        elif input.dim() == 2:
            return tuple(self.initial)
        else:
            batch = input.shape[0 if self.lstm.batch_first or input.layout == torch.jagged else 1]
        return tuple(tensor.unsqueeze(1).expand(-1, batch, -1) for tensor in self.initial)


def _state_sizes(lstm: nn.Module) -> tuple[int, ...]:
    if isinstance(lstm, CellStack):
        return lstm.state_sizes
    if isinstance(lstm, nn.RNNBase) and lstm.mode == "LSTM":
        return lstm.proj_size or lstm.hidden_size, lstm.hidden_size
    raise TypeError(f"the states of a {type(lstm).__name__} are not known: give their sizes")


def _cells(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The parameters weight_hh, bias_ih, bias_hh of every layer and direction in a module, as far as there are any."""
    found = False
    for part in module.modules():
        if isinstance(part, nn.RNNBase) and part.mode == "LSTM":
            suffixes = [
                f"_l{k}{way}" for k in range(part.num_layers) for way in ("", "_reverse")[: 1 + part.bidirectional]
            ]
        elif _is_lstm_cell(part):
            suffixes = [""]
        else:
            continue
        for suffix in suffixes:
            found = True
            named = {name: getattr(part, name + suffix, None) for name in ("weight_hh", "bias_ih", "bias_hh")}
            if isinstance(part, LayerNormLSTMCell):
                named["bias_ih"] = part.bias
            yield {name: tensor for name, tensor in named.items() if tensor is not None}
    if not found:
        raise ValueError(f"there is no LSTM in {type(module).__name__}")


def _is_lstm_cell(part: nn.Module) -> bool:
    if isinstance(part, nn.RNNCellBase):
        return int(part.weight_hh.shape[0]) == 4 * part.hidden_size
    return isinstance(part, LayerNormLSTMCell) or (isinstance(part, GatedCell) and part.gates == 4)


def _biases(module: nn.Module) -> list[list[Tensor]]:
    """The biases of every layer and direction, those whose sum counts together."""
    found = [[cell[name] for name in ("bias_ih", "bias_hh") if name in cell] for cell in _cells(module)]
    if not any(found):
        raise ValueError(f"the LSTM in {type(module).__name__} has no biases")
    return [biases for biases in found if biases]
