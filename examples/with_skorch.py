"""Train through scikit-learn's interface with skorch.  `pip install skorch` first."""

import numpy as np
import torch
from sklearn.model_selection import cross_val_score
from skorch import NeuralNetClassifier
from torch import Tensor, nn

import torchlstm


class Classifier(nn.Module):
    """Tell to which class a sequence belongs, from the last state."""

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(1, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, 1) -> scores (B, 2)."""
        _, (h_n, _) = self.lstm(x)
        scores: Tensor = self.readout(h_n[-1])
        return scores


def main() -> None:
    """Does a random walk end above where it began?  Three-fold cross-validation."""
    torch.manual_seed(0)
    walks = np.random.default_rng(0).normal(size=(300, 20, 1)).cumsum(1).astype(np.float32)
    classes = (walks[:, -1, 0] > walks[:, 0, 0]).astype(np.int64)
    net = NeuralNetClassifier(Classifier, criterion=nn.CrossEntropyLoss, lr=0.02, optimizer=torch.optim.Adam, verbose=0)
    scores = cross_val_score(net, walks, classes, cv=3, scoring="accuracy")
    print(f"accuracy {scores.mean():.2f}")


if __name__ == "__main__":
    main()
