"""A character model trained with nn.LSTM and again after `swap`: the code of 03_a_model.md."""

import copy
import os
import sysconfig
import time
from pathlib import Path

import pictures
import torch
from torch import Tensor, nn

import torchlstm

STEPS = int(os.environ.get("TUTORIAL_STEPS", "300"))
BATCH, LENGTH = 32, 64
MODULES = "argparse ast calendar configparser csv datetime difflib doctest ftplib inspect mailbox optparse pdb pickle"


class CharModel(nn.Module):
    """Characters in, scores of the next character out."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 32)
        self.lstm = nn.LSTM(32, 128)
        self.head = nn.Linear(128, characters)

    def forward(self, text: Tensor) -> Tensor:
        """text (T, B) -> scores (T, B, characters)."""
        output, _ = self.lstm(self.embedding(text))
        scores: Tensor = self.head(output)
        return scores


library = Path(sysconfig.get_path("stdlib"))
files = [library / f"{name}.py" for name in MODULES.split()]
text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
text = text.encode("ascii", "ignore").decode()
alphabet = "".join(sorted(set(text)))
data = torch.tensor([alphabet.index(character) for character in text])


def train(model: CharModel) -> list[float]:
    """Train and return the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    places = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(0, len(data) - LENGTH - 1, (BATCH,), generator=places)
        pieces = data[starts + torch.arange(LENGTH + 1)[:, None]]  # (T + 1, B)
        scores = model(pieces[:-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), pieces[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(666)
torch.set_num_threads(1)  # a model so small gains nothing from a second core
theirs = CharModel(len(alphabet))
ours = torchlstm.swap(copy.deepcopy(theirs))
print(ours)

start = time.perf_counter()
their_losses = train(theirs)
middle = time.perf_counter()
our_losses = train(ours)
end = time.perf_counter()

print(f"{'step':>6} {'nn.LSTM':>10} {'torchlstm':>10}")
for step in (1, STEPS // 4, STEPS // 2, 3 * STEPS // 4, STEPS):
    print(f"{step:6} {their_losses[step - 1]:10.5f} {our_losses[step - 1]:10.5f}")
largest = max(abs(a - b) for a, b in zip(their_losses, our_losses, strict=True))
print(f"largest difference of {STEPS} losses: {largest:.0e}")
print(f"seconds: nn.LSTM {middle - start:.1f}, torchlstm {end - middle:.1f}")


pictures.losses("03_losses.png", their_losses, our_losses)
torch.save({"alphabet": alphabet, **ours.state_dict()}, pictures.FOLDER / "03_model.pt")
