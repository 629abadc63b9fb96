"""One LSTM cell by hand: the code of 01_one_cell.md."""

import pictures
import torch
from torch import Tensor, nn

torch.manual_seed(666)
input, h, c = torch.randn(2, 3), torch.randn(4), torch.randn(4)
lstm = nn.LSTM(input_size=3, hidden_size=4)
expected, (h_n, c_n) = lstm(input, (h[None], c[None]))

W_ii, W_if, W_ig, W_io = lstm.get_parameter("weight_ih_l0").chunk(4)  # (4, 3) each
W_hi, W_hf, W_hg, W_ho = lstm.get_parameter("weight_hh_l0").chunk(4)  # (4, 4) each
b_ii, b_if, b_ig, b_io = lstm.get_parameter("bias_ih_l0").chunk(4)
b_hi, b_hf, b_hg, b_ho = lstm.get_parameter("bias_hh_l0").chunk(4)


def show(name: str, values: Tensor) -> None:
    """Print a name and four numbers."""
    print(f"{name:>8}", *(f"{value:8.4f}" for value in values.tolist()))


for t, x in enumerate(input):
    i = torch.sigmoid(W_ii @ x + b_ii + W_hi @ h + b_hi)
    f = torch.sigmoid(W_if @ x + b_if + W_hf @ h + b_hf)
    g = torch.tanh(W_ig @ x + b_ig + W_hg @ h + b_hg)
    o = torch.sigmoid(W_io @ x + b_io + W_ho @ h + b_ho)
    c = f * c + i * g
    h = o * torch.tanh(c)

    print(f"step {t}")
    for name, values in zip("ifgoch", (i, f, g, o, c, h), strict=True):
        show(name, values)
    show("nn.LSTM", expected[t])
show("its c", c_n[0])


pictures.cell("01_cell.png")
