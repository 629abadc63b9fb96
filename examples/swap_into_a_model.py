"""Swap torchlstm into a model that exists, check that it computes the same, and go back where that is needed."""

import copy

import torch
from torch import Tensor, nn

import torchlstm
from torchlstm.parity import check


class Tagger(nn.Module):
    """A tagger as anybody writes one; it knows nothing of torchlstm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 64, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> scores (B, T, 10)."""
        return self.head(self.lstm(self.embedding(tokens))[0])  # type: ignore[no-any-return]


def main() -> None:
    """Plan, check, swap, train a step, explain, restore."""
    torch.manual_seed(0)
    model, tokens = Tagger(), torch.randint(0, 100, (8, 20))
    optimizer = torch.optim.Adam(model.parameters())

    for candidate in torchlstm.plan_swap(model):
        print(f"{candidate.name}: {candidate.reason or 'will be swapped'}")
    print(check(model, tokens))  # outputs and every gradient, before anything is changed

    torchlstm.swap(model)  # same parameters: the optimizer above goes on as it was
    model(tokens).pow(2).mean().backward()
    optimizer.step()

    assert isinstance(model.lstm, torchlstm.LSTM)
    print(torchlstm.explain(model.lstm, model.embedding(tokens)))

    # TorchScript, quantize_dynamic and FX know nn.LSTM itself.
    original = torchlstm.restore(copy.deepcopy(model))
    print(f"restored: {type(original.lstm).__module__}.{type(original.lstm).__qualname__}")


if __name__ == "__main__":
    main()
