"""Objects that version 0.1.0 stored, whole modules among them, load and compute what it computed."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import torchlstm
from torchlstm.trace import States, Trace

ARCHIVE = Path(__file__).parent / "data" / "torchlstm-0.1.0.zip"

# What is in a file: of a class that there are no two of, though a pickle names it by the path of its module then.
KINDS: dict[str, type] = {
    "lstm": torchlstm.LSTM,
    "lstm_checkpoint_every": torchlstm.LSTM,
    "lstm_cell": torchlstm.LSTMCell,
    "swapped_model": torch.nn.ModuleDict,
    "cell_stack": torchlstm.cells.CellStack,
    "layer_norm": torchlstm.LayerNormLSTM,
    "other_cells": torch.nn.ModuleDict,
    "learned_state": torchlstm.init.LearnedState,
    "stream": torchlstm.Stream,
    "trace": Trace,
    "state_dict": dict,
}

# Before anything is loaded, only what a user has imported who wants to load it.
FRESH = """
import sys, io, zipfile
import torch, torchlstm
with zipfile.ZipFile(sys.argv[1]) as archive:
    files = {name: io.BytesIO(archive.read(name)) for name in archive.namelist()}
contents = {name: torch.load(file, weights_only=False) for name, file in files.items()}

import runpy
compare = runpy.run_path(sys.argv[2])["compare"]
for name, content in contents.items():
    compare(name.removesuffix(".pt"), content)
print(len(contents), "files")
"""


def load(name: str) -> dict[str, Any]:
    """What `data/make.py` put into a file."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        stored = io.BytesIO(archive.read(f"{name}.pt"))
    content: dict[str, Any] = torch.load(stored, weights_only=name == "state_dict")
    return content


def compute(name: str, made: Any, inputs: tuple[Any, ...]) -> Any:
    """What comes out now, of the calls in `data/make.py`."""
    if name == "swapped_model":
        (x,) = inputs
        return made["encoder"](x), made["cell"](x[:, 0])
    if name == "other_cells":
        return {kind: model(*inputs) for kind, model in made.items()}
    if name == "stream":
        return made(*inputs), made.state
    if name == "state_dict":
        lstm = torchlstm.LSTM(2, 3, 2, bidirectional=True, dtype=torch.float64)
        lstm.load_state_dict(made)
        return lstm(*inputs)
    return made(*inputs)


def compare(name: str, content: dict[str, Any]) -> None:
    """Raise AssertionError unless an object is of today's class and computes what it did."""
    made, inputs = content["object"], content["inputs"]
    assert isinstance(made, KINDS[name])
    if name == "trace":
        now = content["module"].trace(*inputs)
        # Field by field: a name that has changed its place would hold other numbers.
        for field in Trace._fields:
            torch.testing.assert_close(getattr(now, field), getattr(made, field), rtol=0, atol=1e-12)
        for then, today in zip(made.layers[0], now.layers[0], strict=True):
            assert type(then) is States
            for gate in "hcifgo":
                torch.testing.assert_close(getattr(today, gate), getattr(then, gate), rtol=0, atol=1e-12)
        return
    torch.testing.assert_close(compute(name, made, inputs), content["output"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_loads_and_computes_the_same(name: str) -> None:
    compare(name, load(name))


def test_every_class_of_cells_is_todays() -> None:
    for name, model in load("other_cells")["object"].items():
        assert type(model) is getattr(torchlstm.cells, name)
    swapped = load("swapped_model")["object"]
    assert type(swapped["encoder"]) is torchlstm.LSTM
    assert type(swapped["cell"]) is torchlstm.LSTMCell
    torchlstm.restore(swapped)
    assert type(swapped["encoder"]) is torch.nn.LSTM


def test_what_was_set_is_still_set() -> None:
    assert load("lstm_checkpoint_every")["object"].checkpoint_every == 2
    lstm = load("lstm")["object"]
    assert (lstm.num_layers, lstm.proj_size, lstm.bidirectional, lstm.dropout) == (2, 2, True, 0.3)
    assert load("layer_norm")["object"].cells[0].form == "rnnt"


def test_in_a_fresh_process() -> None:
    command = [sys.executable, "-W", "error", "-c", FRESH, str(ARCHIVE), __file__]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(KINDS)} files\n"


def test_comparing_finds_a_changed_number() -> None:
    content = load("lstm_cell")
    with torch.no_grad():
        content["object"].weight_hh[0, 0] += 1e-9
    with pytest.raises(AssertionError, match="not close"):
        compare("lstm_cell", content)
