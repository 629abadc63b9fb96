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
