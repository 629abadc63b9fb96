"""The site is complete: each public name is in the API, each example in the gallery, each page in the menu."""

import re
import sys
from pathlib import Path

import pytest
from check_site import broken
from public_names import INTEGRATIONS, canonical, public_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))
DOCUMENTED = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
GALLERY = (DOCS / "gallery.md").read_text(encoding="utf-8")
MENU = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_every_public_name_is_documented_once() -> None:
    names = {canonical(name) for name in public_names()}
    written = [canonical(name) for name in DOCUMENTED if ".integrations." not in name]
    assert sorted(written) == sorted(names)
    # mkdocstrings would take the module in the place of the function.
    assert [name for name in DOCUMENTED if ".integrations." not in name and is_module(name)] == []
    assert {name.rpartition(".")[2] for name in DOCUMENTED if ".integrations." in name} == set(INTEGRATIONS)


def test_every_example_is_in_the_gallery() -> None:
    examples = [path for path in (ROOT / "examples").rglob("*.py") if "__pycache__" not in path.parts]
    names = {path.relative_to(ROOT).as_posix() for path in examples}
    assert len(names) > 10
    assert {name for name in names if name not in GALLERY} == set()
    assert set(re.findall(r"examples/\w+(?:/\w+)*\.py", GALLERY)) == names
    for folder in {path.parent for path in (ROOT / "examples").glob("*/*")} - {ROOT / "examples" / "__pycache__"}:
        assert folder.relative_to(ROOT).as_posix() in GALLERY


def test_every_page_is_in_the_menu() -> None:
    here = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    tutorial = {f"tutorial/{page.name}" for page in (ROOT / "examples" / "tutorial").glob("0*.md")}
    assert len(MENU) == len(set(MENU))
    assert here | tutorial <= set(MENU)  # `mkdocs build --strict` tells of those that are not there


def test_the_tutorial_comes_into_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(DOCS))
    sys.modules.pop("hooks", None)
    import hooks

    made: dict[str, str | None] = {}
    monkeypatch.setattr(hooks.File, "generated", lambda _, uri, content=None, abs_src_path=None: (uri, content))
    made.update(hooks.on_files([], None))
    assert {"tutorial/01_one_cell.md", "tutorial/01_cell.png", "tutorial/04_its_gates.md"} <= set(made)
    assert "](../../" not in "".join(text for text in made.values() if text)
    first = hooks.on_page_markdown((DOCS / "tutorial.md").read_text(encoding="utf-8"), page=None)
    assert "](tutorial/01_one_cell.md)" in first
    assert hooks.MARK not in first


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">A</h1><a href="deep/#there"></a><a href="#top"></a><a href="https://example.org/x"></a>'
        '<img src="gone.png"><a href="deep/#not"></a><a href="nowhere/"></a>'
    )
    (tmp_path / "deep" / "index.html").write_text('<p id="there"></p><a href="..">up</a>')
    assert broken(tmp_path) == [
        "index.html: gone.png is not there",
        "index.html: deep/#not has no such anchor",
        "index.html: nowhere/ is not there",
    ]
