"""Makes `torchlstm-0.1.0.zip`: objects as version 0.1.0 pickled them, each with what 0.1.0 computed from it.

Run once, with torch 2.13, in a checkout of 0.1.0 (commit 147ce30) whose C kernel had not been built, so that all
numbers are the reference engine's: `PYTHONPATH=. python .../tests/public/data/make.py`.  Not to be run again: files of
a newer version would say nothing of old ones.  `tests/public/test_old_files.py` reads them.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchlstm
from torchlstm import cells

IN, HIDDEN, PROJECTED = 2, 3, 2
X = (4, 3, IN)  # (T, B, I)

# object  what was stored
# inputs  the arguments of a call of it, or of what the test makes of it
# output  what came out
Content = dict[str, Any]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def called(module: nn.Module, *inputs: Any) -> Content:
    module = module.double().eval()
    with torch.no_grad():
        return {"object": module, "inputs": inputs, "output": module(*inputs)}


def swapped() -> Content:
    """A model whose parts `swap` has changed."""
    parts = {
        "encoder": nn.LSTM(IN, HIDDEN, batch_first=True),
        "cell": nn.LSTMCell(IN, HIDDEN),
        "head": nn.Linear(HIDDEN, 2),
    }
    model = torchlstm.swap(nn.ModuleDict(parts)).double().eval()
    x = draw(3, 4, IN)
    with torch.no_grad():
        output = model["encoder"](x), model["cell"](x[:, 0])
    return {"object": model, "inputs": (x,), "output": output}


def other_cells() -> Content:
    """A stack of every other kind of cell, all called on the same input."""
    kinds = (
        cells.PeepholeLSTM,
        cells.CoupledLSTM,
        cells.ClippedLSTM,
        cells.ZoneoutLSTM,
        cells.VariationalLSTM,
        cells.RecurrentDropoutLSTM,
        cells.WeightDropLSTM,
    )
    models, x = nn.ModuleDict({kind.__name__: kind(IN, HIDDEN) for kind in kinds}).double().eval(), draw(*X)
    with torch.no_grad():
        return {"object": models, "inputs": (x,), "output": {name: model(x) for name, model in models.items()}}


def stream() -> Content:
    """A stream after two chunks, one sequence begun anew between them; then its next output and its state there."""
    made = torchlstm.Stream(torchlstm.LSTM(IN, HIDDEN, 2).double(), (draw(2, 3, HIDDEN), draw(2, 3, HIDDEN)))
    made(draw(3, 3, IN))
    made.reset(rows=[1])
    made(draw(2, 3, IN))
    stored, chunk = io.BytesIO(), draw(*X)
    torch.save(made, stored)
    output = made(chunk), made.state
    stored.seek(0)
    return {"object": torch.load(stored, weights_only=False), "inputs": (chunk,), "output": output}


def trace() -> Content:
    """A trace; its output is that of the module that it is of."""
    lstm, x = torchlstm.LSTM(IN, HIDDEN, bidirectional=True, proj_size=PROJECTED).double(), draw(*X)
    made = pytree.tree_map(lambda tensor: tensor.detach().clone(), lstm.trace(x))
    return {"object": made, "inputs": (x,), "output": made.output, "module": lstm}


def state_dict() -> Content:
    """The weights of an LSTM, and what it computed."""
    made = called(torchlstm.LSTM(IN, HIDDEN, 2, bidirectional=True), draw(*X))
    return made | {"object": made["object"].state_dict()}


def everything() -> Iterator[tuple[str, Content]]:
    options: dict[str, Any] = {"bidirectional": True, "proj_size": PROJECTED, "batch_first": True, "dropout": 0.3}
    hx = draw(4, 3, PROJECTED), draw(4, 3, HIDDEN)
    yield "lstm", called(torchlstm.LSTM(IN, HIDDEN, 2, **options), draw(3, 4, IN), hx)
    yield "lstm_checkpoint_every", called(torchlstm.LSTM(IN, HIDDEN, checkpoint_every=2), draw(*X))
    yield "lstm_cell", called(torchlstm.LSTMCell(IN, HIDDEN), draw(3, IN), (draw(3, HIDDEN), draw(3, HIDDEN)))
    yield "swapped_model", swapped()
    yield "cell_stack", called(torchlstm.stack_cells(nn.LSTMCell, IN, HIDDEN, 2, bidirectional=True), draw(*X))
    yield "layer_norm", called(torchlstm.LayerNormLSTM(IN, HIDDEN, form="rnnt"), draw(*X))
    yield "other_cells", other_cells()
    yield "learned_state", called(torchlstm.init.LearnedState(torchlstm.LSTM(IN, HIDDEN)), draw(*X))
    yield "stream", stream()
    yield "trace", trace()
    yield "state_dict", state_dict()


if __name__ == "__main__":
    torch.manual_seed(0)
    archive = Path(__file__).with_name("torchlstm-0.1.0.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, content in everything():
            pickled = io.BytesIO()
            torch.save(content, pickled)
            file.writestr(f"{name}.pt", pickled.getvalue())
