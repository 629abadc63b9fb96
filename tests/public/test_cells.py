"""Every cell against a plain loop over its paper's equations, one sequence at a time, gradients included."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchlstm
from torchlstm import cells
from torchlstm.testing import check_cell

pytestmark = pytest.mark.usefixtures("one_thread")

F, H, LENGTHS = 4, 5, [2, 4, 3]
T, B = max(LENGTHS), len(LENGTHS)
sigmoid, tanh = torch.sigmoid, torch.tanh


def affine(cell: Any, gates: str, x: Tensor, h: Tensor) -> list[Tensor]:
    """W x + b + R h + b of every gate, by its own matrix."""
    sums = []
    for index in range(len(gates)):
        rows = slice(index * H, (index + 1) * H)
        total = cell.weight_ih[rows] @ x + cell.weight_hh[rows] @ h
        if cell.bias_ih is not None:
            total = total + cell.bias_ih[rows] + cell.bias_hh[rows]
        sums.append(total)
    return sums


def clip(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else torch.where(x > bound, bound, torch.where(x < -bound, -bound, x))


def lstm(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    i, f, g, o = affine(cell, "ifgo", x, h)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def peephole(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Gers, Schraudolph and Schmidhuber 2002, with the squashing of the output of Greff et al. 2017."""
    i, f, g, o = affine(cell, "ifgo", x, h)
    new = sigmoid(f + cell.weight_pf * c) * c + sigmoid(i + cell.weight_pi * c) * tanh(g)
    return sigmoid(o + cell.weight_po * new) * tanh(new), new


def coupled(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Greff et al. 2017, CIFG."""
    i, g, o = affine(cell, "igo", x, h)
    c = (1 - sigmoid(i)) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def clipped(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Sak et al. 2014: the cell is clipped, then read, projected, and clipped again."""
    i, f, g, o = affine(cell, "ifgo", x, h)
    c = clip(sigmoid(f) * c + sigmoid(i) * tanh(g), cell.cell_clip)
    m = sigmoid(o) * tanh(c)
    return clip(m if cell.weight_hr is None else cell.weight_hr @ m, cell.hidden_clip), c


def zoneout(cell: Any, x: Tensor, h: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor, Tensor]:
    """Krueger et al. 2017, section 3: h is made of the cell state as it is before it is held."""
    i, f, g, o = affine(cell, "ifgo", x, h)
    new = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return d_h * h + (1 - d_h) * sigmoid(o) * tanh(new), d_c * c + (1 - d_c) * new


def variational(cell: Any, x: Tensor, h: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gal and Ghahramani 2016, equation 7 (tied weights), the recurrent part."""
    return lstm(cell, x, h * mask, c)


def recurrent_dropout(cell: Any, x: Tensor, h: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Semeniuta et al. 2016, equation 5."""
    i, f, g, o = affine(cell, "ifgo", x, h)
    c = sigmoid(f) * c + sigmoid(i) * (mask * tanh(g))
    return sigmoid(o) * tanh(c), c


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Ba et al. 2016, equation 4, with the usual epsilon."""
    mean = x.sum() / x.numel()
    x = (x - mean) / ((x - mean).square().sum() / x.numel() + layer.eps).sqrt() * layer.weight
    return x if layer.bias is None else x + layer.bias


def ba2016(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Ba et al. 2016, equations 20 to 22."""
    sums = norm(cell.norm_h, cell.weight_hh @ h) + norm(cell.norm_x, cell.weight_ih @ x)
    i, f, g, o = (sums if cell.bias is None else sums + cell.bias).split(H)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(norm(cell.norm_c, c)), c


def fastrnns(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    i, f, g, o = (norm(cell.norm_x, cell.weight_ih @ x) + norm(cell.norm_h, cell.weight_hh @ h)).split(H)
    c = norm(cell.norm_c, sigmoid(f) * c + sigmoid(i) * tanh(g))
    return sigmoid(o) * tanh(c), c


def rnnt(cell: Any, x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    i, f, g, o = norm(cell.norm_gates, cell.weight_ih @ x + cell.weight_hh @ h).split(H)
    c = norm(cell.norm_c, sigmoid(f) * c + sigmoid(i) * tanh(g))
    return sigmoid(o) * tanh(c), c


def zoneout_masks(n: int) -> tuple[Tensor, ...]:
    return tuple((torch.rand(n, H, dtype=torch.float64) < rate).double() for rate in (0.3, 0.4))


def zoneout_means(n: int) -> tuple[Tensor, ...]:
    return tuple(torch.full((n, H), rate, dtype=torch.float64) for rate in (0.3, 0.4))


def mask(n: int) -> tuple[Tensor, ...]:
    return (dropout(torch.ones(n, H, dtype=torch.float64), 0.4),)


class Setup(NamedTuple):
    """A stack, its equations, and the noise that they take."""

    stack: type[cells.CellStack]
    equations: Callable[..., tuple[Tensor, Tensor]]
    options: Mapping[str, Any] = MappingProxyType({})
    training: bool = True
    each_step: Callable[[int], tuple[Tensor, ...]] | None = None
    each_sequence: Callable[[int], tuple[Tensor, ...]] | None = None


ZONEOUT = {"zoneout_h": 0.3, "zoneout_c": 0.4}
RATE = {"recurrent_dropout": 0.4}
SETUPS = {
    "peephole": Setup(cells.PeepholeLSTM, peephole),
    "peephole-nobias": Setup(cells.PeepholeLSTM, peephole, {"bias": False}),
    "coupled": Setup(cells.CoupledLSTM, coupled),
    "coupled-nobias": Setup(cells.CoupledLSTM, coupled, {"bias": False}),
    "clipped": Setup(cells.ClippedLSTM, clipped, {"cell_clip": 0.4, "hidden_clip": 0.1, "proj_size": 3}),
    "clipped-cell": Setup(cells.ClippedLSTM, clipped, {"cell_clip": 0.4}),
    "clipped-hidden-nobias": Setup(cells.ClippedLSTM, clipped, {"hidden_clip": 0.1, "bias": False}),
    "not-clipped": Setup(cells.ClippedLSTM, clipped, {"proj_size": 3}),
    "ba2016": Setup(cells.LayerNormLSTM, ba2016),
    "ba2016-nobias": Setup(cells.LayerNormLSTM, ba2016, {"bias": False, "eps": 1e-2}),
    "fastrnns": Setup(cells.LayerNormLSTM, fastrnns, {"form": "fastrnns"}),
    "rnnt": Setup(cells.LayerNormLSTM, rnnt, {"form": "rnnt"}),
    "rnnt-nobias": Setup(cells.LayerNormLSTM, rnnt, {"form": "rnnt", "bias": False}),
    "zoneout": Setup(cells.ZoneoutLSTM, zoneout, ZONEOUT, each_step=zoneout_masks),
    "zoneout-eval": Setup(cells.ZoneoutLSTM, zoneout, ZONEOUT, training=False, each_step=zoneout_means),
    "zoneout-0": Setup(cells.ZoneoutLSTM, lstm, {"zoneout_h": 0, "zoneout_c": 0}),
    "variational": Setup(cells.VariationalLSTM, variational, RATE, each_sequence=mask),
    "variational-eval": Setup(cells.VariationalLSTM, lstm, RATE, training=False),
    "recurrent": Setup(cells.RecurrentDropoutLSTM, recurrent_dropout, RATE, each_step=mask),
    "recurrent-per-sequence": Setup(
        cells.RecurrentDropoutLSTM, recurrent_dropout, {"per_sequence": True, **RATE}, each_sequence=mask
    ),
    "recurrent-eval": Setup(cells.RecurrentDropoutLSTM, lstm, RATE, training=False),
}  # fmt: skip


def loop(stack: Any, setup: Setup, x: Tensor, lengths: list[int], hx: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Output (T, B, D*R) and states of padded sequences (T, B, F) that are sorted by falling length."""
    alive = [sum(length > t for length in lengths) for t in range(T)]
    ends: list[list[tuple[Tensor, Tensor]]] = []
    for k in range(stack.num_layers):
        sides = []
        for d, cell in enumerate(stack.layer_cells(k)):
            order = range(T) if d == 0 else range(T - 1, -1, -1)
            # The noise in the order in which a batch draws it.
            once = setup.each_sequence(B) if setup.each_sequence else ()
            noise = {t: setup.each_step(alive[t]) if setup.each_step else () for t in order}
            y, last = torch.zeros(T, B, stack.state_sizes[0], dtype=x.dtype), []
            for b, length in enumerate(lengths):
                h, c = (state[k * stack.directions + d, b] for state in hx)
                for t in order:
                    if t < length:
                        drawn = [*(each[b] for each in once), *(each[b] for each in noise[t])]
                        h, c = setup.equations(cell, x[t, b], h, c, *drawn)
                        y = y.index_put((torch.tensor(t), torch.tensor(b)), h)
                last.append((h, c))
            sides.append(y)
            ends.append(last)
        x = torch.cat(sides, dim=-1)
    return [x, *(torch.stack([torch.stack([end[s] for end in last]) for last in ends]) for s in (0, 1))]


def build(setup: Setup, layers: int, bidirectional: bool) -> Any:
    torch.manual_seed(2)
    stack = setup.stack(F, H, layers, bidirectional=bidirectional, dtype=torch.float64, **setup.options)
    for parameter in stack.parameters():
        # Gains of one and shifts of zero hide what they do, small weights hide the recurrence.
        parameter.data += 0.4 * torch.randn_like(parameter)
    return stack.train(setup.training)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("name", SETUPS)
def test_equations(name: str, bidirectional: bool, packed: bool) -> None:
    setup = SETUPS[name]
    stack = build(setup, 2, bidirectional)
    lengths = sorted(LENGTHS, reverse=True) if packed else [T] * B
    x = torch.randn(T, B, F, dtype=torch.float64)
    if packed:
        for b, length in enumerate(lengths):
            x[length:, b] = 0
    count = 2 * stack.directions
    hx = tuple(torch.randn(count, B, size, dtype=torch.float64, requires_grad=True) for size in stack.state_sizes)
    x.requires_grad_()
    torch.manual_seed(3)
    output, states = stack(pack_padded_sequence(x, torch.tensor(lengths)) if packed else x, hx)
    found = [pad_packed_sequence(output)[0] if packed else output, *states]
    torch.manual_seed(3)
    expected = loop(stack, setup, x, lengths, hx)
    cotangents = [torch.randn_like(tensor) for tensor in expected]
    leaves = [x, *hx, *stack.parameters()]
    found += torch.autograd.grad(found, leaves, cotangents)
    expected += torch.autograd.grad(expected, leaves, cotangents)
    assert all(tensor.abs().max() > 0 for tensor in expected)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SETUPS)
def test_float32(name: str) -> None:
    """The noise is not that of float64: only what draws none can be compared."""
    setup = SETUPS[name]
    stack, x = build(setup, 2, True).eval(), torch.randn(T, B, F, dtype=torch.float64)
    wide = [tensor.float() for tensor in (lambda output, states: (output, *states))(*stack(x))]
    single = (lambda output, states: [output, *states])(*stack.float()(x.float()))
    torch.testing.assert_close(single, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in SETUPS if name not in ("zoneout-eval", "variational-eval", "recurrent-eval")]
)
def test_check_cell(name: str) -> None:
    setup = SETUPS[name]
    cell = getattr(cells, setup.stack.__name__ + "Cell")
    check_cell(cell, **setup.options)


def test_held_and_dropped_units_are_as_many_as_asked_for() -> None:
    """And the expectation of zoneout in training is what eval mode computes."""
    batch = 20_000
    stack = cells.ZoneoutLSTM(F, H, **ZONEOUT)
    x, hx = torch.randn(1, 1, F).expand(1, batch, F), tuple(torch.randn(1, 1, H).expand(1, batch, H) for _ in "hc")
    with torch.no_grad():
        _, after = stack(x, hx)
        _, expected = stack.eval()(x, hx)
        for rate, old, new, mean in zip(ZONEOUT.values(), hx, after, expected, strict=True):
            assert (new == old).double().mean().item() == pytest.approx(rate, abs=0.01)
            torch.testing.assert_close(new.mean(1), mean[:, 0], rtol=0, atol=0.02)
    drop = cells.VariationalLSTMCell(F, H, recurrent_dropout=0.4)
    (mask,) = drop.constants((torch.zeros(batch, H),) * 2)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert (mask == 0).double().mean().item() == pytest.approx(0.4, abs=0.01)


def test_weight_drop() -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "dtype": torch.float64}
    torch.manual_seed(1)
    module = cells.WeightDropLSTM(F, H, weight_dropout=0.4, **options)
    torch.manual_seed(1)
    plain = nn.LSTM(F, H, **options)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    assert list(module.state_dict()) == list(plain.state_dict())
    x = torch.randn(T, B, F, dtype=torch.float64, requires_grad=True)
    results = []
    for training in (True, False):
        torch.manual_seed(4)
        output, states = module.train(training)(x)
        tensors = [output, *states]
        torch.manual_seed(4)
        dropped = {
            name: dropout(weight, 0.4, training) if "weight_hh" in name else weight
            for name, weight in module.named_parameters()
        }
        output, states = torch.func.functional_call(plain, dropped, (x,))
        expected = [output, *states]
        cotangents = [torch.randn_like(tensor) for tensor in tensors]
        leaves = [x, *module.parameters()]
        tensors += torch.autograd.grad(tensors, leaves, cotangents)
        expected += torch.autograd.grad(expected, leaves, cotangents)
        torch.testing.assert_close(tensors, expected, rtol=1e-10, atol=1e-10)
        results.append(tensors[0])
    assert not torch.equal(*results)
    if not torchlstm.engines()["cpu"]:
        assert [decision.engine for decision in torchlstm.explain(module, x).decisions] == ["cpu", "cpu"]
    assert "weight_dropout=0.4" in repr(module)


def test_ready_stacks_are_classes_of_their_own() -> None:
    stack = torchlstm.LayerNormLSTM(4, 5, 2, batch_first=True, form="rnnt")
    assert isinstance(stack, cells.CellStack)
    assert repr(stack).startswith("LayerNormLSTM(\n  4, 5, num_layers=2, batch_first=True\n")
    assert "form='rnnt'" in repr(stack)
    norms = torchlstm.LayerNormLSTM(4, 5, 2, eps=0.25).modules()
    assert [module.eps for module in norms if isinstance(module, nn.LayerNorm)] == [0.25] * 6
    for form in ("ba2016", "fastrnns", "rnnt"):
        assert not any("bias" in name for name in torchlstm.LayerNormLSTM(4, 5, bias=False, form=form).state_dict())
    assert cells.VariationalLSTM(4, 5).variational
    assert not cells.VariationalLSTM(4, 5, variational=False).variational


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "zoneout": (lambda: cells.ZoneoutLSTM(4, 5, zoneout_h=-0.1), r"zoneout_h .* \[0, 1\], got -0.1"),
    "recurrent": (lambda: cells.RecurrentDropoutLSTM(4, 5, recurrent_dropout=2), r"recurrent_dropout .* got 2"),
    "variational": (lambda: cells.VariationalLSTM(4, 5, recurrent_dropout=2), r"recurrent_dropout .* got 2"),
    "weights": (lambda: cells.WeightDropLSTM(4, 5, weight_dropout=-1), r"weight_dropout .* got -1"),
    "clip": (lambda: cells.ClippedLSTM(4, 5, cell_clip=0.0), r"cell_clip must be greater than zero or None, got 0\.0"),
    "form": (lambda: cells.LayerNormLSTM(4, 5, form="both"), "form must be one of ba2016, fastrnns, rnnt, got 'both'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
