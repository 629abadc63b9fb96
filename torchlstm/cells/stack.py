"""`stack_cells`: layers, directions and every form of input around any recurrent cell."""

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
    """Layers and directions of one kind of cell, called as torch.nn.LSTM is; `stack_cells` makes one.

    The cells are in the ModuleList `cells`: `cells[k * D + d]` is layer k, direction d.

    Args:
        cell_class: The cell, see `stack_cells`.
        input_size: Features of the input, I.
        hidden_size: Units of a cell, H.
        num_layers: Stacked layers, L.
        bias: As in `stack_cells`.
        batch_first: Dense input and output are (B, T, features) instead of (T, B, features).
        dropout: The probability that an element of a layer's output is zeroed in training, except after the last layer.
        bidirectional: Every layer also reads the sequence backwards.
        variational: As in `stack_cells`.
        device: Where the parameters go.
        dtype: The dtype of the parameters.
        **options: Arguments of the cell.

    Raises:
        ValueError: A size or a rate is out of range.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import CellStack
        >>> stack = CellStack(torch.nn.LSTMCell, 8, 16, num_layers=2)
        >>> len(stack.cells)
        2
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
        """D, the number of directions.

        Returns:
            2 if bidirectional, else 1.
        """
        return 2 if self.bidirectional else 1

    def forward(self, input: Tensor | PackedSequence, hx: Sequence[Tensor] | None = None) -> tuple[Any, State]:
        """Compute the output of every step and the final states.

        Args:
            input: (T, B, I), (B, T, I) if batch_first, or (T, I); a PackedSequence; or a nested tensor of jagged
                layout, (B, j, I).
            hx: A tuple of one tensor (L * D, B, size) for every state of the cell, without B for unbatched input; None
                for zeros.

        Returns:
            The output in the input's form, with D * R features, R being the size of the cell's first state; and the
            final states, shaped as hx.

        Raises:
            TypeError: hx is not a tuple of as many tensors as the cell has states.
            RuntimeError: A shape does not fit.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> stack = torchlstm.stack_cells(torch.nn.LSTMCell, 8, 16, bidirectional=True)
            >>> output, (h_n, c_n) = stack(torch.randn(10, 4, 8))
            >>> output.shape, h_n.shape
            (torch.Size([10, 4, 32]), torch.Size([2, 4, 16]))
        """
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
        """Return the cells of a layer.

        Args:
            k: The number of the layer, from 0.

        Returns:
            One cell for each direction.
        """
        return [self.cells[k * self.directions + d] for d in range(self.directions)]

    def as_lstm(self, k: int) -> tuple[Weights, ...] | None:
        """Return the weights of a plain LSTM that computes a layer in its present mode.

        Args:
            k: The number of the layer, from 0.

        Returns:
            The weights of each direction, or None if the cells are not plain LSTMs.
        """
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
        # Under autocast torch chooses a dtype for each operation of the loop. No engine does the same.
        weights = None if autocasts(x) else self.as_lstm(k)
        if weights is not None:
            problem = problem_of(x, state[0], weights, rows)._replace(cell=True)
            y, h_n, c_n = layer(problem, x, state[0], state[1], weights)
            return y, [h_n, c_n]
        results = [
            _run(cell, x, rows, [tensor[d] for tensor in state], reverse=d == 1)
            for d, cell in enumerate(self.layer_cells(k))
        ]
        # `stack` copies, so the final states do not share memory with the output.
        ends = [torch.stack(tensors) for tensors in zip(*(end for _, end in results), strict=True)]
        return torch.cat([y for y, _ in results], dim=-1), ends

    def extra_repr(self) -> str:
        """Return the sizes, and the options that are not the default, as nn.LSTM does."""
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

    `cell_class(input_size, hidden_size, **options)` makes one cell: any module with the first of these, and with the
    others where they are needed. torch.nn.LSTMCell is such a cell.

    - `forward(x, state) -> state`: one step. x is (n, input_size); state is a tuple of tensors (n, ..), the first of
      which, h, is also the output. n sequences are alive. The cell must not keep anything between calls.
    - `state_sizes`: the sizes of the tensors in state; (hidden_size, hidden_size) by default.
    - `input_part(x)`, a method or a submodule: what can be computed of all steps at once, (P, input_size) -> (P, ..).
      `forward` then gets the rows of the result instead of x.
    - `constants(state)`: a tuple of tensors (B, ..) that are drawn once for each sequence, such as dropout masks.
      `forward` finds them in `state`, after the state itself.
    - `as_lstm()`: (w_ih, w_hh, b_ih, b_hh, w_hr) of a plain LSTM that computes the same in the present mode, or None.
      An engine then computes the layer.

    Every other stack is a loop in torch operations. To compile it, compile the cells: `for cell in stack.cells:
    cell.compile()` takes 2 s for any T, and makes inference of LayerNormLSTM 1.3 to 1.6 times as fast, training no
    faster (T=64 and 128, B=16, H=64, two cores). torch.compile of a whole stack, on dense input, unrolls the loop: at
    T=64 it takes a minute for inference and minutes for training, and is then 2.2 and 1.5 times as fast.
    torch.jit.trace keeps it a loop, for any lengths and batch size.

    `torchlstm.testing.check_cell` tests a cell. `CellStack.forward` describes a call.

    Args:
        cell_class: Makes a cell.
        input_size: Features of the input, I.
        hidden_size: Units of a cell, H.
        num_layers: Stacked layers, L.
        bias: False is passed on to the cell; True is not, so that a cell need not have this argument.
        batch_first: Dense input and output are (B, T, features) instead of (T, B, features).
        dropout: The probability that an element of a layer's output is zeroed in training, except after the last layer.
        bidirectional: Every layer also reads the sequence backwards.
        variational: The dropout between layers draws one mask a sequence, for all its steps (Gal and Ghahramani 2016).
        device: Where the parameters go after the cells have drawn them.
        dtype: The dtype of the parameters, as for `device`.
        **options: Arguments of the cell.

    Returns:
        A `CellStack`, which is called as torch.nn.LSTM is.

    Raises:
        ValueError: A size or a rate is out of range.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> class Mean(torch.nn.Module):
        ...     def __init__(self, input_size, hidden_size):
        ...         super().__init__()
        ...         self.state_sizes = (hidden_size,)
        ...         self.input_part = torch.nn.Linear(input_size, hidden_size)
        ...     def forward(self, x, state):
        ...         return ((x + state[0]) / 2,)
        >>> output, (h_n,) = torchlstm.stack_cells(Mean, 8, 16, num_layers=2)(torch.randn(10, 4, 8))
        >>> output.shape, h_n.shape
        (torch.Size([10, 4, 16]), torch.Size([2, 4, 16]))
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
