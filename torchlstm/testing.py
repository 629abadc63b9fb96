"""`check_cell`: tests that your own recurrent cell computes in a stack what it computes alone, gradients included."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .cells.stack import CellStack, State, stack_cells

_LENGTHS = [3, 5, 1]  # of the sequences of a batch; the longest is not the first
_STEPS, _BATCH = max(_LENGTHS), len(_LENGTHS)
_TOLERANCE = 1e-10  # in float64, of the largest element, or of 1 if that is smaller
FORMS = ("dense", "batch_first", "unbatched", "packed", "unsorted")


class _Case(NamedTuple):
    layers: int
    bidirectional: bool
    form: str
    hx: bool

    def __str__(self) -> str:
        directions = "two directions" if self.bidirectional else "one direction"
        return f"{self.layers} layers, {directions}, {self.form}, {'given' if self.hx else 'no'} hx"


def check_cell(cell_class: Callable[..., nn.Module], input_size: int = 4, hidden_size: int = 5, **options: Any) -> None:
    """Test your own cell, in float64 on the CPU.

    A stack of it must agree with a plain loop over one sequence at a time, to 1e-10, in the output, the final states
    and the gradients of the input, the initial states and every parameter: for one and two layers and directions, for
    dense, batch_first, unbatched and packed input, with and without hx, in eval mode.

    In training mode, where a cell may draw random numbers: the same seed gives the same results, the sequences of a
    batch are independent, and the gradients agree with finite differences. A cell that keeps something between calls,
    or writes into its state, also fails.

    Args:
        cell_class: The cell, as `stack_cells` takes it.
        input_size: Features of the input.
        hidden_size: Units of the state.
        **options: Arguments of the cell.

    Raises:
        AssertionError: The cell fails; the message says where.

    Examples:
        >>> import torch
        >>> from torchlstm.testing import check_cell
        >>> check_cell(torch.nn.LSTMCell)
    """
    name = getattr(cell_class, "__name__", str(cell_class))

    def build(layers: int, bidirectional: bool, batch_first: bool = False) -> CellStack:
        torch.manual_seed(5)
        stack = stack_cells(
            cell_class, input_size, hidden_size, layers, batch_first=batch_first, bidirectional=bidirectional, **options
        ).double()
        with torch.no_grad():
            for parameter in stack.parameters():
                # A parameter that starts at zero or one would hide an error.
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return stack

    with torch.random.fork_rng(devices=[]):
        _check_calls(name, build(1, False))
        for layers, bidirectional, form, hx in itertools.product((1, 2), (False, True), FORMS, (False, True)):
            stack = build(layers, bidirectional, form == "batch_first").eval()
            _check_case(name, stack, _Case(layers, bidirectional, form, hx))
        _check_training(name, build(1, True).train())


def _check_calls(name: str, stack: CellStack) -> None:
    """Test the protocol: shapes, dtypes, no state kept between calls, nothing overwritten."""
    stack.eval()
    x, hx = _draw(stack, _Case(1, False, "dense", True))
    given = [tensor.clone() for tensor in (x, *hx)]
    with torch.no_grad():
        first, second = (_flat(stack(x, hx)) for _ in range(2))
    for tensor, size in zip(first[1:], stack.state_sizes, strict=True):
        if tensor.shape[-1] != size:
            raise AssertionError(f"{name}: a state of size {size} became one of size {tensor.shape[-1]}")
    if not all(torch.equal(a, b) for a, b in zip(given, (x, *hx), strict=True)):
        raise AssertionError(f"{name} writes into its input or its state: compute new tensors")
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise AssertionError(f"{name}: in eval mode a second call gives another result: nothing may be kept or drawn")
    try:
        with torch.no_grad():
            single = _flat(stack.float()(x.float(), tuple(tensor.float() for tensor in hx)))
    except RuntimeError as error:
        raise AssertionError(f"{name} fails when input, state and parameters are float32: {error}") from error
    if dtypes := {tensor.dtype for tensor in single} - {torch.float32}:
        raise AssertionError(f"{name}: from float32 came {', '.join(map(str, dtypes))}")


def _check_case(name: str, stack: CellStack, case: _Case) -> None:
    """The stack against a loop over the cell, one sequence after the other."""
    x, hx = _draw(stack, case)
    leaves = [x, *hx] if case.hx else [x]
    named = {"input": x, **{f"hx[{index}]": tensor for index, tensor in enumerate(leaves[1:])}}
    named |= dict(stack.named_parameters())
    for leaf in leaves:
        leaf.requires_grad_()
    found = _flat(stack(_form(x, case.form), hx if case.hx else None))
    expected = _flat_alone(stack, x, hx, case)
    results = ["output", *(f"state {index}" for index in range(len(hx)))]
    for what, ours, truth in zip(results, found, expected, strict=True):
        _compare(name, case, what, ours, truth)
    # Cotangents on all results: a loss on the output alone would miss a wrong gradient of a final state.
    cotangents = [torch.randn_like(tensor) for tensor in expected]
    gradients = [
        torch.autograd.grad(tensors, list(named.values()), cotangents, allow_unused=True)
        for tensors in (found, expected)
    ]
    for what, ours, truth in zip(named, *gradients, strict=True):
        _compare(name, case, f"the gradient of {what}", ours, truth)


def _check_training(name: str, stack: CellStack) -> None:
    """Test training mode under one seed: repeatable results, independent rows, gradients of finite differences."""
    x, hx = _draw(stack, _Case(1, True, "dense", True))

    def run(x: Tensor, *hx: Tensor) -> list[Tensor]:
        torch.manual_seed(7)
        return _flat(stack(x, hx))

    if not all(torch.equal(a, b) for a, b in zip(run(x, *hx), run(x, *hx), strict=True)):
        raise AssertionError(f"{name}: in training mode the same seed gives other results at a second call")
    x.requires_grad_()
    loss = torch.stack([tensor[:, 0].sum() for tensor in run(x, *hx)]).sum()
    (dx,) = torch.autograd.grad(loss, x)
    if dx[:, 1:].any():
        raise AssertionError(f"{name}: what becomes of a sequence depends on other sequences of the batch")
    for tensor in hx:
        tensor.requires_grad_()
    parameters = dict(stack.named_parameters())

    def function(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(7)
        weights = dict(zip(parameters, tensors[len(hx) :], strict=True))
        return tuple(_flat(torch.func.functional_call(stack, weights, (_form(x, "unsorted"), tensors[: len(hx)]))))

    try:
        torch.autograd.gradcheck(function, (x, *hx, *parameters.values()), fast_mode=True)
    except RuntimeError as error:
        raise AssertionError(f"{name}: gradients differ from finite differences: {error}") from error


def _draw(stack: CellStack, case: _Case) -> tuple[Tensor, State]:
    """A padded batch (T, B, I), or one sequence (T, I), and states for it."""
    batch = () if case.form == "unbatched" else (_BATCH,)
    count = case.layers * stack.directions
    x = torch.randn(_STEPS, *batch, stack.input_size, dtype=torch.float64)
    return x, tuple(torch.randn(count, *batch, size, dtype=torch.float64) for size in stack.state_sizes)


def _form(x: Tensor, form: str) -> Any:
    """The padded batch in the form that is tested."""
    if form == "batch_first":
        return x.transpose(0, 1)
    if form == "packed":
        return pack_padded_sequence(x, torch.tensor(sorted(_LENGTHS, reverse=True)))
    if form == "unsorted":
        return pack_padded_sequence(x, torch.tensor(_LENGTHS), enforce_sorted=False)
    return x


def _flat(result: tuple[Any, State]) -> list[Tensor]:
    """Output and states as dense tensors in a row."""
    output, states = result
    return [pad_packed_sequence(output)[0] if isinstance(output, PackedSequence) else output, *states]


def _flat_alone(stack: CellStack, x: Tensor, hx: State, case: _Case) -> list[Tensor]:
    """The values that `_flat` should return, from a loop over one sequence, one layer and one direction at a time."""
    unbatched = case.form == "unbatched"
    lengths = {"packed": sorted(_LENGTHS, reverse=True), "unsorted": _LENGTHS}.get(case.form, [_STEPS] * _BATCH)
    outputs, ends = [], []
    for b in range(1 if unbatched else _BATCH):
        y = x if unbatched else x[: lengths[b], b]
        before = [tensor.unsqueeze(1) if unbatched else tensor[:, b : b + 1] for tensor in hx]
        if not case.hx:
            before = [torch.zeros_like(tensor) for tensor in before]
        after = []
        for k in range(case.layers):
            sides = []
            for d, cell in enumerate(stack.layer_cells(k)):
                state = tuple(tensor[k * stack.directions + d] for tensor in before)
                side, end = _one_sequence(cell, y, state, reverse=d == 1)
                sides.append(side)
                after.append(end)
            y = torch.cat(sides, dim=-1)
        outputs.append(y if unbatched else torch.cat([y, y.new_zeros(_STEPS - len(y), y.shape[1])]))
        ends.append([torch.stack(tensors) for tensors in zip(*after, strict=True)])  # of (L*D, 1, size)
    if unbatched:
        return [outputs[0], *(tensor.squeeze(1) for tensor in ends[0])]
    output = torch.stack(outputs, dim=0 if case.form == "batch_first" else 1)
    return [output, *(torch.cat(tensors, dim=1) for tensors in zip(*ends, strict=True))]


def _one_sequence(cell: Any, x: Tensor, state: State, reverse: bool) -> tuple[Tensor, Sequence[Tensor]]:
    """A cell alone: x (T, I), state tensors (1, size) -> y (T, R), state."""
    constants = cell.constants(state) if hasattr(cell, "constants") else ()
    y: list[Tensor] = []
    steps: Iterator[Tensor] = reversed(x.split(1)) if reverse else iter(x.split(1))
    for row in steps:
        state = tuple(cell(cell.input_part(row) if hasattr(cell, "input_part") else row, (*state, *constants)))
        y.append(state[0])
    return torch.cat(y[::-1] if reverse else y), state


def _compare(name: str, case: _Case, what: str, ours: Tensor | None, truth: Tensor | None) -> None:
    if ours is None or truth is None:
        # A missing gradient counts as zero.
        ours, truth = (torch.zeros(()) if tensor is None else tensor for tensor in (ours, truth))
    elif ours.shape != truth.shape:
        raise AssertionError(f"{name} ({case}): {what} has shape {tuple(ours.shape)}, alone {tuple(truth.shape)}")
    error, bound = (ours - truth).abs().max().item(), _TOLERANCE * max(1.0, truth.abs().max().item())
    if not error <= bound:
        raise AssertionError(f"{name} ({case}): {what} differs from a loop over single sequences by {error:.1e}")
