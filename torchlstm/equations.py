"""The equations of the LSTM cell in torch operations; the reference engine loops over them."""

import torch
from torch import Tensor


def lstm_cell(gates_x: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, w_hr: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""One step of an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

        i = \sigma(W_ii x + b_ii + W_hi h + b_hi)          input gate
        f = \sigma(W_if x + b_if + W_hf h + b_hf)          forget gate
        g =  \tanh(W_ig x + b_ig + W_hg h + b_hg)          candidate
        o = \sigma(W_io x + b_io + W_ho h + b_ho)          output gate
        c' = f * c + i * g
        h' = o * \tanh(c'),   or W_hr (o * \tanh(c')) with a projection (Sak et al. 2014)

    gates_x  (B, 4H), the input part of the gates: W_i x + b_i + b_h
    h, c     (B, R), (B, H)
    w_hh     (4H, R)
    w_hr     (R, H) or None
    returns  h' (B, R), c' (B, H)
    """
    h, c, *_ = lstm_step(gates_x, h, c, w_hh, w_hr)
    return h, c


def lstm_step(
    gates_x: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, w_hr: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `lstm_cell`, and also the activated gates: h' (B, R), c' (B, H), i, f, g, o (B, H)."""
    gates = gates_x + h @ w_hh.t()  # (B, 4H)
    i, f, g, o = gates.chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return (h if w_hr is None else h @ w_hr.t()), c, i, f, g, o
