"""Cells as a user might write them, for the tests of stacks."""

from typing import Any

import torch
from torch import Tensor, nn


class OneStep(nn.Module):
    """The least that a cell can be."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size + hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        i, f, g, o = self.linear(torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Split(OneStep):
    """One product for the inputs of all steps, by the name of a submodule."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        nn.Module.__init__(self)
        self.input_part = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def linear(self, x_and_h: Tensor) -> Tensor:
        gates_x, h = x_and_h.split([self.recurrent.out_features, self.recurrent.in_features], dim=-1)
        return gates_x + self.recurrent(h)


class GRUCell(nn.GRUCell):
    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.state_sizes = (hidden_size,)

    def forward(self, x: Tensor, state: Any) -> Any:
        return (super().forward(x, state[0]),)
