"""The pages are true: README's and docs/'s code runs, their commands, files, links and pictures exist."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import torchlstm
from torchlstm.__main__ import main
from torchlstm.call.dispatch import forced_engine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
# Programs in commands that are not files of this repository.
TOOLS = {"cc", "gcc", "git", "mkdocs", "pip", "pre-commit", "pytest", "python", "python3", "torchrun"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A fenced block: its page, its number there, its language and text.

    needs  None for torch alone; "cuda" for a GPU, "kernel" for the CPU's kernel, "linux", or the name of a module
    """

    page: Path
    number: int
    needs: str | None
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}-{self.number}"


def blocks_of(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(page, number, match["needs"], match["language"], match["text"]) for number, match in enumerate(found)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROGRAMS = [block for block in BLOCKS if block.language == "python"]


def test_every_fence_is_seen_and_has_a_language() -> None:
    for page in PAGES:
        fences = re.findall(r"^\s*```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), f"{name_of(page)}: a block is indented, or not closed"
    assert {block.language for block in BLOCKS} <= {"python", "sh", "text", "c"}
    marks = sum(page.read_text(encoding="utf-8").count("<!-- needs:") for page in PAGES)
    assert marks == sum(block.needs is not None for block in BLOCKS), "a mark is not right above its block"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder that files may be written to, and torch as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    engine, threads, dtype = forced_engine() or "auto", torch.get_num_threads(), torch.get_default_dtype()
    torch.set_printoptions(profile="default")
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torchlstm.use_engine(engine)


def run_alone(block: Block) -> None:
    """Run a program with process groups in a process of its own, which ends before its objects are freed.

    A thread of gloo may hold a tensor while the reducer of DDP is freed, and each then waits for the other
    (pytorch/pytorch#179291).
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", f"{block.text}\nimport os\nos._exit(0)\n"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.usefixtures("place")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export's own
@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_program_runs(block: Block) -> None:
    if block.needs == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    elif block.needs == "kernel":
        if reason := torchlstm.engines()["cpu"]:
            pytest.skip(reason)
    elif block.needs == "linux":
        if sys.platform != "linux":
            pytest.skip("tried on Linux only")
    elif block.needs:
        pytest.importorskip(block.needs)
    if "init_process_group" in block.text:
        run_alone(block)
        return
    with warnings.catch_warnings():
        if block.needs:
            warnings.simplefilter("ignore")  # other people's
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in a block, without the variables that are set before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((index for index, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.match(r"[A-Z_]+=", command[0]):
                command = command[1:]
            if command:
                yield [command[0].removeprefix(".venv/bin/"), *command[1:]]


@cache
def options_of(command: str) -> str:
    """The help of `torchlstm COMMAND`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    return printed.getvalue()


@cache
def source_of(module: str) -> str:
    """The source of a module of this repository, with that of its folder: an option is found in one of them."""
    file = ROOT / (module.replace(".", "/") + ".py")
    folder = file.parent if file.exists() else file.with_suffix("")
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


def check_options(words: list[str], known: str) -> None:
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", known), f"there is no option {option}"


def check_command(words: list[str]) -> None:
    program, *rest = words
    if program == "torchlstm":
        check_options(rest[1:], options_of(rest[0]))
    elif "/" in program:
        assert (ROOT / program).is_file(), f"there is no {program}"
    else:
        assert program in TOOLS, f"what is {program}?"
    if rest[:1] == ["-m"] and program.startswith("python"):
        assert find_spec(rest[1]) or rest[1] == "build", f"there is no module {rest[1]}"
        if (ROOT / rest[1].split(".")[0]).is_dir():
            check_options(rest[2:], source_of(rest[1]))
    scripts = [word for word in rest if re.search(r"\.(py|c|h|sh|toml|yml)$", word)]
    for word in [*scripts, *(word for word in rest if word == "constraints.txt")]:
        assert (ROOT / word).is_file(), f"there is no {word}"
    if scripts and program in ("python", "torchrun"):
        check_options(rest[rest.index(scripts[0]) :], (ROOT / scripts[0]).read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"\.\[([\w,-]+)\]", " ".join(rest)):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"there is no extra {extra}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_commands_exist(block: Block) -> None:
    found = list(commands(block.text))
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize(
    "line",
    [
        "torchlstm party",
        "torchlstm parity --cases x",
        "python examples/none.py",
        "python -m benchmarks.none",
        "python -m benchmarks.beyond --fast",
        "python examples/train_distributed.py --part",
        'pip install -e ".[none]"',
        "benchmarks/none.sh folder",
        "blastoff",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    (words,) = commands(line)
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        check_command(words)


def without_code(page: Path) -> str:
    """The text of a page but its blocks and what is in code font."""
    return re.sub(r"`[^`\n]+`", "`", FENCE.sub("", page.read_text(encoding="utf-8")))


@cache
def anchors_of(page: Path) -> set[str]:
    """The anchors of a page: its headings' by MkDocs' rule, which is GitHub's for such as ours, and its own ids."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+?)(?: \{.*\})?$", text, re.MULTILINE)
    slugs = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings]
    return {*slugs, *re.findall(r'(?: id="|\{ ?#)([\w.-]+)', text), *re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def has_anchor(page: Path, anchor: str) -> bool:
    """Whether a page has this anchor, of an object that it documents or of a member of such a one too."""
    return any(anchor == each or ("." in each and anchor.startswith(each + ".")) for each in anchors_of(page))


LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in LINK.findall(without_code(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{name_of(page)} links to {target}"
        if page.is_relative_to(ROOT / "docs"):
            assert file.is_relative_to(ROOT / "docs"), f"{name_of(page)} links out of docs/: {target}"
        if anchor:
            assert has_anchor(file, anchor), f"{name_of(page)} links to {target}: there is no such anchor"


def test_files_in_code_font_exist() -> None:
    """Of this repository, by their whole path."""
    folders = "|".join(("benchmarks", "docs", "examples", "tests", "torchlstm"))
    for page in PAGES:
        for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
            assert (ROOT / name).exists(), f"{name_of(page)} names {name}"


def test_every_page_is_linked_from_another_or_in_the_navigation() -> None:
    navigation = ROOT / "mkdocs.yml"
    listed = navigation.read_text(encoding="utf-8") if navigation.exists() else ""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in (*PAGES, ROOT / "CONTRIBUTING.md")
        for target in LINK.findall(without_code(page))
        if not target.startswith("#")
    }
    left = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:] if page not in linked]
    assert [name for name in left if name not in listed] == []


def test_readme_is_short_and_begins_with_a_picture() -> None:
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    first = "\n".join(lines[:50])
    for wanted in ("torchlstm.swap(model)", "![", "<!-- demo command -->", "<!-- test command -->"):
        assert wanted in first
