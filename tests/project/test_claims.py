"""The pages say of torch.nn what programs show on the torch at hand, each in a process that has done nothing else."""

import functools
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from claims import CLAIMS, DIED, ENVIRONMENT, RAISED, RAN, UNPROBED, Probe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A table with this head says of torch.nn what a program has to show.
HEAD = "| | `torch.nn.LSTM` | `torchlstm.LSTM` |\n"
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))

# Imports torch once and forks for every program: a fork has what an `import torch` leaves, and nothing of the others.
RUNNER = f"""
import json, os, sys
import torch
from torch import nn
outcomes = []
for program in json.load(sys.stdin):
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        code = 1
        try:
            exec(program, {{"torch": torch, "nn": nn}})
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes.append({RAN!r} if code == 0 else {DIED!r} if code < 0 else {RAISED!r})
print(json.dumps(outcomes))
"""


def outcomes(programs: list[str], environment: dict[str, str] | None = None) -> list[str]:
    """What becomes of every program: it runs to its end, raises, or takes its process with it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER], input=json.dumps(programs), capture_output=True, text=True,
        env={**os.environ, **(environment or {})}, check=True,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def able(probes: list[Probe]) -> list[Probe]:
    """Those that have the packages that they need."""
    return [probe for probe in probes if not probe.needs or find_spec(probe.needs)]


@functools.cache
def of_all() -> dict[str, str]:
    """The outcome of every program that wants no environment of its own: torch is imported once for all of them."""
    programs = [p.program for row, (_, probes) in CLAIMS.items() if row not in ENVIRONMENT for p in able(probes)]
    return dict(zip(programs, outcomes(programs), strict=True))


def table() -> dict[str, str]:
    """The rows of all such tables in README and docs/: their first cell, and the second, which is about torch.nn."""
    found: dict[str, str] = {}
    for page in PAGES:
        for part in page.read_text(encoding="utf-8").split(HEAD)[1:]:
            rows = part.split("\n\n")[0].splitlines()[1:]
            cells = [re.fullmatch(r"\| (.+?) \| (.*?) ?\| .+ \|", row) for row in rows]
            assert all(cells), f"{page.name} has a row of another form"
            for first, second in (cell.groups() for cell in cells if cell):
                assert first not in found, f"{page.name} says it again: {first}"
                found[first] = second
    return found


def test_every_row_has_a_probe_or_a_reason() -> None:
    rows = table()
    assert len(rows) == len(CLAIMS) + len(UNPROBED)
    assert set(rows) == CLAIMS.keys() | UNPROBED.keys()


def test_readme_names_as_refused_what_the_table_says_is() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    (bullet,) = re.findall(r"^- \*\*What `nn.LSTM` refuses\*\*: (.*?)\[", readme, re.MULTILINE | re.DOTALL)
    refused = " ".join(row for row, says in table().items() if says.startswith("refused"))
    terms = re.findall(r"`(.+?)`", bullet)
    assert len(terms) > 5
    assert [term for term in terms if term not in refused] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every probe is a fork")
@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: re.sub(r"\W+", "-", row).strip("-"))
def test_claim(row: str) -> None:
    says, probes = CLAIMS[row]
    assert table()[row] == says
    if not (tried := able(probes)):
        pytest.skip(f"it needs {probes[0].needs}")
    for probe in tried:
        own = ENVIRONMENT.get(row)
        outcome = outcomes([probe.program], own)[0] if own else of_all()[probe.program]
        assert outcome == probe.expected(VERSION), probe.program


def test_outcomes_are_told_apart() -> None:
    named = "import os; assert os.environ['NAME'] == '3'"
    assert outcomes(["x = 1", "1 / 0", "import os; os.abort()", named], {"NAME": "3"}) == [RAN, RAISED, DIED, RAN]


def test_an_outcome_holds_until_the_next_version_with_another() -> None:
    probe = Probe("", RAISED, later=(((2, 13), RAN), ((2, 15), DIED)))
    assert [probe.expected((2, minor)) for minor in (11, 12, 13, 14, 15, 16)] == [RAISED, RAISED, RAN, RAN, DIED, DIED]
