"""Train with differential privacy: every sample's gradient is clipped, and noise added.  `pip install opacus` first."""

import warnings

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn

import torchlstm
import torchlstm.integrations.opacus  # from here on, opacus finds per-sample gradients in torchlstm's modules


class Classifier(nn.Module):
    """Does a series rise or fall?"""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(1, 16, batch_first=True)
        self.readout = nn.Linear(16, 2)

    def forward(self, series: Tensor) -> Tensor:
        """Scores (B, 2) of series (B, T, 1)."""
        _, (h_n, _) = self.lstm(series)
        scores: Tensor = self.readout(h_n[-1])
        return scores


def main() -> None:
    """Ten epochs, and what they have cost."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # opacus would like secure random numbers
    labels = torch.randint(2, (512,))
    slopes = (2.0 * labels - 1).view(-1, 1) * torch.arange(20) / 10
    series = (slopes + torch.randn(512, 20)).unsqueeze(-1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(series, labels), batch_size=64)
    model = Classifier()
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for _ in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(series).argmax(1) == labels).double().mean().item()
    print(f"epsilon {engine.get_epsilon(1e-4):.2f} at delta 1e-4, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
