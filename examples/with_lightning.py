"""Train with Lightning: the module is a torch.nn.Module like any other.  `pip install lightning` first."""

import lightning
import torch
from torch import Tensor, nn

import torchlstm


class Forecaster(lightning.LightningModule):
    """Predict the next value of a series from those before."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(1, 32, batch_first=True)
        self.readout = nn.Linear(32, 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of a batch: one tensor of series (B, T, 1)."""
        (series,) = batch
        output, _state = self.lstm(series[:, :-1])
        loss = nn.functional.mse_loss(self.readout(output), series[:, 1:])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, for all parameters."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    """Forecast sine waves of different phase."""
    torch.manual_seed(0)
    phase = 6.28 * torch.rand(64, 1)
    series = torch.sin(phase + torch.arange(40) / 3).unsqueeze(-1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(series), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=10, accelerator="auto", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Forecaster(), loader)
    print(f"loss {trainer.callback_metrics['loss'].item():.4f}")


if __name__ == "__main__":
    main()
