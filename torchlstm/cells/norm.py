"""LSTMs with layer normalisation, in the forms that have been published."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .stack import CellStack, State

FORMS = ("ba2016", "fastrnns", "rnnt")


class LayerNormLSTMCell(nn.Module):
    r"""An LSTM with layer normalisation, LN (Ba, Kiros and Hinton 2016).

    form "ba2016", the paper's equations 20 to 22: the two parts of the gates are normalised apart, and c only on its
    way to the output; what is carried on is c itself

        i, f, g, o = LN(W_h h) + LN(W_x x) + b
        c' = \sigma(f) * c + \sigma(i) * \tanh(g)
        h' = \sigma(o) * \tanh(LN(c'))

    form "fastrnns", of PyTorch's benchmarks: no b, and the c that is carried on is the normalised one

        i, f, g, o = LN(W_h h) + LN(W_x x)
        c' = LN(\sigma(f) * c + \sigma(i) * \tanh(g))
        h' = \sigma(o) * \tanh(c')

    form "rnnt", of torchaudio's RNN-T: as fastrnns, but one LN of the sum

        i, f, g, o = LN(W_h h + W_x x)

    A LN is over all gates (4H) or over c (H), with a gain and, if bias, a shift of its own.
    Parameters: weight_ih (4H, I), weight_hh (4H, H), bias (4H,) in form "ba2016" with bias, and the norms'.
    """

    bias: nn.Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, form: str = "ba2016", eps: float = 1e-5
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        super().__init__()
        self.input_size, self.hidden_size, self.form = input_size, hidden_size, form
        width, bound = 4 * hidden_size, hidden_size**-0.5
        self.weight_ih = nn.Parameter(torch.empty(width, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(width, hidden_size).uniform_(-bound, bound))
        with_b = bias and form == "ba2016"
        self.register_parameter("bias", nn.Parameter(torch.zeros(width)) if with_b else None)
        if form == "rnnt":
            self.norm_gates = nn.LayerNorm(width, eps, bias=bias)
        else:
            self.norm_x = nn.LayerNorm(width, eps, bias=bias)
            self.norm_h = nn.LayerNorm(width, eps, bias=bias)
        self.norm_c = nn.LayerNorm(hidden_size, eps, bias=bias)

    def input_part(self, x: Tensor) -> Tensor:
        """What x adds to the gates, normalised if that is done apart: (P, I) -> (P, 4H)."""
        gates_x = linear(x, self.weight_ih)
        if self.form != "rnnt":
            gates_x = self.norm_x(gates_x)
        return gates_x if self.bias is None else gates_x + self.bias

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 4H), state h, c (n, H)."""
        h, c = state
        gates_h = h @ self.weight_hh.t()
        gates = self.norm_gates(gates_x + gates_h) if self.form == "rnnt" else gates_x + self.norm_h(gates_h)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        normed = self.norm_c(c)
        return torch.sigmoid(o) * torch.tanh(normed), c if self.form == "ba2016" else normed

    def extra_repr(self) -> str:
        """The sizes and the form."""
        return f"{self.input_size}, {self.hidden_size}, form={self.form!r}"


class LayerNormLSTM(CellStack):
    """A stack of `LayerNormLSTMCell`; the arguments are those of `stack_cells` after the cell, and the cell's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(LayerNormLSTMCell, *args, **options)
