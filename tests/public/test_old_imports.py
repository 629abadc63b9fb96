"""Every name that a user of version 0.1.0 could have imported is still where it was."""

import json
import subprocess
import sys
from pathlib import Path

import torchlstm

ROOT = Path(__file__).parents[2]

# Modules of 0.1.0 as they were documented, in README, docstrings, examples or benchmarks, or as pickles name them.
NAMES = {
    "torchlstm": (
        "LSTM EngineRefusal LSTMCell LayerNormLSTM Stream cells convert engines explain init plan_swap restore "
        "stack_cells swap use_engine viz __version__ LazyLSTM export FrozenLSTM FrozenLSTMCell freeze plan_freeze thaw"
    ),
    "torchlstm.lazy": "LazyLSTM",
    "torchlstm.export": "decompositions",
    "torchlstm.lstm": "LSTM",
    "torchlstm.cell": "LSTMCell",
    "torchlstm.cells": (
        "CellStack ClippedLSTM ClippedLSTMCell CoupledLSTM CoupledLSTMCell LayerNormLSTM LayerNormLSTMCell "
        "PeepholeLSTM PeepholeLSTMCell RecurrentDropoutLSTM RecurrentDropoutLSTMCell VariationalLSTM "
        "VariationalLSTMCell WeightDropLSTM ZoneoutLSTM ZoneoutLSTMCell stack_cells"
    ),
    "torchlstm.cells.stack": "CellStack stack_cells",
    "torchlstm.cells.gated": (
        "ClippedLSTM ClippedLSTMCell CoupledLSTM CoupledLSTMCell GatedCell PeepholeLSTM PeepholeLSTMCell"
    ),
    "torchlstm.cells.noise": (
        "RecurrentDropoutLSTM RecurrentDropoutLSTMCell VariationalLSTM VariationalLSTMCell WeightDropLSTM ZoneoutLSTM "
        "ZoneoutLSTMCell"
    ),
    "torchlstm.cells.norm": "LayerNormLSTM LayerNormLSTMCell",
    "torchlstm.convert": "from_flax from_haste from_keras from_onnx to_flax to_haste to_keras to_onnx",
    "torchlstm.dispatch": "EngineRefusal engines forced_engine use_engine",
    "torchlstm.equations": "lstm_cell lstm_step",
    "torchlstm.explain": "Decision Explanation Loop explain",
    "torchlstm.init": "LearnedState chrono_ forget_bias_ orthogonal_",
    "torchlstm.parity": "CASES Case Report Result Verdict check judge run_case select",
    "torchlstm.parity.observe": "Inputs Observation build draw observe",
    "torchlstm.parity.timing": "Pairs interleave",
    "torchlstm.stream": "Stream",
    "torchlstm.swap": "Candidate plan_swap restore swap",
    "torchlstm.testing": "check_cell",
    "torchlstm.trace": "States Trace",
    "torchlstm.viz": "gates",
    "torchlstm.__main__": "main",
}

# What was an attribute after `import torchlstm` alone: all of these but what is imported by those who want it.
ON_DEMAND = {"torchlstm.parity", "torchlstm.testing", "torchlstm.__main__"}
# Public names that are functions, though modules have their names too: the function is what `torchlstm.NAME` says.
FUNCTIONS = ("engines", "explain", "swap")

SCRIPT = """
import functools, importlib, json, os, sys
names, on_demand, functions = json.loads(sys.argv[1])
wrong = []

import torchlstm
before = {name: getattr(torchlstm, name) for name in names["torchlstm"].split()}
for module in names:
    if not module.startswith(tuple(on_demand)) and module.rpartition(".")[2] not in functions:
        try:
            functools.reduce(getattr, module.split(".")[1:], torchlstm)
        except AttributeError as error:
            wrong.append(f"after import torchlstm, {module}: {error}")

for module, attributes in names.items():
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        wrong.append(f"import {module}: {error}")
        continue
    if not found.__file__.startswith(os.path.dirname(torchlstm.__file__) + os.sep):
        wrong.append(f"import {module}: that of another installation, {found.__file__}")
    for name in attributes.split():
        try:
            exec(f"from {module} import {name}", {})
        except ImportError as error:
            wrong.append(f"from {module} import {name}: {error}")
            continue
        if name in before and getattr(found, name) is not before[name]:
            wrong.append(f"{module}.{name} is another object than torchlstm.{name}")

try:
    import torchlstm.integrations.opacus
except ModuleNotFoundError as error:
    # It is there, and opacus is not.
    if error.name != "opacus":
        wrong.append(f"import torchlstm.integrations.opacus: {error}")

# The function and not the module of the same name, whatever has been imported since.
wrong += [f"torchlstm.{name} has changed" for name, value in before.items() if getattr(torchlstm, name) is not value]
wrong += [f"torchlstm.{name} is not a function" for name in functions if not callable(before[name])]
print("\\n".join(wrong))
"""


def _missing(names: dict[str, str]) -> str:
    """What a fresh process cannot import of these names, one a line."""
    given = json.dumps([names, sorted(ON_DEMAND), FUNCTIONS])
    command = [sys.executable, "-W", "error", "-c", SCRIPT, given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_can_be_imported() -> None:
    assert _missing(NAMES) == ""


def test_what_is_not_there_is_named() -> None:
    names = NAMES | {"torchlstm.nowhere": "LSTM", "torchlstm.cell": "LSTMCell LSTMShell"}
    found = _missing(names)
    assert "import torchlstm.nowhere: No module named 'torchlstm.nowhere'" in found
    assert "from torchlstm.cell import LSTMShell" in found


def test_all_public_names_are_in_the_table() -> None:
    assert set(torchlstm.__all__) <= set(NAMES["torchlstm"].split())
    assert set(torchlstm.cells.__all__) <= set(NAMES["torchlstm.cells"].split())
