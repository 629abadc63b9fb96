"""LSTM: check the input, pack it, run the stack, unpack."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call import checks
from .call.jagged import check_jagged, is_jagged
from .call.packing import check_packed, pack, pack_state, unpack, unpack_state, with_reset_state
from .call.precision import autocast_precision
from .call.segments import Segments, segment
from .call.stack import run_stack
from .engines.contract import Weights
from .engines.shared.threads import mend_fork
from .trace import States, Trace, states_of

State = tuple[Tensor, Tensor]
Layers = list[tuple[Weights, ...]]  # L of D of Weights


class LSTM(nn.RNNBase):
    """As torch.nn.LSTM, computed by a torchlstm engine.

    Arguments, parameters (names, order, initial draws), inputs, results and errors are torch.nn.LSTM's.  With R =
    proj_size or hidden_size, L = num_layers and D = 2 if bidirectional, else 1:

        input     (T, B, input_size), (B, T, input_size) if batch_first, (T, input_size), or a PackedSequence
        hx        None for zeros, or (h_0, c_0): (L*D, B, R), (L*D, B, hidden_size), without B for unbatched input
        returns   output, (h_n, c_n): the output in the input's form with D*R features; the states as hx

    What nn.LSTM has not, by name only and for tensors:

        lengths      B integers from 0 to T, a list or a tensor, in any order: only so many steps of each sequence are
                     there.  The output beyond them is zero; h_n and c_n are the states at each sequence's own end,
                     the initial ones where it has no steps.  As a PackedSequence computes, packed and unpacked
        resets       bool, shaped as input without its last axis: the state restarts before that step; what lies on
                     its two sides are sequences of their own, in both directions, between which no gradient passes.
                     Forwards, hx enters the first of them, unless step 0 is a reset, and h_n and c_n leave the last;
                     in reverse, hx enters the last and h_n and c_n leave the first
        reset_state  None for zeros, or (h, c), shaped as hx: the state that all others start from

    input may also be a nested tensor of jagged layout, (B, j, input_size), batch first whatever `batch_first` says.
    The output is one, (B, j, D*R), with input's own offsets, so that the two can be combined; h_n and c_n are those
    at each sequence's own end.  It takes no lengths and no resets, and its offsets are waited for as lengths are.

    Padding is not looked at: its gradient is zero, and NaN in it stays there.  Lengths and resets on another device
    than the CPU are waited for, once a call; lists and CPU tensors wait for nothing.

    What differs: it is no instance of nn.LSTM; the weights are read from their attributes at every call, so that
    `flatten_parameters` has nothing to do; and where nn.LSTM fails with a message about its insides, or computes from a
    PackedSequence or a state that does not fit, the error names what was given and what was expected.

    What is new, and off unless asked for: `trace`, and

        checkpoint_every  k: train in memory for the states of T / k + k steps, not of T; those of every k-th step are
                          kept, and the backward runs the steps between them once more.  The least is near k = sqrt(T).
    """

    weight_ih_l0: Tensor
    # Of the class, since `swap` makes instances that were never initialised by it.
    checkpoint_every: int | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | None = None,
    ) -> None:
        checks.check_every(checkpoint_every)
        options = (bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__("LSTM", input_size, hidden_size, num_layers, *options)
        if checkpoint_every is not None:
            self.checkpoint_every = checkpoint_every

    def extra_repr(self) -> str:
        """As nn.LSTM's, and `checkpoint_every` if it is set."""
        more = "" if self.checkpoint_every is None else f", checkpoint_every={self.checkpoint_every}"
        return super().extra_repr() + more

    def flatten_parameters(self) -> None:
        """Do nothing: no engine needs the weights in one chunk of memory."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        reset_state: State | None = None,
    ) -> tuple[Any, State]:
        """See the class."""
        output, state, _ = self._run(input, hx, lengths, resets, reset_state, False)
        return output, state

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        reset_state: State | None = None,
    ) -> Trace:
        """Run the forward, and return h, c and the activated gates of every step besides: see `trace.Trace`.

        Arguments and errors are those of the call.  The numbers are those of a forward that is trained; hooks of the
        module are not called, and `checkpoint_every` has no effect, since every state is kept.
        """
        return Trace(*self._run(input, hx, lengths, resets, reset_state, True))

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: State | None,
        lengths: Any,
        resets: Any,
        reset_state: State | None,
        trace: bool,
    ) -> tuple[Any, State, list[list[States]]]:
        """Output and states, and the states of every step and layer if `trace`."""
        mend_fork()
        self._check(input, hx)
        if (every := self.checkpoint_every) is not None:
            checks.check_every(every)
        options = (self.dropout, self.training, trace, every)
        segments = None
        if lengths is not None or resets is not None or reset_state is not None:
            segments, hx = self._segments(input, hx, lengths, resets, reset_state)
        packed = pack(input, self.batch_first, hx, segments)
        x, rows = packed.data, packed.rows
        layers = self._layers(x)
        if hx is None:
            h_0, c_0 = self._zeros(x, packed.batch)
        else:
            h_0, c_0 = pack_state(packed, hx[0]), pack_state(packed, hx[1])
        fused = packed.form is None and not self.proj_size
        precision = autocast_precision(x, c_0, self.proj_size > 0, fused)
        if precision is None:
            y, h_n, c_n, traced = run_stack(x, h_0, c_0, layers, rows, *options)
        else:
            layers = [tuple(precision.cast(weights) for weights in layer) for layer in layers]
            with torch.autocast(x.device.type, enabled=False):
                x, h_0, c_0 = precision.cast((x, h_0, c_0))
                y, h_n, c_n, traced = run_stack(x, h_0, c_0, layers, rows, *options)
            y, h_n, c_n = precision.results(y, h_n, c_n)
        states = [states_of(packed, layer, precision) for layer in traced] if trace else []
        return unpack(packed, y, own=not trace), (unpack_state(packed, h_n), unpack_state(packed, c_n)), states

    def _layers(self, x: Tensor) -> Layers:
        """The weights of every layer and direction as they are now, checked against rows of input x (P, I)."""
        gates, hidden, proj = 4 * self.hidden_size, self.hidden_size, self.proj_size
        state = proj or hidden
        layers: Layers = []
        features = self.input_size
        for k in range(self.num_layers):
            shapes = ((gates, features), (gates, state), (gates,), (gates,), (proj, hidden))
            directions = []
            for suffix in (f"_l{k}", f"_l{k}_reverse") if self.bidirectional else (f"_l{k}",):
                weights = (
                    self._weight("weight_ih" + suffix),
                    self._weight("weight_hh" + suffix),
                    self._weight("bias_ih" + suffix) if self.bias else None,
                    self._weight("bias_hh" + suffix) if self.bias else None,
                    self._weight("weight_hr" + suffix) if proj else None,
                )
                checks.check_weights(x, weights, shapes)
                directions.append(weights)
            layers.append(tuple(directions))
            features = state * len(directions)
        return layers

    def _weight(self, name: str) -> Tensor:
        # What nn.Module's attribute look-up finds in the end, without its 2 us where the weight is a Parameter.
        weight = self._parameters.get(name)
        return getattr(self, name) if weight is None else weight

    def _zeros(self, x: Tensor, batch: int) -> State:
        """Initial states for rows x: h_0 (L*D, B, R) and c_0 (L*D, B, H), two tensors."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        h_0 = x.new_zeros(count, batch, self.proj_size or self.hidden_size)
        return h_0, x.new_zeros(count, batch, self.hidden_size)

    def _segments(
        self, input: Tensor | PackedSequence, hx: State | None, lengths: Any, resets: Any, reset_state: State | None
    ) -> tuple[Segments | None, State | None]:
        """What lengths and resets make of an input that has passed `_check`.

        returns  the plan or None; hx as it is, or with the reset states behind it: (L*D, 2B, R), (L*D, 2B, H)
        """
        if isinstance(input, PackedSequence):
            raise TypeError("LSTM: lengths and resets are for tensors, and input is a PackedSequence: unpack it first")
        if is_jagged(input):
            raise TypeError("LSTM: lengths and resets are for dense tensors, and input is jagged, which has its own")
        if reset_state is not None:
            if resets is None:
                raise TypeError("LSTM: reset_state is where the state restarts at resets, and there are no resets")
            self._check_reset_state(input, reset_state)
        directions = 2 if self.bidirectional else 1
        segments = segment(input, self.batch_first, directions, lengths, resets, reset_state is not None)
        if segments is not None and resets is not None:
            hx = with_reset_state(hx, reset_state, input.dim() == 2)
        return segments, hx

    def _check_reset_state(self, input: Tensor, reset_state: State) -> None:
        """Raise unless these states are shaped as hx would have to be."""
        checks.check_pair("lstm", reset_state, "reset_state")
        batch = () if input.dim() == 2 else (input.shape[0 if self.batch_first else 1],)
        count = self.num_layers * (2 if self.bidirectional else 1)
        for index, size in enumerate((self.proj_size or self.hidden_size, self.hidden_size)):
            expected, shape = (count, *batch, size), tuple(reset_state[index].shape)
            if shape != expected:
                raise RuntimeError(f"Expected reset_state[{index}] size {expected}, got {list(shape)}")
        checks.check_states(input, reset_state, "reset_state")

    def _check(self, input: Tensor | PackedSequence, hx: State | None) -> None:
        """Raise what nn.LSTM raises for this input, or a clearer error of the same kind."""
        jagged = is_jagged(input)
        if hx is not None:
            checks.check_pair("lstm", hx)
        if isinstance(input, PackedSequence):
            check_packed(input)
            data, batch_sizes = input.data, input.batch_sizes
            what, rank = "a PackedSequence", 3
        elif jagged:
            check_jagged("LSTM", input)
            data, batch_sizes = input.values(), None
            what, rank = "a jagged input", 3
        else:
            checks.check_tensor("LSTM", input)
            if input.dim() not in (2, 3):
                raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
            data, batch_sizes = input, None
            what, rank = ("batched 3-D input", 3) if input.dim() == 3 else ("unbatched 2-D input", 2)
        if hx is None:
            self.check_input(data, batch_sizes)
            return
        if hx[0].dim() != rank or hx[1].dim() != rank:
            raise RuntimeError(
                f"For {what}, hx and cx should also be {rank}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        if jagged or (batch_sizes is not None and torch.compiler.is_compiling()):
            # Batch sizes are not known to a compiler, B is what hx says; see `packing.batch_of`.
            self.check_input(data, batch_sizes)
            batch = input.shape[0] if isinstance(input, Tensor) else hx[0].shape[1]
            for index, size in enumerate((self.proj_size or self.hidden_size, self.hidden_size)):
                expected = (self.num_layers * (2 if self.bidirectional else 1), batch, size)
                self.check_hidden_size(hx[index], expected, f"Expected hidden[{index}] size {{}}, got {{}}")
            checks.check_states(data, hx)
            return
        if rank == 2:
            data = data.unsqueeze(0 if self.batch_first else 1)
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self.check_forward_args(data, hx, batch_sizes)
        checks.check_states(data, hx)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """As nn.LSTM's, against the weights as they are now, not those that RNNBase remembers."""
        if problem := checks.dtype_mismatch(input, self.weight_ih_l0):
            # nn.LSTM looks at the dtype of dense input itself; packed input fails later, in a product.
            raise (ValueError if batch_sizes is None else RuntimeError)(problem)
        expected = (2,) if batch_sizes is not None else (2, 3)
        if input.dim() not in expected:
            raise RuntimeError(f"input must have {expected[-1]} dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """As nn.LSTM's."""
        batch = input.shape[0 if self.batch_first else 1] if batch_sizes is None else int(batch_sizes[0])
        return self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:  # type: ignore[override]
        """As nn.LSTM's."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:  # type: ignore[override]
        """As nn.LSTM's: both states with their batch axis permuted."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)
