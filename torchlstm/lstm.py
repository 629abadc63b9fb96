"""LSTM: check the input, pack it, run the stack, unpack."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call.checks import check_every, check_lstm_input
from .call.native import call_lstm
from .call.packing import Packed, pack, pack_states, unpack, unpack_state
from .call.plan import Plan, plan_lstm
from .call.stack import run_stack
from .call.weights import weights_of
from .engines.shared.access import sees_functions
from .engines.shared.threads import mend_fork
from .trace import Trace, states_of

State = tuple[Tensor, Tensor]


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
    _checks_itself = False
    _native = True  # whether a call may go to C at once: a subclass may check, or make its weights, itself

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
        check_every(checkpoint_every)
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
        if self._native and lengths is None and resets is None and reset_state is None:
            results: tuple[Any, State] | None = call_lstm(self, input, hx)
            if results is not None:
                return results
        if type(input) is not Tensor and sees_functions(input):
            extras = {"lengths": lengths, "resets": resets, "reset_state": reset_state}
            return torch.overrides.handle_torch_function(self.forward, (input,), input, hx, **extras)
        plan, packed, states = self._begin(input, hx, lengths, resets, reset_state)
        y, h_n, c_n, _ = run_stack(plan, packed, states, weights_of(plan, self, packed.data))
        return unpack(plan, packed, y), (unpack_state(plan, packed, h_n), unpack_state(plan, packed, c_n))

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
        plan, packed, states = self._begin(input, hx, lengths, resets, reset_state, trace=True)
        y, h_n, c_n, traced = run_stack(plan, packed, states, weights_of(plan, self, packed.data))
        state = unpack_state(plan, packed, h_n), unpack_state(plan, packed, c_n)
        return Trace(unpack(plan, packed, y), state, [states_of(plan, packed, each) for each in traced])

    def _begin(
        self,
        input: Tensor | PackedSequence,
        hx: State | None,
        lengths: Any,
        resets: Any,
        reset_state: State | None,
        trace: bool = False,
    ) -> tuple[Plan, Packed, list[Tensor]]:
        """The plan of a call, its rows, and the states that they start from."""
        mend_fork()
        plan = plan_lstm(self, input, hx, lengths, resets, reset_state, trace)
        if self._checks_itself:
            self._check_as_told(input, hx)
        packed = pack(plan, input, hx, lengths, resets)
        return plan, packed, pack_states(plan, packed, hx, reset_state)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checks_of_nn = ("check_input", "check_forward_args")
        cls._checks_itself = any(getattr(cls, name) is not getattr(LSTM, name) for name in checks_of_nn)
        cls._native = not cls._checks_itself and not hasattr(cls, "read_weight")

    def _check_as_told(self, input: Tensor | PackedSequence, hx: State | None) -> None:
        """Call the checks that a subclass has in the place of nn.LSTM's, as nn.LSTM calls them."""
        data, sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
        if hx is None:
            self.check_input(data, sizes)
            return
        if sizes is None and data.dim() == 2:
            data = data.unsqueeze(0 if self.batch_first else 1)
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self.check_forward_args(data, hx, sizes)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """As nn.LSTM's, against the weights as they are now, not those that RNNBase remembers."""
        check_lstm_input(input, batch_sizes is not None, self.weight_ih_l0, self.input_size)

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
