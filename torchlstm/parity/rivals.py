"""nn.LSTM as people call it for want of `lengths` and `resets`: what those are compared with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PadPacked(nn.LSTM):
    """`lengths=`: packed before nn.LSTM and padded again behind it."""

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Tensor) -> Any:  # type: ignore[override]
        """As torchlstm.LSTM's; every length is 1 at least."""
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, state = super().forward(packed, hx)
        steps = input.shape[1 if self.batch_first else 0]
        return pad_packed_sequence(output, self.batch_first, total_length=steps)[0], state


class SplitAtResets(nn.LSTM):
    """`resets=`: one call from each step at which any sequence restarts to the next such step, states masked between.

    sb3-contrib's recurrent policies make a call for every step as soon as there is a reset; this makes fewer.
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


RIVALS: dict[str, type[nn.LSTM]] = {"lengths": PadPacked, "resets": SplitAtResets}
