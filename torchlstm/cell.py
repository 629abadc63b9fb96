"""LSTMCell: one step."""

from typing import Any

import torch
from torch import Tensor, nn

from .call.native import call_cell
from .call.packing import pack, pack_states, unpack_state
from .call.plan import plan_cell
from .call.stack import run_stack
from .call.weights import weights_of
from .engines.shared.access import sees_functions
from .engines.shared.threads import mend_fork

State = tuple[Tensor, Tensor]


class LSTMCell(nn.RNNCellBase):
    """torch.nn.LSTMCell, computed by a torchlstm engine: one step of one layer.

    It is not an instance of nn.LSTMCell. Unbatched input with a batched state raises RuntimeError; torch.nn
    crashes the process.

    Args:
        input_size: Features of the input.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.
        device: Where the parameters are made.
        dtype: The dtype of the parameters.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> cell = torchlstm.LSTMCell(8, 16)
        >>> h, c = cell(torch.randn(4, 8))
        >>> h, c = cell(torch.randn(4, 8), (h, c))
        >>> h.shape
        torch.Size([4, 16])
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Compute one step.

        Args:
            input: (B, input_size), or (input_size,) unbatched.
            hx: The state (h, c), each (B, H), or (H,) for unbatched input; None for zeros.

        Returns:
            The new state (h, c), shaped as hx.

        Raises:
            RuntimeError: A shape or a dtype does not fit.
            ValueError: The input has neither one dimension nor two.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> h, c = torchlstm.LSTMCell(8, 16)(torch.randn(8))
            >>> h.shape
            torch.Size([16])
        """
        results: State | None = call_cell(self, input, hx)
        if results is not None:
            return results
        if type(input) is not Tensor and sees_functions(input):
            return torch.overrides.handle_torch_function(self.forward, (input,), input, hx)
        mend_fork()
        plan = plan_cell(self, input, hx)
        packed = pack(plan, input, hx)
        states = pack_states(plan, packed, hx)
        _, h, c, _ = run_stack(plan, packed, states, weights_of(plan, self, packed.data))
        return unpack_state(plan, packed, h), unpack_state(plan, packed, c)
