"""LSTM.trace: the states and gates of every step, judged with all gradients by a plain loop over rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm
from torchlstm.trace import States, Trace

ENGINES = [name for name, missing in torchlstm.engines().items() if missing is None]
NAMES = States._fields


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    with torchlstm.use_engine(request.param):
        yield request.param


def plain_loop(module: torchlstm.LSTM, x: Tensor, sizes: list[int], h_0: Tensor, c_0: Tensor) -> list[Tensor]:
    """Output (P, D*R), h_n, c_n, then `NAMES` (P, ..) of each layer and direction: one row after another."""
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    h_n, c_n, every = [], [], []
    for k in range(module.num_layers):
        if k > 0 and module.dropout:
            x = torch.dropout(x, module.dropout, True)
        outputs = []
        for d in range(1 + module.bidirectional):
            suffix = f"_l{k}" + "_reverse" * d
            w_ih, w_hh, b_ih, b_hh, w_hr = (
                getattr(module, name + suffix, None)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            h, c = list(h_0[len(h_n)]), list(c_0[len(h_n)])
            rows: dict[str, list[Any]] = {name: [None] * len(x) for name in NAMES}
            for t in range(len(sizes))[:: -1 if d else 1]:
                for b in range(sizes[t]):
                    row = starts[t] + b
                    gates = w_ih @ x[row] + w_hh @ h[b] + (0 if b_ih is None else b_ih + b_hh)
                    i, f, g, o = gates.chunk(4)
                    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
                    c[b] = f * c[b] + i * g
                    h[b] = o * c[b].tanh() if w_hr is None else w_hr @ (o * c[b].tanh())
                    for name, value in zip(NAMES, (h[b], c[b], i, f, g, o), strict=True):
                        rows[name][row] = value
            every += [torch.stack(values) for values in rows.values()]
            outputs.append(torch.stack(rows["h"]))
            h_n.append(torch.stack(h))
            c_n.append(torch.stack(c))
        x = torch.cat(outputs, -1)
    return [x, torch.stack(h_n), torch.stack(c_n), *every]


def in_rows(value: Any, batch_first: bool) -> Tensor:
    """What the module gave, in its input's form, as packed rows."""
    if isinstance(value, PackedSequence):
        return value.data
    if value.dim() == 2:
        return value
    return (value.transpose(0, 1) if batch_first else value).flatten(0, 1)


def flat(found: Trace, batch_first: bool = False) -> list[Tensor]:
    """Every tensor of a trace, in the order of `plain_loop`."""
    values = [value for layer in found.layers for direction in layer for value in direction]
    return [in_rows(found.output, batch_first), *found.state, *(in_rows(value, batch_first) for value in values)]


T, B, LENGTHS = 5, 3, [2, 5, 3]
FORMS = ("dense", "batch-first", "unbatched", "ragged", "equal")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias-bidirectional": {"bias": False, "bidirectional": True},
    "projected": {"proj_size": 3, "bidirectional": True},
    "two-layers-dropout": {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "proj_size": 2},
}


def build(form: str, dtype: torch.dtype = torch.float64, **options: Any) -> torchlstm.LSTM:
    torch.manual_seed(0)
    return torchlstm.LSTM(4, 6, batch_first=form == "batch-first", dtype=dtype, **options)


def draw(module: torchlstm.LSTM, form: str) -> tuple[Tensor, Callable[[Tensor], Any], Tensor, Tensor]:
    """Random input, what makes the call's argument of it, and states, as leaves."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(module.weight_ih_l0.dtype)

    batch = () if form == "unbatched" else (B,)
    shape = (B, T) if form == "batch-first" else (T, *batch)
    lengths = torch.tensor(LENGTHS if form == "ragged" else [T] * B)
    count = module.num_layers * (1 + module.bidirectional)
    leaves = randn(*shape, 4), randn(count, *batch, module.proj_size or 6), randn(count, *batch, 6)
    x, h_0, c_0 = (leaf.requires_grad_() for leaf in leaves)

    def argument(x: Tensor) -> Any:
        return pack_padded_sequence(x, lengths, enforce_sorted=False) if form in ("ragged", "equal") else x

    return x, argument, h_0, c_0


def cotangents(like: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in like]


def judged(module: torchlstm.LSTM, form: str) -> list[Tensor]:
    """The values of `flat` and all gradients, by the plain loop in float64."""
    x, argument, h_0, c_0 = draw(module, form)
    input = argument(x)
    sizes = input.batch_sizes.tolist() if isinstance(input, PackedSequence) else [1 if x.dim() == 2 else B] * T
    h, c = (state.unsqueeze(1) if x.dim() == 2 else state for state in (h_0, c_0))
    if isinstance(input, PackedSequence):
        h, c = h[:, input.sorted_indices], c[:, input.sorted_indices]
    torch.manual_seed(3)
    values = plain_loop(module, in_rows(input, module.batch_first), sizes, h, c)
    for index in (1, 2):
        if isinstance(input, PackedSequence):
            values[index] = values[index][:, input.unsorted_indices]
        elif x.dim() == 2:
            values[index] = values[index].squeeze(1)
    return values + list(torch.autograd.grad(values, [x, h_0, c_0, *module.parameters()], cotangents(values)))


def traced(module: torchlstm.LSTM, form: str) -> list[Tensor]:
    x, argument, h_0, c_0 = draw(module, form)
    torch.manual_seed(3)
    values = flat(module.trace(argument(x), (h_0, c_0)), module.batch_first)
    return values + list(torch.autograd.grad(values, [x, h_0, c_0, *module.parameters()], cotangents(values)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients(options: dict[str, Any], form: str, engine: str) -> None:
    module = build(form, **options)
    torch.testing.assert_close(traced(module, form), judged(module, form), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_of_smaller_dtypes(dtype: torch.dtype, engine: str) -> None:
    module = build("ragged", dtype, bidirectional=True)
    found = traced(module, "ragged")
    assert {tensor.dtype for tensor in found} == {dtype}
    expected = judged(module.double(), "ragged")
    bound = 1e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).abs().max() <= bound * max(1.0, b.abs().max().item())
