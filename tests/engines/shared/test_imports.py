"""What `import torchlstm` leaves alone until it is used: torch's compiler, its counter of operations, and Triton."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import torchlstm
from torchlstm.engines.shared import imports

FOLDER = Path(torchlstm.__file__).parents[1]

QUIET = """
import sys, torch, torchlstm
SLOW = {"torch._dynamo", "torch.utils.flop_counter", "triton"}
def none(): assert not SLOW & sys.modules.keys(), SLOW & sys.modules.keys()
none()
lstm, x = torchlstm.LSTM(3, 4), torch.randn(5, 2, 3)
lstm(x)[0].sum().backward()
none()
"""
# 5 steps, 2 sequences, 16 gates: an input of 3 and a state of 4.
COUNTED = """
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as flops:
    lstm(x)
assert flops.get_total_flops() == 2 * 5 * 2 * 16 * (3 + 4), flops.get_total_flops()
import torch.utils.flop_counter as counter
assert type(counter.__loader__) is type(torch.utils.checkpoint.__loader__)
assert counter.__spec__.loader is counter.__loader__
"""
# Dynamo cannot trace what calls into C without a rule of its own.
COMPILED = """
import _random
from torchlstm.engines.shared import torch_private
name = "torch._dynamo.decorators.justknobs_check._dynamo_marked_constant"
assert name in torch_private.NAMES and torch_private.find(name) is True

def number(): return _random.Random(7).getrandbits(8)
def plus(y): return y + number()
def run(): return torch.compile(plus, backend="eager", fullgraph=True)(torch.zeros(1)).item()

try: run()
except torch._dynamo.exc.Unsupported: pass
else: raise AssertionError("it is traced, and shows nothing")
torch._dynamo.reset()
number = torch_private.constant(number)
assert run() == number()
compiled = torch.compile(lstm, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(x)[0], lstm(x)[0])
"""


@pytest.mark.parametrize("then", ["", COUNTED, COMPILED], ids=["nothing", "flop-counter", "compile"])
def test_import(then: str) -> None:
    """A fresh process imports none of them; what is registered with them later is there when it is needed."""
    if then == COUNTED and torchlstm.engines()["cpu"]:
        pytest.skip("no engine with operators")
    done = subprocess.run([sys.executable, "-c", QUIET + then], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def module(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of this text that can be imported; its name."""
    (folder / "awaited_module.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "awaited_module", raising=False)
    return "awaited_module"


def test_once_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, seen = module(tmp_path, "value = 3", monkeypatch), []
    imports.once_imported(name, lambda: seen.append(sys.modules[name].value))
    # To look for a module is not to import it.
    assert importlib.util.find_spec(name).loader.get_source(name) == "value = 3"
    assert seen == []
    importlib.import_module(name)
    importlib.reload(sys.modules[name])
    assert seen == [3]
    imports.once_imported(name, lambda: seen.append("at once"))
    assert seen == [3, "at once"]


def test_once_imported_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that raises while it is imported is not imported: what waits for it goes on waiting."""
    name, seen = module(tmp_path, "import json.absent", monkeypatch), []
    imports.once_imported(name, lambda: seen.append(1))
    with pytest.raises(ImportError):
        importlib.import_module(name)
    assert seen == []
    (tmp_path / "awaited_module.py").write_text("", encoding="utf-8")
    importlib.invalidate_caches()
    importlib.import_module(name)
    assert seen == [1]


def test_once_imported_of_no_module() -> None:
    imports.once_imported("no_such_module_at_all", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")
