"""Cells with peepholes, coupled input and forget gates, or clipping; and `GatedCell`, what they share."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.contract import Weights
from .stack import CellStack, State


class GatedCell(nn.Module):
    """The weights of a cell whose gates are sums of an input part and a recurrent part, named as nn.LSTMCell's.

        weight_ih (G*H, I), weight_hh (G*H, R), bias_ih, bias_hh (G*H,), weight_hr (R, H) with a projection

    All are drawn as nn.LSTM draws them: uniformly within 1/sqrt(H), in this order.
    """

    gates = 4  # G
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None
    weight_hr: nn.Parameter | None

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, proj_size: int = 0) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.proj_size = input_size, hidden_size, proj_size
        self.state_sizes = (proj_size or hidden_size, hidden_size)
        width = self.gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(width, input_size))
        self.weight_hh = nn.Parameter(torch.empty(width, proj_size or hidden_size))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, nn.Parameter(torch.empty(width)) if bias else None)
        self.register_parameter("weight_hr", nn.Parameter(torch.empty(proj_size, hidden_size)) if proj_size else None)
        for parameter in self.parameters():
            self._draw(parameter)

    def _draw(self, parameter: nn.Parameter) -> None:
        nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def input_part(self, x: Tensor) -> Tensor:
        """What x adds to the gates, with both biases: (P, I) -> (P, G*H)."""
        bias = None if self.bias_ih is None or self.bias_hh is None else self.bias_ih + self.bias_hh
        return F.linear(x, self.weight_ih, bias)

    def gate_sums(self, gates_x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """The gates before activation, each (n, H)."""
        return (gates_x + h @ self.weight_hh.t()).chunk(self.gates, dim=-1)

    def lstm_weights(self) -> Weights:
        """The weights as an engine takes them."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.input_size}, {self.hidden_size}" + f", proj_size={self.proj_size}" * bool(self.proj_size)


class PeepholeLSTMCell(GatedCell):
    r"""An LSTM whose gates see the cell state (Gers and Schmidhuber 2000; Gers, Schraudolph and Schmidhuber 2002).

        i = \sigma(.. + p_i * c)       f = \sigma(.. + p_f * c)       g = \tanh(..)
        c' = f * c + i * g
        o = \sigma(.. + p_o * c')      h' = o * \tanh(c')

    ..  as in an LSTM; \tanh(c') is the output squashing of Greff et al. 2017
    Parameters besides an LSTMCell's: weight_pi, weight_pf, weight_po, each (H,).
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.weight_pi, self.weight_pf, self.weight_po = (nn.Parameter(torch.empty(hidden_size)) for _ in range(3))
        for parameter in (self.weight_pi, self.weight_pf, self.weight_po):
            self._draw(parameter)

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 4H), state h, c (n, H)."""
        h, c = state
        i, f, g, o = self.gate_sums(gates_x, h)
        i, f = torch.sigmoid(i + self.weight_pi * c), torch.sigmoid(f + self.weight_pf * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.weight_po * c) * torch.tanh(c), c


class CoupledLSTMCell(GatedCell):
    r"""An LSTM that forgets as much as it takes in, f = 1 - i (CIFG; Greff et al. 2017): three gates i, g, o.

    c' = (1 - i) * c + i * g
    """

    gates = 3

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 3H), state h, c (n, H)."""
        h, c = state
        i, g, o = self.gate_sums(gates_x, h)
        c = torch.lerp(c, torch.tanh(g), torch.sigmoid(i))
        return torch.sigmoid(o) * torch.tanh(c), c


class ClippedLSTMCell(GatedCell):
    """An LSTM whose cell state and output are held within bounds, as in Sak et al. 2014 and ELMo (Peters et al. 2018).

    cell_clip    bound of c, before the output is made of it; None for none (Sak et al.: 50, ELMo: 3)
    hidden_clip  bound of h, after the projection if there is one; None for none (ELMo: 3)
    proj_size    as nn.LSTM's

    What is clipped has no gradient there, as `torch.clamp` has none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        proj_size: int = 0,
        cell_clip: float | None = None,
        hidden_clip: float | None = None,
    ) -> None:
        for name, bound in (("cell_clip", cell_clip), ("hidden_clip", hidden_clip)):
            if bound is not None and not bound > 0:
                raise ValueError(f"{name} must be greater than zero or None, got {bound}")
        super().__init__(input_size, hidden_size, bias, proj_size)
        self.cell_clip, self.hidden_clip = cell_clip, hidden_clip

    def as_lstm(self) -> Weights | None:
        """The weights, while nothing is clipped."""
        return self.lstm_weights() if self.cell_clip is None and self.hidden_clip is None else None

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 4H), state h (n, R), c (n, H)."""
        h, c = state
        i, f, g, o = self.gate_sums(gates_x, h)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        h = torch.sigmoid(o) * torch.tanh(c)
        if self.weight_hr is not None:
            h = h @ self.weight_hr.t()
        if self.hidden_clip is not None:
            h = h.clamp(-self.hidden_clip, self.hidden_clip)
        return h, c

    def extra_repr(self) -> str:
        """The sizes and bounds."""
        return f"{super().extra_repr()}, cell_clip={self.cell_clip}, hidden_clip={self.hidden_clip}"


class PeepholeLSTM(CellStack):
    """A stack of `PeepholeLSTMCell`; the arguments are those of `stack_cells` after the cell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(PeepholeLSTMCell, *args, **options)


class CoupledLSTM(CellStack):
    """A stack of `CoupledLSTMCell`; the arguments are those of `stack_cells` after the cell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(CoupledLSTMCell, *args, **options)


class ClippedLSTM(CellStack):
    """A stack of `ClippedLSTMCell`; the arguments are those of `stack_cells` after the cell, and the cell's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(ClippedLSTMCell, *args, **options)
