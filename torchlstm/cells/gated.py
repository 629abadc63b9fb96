"""Cells with peepholes, coupled input and forget gates, or clipping; and `GatedCell`, their common base."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.contract import Weights
from .stack import CellStack, State


class GatedCell(nn.Module):
    """The weights of a cell whose gates are sums of an input part and a recurrent part, named as nn.LSTMCell's.

    They are weight_ih (G * H, I), weight_hh (G * H, R), bias_ih and bias_hh (G * H,), and weight_hr (R, H) with a
    projection, for G gates. All are drawn as nn.LSTM draws them: uniformly within 1/sqrt(H), in this order.
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
        """Compute what x adds to the gates, with both biases: (P, I) -> (P, G * H)."""
        bias = None if self.bias_ih is None or self.bias_hh is None else self.bias_ih + self.bias_hh
        return F.linear(x, self.weight_ih, bias)

    def gate_sums(self, gates_x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return the gates before activation, each (n, H)."""
        return (gates_x + h @ self.weight_hh.t()).chunk(self.gates, dim=-1)

    def lstm_weights(self) -> Weights:
        """Return the weights as an engine takes them."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.input_size}, {self.hidden_size}" + f", proj_size={self.proj_size}" * bool(self.proj_size)


class PeepholeLSTMCell(GatedCell):
    r"""An LSTM cell whose gates see the cell state (Gers and Schmidhuber 2000; Gers, Schraudolph and Schmidhuber 2002).

    The equations, with an LSTM's terms as dots and the output squashing tanh(c') of Greff et al. 2017:

        i = \sigma(.. + p_i * c)       f = \sigma(.. + p_f * c)       g = \tanh(..)
        c' = f * c + i * g
        o = \sigma(.. + p_o * c')      h' = o * \tanh(c')

    Beside an LSTMCell's parameters it has weight_pi, weight_pf and weight_po, each (H,).

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.

    Examples:
        >>> from torchlstm.cells import PeepholeLSTMCell, stack_cells
        >>> stack_cells(PeepholeLSTMCell, 8, 16).cells[0].weight_pi.shape
        torch.Size([16])
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.weight_pi, self.weight_pf, self.weight_po = (nn.Parameter(torch.empty(hidden_size)) for _ in range(3))
        for parameter in (self.weight_pi, self.weight_pf, self.weight_po):
            self._draw(parameter)

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 4H).
            state: h and c, (n, H) each.

        Returns:
            The new h and c.
        """
        h, c = state
        i, f, g, o = self.gate_sums(gates_x, h)
        i, f = torch.sigmoid(i + self.weight_pi * c), torch.sigmoid(f + self.weight_pf * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.weight_po * c) * torch.tanh(c), c


class CoupledLSTMCell(GatedCell):
    """An LSTM cell that forgets as much as it takes in, f = 1 - i (CIFG; Greff et al. 2017).

    It has the three gates i, g and o, and

        c' = (1 - i) * c + i * g

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.

    Examples:
        >>> from torchlstm.cells import CoupledLSTMCell
        >>> CoupledLSTMCell(8, 16).weight_ih.shape
        torch.Size([48, 8])
    """

    gates = 3

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 3H).
            state: h and c, (n, H) each.

        Returns:
            The new h and c.
        """
        h, c = state
        i, g, o = self.gate_sums(gates_x, h)
        c = torch.lerp(c, torch.tanh(g), torch.sigmoid(i))
        return torch.sigmoid(o) * torch.tanh(c), c


class ClippedLSTMCell(GatedCell):
    """An LSTM cell whose c and h are clipped, as in Sak et al. 2014 and ELMo (Peters et al. 2018).

    Clipped values have no gradient, as with `torch.clamp`.

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of c, H.
        bias: Whether the gates have biases.
        proj_size: The size of h, R, if it is projected; 0 for no projection.
        cell_clip: The bound of c, applied before h is computed; None for none (Sak et al.: 50, ELMo: 3).
        hidden_clip: The bound of h, applied after the projection; None for none (ELMo: 3).

    Raises:
        ValueError: A bound is not greater than zero.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import ClippedLSTM
        >>> output, _ = ClippedLSTM(8, 16, cell_clip=3.0, hidden_clip=0.01)(torch.randn(10, 4, 8))
        >>> bool(output.abs().max() <= 0.01)
        True
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
        """Return the weights of a plain LSTM that computes the same.

        Returns:
            The weights if nothing is clipped, else None.
        """
        return self.lstm_weights() if self.cell_clip is None and self.hidden_clip is None else None

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 4H).
            state: h (n, R) and c (n, H).

        Returns:
            The new h and c.
        """
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
        """Return the sizes and the bounds."""
        return f"{super().extra_repr()}, cell_clip={self.cell_clip}, hidden_clip={self.hidden_clip}"


class PeepholeLSTM(CellStack):
    """A stack of `PeepholeLSTMCell`, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import PeepholeLSTM
        >>> output, (h_n, c_n) = PeepholeLSTM(8, 16)(torch.randn(10, 4, 8))
        >>> output.shape
        torch.Size([10, 4, 16])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(PeepholeLSTMCell, *args, **options)


class CoupledLSTM(CellStack):
    """A stack of `CoupledLSTMCell`, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import CoupledLSTM
        >>> output, (h_n, c_n) = CoupledLSTM(8, 16, num_layers=2)(torch.randn(10, 4, 8))
        >>> h_n.shape
        torch.Size([2, 4, 16])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(CoupledLSTMCell, *args, **options)


class ClippedLSTM(CellStack):
    """A stack of `ClippedLSTMCell`, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them, and the cell's: proj_size, cell_clip, hidden_clip.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import ClippedLSTM
        >>> output, (h_n, c_n) = ClippedLSTM(8, 16, proj_size=5, cell_clip=3.0)(torch.randn(10, 4, 8))
        >>> h_n.shape, c_n.shape
        (torch.Size([1, 4, 5]), torch.Size([1, 4, 16]))
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(ClippedLSTMCell, *args, **options)
