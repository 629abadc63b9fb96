"""Draws the map of the package in docs/map.md, from every file's first sentence and its imports.

`python tests/draw_map.py` writes it.  `tests/project/test_architecture.py` fails where the map is not what would be
written, and holds the imports to the order of the rooms.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "torchlstm"
PAGE = ROOT / "docs" / "map.md"
BEGIN, END = "<!-- map: python tests/draw_map.py -->\n", "<!-- end of the map -->\n"

# The rooms from above, and whose files they are: a file may import from its own room and from those below it.
ROOMS = {
    "Integrations": ["integrations/*"],
    "The command line": ["__main__.py", "command/*"],
    "Qualification": ["qualify/*"],
    "Parity": ["parity/*"],
    "Public modules": [
        *(
            "__init__.py",
            "lstm.py",
            "cell.py",
            "lazy.py",
            "stream.py",
            "swap.py",
            "frozen.py",
            "freeze.py",
            "explain.py",
            "export.py",
            "trace.py",
        ),
        *("init.py", "convert.py", "viz.py", "testing.py", "dispatch.py", "cells/*"),
    ],
    "The path of a call": ["call/*", "engines/__init__.py"],
    "Programs for others": ["engines/exported/*"],
    "The CUDA engine": ["engines/cuda/*"],
    "The CPU engine": ["engines/cpu/*"],
    "The reference engine": ["engines/reference/*"],
    "What engines share": ["engines/contract.py", "engines/shared/*"],
    "The equations": ["equations.py"],
}

# Rooms side by side, which know nothing of each other.
APART = {"The CUDA engine", "The CPU engine", "The reference engine"}

# Imports of a room above, and why they may be.
EXCEPTIONS = {
    ("engines/shared/autograd.py", "engines/reference/engine.py"): (
        "gradients of gradients, and of what no kernel can read, are those of the reference engine"
    ),
}


def files() -> list[Path]:
    """Every source file of the package."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".c", ".h"))


def name_of(path: Path) -> str:
    """A file's name in the package, as patterns, exceptions and the map have it."""
    return path.relative_to(PACKAGE).as_posix()


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern of `ROOMS` stands for; * is any text, files of inner folders too."""
    return [name for name in names if fnmatchcase(name, pattern)]


def rooms_of(name: str) -> list[str]:
    """The rooms that claim a file: there should be one."""
    return [room for room, patterns in ROOMS.items() if any(matching(pattern, [name]) for pattern in patterns)]


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, or of the comment that a C file opens with; "" if there is none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        opening = re.match(r"/\*(.*?)\*/", text, re.DOTALL)
        text = re.sub(r"^ ?\* ?", "", opening[1], flags=re.MULTILINE) if opening else ""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    sentence = re.match(r".*?[.?!](?= |$)", paragraph)
    return sentence[0] if sentence else ""


def imports(path: Path) -> list[Path]:
    """The files of the package that a file imports, anywhere in it, in order; what it imports of others is left out."""
    if path.suffix != ".py":
        included = re.findall(r'^\s*#\s*include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        return [path.parent / name for name in dict.fromkeys(included)]
    found = (_module(parts) for parts in _imported(path, ast.parse(path.read_text(encoding="utf-8"))))
    return sorted(set(found) - {path})


def _imported(path: Path, tree: ast.AST) -> Iterator[list[str]]:
    """The dotted names in the package of what a module imports, as lists; [] is the package itself."""
    here = list(path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "torchlstm" for alias in node.names), f"{path}: not relative"
        elif isinstance(node, ast.ImportFrom):
            assert node.level or (node.module or "").split(".")[0] != "torchlstm", f"{path}: not relative"
            if node.level:
                base = [*here[: len(here) - node.level + 1], *filter(None, (node.module or "").split("."))]
                yield from ([*base, alias.name] for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            # Of a name that is made when it runs, what is known of it.
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            name = first.value if isinstance(first, ast.Constant) else None
            assert isinstance(name, str), f"{path}: nobody can tell what import_module imports"
            level = len(name) - len(name.lstrip("."))
            if level:
                yield [*here[: len(here) - level + 1], *filter(None, name.split("."))]


def _module(parts: list[str]) -> Path:
    """The file of a dotted name, of which the last parts may be names in it or a compiled module."""
    for count in range(len(parts), 0, -1):
        target = PACKAGE.joinpath(*parts[:count])
        for path in (target.with_suffix(".py"), target / "__init__.py"):
            if path.is_file():
                return path
    return PACKAGE / "__init__.py"


def upward(importer: str, imported: str) -> str | None:
    """What is wrong with this import of one file by another, by their rooms, or None."""
    (mine,), (other,) = rooms_of(importer), rooms_of(imported)
    order = list(ROOMS)
    if (importer, imported) in EXCEPTIONS or mine == other:
        return None
    if order.index(other) < order.index(mine):
        return f"{importer} imports {imported}, and {other!r} is above {mine!r}"
    if mine in APART and other in APART:
        return f"{importer} imports {imported}, and {mine!r} and {other!r} know nothing of each other"
    return None


def cycle(graph: dict[str, list[str]]) -> list[str]:
    """Files each of which imports the next, the last one being the first again; [] if there are none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (walk(other, [*path, name]) for other in graph[name])), [])
        done.add(name)
        return found

    return next(filter(None, (walk(name, []) for name in graph)), [])


def draw() -> str:
    """The map: a table for each room, in their order."""
    paths = {name_of(path): path for path in files()}
    parts = []
    for room, patterns in ROOMS.items():
        names = [name for pattern in patterns for name in matching(pattern, paths)]
        # A room that is one folder has that folder's sentence.
        folder = f"{names[0].rpartition('/')[0]}/__init__.py".lstrip("/")
        head = f"## {room}"
        if folder in names and all(name.startswith(folder.removesuffix("__init__.py")) for name in names):
            names.remove(folder)
            head += f"\n\n{first_sentence(paths[folder])}"
        rows = [f"| `{name}` | {_cell(first_sentence(paths[name]))} | {_told(paths[name])} |" for name in names]
        parts.append("\n".join([head, "", "| file | what it is | imports |", "|---|---|---|", *rows]))
    parts += [f"Against the order, `{name}` imports `{other}`: {why}." for (name, other), why in EXCEPTIONS.items()]
    return "\n" + "\n\n".join(parts) + "\n\n"


def _cell(sentence: str) -> str:
    return sentence.removesuffix(".").replace("|", "\\|")


def _told(path: Path) -> str:
    """The imports of a file as it writes them: relative to where it is."""
    if path.suffix != ".py":
        return ", ".join(included.name for included in imports(path))
    here = path.relative_to(PACKAGE).parts[:-1]
    told = []
    for target in imports(path):
        parts = target.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        shared = next((k for k, pair in enumerate(zip(here, parts, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(here), len(parts)) if shared is None else shared
        told.append("." * (len(here) - shared + 1) + ".".join(parts[shared:]))
    return ", ".join(told)


def drawn(page: str) -> str:
    """The page with the map that there should be."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + draw() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name} has the map of {len(files())} files\n")
