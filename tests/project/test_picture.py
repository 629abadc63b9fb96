"""The README's picture and the tables of docs/speed.md are what the saved results say."""

import copy
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from benchmarks import picture
from benchmarks.record import load
from benchmarks.report import END, START, write_markdown

ROOT = Path(__file__).parents[2]
MODES = ("inference", "training")
TIMES = "\N{MULTIPLICATION SIGN}"


def texts(file: Path) -> list[str]:
    root = ElementTree.parse(file).getroot()
    return ["".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")]


def bars(file: Path) -> dict[str, tuple[float, float]]:
    """Where each bar begins and ends, by the name that the script gives it."""
    found = {}
    for group in ElementTree.parse(file).getroot().iter("{http://www.w3.org/2000/svg}g"):
        if ":" in (name := group.get("id", "")):
            path = next(iter(group)).get("d", "")
            across = [float(x) for x in re.findall(r"[ML] (-?[\d.]+) ", path)]
            # A rectangle's first corner is where the bar begins, its second where it ends.
            found[name] = (across[0], across[1])
    return found


def test_the_committed_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    assert picture.main(["--out", str(tmp_path / "again.svg")]) == 0
    assert texts(picture.PICTURE) == texts(tmp_path / "again.svg")
    drawn, again = bars(picture.PICTURE), bars(tmp_path / "again.svg")
    assert drawn.keys() == again.keys()
    assert all(drawn[name] == pytest.approx(again[name], abs=0.01) for name in drawn)


def test_the_picture_shows_the_saved_ratios() -> None:
    rows = {row["workload"]: row for row in load(picture.RESULTS)["rows"]}
    ratios = {f"{mode}:{name}": rows[name]["modes"][mode]["peers"]["nn"]["ratio"] or math.nan
              for name in picture.WORDS for mode in MODES}  # fmt: skip
    drawn, shown = bars(picture.PICTURE), texts(picture.PICTURE)
    assert drawn.keys() == ratios.keys()
    assert [text for text in shown if text.endswith(TIMES)] == [picture.in_words(ratio) for ratio in ratios.values()]
    # All bars begin at 1, and one is as long as the logarithm of its ratio.
    (start, end), ratio = drawn["training:ragged-T200-B64-I128-H256"], ratios["training:ragged-T200-B64-I128-H256"]
    scale = (end - start) / math.log(ratio)
    for name, ratio in ratios.items():
        assert drawn[name] == pytest.approx((start, start + scale * math.log(ratio)), abs=0.01), name
    assert any(ratio < 1.005 for ratio in ratios.values()), "a picture of wins alone"


def test_two_digits_that_count() -> None:
    shown = [picture.in_words(ratio).removesuffix(TIMES) for ratio in (0.4, 0.994, 1.04, 3.45, 9.94, 9.96, 33.6)]
    assert shown == ["0.40", "0.99", "1.0", "3.5", "9.9", "10", "34"]


def test_a_run_without_a_workload_draws_nothing() -> None:
    run = copy.deepcopy(load(picture.RESULTS))
    run["rows"] = [row for row in run["rows"] if row["workload"] != "cell-B32-H256"]
    with pytest.raises(ValueError, match="the run has no figures of cell-B32-H256"):
        picture.draw(run)


def test_the_page_of_speed_shows_the_saved_results(tmp_path: Path) -> None:
    speed, page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8"), tmp_path / "page.md"
    assert speed.count(START) == speed.count(END) == 3
    page.write_text(re.sub(f"{START}.*?{END}", f"{START}{END}", speed, flags=re.DOTALL), encoding="utf-8")
    names = ("amd-epyc-2t-3892caf38a", "amd-epyc-1t-bdf366a3b9", "intel-emerald-rapids-2t-91d064628f")
    write_markdown([load(ROOT / "benchmarks" / "results" / f"{name}.json") for name in names], page)
    assert page.read_text(encoding="utf-8") == speed


def test_the_page_of_the_gpu_shows_the_saved_results() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").split("### Fast\n")[1].split("\n### ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    shown, dtype = {}, ""
    for first, batch, *cells in (line for line in lines if len(line) == 8 and line[1].isdigit()):
        dtype = first or dtype
        for hidden, cell in zip((64, 128, 160, 256, 512, 1024), cells, strict=True):
            shown |= {f"grid-{dtype}-B{batch}-H{hidden}": cell} if cell else {}
    forms = {"two directions": "bi", "two layers": "two", "ragged batch": "ragged", "`proj_size` of H / 4": "proj"}
    for name, *cells in (line for line in lines if line[0] in forms):
        shown |= {f"rest-float32-{forms[name]}-H{H}": cell for H, cell in zip((256, 512), cells, strict=True)}
    expected = {}
    for row in load(ROOT / "benchmarks" / "results" / "nvidia-h200-87741f09dc.json")["rows"]:
        pair = [row["modes"][mode]["peers"]["nn"]["ratio"] for mode in MODES]
        places = 1 if row["group"].startswith("rest") else 2
        expected[row["workload"]] = " / ".join(f"{ratio:.{places}f}" for ratio in pair)
    assert shown == expected
