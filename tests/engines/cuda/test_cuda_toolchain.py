"""What the CUDA engine's launches need: Triton, a C compiler and Python's headers."""

import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torchlstm
from torchlstm.engines.cuda import toolchain

pytest.importorskip("triton")


@pytest.fixture
def unlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, no header and no library that was built before; each test gives something back."""
    monkeypatch.setattr(toolchain, "_found", [])
    monkeypatch.setattr(toolchain, "_built", lambda: False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(toolchain, "find_spec", lambda _: True)


def _triton(monkeypatch: pytest.MonkeyPatch, build: Any = None) -> None:
    knobs = SimpleNamespace(build=SimpleNamespace(impl=build))
    modules = {"triton": SimpleNamespace(__version__="3.6.0", knobs=knobs)}
    monkeypatch.setattr(toolchain, "import_module", modules.__getitem__)


def _headers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(folder)})


@pytest.mark.usefixtures("unlooked")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    _triton(monkeypatch)
    expected = "Triton 3.6.0 builds its launcher by a C compiler, and there is neither gcc nor clang: install gcc and"
    assert str(toolchain.missing()).startswith(expected)
    # The answer is cached for the process.
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert str(toolchain.missing()).startswith(expected)


@pytest.mark.usefixtures("unlooked")
def test_with_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _triton(monkeypatch)
    monkeypatch.setenv("CC", "gcc-99")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "gcc-99" else name)
    assert "and CC names 'gcc-99', which is no program here" in str(toolchain.missing())


@pytest.mark.usefixtures("unlooked")
@pytest.mark.parametrize("compiler", ["gcc", "clang", "icx"])
def test_with_a_compiler_and_headers(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _triton(monkeypatch)
    _headers(monkeypatch, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == compiler else None)
    if compiler == "icx":
        monkeypatch.setenv("CC", compiler)
    assert toolchain._look() == (
        f"Triton 3.6.0 builds its launcher by a C compiler, and there is no Python.h in {tmp_path}: "
        "install gcc and Python's headers (on Debian: apt install gcc libc6-dev python3-dev), or name one by CC"
    )
    (tmp_path / "Python.h").write_text("")
    assert toolchain.missing() is None


@pytest.mark.usefixtures("unlooked")
def test_without_a_compiler_but_with_what_it_would_build(monkeypatch: pytest.MonkeyPatch) -> None:
    _triton(monkeypatch)
    monkeypatch.setattr(toolchain, "_built", lambda: True)
    assert toolchain.missing() is None
    _triton(monkeypatch, build=print)
    monkeypatch.setattr(toolchain, "_built", lambda: False)
    assert toolchain._look() is None


@pytest.mark.parametrize(("utils", "built"), [({"launch": print}, True), ({}, False), (None, False)])
def test_what_was_built_before(utils: Any, built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 builds a launcher for every signature of a kernel, newer ones a single library that launches all."""

    class Driver:
        @property
        def active(self) -> Any:
            if utils is None:
                raise RuntimeError("Failed to find C compiler")
            return SimpleNamespace(utils=SimpleNamespace(**utils))

    monkeypatch.setattr(toolchain, "import_module", {"triton.runtime": SimpleNamespace(driver=Driver())}.__getitem__)
    assert toolchain._built() is built


@pytest.mark.usefixtures("unlooked")
def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda _: None)
    assert toolchain.missing() == "it needs Triton, which is not installed: pip install triton"


@pytest.mark.usefixtures("unlooked")
def test_with_a_broken_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "import_module", {}.__getitem__)
    assert toolchain.missing() == "it needs Triton, which cannot be imported: KeyError: 'triton'"


def test_the_engine_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(toolchain, "_found", ["there is no compiler"])
    assert torchlstm.engines()["cuda"] == "there is no compiler"
    with pytest.raises(RuntimeError, match="engine 'cuda' is not available: there is no compiler"):
        torchlstm.use_engine("cuda")
