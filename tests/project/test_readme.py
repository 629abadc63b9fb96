"""README's first numbers are what its program prints; the examples run; CONTRIBUTING names and links to what exists."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Those with other libraries run in tests/third_party.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith("with_"))


@pytest.mark.parametrize("module", ["torchlstm", "torch.nn"])
def test_the_program_with_a_seed_prints_what_its_comments_say(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (snippet,) = [text for text in snippets if "torch.manual_seed(666)" in text]
    assert snippet.count("= torchlstm.LSTM(") == 1
    torch.set_printoptions(profile="default")
    exec(compile(snippet.replace("= torchlstm.LSTM(", f"= {module}.LSTM("), "README.md", "exec"), {})
    printed = re.findall(r"-?\d+\.\d{4}", capsys.readouterr().out)
    said = re.findall(r"-?\d+\.\d{4}", "".join(line.split("#")[1] for line in snippet.splitlines() if "#" in line))
    assert len(said) == 12
    assert printed == said


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_runs(example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_links_and_files_of_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"\[[^\]\"]+\]\((?!http)([\w./-]+)\)", text):
        assert (ROOT / target).exists(), f"CONTRIBUTING.md links to {target}"
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", text)
    assert len(named) > 15
    for name in named:
        assert (ROOT / "torchlstm" / name).exists() or (ROOT / name).exists(), f"CONTRIBUTING.md names {name}"
