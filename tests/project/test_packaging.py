"""What is said of the package in several places is the same: versions, Pythons, torch, and the files it is made of."""

import re
import runpy
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

import torchlstm

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github/workflows"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    """The file pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    content: dict[str, Any] = tomllib.loads(text("pyproject.toml"))
    return content


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def classified() -> list[str]:
    """The Pythons of the classifiers, in their order."""
    found = re.findall(r'^    "Programming Language :: Python :: (3\.\d+)",$', text("pyproject.toml"), re.MULTILINE)
    assert found == sorted(found, key=numbers)
    return found


def test_the_version_is_a_literal_of_the_package() -> None:
    assert project()["project"]["dynamic"] == ["version"]
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "torchlstm.__version__"}
    assert f'\n__version__ = "{torchlstm.__version__}"\n' in text("torchlstm/__init__.py")
    assert re.search(r"^version: (.*)$", text("CITATION.cff"), re.MULTILINE)[1] == torchlstm.__version__  # type: ignore[index]


def test_what_is_installed_has_this_version() -> None:
    try:
        installed = distribution("torchlstm")
    except PackageNotFoundError:
        pytest.skip("torchlstm is not installed, only on the path")
    assert installed.version == torchlstm.__version__, "installed before the version changed: pip install -e . again"


def test_the_oldest_python_is_one_everywhere() -> None:
    oldest, *_, newest = classified()
    short = oldest.replace(".", "")
    assert project()["project"]["requires-python"] == f">={oldest}"
    assert project()["tool"]["ruff"]["target-version"] == f"py{short}"
    assert f'"cp{short}"' in text("setup.py")
    assert f"-cp{short}-abi3-" in text(".ci/contents.py")
    hexadecimal = "0x{:02X}{:02X}0000".format(*numbers(oldest))
    assert f"#define Py_LIMITED_API {hexadecimal}\n" in text("torchlstm/engines/cpu/kernel/read.h")
    assert project()["tool"]["cibuildwheel"]["build"] == [f"cp{short}-*", f"cp{newest.replace('.', '')}-*"]


def test_the_workflow_tests_every_python_and_the_oldest_and_newest_torch_on_each_system() -> None:
    workflow = text(".github/workflows/tests.yml")
    listed = re.search(r"^        python: \[(.*)\]$", workflow, re.MULTILINE)
    assert listed
    assert re.findall(r'"(.*?)"', listed[1]) == classified()
    (required,) = project()["project"]["dependencies"]
    oldest = required.replace("torch>=", "torch==") + ".*"
    rows = re.findall(r'os: ([\w.-]+),?\s+python: "([\d.]+)",?\s+torch: (torch[=.*\d]*)', workflow)
    systems = ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "windows-2025")
    both = [(system, python, torch) for system in systems for python, torch in
            ((classified()[0], oldest), (classified()[-1], "torch"))]  # fmt: skip
    # Linux on x86-64 has the newest torch with every Python.
    both.remove((systems[0], classified()[-1], "torch"))
    assert rows == both


def test_tools_that_a_workflow_takes_from_the_constraints_are_there() -> None:
    pinned = set(re.findall(r"^([\w-]+)==", text("constraints.txt"), re.MULTILINE))
    for file in (*WORKFLOWS.glob("*.yml"), ROOT / ".ci/wheels"):
        for tools in re.findall(
            r"install (?:--quiet )?-c \S+constraints\.txt\S* ([a-z][\w -]*)$", file.read_text(), re.M
        ):
            assert set(tools.split()) <= pinned, f"{file.name} installs {tools}"


def test_package_data_are_all_files_of_the_package_but_python_and_c() -> None:
    kinds = (".py", ".c", ".h", ".so", ".pyc")
    data = [path for path in (ROOT / "torchlstm").rglob("*") if path.is_file() and path.suffix not in kinds]
    # Records of GPUs that a release brings: none yet.
    assert project()["tool"]["setuptools"]["package-data"] == {"torchlstm": ["py.typed", "qualified/*.json"]}
    names = {path.relative_to(ROOT / "torchlstm").as_posix() for path in data}
    assert {name for name in names if not re.fullmatch(r"qualified/[^/]+\.json", name)} == {"py.typed"}
    folders = {path.parent for path in (ROOT / "torchlstm").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders), "a folder that is no package is not installed"


def test_the_source_distribution_has_every_file_that_git_tracks() -> None:
    """By MANIFEST.in; .ci/wheels compares the built one."""
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    lines = [line.split() for line in text("MANIFEST.in").splitlines() if line and not line.startswith("#")]
    grafted = tuple(f"{folder}/" for word, *folders in lines if word == "graft" for folder in folders)
    included = {name for word, *names in lines if word == "include" for name in names}
    by_setuptools = {"MANIFEST.in", "pyproject.toml", "setup.py"}
    assert [name for name in listed if not name.startswith(grafted) and name not in included | by_setuptools] == []


def extensions(monkeypatch: pytest.MonkeyPatch, platform: str, free_threaded: int, **environment: str) -> Any:
    """What setup.py declares there."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    declared: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", declared.update)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sysconfig.get_config_vars(), "Py_GIL_DISABLED", free_threaded)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(ROOT / "setup.py"))
    return declared.get("ext_modules", [])


def test_the_kernel_is_optional_unless_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHLSTM_REQUIRE_KERNEL", raising=False)
    (kernel,) = extensions(monkeypatch, "linux", 0)
    assert (kernel.name, kernel.optional, kernel.py_limited_api) == ("torchlstm.engines.cpu._kernel", True, True)
    assert len(kernel.sources) == len(list((ROOT / "torchlstm").rglob("*.c"))) > 5
    (kernel,) = extensions(monkeypatch, "linux", 0, TORCHLSTM_REQUIRE_KERNEL="1")
    assert not kernel.optional


@pytest.mark.parametrize(("platform", "free_threaded"), [("win32", 0), ("linux", 1)], ids=["windows", "free-threaded"])
def test_no_kernel_is_tried_where_there_is_none(
    platform: str, free_threaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extensions(monkeypatch, platform, free_threaded) == []
