"""Who may import whom, how long a file may be, and that the map in docs/map.md is the one that the files make."""

import ast
from pathlib import Path

import draw_map
import pytest
from draw_map import EXCEPTIONS, PACKAGE, ROOMS, ROOT, cycle, first_sentence, imports, name_of, rooms_of, upward

FILES = draw_map.files()
GRAPH = {name_of(path): [name_of(target) for target in imports(path)] for path in FILES}


@pytest.mark.parametrize("name", GRAPH)
def test_imports(name: str) -> None:
    for imported in GRAPH[name]:
        assert imported in GRAPH, f"{name} imports {imported}, which is not there"
        assert upward(name, imported) is None


def test_no_file_imports_itself_in_the_end() -> None:
    assert not (found := cycle(GRAPH)), " imports ".join(found)


def test_every_file_has_one_room_and_every_pattern_a_file() -> None:
    for name in GRAPH:
        assert len(rooms_of(name)) == 1, f"{name} is in the rooms {rooms_of(name)}: see ROOMS in tests/draw_map.py"
    for room, patterns in ROOMS.items():
        for pattern in patterns:
            assert draw_map.matching(pattern, GRAPH), f"{pattern} of the room {room!r} is no file's"
    assert set(ROOMS) >= draw_map.APART


def test_no_exception_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permission that nobody uses, or nobody needs, is a mistake."""
    wanted = list(EXCEPTIONS)
    monkeypatch.setattr(draw_map, "EXCEPTIONS", {})
    for name, imported in wanted:
        assert imported in GRAPH[name], f"{name} does not import {imported}"
        assert upward(name, imported), f"{name} may import {imported} anyway"


def test_the_map_is_drawn() -> None:
    page = draw_map.PAGE.read_text(encoding="utf-8")
    # Not `==`: the two pages side by side would hide what to do.
    same = draw_map.drawn(page) == page
    assert same, "the map in docs/map.md is not that of the files: run `python tests/draw_map.py`"


def test_the_walk_sees_imports() -> None:
    def seen(name: str) -> set[str]:
        return {name_of(target) for target in imports(PACKAGE / name)}

    ours = {"call/checks.py", "call/dispatch.py", "cell.py", "engines/cpu/frozen.py", "frozen.py", "lstm.py"}
    assert seen("stream.py") == ours
    assert "__init__.py" in seen("parity/run.py")  # from .. import LSTM
    assert "cells/__init__.py" in seen("__init__.py")  # from . import cells
    assert seen("viz.py") == {"trace.py"}  # and matplotlib


def test_the_walk_sees_imports_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__init__", "low", "high", "deep/__init__", "deep/inner", "deep/_made"):
        path = (tmp_path / name).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text('"""A file."""\n')
    (tmp_path / "deep/_made.py").unlink()
    (tmp_path / "deep/one.h").write_text(
        '/* One.  Not two. */\n#include <math.h>\n#if 1\n  # include "two.h"\n#endif\n'
    )
    monkeypatch.setattr(draw_map, "PACKAGE", tmp_path)
    inner = tmp_path / "deep/inner.py"

    def seen(text: str) -> list[str]:
        inner.write_text(text)
        return [name_of(target) for target in imports(inner)]

    assert seen("from .. import low\nimport torch\nfrom math import pi") == ["low.py"]
    assert seen("def later():\n    from ..high import thing\n    from . import also") == ["deep/__init__.py", "high.py"]
    assert seen('importlib.import_module("..low", __package__)') == ["low.py"]
    assert seen('import_module("..deep._made", __package__)') == ["deep/__init__.py"]  # compiled, perhaps
    assert seen('import_module(f"..deep.{name}", __package__)') == ["deep/__init__.py"]
    for text in ("import torchlstm.low", "from torchlstm.low import x"):
        with pytest.raises(AssertionError, match="relative"):
            seen(text)
    with pytest.raises(AssertionError, match="nobody can tell"):
        seen("import_module(name)")
    assert [name_of(path) for path in imports(tmp_path / "deep/one.h")] == ["deep/two.h"]
    assert first_sentence(tmp_path / "deep/one.h") == "One."
    assert first_sentence(tmp_path / "low.py") == "A file."


def test_the_rule_bites() -> None:
    assert "'Public modules' is above 'The path of a call'" in str(upward("call/stack.py", "lstm.py"))
    assert "'Integrations' is above" in str(upward("__init__.py", "integrations/opacus.py"))
    assert "know nothing of each other" in str(upward("engines/cuda/engine.py", "engines/cpu/engine.py"))
    assert upward("lstm.py", "engines/contract.py") is None
    assert cycle({"a": ["b"], "b": ["c"], "c": ["d", "b"], "d": []}) == ["b", "c", "b"]
    assert cycle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_files_are_short_and_open_with_a_sentence() -> None:
    folders = ("torchlstm", "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h")]
    assert len(files) > 30
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path} has more than 400 lines"
        if path.suffix == ".py":
            assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is"
        assert first_sentence(path), f"{path} does not open with a sentence"
