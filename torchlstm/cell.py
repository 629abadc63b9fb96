"""LSTMCell: one step."""

from typing import Any

import torch
from torch import Tensor, nn

from .call import checks
from .call.precision import autocast_precision
from .call.stack import run_step
from .engines.shared.threads import mend_fork

State = tuple[Tensor, Tensor]


class LSTMCell(nn.RNNCellBase):
    """As torch.nn.LSTMCell, computed by a torchlstm engine: one step of one layer.

        input     (B, input_size), or (input_size,) unbatched
        hx        None for zeros, or (h, c), each (B, hidden_size), or (hidden_size,) with unbatched input
        returns   (h', c'), shaped as hx

    What differs: it is no instance of nn.LSTMCell, and unbatched input with a batched state, which crashes the process
    in torch.nn, raises RuntimeError.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """See the class."""
        mend_fork()
        self._check(input, hx)
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            h, c = (x.new_zeros(x.shape[0], self.hidden_size) for _ in range(2))
        else:
            h, c = hx if batched else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None)
        gates, hidden = 4 * self.hidden_size, self.hidden_size
        checks.check_weights(x, weights, ((gates, self.input_size), (gates, hidden), (gates,), (gates,), ()))
        precision = autocast_precision(x, c, projected=False, fused=False)
        if precision is None:
            h, c = run_step(x, h, c, weights)
        else:
            with torch.autocast(x.device.type, enabled=False):
                x, h, c = precision.cast((x, h, c))
                h, c = run_step(x, h, c, precision.cast(weights))
        return (h, c) if batched else (h.squeeze_(0), c.squeeze_(0))

    def _check(self, input: Tensor, hx: State | None) -> None:
        """Raise what nn.LSTMCell raises for this input, or a clearer error of the same kind."""
        checks.check_tensor("LSTMCell", input)
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None:
            checks.check_pair("lstm_cell", hx)
        expected = (*input.shape[:-1], self.hidden_size)
        fits = hx is None or (hx[0].shape == expected and hx[1].shape == expected)
        if hx is not None and not fits:
            self._check_ranks(input, hx)
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {self.input_size}")
        if problem := checks.dtype_mismatch(input, self.weight_ih):
            raise RuntimeError(problem)
        if hx is not None:
            if not fits:
                self._check_sizes(input, hx)
            checks.check_states(input, hx)

    def _check_ranks(self, input: Tensor, hx: State) -> None:
        for index, state in enumerate(hx):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead")
            if state.dim() != input.dim():
                raise RuntimeError(
                    f"LSTMCell: For {input.dim()}-D input, hx[{index}] should also be {input.dim()}-D, "
                    f"got {state.dim()}-D"
                )

    def _check_sizes(self, input: Tensor, hx: State) -> None:
        for index, state in enumerate(hx):
            if input.dim() == 2 and state.shape[0] != input.shape[0]:
                raise RuntimeError(
                    f"Input batch size {input.shape[0]} doesn't match hidden{index} batch size {state.shape[0]}"
                )
            if state.shape[-1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{index} has inconsistent hidden_size: got {state.shape[-1]}, expected {self.hidden_size}"
                )
