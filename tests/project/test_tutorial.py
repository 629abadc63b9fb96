"""The tutorial is true: its pages are its programs, print what they say, and show what nn.LSTM computes."""

import contextlib
import io
import re
import runpy
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import torchlstm

FOLDER = Path(__file__).parents[2] / "examples" / "tutorial"
PAGES = sorted(FOLDER.glob("0*.md"))
NAMES = [page.stem for page in PAGES]
STEPS = 12

Run = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Run]]]:
    """What each program prints and leaves behind, run in a copy of the folder with few steps of training."""
    folder = tmp_path_factory.mktemp("tutorial")
    for file in FOLDER.glob("*.py"):
        shutil.copy(file, folder)
    found = {}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTORIAL_STEPS", str(STEPS))
        patch.syspath_prepend(str(folder))
        for name in NAMES:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                left = runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
            found[name] = printed.getvalue(), left
        torch.set_num_threads(threads)
        yield folder, found


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def printed_lines(text: str) -> list[str]:
    return [line for line in lines(text) if not re.match(r"(no )?picture: ", line)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_code_of_a_page_is_its_program(page: Path) -> None:
    docstring, code = page.with_suffix(".py").read_text(encoding="utf-8").split("\n", 1)
    assert docstring.endswith(f': the code of {page.name}."""')
    assert lines("\n".join(blocks(page, "python"))) == lines(code)


def test_links_and_pictures() -> None:
    assert NAMES == ["01_one_cell", "02_a_layer", "03_a_model", "04_its_gates"]
    shown = set()
    for page in (FOLDER / "README.md", *PAGES):
        for mark, target in re.findall(r"(!?)\[[^\]]+\]\((?!http)([\w./-]+)\)", page.read_text(encoding="utf-8")):
            assert (FOLDER / target).exists(), f"{page.name} links to {target}"
            if mark:
                shown.add(target)
    sizes = {picture.name: picture.stat().st_size for picture in FOLDER.glob("*.png")}
    assert shown == set(sizes)
    assert max(sizes.values()) < 150_000
    assert sum(sizes.values()) < 600_000
    assert [f"({name}.md)" in (FOLDER / "README.md").read_text(encoding="utf-8") for name in NAMES] == [True] * 4


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_program_prints_what_its_page_says(page: Path, runs: tuple[Path, dict[str, Run]]) -> None:
    said = "".join(blocks(page, "text"))
    printed = runs[1][page.stem][0]
    if page.stem == "01_one_cell":
        assert printed_lines(printed) == lines(said)
        return
    # Losses, correlations and roundings are another machine's: the words agree.
    without_numbers = (re.sub(r"[\s(]*-?\d[\d.]*(e[+-]?\d+)?", " #", text) for text in (printed, said))
    assert printed_lines(next(without_numbers)) == lines(next(without_numbers))


def test_one_cell_is_nn_lstm(runs: tuple[Path, dict[str, Run]]) -> None:
    printed, left = runs[1]["01_one_cell"]
    rows = [line.rsplit(maxsplit=4) for line in printed_lines(printed) if not line.startswith("step")]
    values = [(name.strip(), numbers) for name, *numbers in rows]
    assert [name for name, _ in values] == [*"ifgoch", "nn.LSTM", *"ifgoch", "nn.LSTM", "its c"]
    shown = [numbers for _, numbers in values]
    assert (shown[5], shown[12], shown[11]) == (shown[6], shown[13], shown[14])
    # The whole of it, against a trace and against nn.LSTM as it is called here.
    torch.manual_seed(666)
    input, h, c = torch.randn(2, 1, 3), torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    theirs = torch.nn.LSTM(3, 4)
    ours = torchlstm.LSTM(3, 4)
    ours.load_state_dict(theirs.state_dict())
    output, (_, c_n) = theirs(input, (h, c))
    states = ours.trace(input, (h, c)).layers[0][0]
    for t in range(2):
        for place, name in enumerate("ifgoch"):
            expected = [f"{value:.4f}" for value in getattr(states, name)[t, 0].tolist()]
            assert shown[7 * t + place] == expected
        assert shown[7 * t + 5] == [f"{value:.4f}" for value in output[t, 0].tolist()]
    torch.testing.assert_close(left["c"], c_n[0, 0])


def test_the_layer_by_hand_is_nn_lstm(runs: tuple[Path, dict[str, Run]]) -> None:
    printed, left = runs[1]["02_a_layer"]
    gaps = [float(gap) for gap in re.findall(r"differ by (\S+)", printed)]
    assert len(gaps) == 4
    assert max(gaps) < 1e-12
    torch.testing.assert_close(left["by_hand"]["full batch"], left["theirs"](left["batch"])[0])
    torch.testing.assert_close(left["by_hand"]["packed"], left["theirs"](left["packed"])[0].data)


def test_the_swapped_model_has_the_same_losses(runs: tuple[Path, dict[str, Run]]) -> None:
    _, left = runs[1]["03_a_model"]
    assert type(left["theirs"].lstm) is torch.nn.LSTM
    assert type(left["ours"].lstm) is torchlstm.LSTM
    theirs, ours = left["their_losses"], left["our_losses"]
    assert len(theirs) == len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert theirs[-1] < theirs[0] - 1


def test_features_are_what_the_tokenizer_says(runs: tuple[Path, dict[str, Run]]) -> None:
    _, left = runs[1]["04_its_gates"]
    text = "if a:\n    b = f('c', 2)  # d\n"
    found = left["features"](text)
    marks = {name: "".join("x" if value else "." for value in found.pop(name).tolist()) for name in list(found)[:4]}
    assert marks == {
        "string": "................xxx..........",
        "comment": ".........................xxx.",
        "brackets": "...............xxxxxxx.......",
        "indentation": "......xxxx...................",
    }
    assert found["column"].tolist() == [*range(6), *range(len(text) - 6)]


def test_the_correlation_is_pearsons(runs: tuple[Path, dict[str, Run]]) -> None:
    _, left = runs[1]["04_its_gates"]
    units, feature = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    expected = torch.corrcoef(torch.cat([units.T, feature[None]]))[-1, :-1]
    torch.testing.assert_close(left["correlation"](units, feature), expected)
    # What is printed is of the half that the unit was not chosen on.
    memory, half = left["memory"], left["half"]
    for name, unit in left["best"].items():
        truth = left["truth"][name]
        chosen = torch.corrcoef(torch.stack([*memory[:half].T, truth[:half]]))[-1, :-1]
        assert chosen.abs()[unit] >= chosen.nan_to_num().abs().max() - 1e-5
        judged = torch.corrcoef(torch.stack([memory[half:, unit], truth[half:]]))[0, 1].item()
        said = re.search(rf"{name} +{unit} +\S+ +(\S+)", runs[1]["04_its_gates"][0])
        assert said is not None
        assert float(said[1]) == pytest.approx(judged, abs=0.006)


def test_the_counter_is_judged_elsewhere(runs: tuple[Path, dict[str, Run]]) -> None:
    printed, left = runs[1]["04_its_gates"]
    c, half, line = left["states"].c, left["half"], left["line"]
    inside = left["truth"]["indentation"] > 0
    column = left["truth"]["column"]
    assert min(left["start"], line) >= half
    expected = []
    for part in (slice(0, half), slice(half, None)):
        there = inside[part]
        expected.append(
            torch.corrcoef(torch.stack([c[part, left["counter"]][there], column[part][there]]))[0, 1].item()
        )
    said = re.search(rf"unit {left['counter']}: (\S+) where chosen, (\S+) where judged", printed)
    assert said is not None
    assert [float(number) for number in said.groups()] == pytest.approx(expected, abs=0.006)
    assert left["text"][line : line + 13] == "        token"
    shown = [float(row.split()[-1]) for row in printed.split("column     i")[1].splitlines()[1:9]]
    assert shown == pytest.approx(c[line : line + 8, left["counter"]].tolist(), abs=0.006)


def test_the_pictures_are_drawn(runs: tuple[Path, dict[str, Run]]) -> None:
    folder, found = runs
    drawn = {file.name for file in folder.glob("*.png")}
    if find_spec("matplotlib") is None:
        assert not drawn
        assert all("no picture: matplotlib is not installed" in printed for printed, _ in found.values())
        pytest.skip("no pictures: matplotlib is not installed")
    assert drawn == {file.name for file in FOLDER.glob("*.png")}
