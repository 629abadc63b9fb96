"""Records of the CUDA engine's programs: how they are written, by several processes too, and their identities."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torchlstm.engines.cuda import identity, records
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.records import Measured

H200 = GPU("NVIDIA H200", (9, 0), 132, 227 << 10)
HERE = {"gpu": "NVIDIA H200"}
ROW = [Measured(8, 1, None, 1)]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHLSTM_CACHE", str(tmp_path))
    yield
    identity.identity_of.cache_clear()


def test_two_processes_write_one_record() -> None:
    program = """
import sys
from torchlstm.engines.cuda.records import Measured, merge
batch = int(sys.argv[1])
for number in range(10):
    found = {f"class {batch} {number}": [Measured(8, 1, None, 1)], "both": [Measured(8, batch, None, 1)]}
    merge({"gpu": "x"}, found)
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in (1, 2)]
    assert [process.wait(60) for process in running] == [0, 0]
    path = records.path_of({"gpu": "x"})
    found = records.read(path, {"gpu": "x"}).classes
    assert len(found) == 21
    assert [row.batch for row in found["both"]] == [1, 2]
    assert not list(path.parent.glob("*.part"))


def test_a_write_that_fails_leaves_the_record_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.merge(HERE, {"a": ROW})
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        records.merge(HERE, {"b": ROW})
    assert path.read_text() == before
    assert not list(path.parent.glob("*.part"))


def test_the_identity_names_what_could_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "INTERPRETED", False)
    monkeypatch.setattr(identity, "gpu_of", lambda _: H200)
    monkeypatch.setattr(identity, "_driver", lambda: "580.65")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)

    def now() -> dict[str, str]:
        identity.identity_of.cache_clear()
        return dict(identity.identity_of(0))

    before = now()
    assert before["multiprocessors"] == "132"
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert now() == before
    changes = [
        lambda: monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee"),
        lambda: monkeypatch.setattr(identity, "_driver", lambda: "590.1"),
        lambda: monkeypatch.setattr(identity, "gpu_of", lambda _: H200._replace(name="NVIDIA H200 MIG 1g.18gb")),
        lambda: monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91100),
        lambda: monkeypatch.setattr(torch, "__version__", "9.0"),
        lambda: monkeypatch.setattr(identity, "_CHOICE", {*identity._CHOICE, "plan.py"}),
    ]
    seen = [identity.digest(before)]
    for change in changes:
        change()
        seen.append(identity.digest(now()))
    assert len(set(seen)) == 1 + len(changes)


def test_the_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert records.folder() == Path(os.environ["TORCHLSTM_CACHE"], "qualified")
    monkeypatch.delenv("TORCHLSTM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    expected = {"linux": "/cache", "darwin": "/home/me/Library/Caches", "win32": "/local"}
    for platform, base in expected.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert records.folder() == Path(base, "torchlstm", "qualified")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert records.folder() == Path("/home/me/.cache/torchlstm/qualified")
