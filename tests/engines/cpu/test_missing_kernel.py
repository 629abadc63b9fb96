"""Where the extension is missing: who is told, once, and who is not."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from torchlstm.engines.cpu import calls

ROOT = Path(__file__).parents[3]

# What each call warns of, in the order of a life: nobody is told before a plain call is made.
PROGRAM = """
import json, warnings
import torch, torchlstm
from torch import nn

def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "torchlstm" in str(warning.message)]

def forced():
    with torchlstm.use_engine("reference"):
        lstm(x)

model = nn.Sequential(nn.LSTM(4, 6))
torchlstm.swap(model)
lstm, x = model[0], torch.randn(3, 2, 4)
print(json.dumps({
    "explain": told(lambda: torchlstm.explain(lstm, x)),
    "forced": told(forced),
    "another device": told(lambda: torchlstm.LSTM(4, 6, device="meta")(x.to("meta"))),
    "trace": told(lambda: torch.jit.trace(lstm, (x,), check_trace=False)),
    "export": told(lambda: torch.export.export(lstm, (x,))),
    "compile": told(lambda: torch.compile(lstm, backend="eager")(x)),
    "first": told(lambda: model(x)),
    "second": told(lambda: torchlstm.LSTM(4, 6)(x)),
    "cell": told(lambda: torchlstm.LSTMCell(4, 6)(x[0])),
    "reason": torchlstm.engines()["cpu"],
}))
"""


def run(folder: Path, program: str, **environment: str) -> Any:
    """What a program prints as JSON, by the package in this folder."""
    ours = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCHLSTM")}
    arguments = [sys.executable, "-c", program]
    answer = subprocess.run(arguments, env={**clean, **ours}, cwd=folder, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as an installation without a compiler leaves it."""
    folder = tmp_path_factory.mktemp("without")
    shutil.copytree(ROOT / "torchlstm", folder / "torchlstm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="on Windows the message names Windows, not the missing file")
def test_the_first_plain_call_says_so_once(without: Path) -> None:
    told = run(without, PROGRAM)
    (first,) = told.pop("first")
    reason = told.pop("reason")
    assert first.startswith(f"torchlstm's CPU kernel is not available: {reason}.  LSTMs on the CPU run as a loop")
    for way_out in ("a wheel", "C compiler (GCC or Clang)", "pip install -v", "use_engine('reference')"):
        assert way_out in first
    others = ("explain", "forced", "another device", "trace", "export", "compile", "second", "cell")
    assert told == {call: [] for call in others}


@pytest.mark.parametrize(
    ("platform", "free_threaded", "reason"),
    [
        pytest.param("win32", 0, "its extension is not built on Windows; under WSL it is", id="windows"),
        pytest.param("linux", 1, "its extension is not built for free-threaded Python; .* it is", id="free-threaded"),
        pytest.param("linux", 0, "its extension was not compiled at installation; a wheel .*", id="no compiler"),
    ],
)
def test_the_reason(platform: str, free_threaded: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sysconfig.get_config_vars(), "Py_GIL_DISABLED", free_threaded)
    monkeypatch.setitem(sys.modules, "torchlstm.engines.cpu._kernel", None)
    extension, why = calls.load()
    assert extension is None
    assert re.fullmatch(reason, str(why))
