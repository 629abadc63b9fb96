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
    """torch.nn.LSTM, computed by a torchlstm engine.

    The parameters (names, order and initial values), the forms of input, the results and the errors are
    torch.nn.LSTM's. `forward` describes a call.

    It differs in three ways. It is not an instance of nn.LSTM. The weights are read from their attributes at every
    call, so `flatten_parameters` does nothing. Where nn.LSTM fails with an internal message, or computes from a
    PackedSequence or a state that does not fit, the error here says what was given and what was expected.

    The letters in shapes: T steps, B sequences, H = hidden_size, R = proj_size or hidden_size, L = num_layers, and D =
    2 if bidirectional, else 1.

    Args:
        input_size: Features of the input.
        hidden_size: Units of the cell state, H.
        num_layers: Stacked layers, L.
        bias: Whether the gates have biases.
        batch_first: Dense input and output are (B, T, features) instead of (T, B, features).
        dropout: The probability that an element of a layer's output is zeroed in training, except after the last layer.
        bidirectional: Every layer also reads the sequence backwards.
        proj_size: If greater than zero, h has so many units, a linear projection of o * tanh(c).
        device: Where the parameters are made.
        dtype: The dtype of the parameters.
        checkpoint_every: Save memory in training: keep the state of every so many steps, and recompute the steps
            between in the backward. Memory is least near the square root of T. None keeps the states of all steps.

    Raises:
        ValueError: An option is out of range.
        TypeError: An option has the wrong type.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.LSTM(8, 16, num_layers=2, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(10, 4, 8))
        >>> output.shape, h_n.shape
        (torch.Size([10, 4, 32]), torch.Size([4, 4, 16]))
    """

    weight_ih_l0: Tensor
    # On the class, because `swap` makes instances without calling `__init__`.
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
        """Return nn.LSTM's text, and `checkpoint_every` if it is set."""
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
        """Compute the output of every step and the final states.

        Padding is never read: its gradient is zero, and NaN in it stays there. `lengths` and `resets` on a GPU make the
        call wait for that device once; lists and CPU tensors do not.

        Args:
            input: (T, B, input_size), (B, T, input_size) if batch_first, or (T, input_size); a PackedSequence; or a
                nested tensor of jagged layout, (B, j, input_size), which is batch first whatever `batch_first` says
                and takes neither lengths nor resets.
            hx: (h_0, c_0), of shapes (L * D, B, R) and (L * D, B, H), without B for unbatched input; None for zeros.
            lengths: B integers from 0 to T, a list or a tensor, in any order: the steps of each sequence. The output
                beyond them is zero. h_n and c_n are the states at each sequence's own end, or hx for a length of 0.
            resets: A bool tensor, shaped as the input without its last axis. The state restarts before every step that
                is True. The parts on both sides are independent sequences, in both directions, and no gradient crosses.
                Forwards, hx enters the first part (unless step 0 is a reset), and h_n and c_n leave the last part; the
                reverse direction starts with hx in the last part and leaves the first.
            reset_state: The state (h, c) after a reset, shaped as hx; None for zeros.

        Returns:
            The output, (T, B, D * R) or the input's own form with D * R features, and the tuple (h_n, c_n), shaped as
            hx. Jagged output has the offsets of the input, so the two can be combined.

        Raises:
            RuntimeError: A shape or a dtype does not fit, as in nn.LSTM.
            ValueError: Dimensions, lengths or resets do not fit.
            TypeError: An argument has the wrong type.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> lstm = torchlstm.LSTM(8, 16, batch_first=True)
            >>> output, (h_n, c_n) = lstm(torch.randn(3, 10, 8), lengths=[10, 4, 7])
            >>> output[1, 4:].count_nonzero().item()
            0
        """
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
        """Run the forward, and return h, c and the activated gates of every step as well.

        The numbers are those of a training forward. Hooks of the module are not called. `checkpoint_every` has no
        effect, because every state is kept.

        Args:
            input: As `forward` takes it.
            hx: As `forward` takes it.
            lengths: As `forward` takes it.
            resets: As `forward` takes it.
            reset_state: As `forward` takes it.

        Returns:
            A `torchlstm.trace.Trace` with the output, the final states, and the states and gates of each layer and
            direction.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> trace = torchlstm.LSTM(8, 16).trace(torch.randn(10, 4, 8))
            >>> trace.layers[0][0].f.shape
            torch.Size([10, 4, 16])
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
        """Plan a call: its plan, its packed rows, and the initial states."""
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
        """Call the checks that a subclass overrides, as nn.LSTM would call them."""
        data, sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
        if hx is None:
            self.check_input(data, sizes)
            return
        if sizes is None and data.dim() == 2:
            data = data.unsqueeze(0 if self.batch_first else 1)
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self.check_forward_args(data, hx, sizes)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise nn.LSTM's errors, by the weights as they are now, not by those that RNNBase remembers."""
        check_lstm_input(input, batch_sizes is not None, self.weight_ih_l0, self.input_size)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the shape of c_0, as nn.LSTM does."""
        batch = input.shape[0 if self.batch_first else 1] if batch_sizes is None else int(batch_sizes[0])
        return self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:  # type: ignore[override]
        """Raise nn.LSTM's errors for an input and its states."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:  # type: ignore[override]
        """Return both states with their batch axis permuted, as nn.LSTM does."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)
