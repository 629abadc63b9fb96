"""A loop over the samples, one backward for each: what per-sample gradients are compared with."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import torchlstm

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
LENGTHS = [3, 6, 1, 6]  # of a ragged batch
BATCH, STEPS = len(LENGTHS), max(LENGTHS)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias": {"bias": False, "batch_first": True},
    "projected": {"proj_size": 2},
    "bidirectional": {"bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.4, "batch_first": True},
    "everything": {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "proj_size": 2},
}
RESULTS = ("output", "h_n", "c_n")
FORMS = ("dense", "states", "packed", "packed-states", "packed-equal", "unbatched")


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, dtype=dtype, **OPTIONS[name])


def draw(module: nn.LSTM, form: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Input and states."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, STEPS, 3, dtype=dtype, generator=generator)
    layers = module.num_layers * (1 + module.bidirectional)
    sizes = (module.proj_size or 4, 4)
    hx = tuple(torch.randn(layers, BATCH, size, dtype=dtype, generator=generator) for size in sizes)
    if form == "unbatched":
        return x[0], tuple(state[:, 0] for state in hx)
    input: Any = x if module.batch_first else x.transpose(0, 1)
    if form.startswith("packed"):
        lengths = [STEPS] * BATCH if form == "packed-equal" else LENGTHS
        input = pack_padded_sequence(input, torch.tensor(lengths), module.batch_first, enforce_sorted=False)
        if form == "packed-equal":  # in any order: torch sorts as it likes
            order = torch.tensor([2, 0, 3, 1])
            input = PackedSequence(input.data, input.batch_sizes, order, order.argsort())
    return input, hx if "states" in form else None


def losses(module: nn.LSTM, result: Any, used: Sequence[str]) -> Tensor:
    """A random linear function of each sample's results (B,)."""
    output, (h_n, c_n) = result
    if isinstance(output, PackedSequence):
        output, _ = pad_packed_sequence(output, module.batch_first, total_length=STEPS)
    batch_axes = {"output": 0 if module.batch_first else 1, "h_n": 1, "c_n": 1}
    generator, total = torch.Generator().manual_seed(2), torch.zeros(())
    for name, tensor in (("output", output), ("h_n", h_n), ("c_n", c_n)):
        if output.dim() == 2:
            tensor = tensor.unsqueeze(batch_axes[name])
        weighted = tensor * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
        if name in used:
            total = total + weighted.movedim(batch_axes[name], 0).flatten(1).sum(1)
    return total


def loop(theirs: nn.LSTM, input: Any, hx: Any, used: Sequence[str]) -> dict[str, Tensor]:
    """By nn.LSTM, one backward for each sample; under one seed, so that all see one mask."""
    found: dict[str, list[Tensor]] = {name: [] for name, weight in theirs.named_parameters() if weight.requires_grad}
    for sample in range(1 if hx is not None and hx[0].dim() == 2 else BATCH):
        torch.manual_seed(3)
        loss = losses(theirs, theirs(input, hx), used)[sample]
        weights = [weight for weight in theirs.parameters() if weight.requires_grad]
        for name, gradient in zip(found, torch.autograd.grad(loss, weights), strict=True):
            found[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def ours_of(theirs: nn.LSTM) -> torchlstm.LSTM:
    return torchlstm.swap(copy.deepcopy(theirs))
