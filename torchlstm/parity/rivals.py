"""nn.LSTM with the usual workarounds for `lengths`, `resets` and `trace`, with which ours are compared."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PadPacked(nn.LSTM):
    """`lengths=`: pack the input, call nn.LSTM, pad the output."""

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Tensor) -> Any:  # type: ignore[override]
        """As torchlstm.LSTM's; every length is at least 1."""
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, state = super().forward(packed, hx)
        steps = input.shape[1 if self.batch_first else 0]
        return pad_packed_sequence(output, self.batch_first, total_length=steps)[0], state


class SplitAtResets(nn.LSTM):
    """`resets=`: a call for each stretch of steps between resets of any sequence, with masked states between the calls.

    sb3-contrib's recurrent policies make a call for every step if there is any reset; this makes fewer.
    """

    def forward(self, input: Tensor, hx: Any = None, *, resets: Tensor) -> Any:  # type: ignore[override]
        """As torchlstm.LSTM's, in one direction."""
        axis = 1 if self.batch_first else 0
        steps, batch, resets = input.shape[axis], input.shape[1 - axis], resets.to(input.device)
        cuts = [step for step in resets.any(1 - axis).nonzero().flatten().tolist() if step]
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        h, c = hx or (input.new_zeros(self.num_layers, batch, size) for size in sizes)
        outputs = []
        for begin, end in zip([0, *cuts], [*cuts, steps], strict=True):
            keep = (~resets.select(axis, begin))[:, None].to(input.dtype)  # (B, 1)
            output, (h, c) = super().forward(input.narrow(axis, begin, end - begin), (h * keep, c * keep))
            outputs.append(output)
        return torch.cat(outputs, axis), (h, c)


class StepByStep(nn.LSTM):
    """`trace`: the equations, step by step."""

    def trace(self, input: Tensor, hx: tuple[Tensor, Tensor]) -> Any:
        """As torchlstm.LSTM's, for dense time-major input with given states."""
        each, finals, directions = [], [], 1 + self.bidirectional
        x = input
        for layer in range(self.num_layers):
            found = [self._direction(x, layer, d, *(s[layer * directions + d] for s in hx)) for d in range(directions)]
            x = torch.cat([states["h"] for states, _, _ in found], -1)
            each.append([states for states, _, _ in found])
            finals += [(h, c) for _, h, c in found]
        h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
        return x, (h_n, c_n), each

    def _direction(
        self, x: Tensor, layer: int, direction: int, h: Tensor, c: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        end = f"_l{layer}{'_reverse' * direction}"
        w_ih, w_hh, b_ih, b_hh = (getattr(self, n + end) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        steps: list[dict[str, Tensor]] = []
        for x_t in x.flip(0) if direction else x:
            gates = nn.functional.linear(x_t, w_ih, b_ih) + nn.functional.linear(h, w_hh, b_hh)
            i, f, g, o = gates.chunk(4, -1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            if self.proj_size:
                h = h @ getattr(self, "weight_hr" + end).t()
            steps.append({"h": h, "c": c, "i": i, "f": f, "g": g, "o": o})
        every = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
        return {name: rows.flip(0) if direction else rows for name, rows in every.items()}, h, c


RIVALS: dict[str, type[nn.LSTM]] = {"lengths": PadPacked, "resets": SplitAtResets}
