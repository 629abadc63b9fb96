"""Who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "torchlstm"

# CONTRIBUTING.md draws this table.  A name stands for a module or for all modules of a folder.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"cell", "cells", "convert", "dispatch", "explain", "init", "lstm", "stream", "swap", "viz"},
    "__main__": {"__init__", "demo", "dispatch", "engines", "parity", "progress"},
    "cell": {"checks", "precision", "stack"},
    "cells.__init__": {"cells.gated", "cells.noise", "cells.norm", "cells.stack"},
    "cells.gated": {"cells.stack", "engines.contract"},
    "cells.noise": {"cells.gated", "cells.stack", "engines.contract", "equations", "lstm"},
    "cells.norm": {"cells.stack"},
    "cells.stack": {"checks", "dispatch", "engines.contract", "engines.loop", "packing", "precision"},
    "checks": {"engines.contract", "precision"},
    "convert": {"lstm"},
    "demo": {"explain", "lstm", "progress", "swap"},
    "dispatch": {"engines", "engines.contract", "engines.onnx", "engines.plain"},
    "engines.__init__": {"engines.contract", "engines.cpu", "engines.cuda", "engines.reference"},
    "kernels": {"kernels.cuda.common"},
    "engines.autograd": {
        "engines.chunks",
        "engines.contract",
        "engines.gradients",
        "engines.kernel",
        "engines.operators",
        "engines.per_sample",
        "engines.plain",
        "engines.reference",
    },
    "engines.chunks": {"engines.contract", "engines.kernel"},
    "engines.gradients": {"engines.chunks", "engines.kernel"},
    "engines.kernel": {"engines.contract"},
    "engines.loop": set(),
    "engines.onnx": {"engines.contract"},
    "engines.operators": {
        "engines.chunks",
        "engines.contract",
        "engines.gradients",
        "engines.kernel",
        "engines.plain",
    },
    "engines.cpu": {"engines.autograd", "engines.contract", "engines.cpu_calls", "engines.kernel"},
    "engines.cpu_calls": set(),
    "engines.cuda": {
        "engines.autograd",
        "engines.contract",
        "engines.cuda_loops",
        "engines.cuda_plan",
        "engines.kernel",
    },
    "engines.cuda_loops": {"engines.contract", "engines.cuda_plan"},
    "engines.cuda_plan": {"engines.contract"},
    "engines.contract": {"engines.plain"},
    "engines.plain": set(),
    "engines.per_sample": {"engines.contract", "engines.kernel", "engines.operators"},
    "engines.reference": {
        "engines.chunks",
        "engines.contract",
        "engines.kernel",
        "engines.loop",
        "engines.per_sample",
        "equations",
    },
    "equations": set(),
    "explain": {
        "cell",
        "cells.stack",
        "dispatch",
        "engines.contract",
        "engines.plain",
        "lstm",
        "packing",
        "precision",
        "segments",
    },
    "init": {"cells.gated", "cells.norm", "cells.stack", "packing"},
    "integrations": {"cell", "dispatch", "engines.per_sample", "lstm"},
    "lstm": {"checks", "engines.contract", "packing", "precision", "segments", "stack", "trace"},
    "packing": {"engines.contract", "segments"},
    "parity": {"__init__", "parity", "swap"},
    "precision": set(),
    "progress": set(),
    "segments": {"engines.contract"},
    "stack": {"dispatch", "engines.contract"},
    "stream": {"cell", "checks", "lstm"},
    "swap": {"cell", "lstm"},
    "testing": {"cells.stack"},
    "trace": {"packing", "precision"},
    "viz": {"trace"},
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    here = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "torchlstm" for alias in node.names), f"{path}: not relative"
        if not isinstance(node, ast.ImportFrom):
            continue
        assert (node.module or "").split(".")[0] != "torchlstm", f"{path}: import relatively"
        if node.level:
            base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                target = PACKAGE.joinpath(*filter(None, base), alias.name)
                parts = [*filter(None, base)]
                if target.with_suffix(".py").is_file() or (target / "__init__.py").is_file():
                    parts.append(alias.name)
                found.add(".".join(parts) or "__init__")
    return found


def _allowed(importer: str, imported: str) -> bool:
    for name in (importer, importer.split(".")[0]):
        if name in MAY_IMPORT:
            allowed = MAY_IMPORT[name]
            return imported in allowed or (imported.split(".")[0] in allowed and imported.split(".")[0] == "parity")
    raise AssertionError(f"{importer} is not in the table")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=map(_name, MODULES))
def test_imports(path: Path) -> None:
    for imported in _imports(path):
        assert _allowed(_name(path), imported), f"{_name(path)} imports {imported}"


def test_the_table_is_not_wider_than_the_imports() -> None:
    """A permission that nobody uses is a mistake in the table."""
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for path in MODULES:
        name = _name(path)
        key = name if name in MAY_IMPORT else name.split(".")[0]
        used[key] |= {i.split(".")[0] if i.startswith("parity") else i for i in _imports(path)}
    assert used == MAY_IMPORT


def test_the_walk_sees_imports() -> None:
    assert _imports(PACKAGE / "stack.py") == {"dispatch", "engines.contract"}
    assert _imports(PACKAGE / "engines" / "onnx.py") == {"engines.contract"}
    assert not _allowed("stack", "lstm")


def test_files_are_short_and_open_with_a_sentence() -> None:
    folders = ("torchlstm", "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h")]
    assert len(files) > 30
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path} has more than 400 lines"
        if path.suffix == ".py":
            assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is"
