"""`stack_cells`: layers, directions and every form of input around a recurrent cell of anyone's own."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..call.checks import check_stack_states
from ..call.dispatch import layer
from ..call.packing import pack, pack_states, unpack, unpack_state
from ..call.plan import plan_stack
from ..call.precision import autocasts
from ..engines.contract import Dense, Rows, Weights, problem_of
from ..engines.reference.loop import time_loop
from ..engines.shared.threads import mend_fork
from .scripted import scripted_loop

State: TypeAlias = tuple[Tensor, ...]


class CellStack(nn.Module):
    """Layers and directions of one kind of cell, called as torch.nn.LSTM is; `stack_cells` makes one and says how.

    The cells are `cells`, those of a layer side by side: `cells[k * D + d]` is layer k, direction d.
    """

    def __init__(
        self,
        cell_class: Callable[..., nn.Module],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        variational: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int greater than zero, got {value!r}")
        check_rate("dropout", dropout)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout is applied between layers, so dropout={dropout} with num_layers=1 does nothing", stacklevel=2
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.bias, self.variational = bias, variational
        if not bias:
            options["bias"] = False
        cells, features = [], input_size
        for _ in range(num_layers):
            cells += [cell_class(features, hidden_size, **options) for _ in range(self.directions)]
            features = self.directions * _state_sizes(cells[-1], hidden_size)[0]
        self.cells = nn.ModuleList(cells)
        self.state_sizes = _state_sizes(cells[0], hidden_size)
        self.to(device=device, dtype=dtype)

    @property
    def directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def forward(self, input: Tensor | PackedSequence, hx: Sequence[Tensor] | None = None) -> tuple[Any, State]:
        """See `stack_cells`."""
        mend_fork()
        plan = plan_stack(self, input, hx)
        state = None if hx is None else tuple(hx)
        packed = pack(plan, input, state)
        x, rows = packed.data, packed.rows
        if rows.steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if state is not None:
            check_stack_states(plan.sizes, plan.states, () if plan.unbatched else (packed.batch,), state)
        before = pack_states(plan, packed, state)
        after = []
        for k in range(self.num_layers):
            if k > 0 and self.dropout and self.training:
                x = _drop(x, rows, packed.batch, self.dropout, self.variational)
            start = k * self.directions
            x, ends = self._layer(k, x, rows, [tensor[start : start + self.directions] for tensor in before])
            after.append(ends)
        states = tuple(unpack_state(plan, packed, torch.cat(ends)) for ends in zip(*after, strict=True))
        return unpack(plan, packed, x), states

    def layer_cells(self, k: int) -> list[nn.Module]:
        """The cells of layer k, one a direction."""
        return [self.cells[k * self.directions + d] for d in range(self.directions)]

    def as_lstm(self, k: int) -> tuple[Weights, ...] | None:
        """The weights of a plain LSTM that computes layer k as it is now, or None."""
        weights: list[Weights] = []
        for cell in self.layer_cells(k):
            as_lstm: Callable[[], Weights | None] | None = getattr(cell, "as_lstm", None)
            lstm_weights = None if as_lstm is None else as_lstm()
            if lstm_weights is None:
                return None
            weights.append(lstm_weights)
        return tuple(weights)

    def _layer(self, k: int, x: Tensor, rows: Rows, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Layer k: x (P, I), state tensors (D, B, size) -> y (P, D*R), state."""
        # Under autocast torch chooses a dtype for every operation of a loop, and no engine would do the same.
        weights = None if autocasts(x) else self.as_lstm(k)
        if weights is not None:
            problem = problem_of(x, state[0], weights, rows)._replace(cell=True)
            y, h_n, c_n = layer(problem, x, state[0], state[1], weights)
            return y, [h_n, c_n]
        results = [
            _run(cell, x, rows, [tensor[d] for tensor in state], reverse=d == 1)
            for d, cell in enumerate(self.layer_cells(k))
        ]
        # `stack` copies: the final states must not share memory with the output.
        ends = [torch.stack(tensors) for tensors in zip(*(end for _, end in results), strict=True)]
        return torch.cat([y for y, _ in results], dim=-1), ends

    def extra_repr(self) -> str:
        """As nn.LSTM's: the sizes, and what is not the default."""
        shown = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0), ("bidirectional", False),
            ("variational", False),
        ):  # fmt: skip
            if (value := getattr(self, name)) != default:
                shown += f", {name}={value}"
        return shown


def stack_cells(
    cell_class: Callable[..., nn.Module],
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    variational: bool = False,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> CellStack:
    """Give a recurrent cell layers, directions, dropout between layers and all of torch.nn.LSTM's forms of input.

    `cell_class(input_size, hidden_size, **options)` makes one cell, a module of any kind with

        forward(x, state) -> state    one step.  x is (n, input_size), state a tuple of tensors (n, ..) whose first, h,
                                      is the output too; n sequences are alive.  Nothing may be kept in the cell
        state_sizes                   the sizes of the tensors in state; (hidden_size, hidden_size) unless it says so
        input_part(x)                 if there is one (a method, or a submodule): what can be computed of all steps at
                                      once, (P, input_size) -> (P, ..); `forward` then gets its rows in the place of x
        constants(state)              if there is one: a tuple of tensors (B, ..) that are drawn once a sequence, such
                                      as dropout masks; `forward` finds them in `state` after the state itself
        as_lstm()                     if there is one: (w_ih, w_hh, b_ih, b_hh, w_hr) of a plain LSTM that computes the
                                      same in this mode, for which there are engines, or None

    torch.nn.LSTMCell is such a cell.  With R the first of the state sizes, L layers and D directions the stack takes

        input     (T, B, input_size), (B, T, input_size) if batch_first, (T, input_size), a PackedSequence, or a nested
                  tensor of jagged layout, (B, j, input_size)
        hx        None for zeros, or a tuple of one (L*D, B, size) for every state size; without B for unbatched input
        returns   output, state: the output in the input's form with D*R features; state as hx

    bias        False is passed on to the cell, True is not: a cell need not know the word
    variational the dropout between layers draws one mask a sequence, for all its steps (Gal and Ghahramani 2016)
    device, dtype  where the parameters go after the cells have drawn them

    `torchlstm.testing.check_cell` tests a cell.  A stack is computed by a loop in torch operations.  To compile it,
    compile the cells: `for cell in stack.cells: cell.compile()` takes 2 s whatever T is, and makes inference of
    LayerNormLSTM 1.3 to 1.6 times as fast, training no faster (T=64 and 128, B=16, H=64, two cores).  torch.compile
    of a whole stack, on dense input, unrolls the loop: at T=64 it takes a minute for inference and minutes for
    training, and is then 2.2 and 1.5 times as fast.  torch.jit.trace keeps it a loop, for any lengths and batch size.

    Raises ValueError for sizes and rates out of range, TypeError for an hx that is no tuple of as many tensors as the
    cell's state, RuntimeError for shapes that do not fit.
    """
    return CellStack(
        cell_class, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, variational,
        device, dtype, **options,
    )  # fmt: skip


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError unless this is a probability."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], got {rate}")


def _state_sizes(cell: nn.Module, hidden_size: int) -> tuple[int, ...]:
    return tuple(getattr(cell, "state_sizes", (hidden_size, hidden_size)))


def _run(cell: nn.Module, x: Tensor, rows: Rows, state: list[Tensor], reverse: bool) -> tuple[Tensor, list[Tensor]]:
    """One direction of one layer: x (P, I), state tensors (B, size) -> y (P, R), state."""
    count = len(state)
    input_part: Callable[[Tensor], Tensor] | None = getattr(cell, "input_part", None)
    constants: Callable[[State], State] | None = getattr(cell, "constants", None)
    if input_part is not None:
        x = input_part(x)
    if constants is not None:
        state = [*state, *constants(tuple(state))]

    def step(x: Tensor, state: list[Tensor], _: list[Tensor]) -> list[Tensor]:
        new = cell(x, tuple(state))
        if not isinstance(new, (tuple, list)) or len(new) != count:
            what = f"{len(new)} of them" if isinstance(new, (tuple, list)) else f"a {type(new).__name__}"
            raise TypeError(f"{type(cell).__name__} must return its state, a tuple of {count} tensors, got {what}")
        return [*new, *state[count:]]

    if isinstance(rows, Dense):
        x, batch_sizes = x.reshape(rows.steps, rows.batch, *x.shape[1:]), None
    else:
        batch_sizes = rows.batch_sizes
    loop = time_loop(step)
    weights: list[Tensor] = []
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        loop, weights = scripted_loop(cell, step, x[0] if batch_sizes is None else x[: int(batch_sizes[0])], state)
    (y,), end = loop(x, batch_sizes, state, weights, reverse)
    return y, end[:count]


def _drop(x: Tensor, rows: Rows, batch: int, rate: float, variational: bool) -> Tensor:
    """Dropout between layers: x (P, F), one mask for every row or, if variational, for every sequence."""
    if not variational:
        # Torch's own operator on contiguous time-major rows: on CPU it draws the mask that nn.LSTM draws.
        return torch.dropout(x, rate, True)
    mask = torch.dropout(x.new_ones(batch, x.shape[1]), rate, True)
    if isinstance(rows, Dense):
        return (x.view(rows.steps, rows.batch, x.shape[1]) * mask).view(x.shape)
    sizes = rows.batch_sizes
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # (P,): where the step of each row begins
    row = torch.arange(x.shape[0], device="cpu")
    return x * mask.index_select(0, (row - first).to(x.device))
