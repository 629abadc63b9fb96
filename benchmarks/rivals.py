"""What stands in nn.LSTM's place where it has no such argument, and in ours where the call is no plain one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from torchlstm import LSTM


class PadPacked(nn.LSTM):
    """`lengths=`: packed before nn.LSTM and padded again behind it."""

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Tensor) -> Any:  # type: ignore[override]
        """Time-major input only."""
        packed, state = super().forward(pack_padded_sequence(input, lengths, enforce_sorted=False), hx)
        return pad_packed_sequence(packed, total_length=input.shape[0])[0], state


class SplitAtResets(nn.LSTM):
    """`resets=`: one call from each step at which any sequence restarts to the next such step, states masked between.

    sb3-contrib's recurrent policies make a call for every step as soon as there is a reset; this makes fewer.
    """

    def forward(self, input: Tensor, hx: Any = None, *, resets: Tensor) -> Any:  # type: ignore[override]
        """Time-major input only."""
        steps, batch, _ = input.shape
        cuts = [step for step in resets.any(1).nonzero().flatten().tolist() if step]
        h, c = hx or (input.new_zeros(self.num_layers, batch, self.hidden_size) for _ in range(2))
        outputs = []
        for begin, end in zip([0, *cuts], [*cuts, steps], strict=True):
            keep = (~resets[begin])[:, None].to(input.dtype)  # (B, 1)
            output, (h, c) = super().forward(input[begin:end], (h * keep, c * keep))
            outputs.append(output)
        return torch.cat(outputs), (h, c)


class Streamed(LSTM):
    """An LSTM whose inference is timed through a `torchlstm.Stream`."""
