"""TensorBoard draws the graph of a model that packs."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.tensorboard import SummaryWriter

import torchlstm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Tagger(nn.Module):
    """Padded sequences and their lengths to two scores a step."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(5, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        scores: Tensor = self.head(pad_packed_sequence(self.encoder(packed)[0], batch_first=True)[0])
        return scores


ENCODERS = {
    "nn.LSTM": lambda: nn.LSTM(4, 5, 2, batch_first=True, dropout=0.5),
    "LSTM": lambda: torchlstm.LSTM(4, 5, 2, batch_first=True, dropout=0.5),
    "stack": lambda: torchlstm.cells.LayerNormLSTM(4, 5, 2, batch_first=True, dropout=0.5),
}


@pytest.mark.parametrize("lengths", [[3, 3], [1, 3]], ids=["equal", "unsorted"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_add_graph(kind: str, lengths: list[int], tmp_path: Path) -> None:
    model = Tagger(ENCODERS[kind]())
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(model, (torch.randn(2, 3, 4), torch.tensor(lengths)))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    nodes = [node.name for node in events.Graph().node]
    assert any("LSTM[encoder]" in name for name in nodes)
    assert any("Linear[head]" in name for name in nodes)
    assert model.training
