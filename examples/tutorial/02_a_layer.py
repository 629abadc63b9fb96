"""From the cell to layers, directions and packed rows: the code of 02_a_layer.md."""

from collections.abc import Sequence

import pictures
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import torchlstm


def cell(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One step of B sequences: x (B, I), h and c (B, H)."""
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def direction(steps: Sequence[Tensor], weights: list[Tensor], reverse: bool) -> list[Tensor]:
    """The h of every step; steps[t] has a row for each sequence that is there at step t."""
    batch, hidden = max(len(x) for x in steps), weights[1].shape[1]
    h = c = steps[0].new_zeros(batch, hidden)
    outputs = []
    for x in reversed(steps) if reverse else steps:
        there = len(x)
        new_h, new_c = cell(x, h[:there], c[:there], weights)
        h, c = torch.cat([new_h, h[there:]]), torch.cat([new_c, c[there:]])
        outputs.append(new_h)
    return outputs[::-1] if reverse else outputs


def weights_of(module: nn.RNNBase, suffix: str) -> list[Tensor]:
    """The parameters of one layer and direction."""
    return [getattr(module, kind + suffix) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def run(steps: Sequence[Tensor], module: nn.RNNBase) -> Sequence[Tensor]:
    """All layers and both directions of a module that has nn.LSTM's parameters."""
    for layer in range(module.num_layers):
        forwards = direction(steps, weights_of(module, f"_l{layer}"), reverse=False)
        backwards = direction(steps, weights_of(module, f"_l{layer}_reverse"), reverse=True)
        steps = [torch.cat(pair, dim=-1) for pair in zip(forwards, backwards, strict=True)]
    return steps


torch.manual_seed(666)
theirs = nn.LSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
ours = torchlstm.LSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
ours.load_state_dict(theirs.state_dict())  # the same names and shapes

batch = torch.randn(5, 3, 3, dtype=torch.float64)  # (T, B, I)
packed = pack_sequence([batch[:length, b] for b, length in enumerate((2, 5, 3))], enforce_sorted=False)
by_hand = {
    "full batch": torch.stack(list(run(list(batch), theirs))),
    "packed": torch.cat(list(run(packed.data.split(packed.batch_sizes.tolist()), theirs))),
}
print(f"{'batch sizes':>13} {packed.batch_sizes.tolist()}, {len(packed.data)} rows")
for module in (theirs, ours):
    results = {"full batch": module(batch)[0], "packed": module(packed)[0].data}
    for name, result in results.items():
        gap = (result - by_hand[name]).abs().max().item()
        print(f"{name:>13} {tuple(result.shape)}, by hand and {type(module).__module__:18} differ by {gap:.0e}")


pictures.layer("02_layer.png")
