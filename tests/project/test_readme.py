"""The README is true: its snippets run, its commands name what exists, the examples run."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from torchlstm.__main__ import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# Those with other libraries run in tests/third_party.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith("with_"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[f"snippet{index}" for index in range(len(SNIPPETS))])
def test_snippet_runs(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {})


def test_first_snippet_prints_what_its_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_printoptions(profile="default")
    exec(compile(SNIPPETS[0], "README.md", "exec"), {})
    printed = re.findall(r"-?\d+\.\d{4}", capsys.readouterr().out)
    said = re.findall(r"-?\d+\.\d{4}", "".join(line.split("#")[1] for line in SNIPPETS[0].splitlines() if "#" in line))
    assert len(said) == 12
    assert printed == said


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_runs(example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(re.findall(r"torchlstm (info|parity|demo)\b", README))))
def test_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert command in capsys.readouterr().out


def test_links_and_files_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\[[^\]\"]+\]\((?!http)([\w./-]+)\)", text):
            assert (ROOT / target).exists(), f"{page} links to {target}"
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(named) > 15
    for name in named:
        assert (ROOT / "torchlstm" / name).exists() or (ROOT / name).exists(), f"CONTRIBUTING.md names {name}"
