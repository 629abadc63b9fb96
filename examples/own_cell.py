"""A recurrent cell of your own: ten lines, checked, stacked as nn.LSTM is, and trained."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import torchlstm
from torchlstm.testing import check_cell


class MinimalGatedCell(nn.Module):
    """The minimal gated unit (Zhou et al. 2016): one gate, one state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.state_sizes = (hidden_size,)
        # By this name it is computed for all steps in one product.
        self.input_part = nn.Linear(input_size, 2 * hidden_size)
        self.gate, self.candidate = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(2))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x is the input part of a step, (n, 2 * hidden_size); state is h alone."""
        (h,), (x_f, x_h) = state, x.chunk(2, dim=-1)
        f = torch.sigmoid(x_f + self.gate(h))
        return (torch.lerp(h, torch.tanh(x_h + self.candidate(f * h)), f),)


def main() -> None:
    """Check the cell, then learn to tell whether a sequence of numbers has a positive sum."""
    check_cell(MinimalGatedCell)
    print("the cell agrees with a plain loop over it, in every form of input")

    torch.manual_seed(0)
    network = torchlstm.stack_cells(MinimalGatedCell, 1, 16, num_layers=2, bidirectional=True, dropout=0.1)
    head = nn.Linear(2 * 16, 1)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.02)
    for step in range(60):
        sequences = [torch.randn(length, 1) for length in torch.randint(3, 12, (32,)).tolist()]
        wanted = torch.stack([(sequence.sum() > 0).float() for sequence in sequences])
        _, (h_n,) = network(pack_sequence(sequences, enforce_sorted=False))
        logits = head(torch.cat([h_n[-2], h_n[-1]], dim=-1)).squeeze(-1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            right = ((logits > 0) == (wanted > 0)).float().mean().item()
            print(f"step {step + 1}: loss {loss.item():.3f}, {right:.0%} right")


if __name__ == "__main__":
    main()
