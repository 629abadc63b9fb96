"""LSTMs with layer normalisation, in the three forms that have been published."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .stack import CellStack, State

FORMS = ("ba2016", "fastrnns", "rnnt")


class LayerNormLSTMCell(nn.Module):
    r"""An LSTM cell with layer normalisation, LN (Ba, Kiros and Hinton 2016).

    Form "ba2016" is the paper's equations 20 to 22. The two parts of the gates are normalised separately, and c only
    on its way to the output; the c that is carried on is not normalised.

        i, f, g, o = LN(W_h h) + LN(W_x x) + b
        c' = \sigma(f) * c + \sigma(i) * \tanh(g)
        h' = \sigma(o) * \tanh(LN(c'))

    Form "fastrnns" is that of PyTorch's benchmarks. It has no b, and the c that is carried on is normalised.

        i, f, g, o = LN(W_h h) + LN(W_x x)
        c' = LN(\sigma(f) * c + \sigma(i) * \tanh(g))
        h' = \sigma(o) * \tanh(c')

    Form "rnnt" is that of torchaudio's RNN-T: as fastrnns, but with one LN of the sum.

        i, f, g, o = LN(W_h h + W_x x)

    An LN is over all gates (4H) or over c (H), with its own gain and, if bias, shift. The parameters are weight_ih
    (4H, I), weight_hh (4H, H), in form "ba2016" with bias also bias (4H,), and those of the norms.

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of h and c, H.
        bias: Whether there are biases and shifts.
        form: "ba2016", "fastrnns" or "rnnt".
        eps: Added to the variance in every LN.

    Raises:
        ValueError: There is no such form.

    Examples:
        >>> from torchlstm.cells import LayerNormLSTMCell
        >>> sorted(name for name, _ in LayerNormLSTMCell(8, 16, form="rnnt", bias=False).named_parameters())
        ['norm_c.weight', 'norm_gates.weight', 'weight_hh', 'weight_ih']
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
        """Compute what x adds to the gates, normalised in the forms that normalise it separately.

        Args:
            x: Rows of the input, (P, I).

        Returns:
            (P, 4H).
        """
        gates_x = linear(x, self.weight_ih)
        if self.form != "rnnt":
            gates_x = self.norm_x(gates_x)
        return gates_x if self.bias is None else gates_x + self.bias

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 4H).
            state: h and c, (n, H) each.

        Returns:
            The new h and c.
        """
        h, c = state
        gates_h = h @ self.weight_hh.t()
        gates = self.norm_gates(gates_x + gates_h) if self.form == "rnnt" else gates_x + self.norm_h(gates_h)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        normed = self.norm_c(c)
        return torch.sigmoid(o) * torch.tanh(normed), c if self.form == "ba2016" else normed

    def extra_repr(self) -> str:
        """Return the sizes and the form."""
        return f"{self.input_size}, {self.hidden_size}, form={self.form!r}"


class LayerNormLSTM(CellStack):
    """A stack of `LayerNormLSTMCell`, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them, and the cell's: form, eps.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.LayerNormLSTM(8, 16, num_layers=2, bidirectional=True, form="rnnt")
        >>> lstm(torch.randn(10, 4, 8))[0].shape
        torch.Size([10, 4, 32])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(LayerNormLSTMCell, *args, **options)
