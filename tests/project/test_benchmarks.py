"""The benchmark suite: its workloads, its gate, its command line, and that a run can be shown again from its file."""

import copy
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory, peers, private
from benchmarks.__main__ import main
from benchmarks.calls import arguments, call_of, module_of, results
from benchmarks.gate import outcome
from benchmarks.record import load, slug
from benchmarks.report import END, START, geometric_mean, markdown, number, text, write_markdown
from benchmarks.unfit import Unfit
from benchmarks.workloads import DENSE, MODES, WORKLOADS, Workload, select
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Engine, only_if_asked
from torchlstm.parity.timing import interleave

ROOT = Path(__file__).parents[2]
CELLS = [f"cell-B{batch}-H{hidden}" for batch in (1, 8, 64) for hidden in (16, 64, 128, 256, 512)]
NAMES = [workload.name for workload in select(None, "cpu")]


@pytest.fixture(autouse=True)
def threads_are_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def wrong(*arguments: Any) -> Any:
    y, h_n, c_n = ENGINES["reference"].layer(*arguments)
    return y * 1.001, h_n, c_n


def quick(*more: str) -> int:
    return main(["--quick", "--threads", "1", "--seconds", "0.001", *more])


def test_registry_is_complete() -> None:
    assert len(DENSE) == len(set(DENSE)) == 11
    groups = [WORKLOADS[name].group for name in NAMES]
    counts = {group: groups.count(group) for group in dict.fromkeys(groups)}
    assert counts == {"dense": 11, "stacked": 1, "ragged": 2, "projected": 1, "stream": 6, "lengths": 2, "resets": 1,
                      "bfloat16": 1, "cell": 15, "steps": 24}  # fmt: skip
    assert all(name == workload.name == workload.case.name for name, workload in WORKLOADS.items())
    bi = WORKLOADS["bi2-T100-B16-I128-H256"]
    assert (bi.layers, bi.directions, bi.rows) == (2, 2, 1600)
    grid = [w for w in select(None, "cuda") if "cpu" not in w.devices]
    assert len(grid) == 3 * (6 * 3 + 2 * 4)


def test_operations_count_rows() -> None:
    dense = WORKLOADS["T37-B5-I53-H77"]
    assert dense.flops("inference") == 8 * 37 * 5 * 77 * (53 + 77)
    assert dense.flops("training") == 3 * dense.flops("inference")
    ragged = WORKLOADS["ragged-T200-B64-I128-H256"]
    lengths = ragged.lengths
    assert lengths is not None
    assert len(lengths) == 64
    assert min(lengths) >= 1
    assert max(lengths) <= 200
    assert ragged.lengths == lengths
    assert ragged.flops("inference") == 8 * sum(lengths) * 256 * (128 + 256) < 0.7 * 8 * 200 * 64 * 256 * (128 + 256)
    proj = WORKLOADS["proj64-T100-B16-I128-H256"]
    assert proj.flops("inference") == 1600 * 256 * (8 * (128 + 64) + 2 * 64)
    bi = WORKLOADS["bi2-T100-B16-I128-H256"]
    assert bi.flops("inference") == 2 * 8 * 1600 * 256 * ((128 + 256) + (512 + 256))
    assert WORKLOADS["stream-H256"].flops("inference") == 8 * 256 * 512


def test_patterns() -> None:
    assert [w.name for w in select("cell, stream-H64", "cpu")] == ["stream-H64", *CELLS]
    assert {w.group for w in select("grid-float16", "cuda")} == {"grid-float16"}
    assert len(select("sweep-?", "cpu")) == 15
    with pytest.raises(ValueError, match="no workload for cpu matches 'grid-float16'"):
        select("dense,grid-float16", "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_gate_passes_and_calls_run(name: str) -> None:
    small = WORKLOADS[name].shrunk()
    assert outcome(small, "cpu")[0] == "measured"
    inputs = small.inputs()
    ours, theirs = module_of(small, True), module_of(small, False)
    seen, expected = results(ours, inputs), results(theirs, inputs)
    tolerance = 0.02 if small.case.dtype == torch.bfloat16 else 1e-5
    for key, value in expected.items():
        torch.testing.assert_close(seen[key], value, rtol=tolerance, atol=tolerance)
    leaves = len(arguments(inputs, grad=True)[2]) + len(list(ours.parameters()))
    assert len(call_of("training", ours, inputs)()) == leaves
    with torch.no_grad():
        call_of("inference", ours, inputs)()


def test_streaming_carries_the_state() -> None:
    small = WORKLOADS["stream-H64"].shrunk()
    inputs = small.inputs()
    seen: list[torch.Tensor] = []
    module = module_of(small, True)
    module.register_forward_hook(lambda _, given, result: seen.extend((given[1][0], result[1][0])))
    call = call_of("inference", module, inputs)
    with torch.no_grad():
        call(), call()
    assert torch.equal(seen[2], seen[1])
    assert not torch.equal(seen[2], seen[0])


def test_short_calls_are_repeated() -> None:
    counts = [0, 0]

    def count(index: int) -> None:
        counts[index] += 1

    pairs = interleave(lambda: count(0), lambda: count(1), seconds=0.0, least=3, shortest=1e-4)
    assert pairs.calls > 10
    assert pairs.pairs == 3
    assert counts[0] == counts[1] >= 4 * pairs.calls
    assert interleave(lambda: None, lambda: None, seconds=0.0, least=3).calls == 1


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few tiny workloads, and its files."""
    folder = tmp_path_factory.mktemp("run")
    before = torch.get_num_threads()
    arguments = ["--workloads", "stream-H64,ragged-T500*,proj*,sweep-?"]
    assert quick(*arguments, "--json", str(folder / "run.json"), "--markdown", str(folder / "run.md")) == 0
    torch.set_num_threads(before)
    return folder


def test_json_says_what_was_measured(quick_run: Path) -> None:
    run = load(quick_run / "run.json")
    names = ["ragged-T500-B16-I32-H32", "proj64-T100-B16-I128-H256", "stream-H64"]
    assert [row["workload"] for row in run["rows"][:3]] == names
    assert run["settings"] == {"device": "cpu", "threads": 1, "engine": "auto", "peers": ["nn"], "seconds": 0.001,
                               "quick": True, "memory": True}  # fmt: skip
    environment = run["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert environment["product_gflops"]["float32"] > 0
    assert slug(run) == f"{environment['machine_slug']}-1t-{environment['commit']}"
    for row in run["rows"]:
        assert row["outcome"] == "measured"
        assert row["engine"] in ENGINES
        for mode in MODES:
            timing = row["modes"][mode]["peers"]["nn"]
            assert timing["ratio"] is not None
            assert timing["low"] is not None
            assert timing["high"] is not None
            assert timing["low"] <= timing["ratio"] <= timing["high"]
            expected = row["flops"][mode] / row["modes"][mode]["ours_ms"] / 1e6
            assert row["modes"][mode]["gflops"] == pytest.approx(expected)


def test_render_prints_what_the_run_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, page, again = (str(tmp_path / name) for name in ("run.json", "run.md", "again.md"))
    assert (
        quick("--workloads", "cell-B1-*,T37*,overhead-access", "--no-memory", "--json", file, "--markdown", page) == 0
    )
    printed = capsys.readouterr().out
    assert main(["--render", file, "--markdown", again]) == 0
    assert capsys.readouterr().out == printed
    assert Path(again).read_text() == Path(page).read_text()
    for line in ("cell-B1-H256", "T37-B5-I53-H77", "geometric mean of dense (1 workloads)", "QUICK"):
        assert line in printed


def test_plots(quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--render", str(quick_run / "run.json"), "--plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("plot: ") == 6
    for name in ("ratio", "scaling", "roofline"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        words = " ".join(ElementTree.parse(tmp_path / f"{name}.svg").getroot().itertext())
        assert "1 thread" in words
    assert "stream-H64" in " ".join(ElementTree.parse(tmp_path / "ratio.svg").getroot().itertext())


def test_markdown_fills_a_marked_place(quick_run: Path, tmp_path: Path) -> None:
    run, page = load(quick_run / "run.json"), tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_markdown([run], page)
        assert page.read_text() == f"before\n{START}\n\n{markdown(run)}\n\n{END}\nafter\n"


def test_markdown_fills_marked_places_in_turn(quick_run: Path, tmp_path: Path) -> None:
    run, page = load(quick_run / "run.json"), tmp_path / "page.md"
    other = copy.deepcopy(run)
    other["environment"]["commit"] = "another"
    table, another = markdown(run), markdown(other)
    two = f"before\n{START}\nold\n{END}\nbetween\n{START}\nold\n{END}\nafter\n"
    for runs, first, second in (
        ([run], f"\n\n{table}\n\n", "\nold\n"),
        ([run, other], f"\n\n{table}\n\n", f"\n\n{another}\n\n"),
        ([run, other, run], f"\n\n{table}\n\n", f"\n\n{another}\n\n{table}\n\n"),
    ):
        page.write_text(two)
        write_markdown(runs, page)
        assert page.read_text() == f"before\n{START}{first}{END}\nbetween\n{START}{second}{END}\nafter\n"


def test_readme_names_every_field(quick_run: Path) -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    run = load(quick_run / "run.json")
    row = run["rows"][0]
    mode = row["modes"]["training"]
    for part in (run, run["environment"], row, row["sizes"], mode, mode["peers"]["nn"], row["memory"] or {}):
        for field in part:
            assert field in readme, f"benchmarks/README.md does not say what {field} is"


def test_what_has_no_figure_says_why(quick_run: Path) -> None:
    run = copy.deepcopy(load(quick_run / "run.json"))
    timing = run["rows"][0]["modes"]["training"]["peers"]["nn"]
    timing.update(ms=None, ours_ms=None, ratio=None, low=None, high=None, note="nn cannot run this here")
    run["rows"][1].update(outcome="refused", parity="not today", modes={})
    run["rows"][0]["modes"]["inference"]["peers"]["nn"].update(ratio=2.0)  # whatever was measured
    run["rows"][2]["modes"]["inference"]["peers"]["nn"].update(ratio=0.5, low=0.4, high=0.6)
    run["left_out"] = {"ort": "not installed"}
    shown = text(run)
    for expected in ("- [1]", "[1] nn cannot run this here", "refused: not today", "left out: ort: not installed",
                     "slower than nn.LSTM (ratio below 0.97): stream-H64 inference 0.50"):  # fmt: skip
        assert expected in shown
    assert "not today" in markdown(run)


def test_red_parity_shows_no_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ENGINES, "wrong", Engine("wrong", wrong, automatic=only_if_asked))
    file = tmp_path / "run.json"
    assert quick("--engine", "wrong", "--workloads", "T37*", "--json", str(file)) == 1
    row = json.loads(file.read_text())["rows"][0]
    assert row["outcome"] == "red"
    assert row["modes"] == {}
    assert row["memory"] is None
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("T37"))
    assert "PARITY FAILS: " in line
    assert "exceeds" in line
    assert "(p20" not in line


def test_gate_sees_the_path_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_in_inference(*arguments: Any) -> Any:
        return (ENGINES["reference"].layer if torch.is_grad_enabled() else wrong)(*arguments)

    monkeypatch.setitem(ENGINES, "wrong", Engine("wrong", wrong_in_inference))
    monkeypatch.setattr("torchlstm.call.dispatch._forced", "wrong")
    result, why = outcome(WORKLOADS["T37-B5-I53-H77"], "cpu")
    assert result == "red"
    assert why.startswith("output without gradients: ")


def test_crash_and_refusal_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> Any:
        raise IndexError("off by one\nfar away")

    monkeypatch.setattr("torchlstm.call.dispatch._forced", "odd")
    monkeypatch.setitem(ENGINES, "odd", Engine("odd", crash))
    assert outcome(WORKLOADS["T37-B5-I53-H77"], "cpu") == ("red", "IndexError: off by one")
    monkeypatch.setitem(ENGINES, "odd", Engine("odd", wrong, refuses=lambda _: "not today"))
    result, why = outcome(WORKLOADS["T37-B5-I53-H77"], "cpu")
    assert result == "refused"
    assert "not today" in why


def test_only_refusals_are_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "odd", Engine("odd", wrong, refuses=lambda _: "not today"))
    assert quick("--engine", "odd", "--workloads", "T37*") == 1


WRONG = {
    "unknown-argument": (["--fast"], "unrecognized arguments: --fast"),
    "unknown-workload": (["--workloads", "gru"], "no workload for cpu matches 'gru'"),
    "unknown-workload-list": (["--list", "--workloads", "gru"], "no workload for cpu matches 'gru'"),
    "unknown-peer": (["--peers", "nn,keras"], "unknown peer 'keras'; peers: nn, compile, ort, opacus, all"),
    "unknown-engine": (["--engine", "fast"], "unknown engine 'fast'; engines: "),
    "unknown-device": (["--device", "tpu"], "invalid choice: 'tpu'"),
    "no-threads": (["--threads", "0"], "--threads must be at least 1, got 0"),
    "no-seconds": (["--seconds", "0"], "--seconds must be above 0, got 0"),
    "file-in-no-folder": (["--json", "no/such/folder.json"], "cannot write no/such/folder.json"),
    "quick-figures-saved": (["--quick", "--save"], "those of --quick say nothing"),
    "render-and-save": (["--render", "x.json", "--save"], "--render measures nothing"),
    "render-nothing": (["--render", "no-such-file.json"], "no-such-file.json"),
    "render-no-run": (["--render", str(ROOT / "README.md")], "holds no benchmark run"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_end_with_one_line_and_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_missing_cuda_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--device", "cuda"])
    assert exit.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert main(["--device", "cuda", "--list"]) == 0
    assert "grid-bfloat16-B64-H1024" in capsys.readouterr().out


def test_missing_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    odd = replace(peers.PEERS["opacus"], packages=("no_such_package",))
    monkeypatch.setitem(peers.PEERS, "opacus", odd)
    with pytest.raises(SystemExit) as exit:
        main(["--peers", "opacus"])
    assert exit.value.code == 2
    assert "peer 'opacus': no_such_package not installed (pip install" in capsys.readouterr().err
    chosen, left_out = peers.choose("all")
    assert "opacus" not in chosen
    assert "no_such_package not installed" in left_out["opacus"]
    assert peers.choose("compile") == (["nn", "compile"], {})


def _check_peer(name: str, mode: str, workloads: dict[str, str | None]) -> None:
    for pattern, reason in workloads.items():
        workload: Workload = select(pattern, "cpu")[0].shrunk()
        if reason is None:
            prepared = peers.prepare(peers.PEERS[name], workload, workload.inputs(), mode, "cpu")
            prepared.call()
        else:
            with pytest.raises(Unfit, match=reason):
                peers.prepare(peers.PEERS[name], workload, workload.inputs(), mode, "cpu")


def test_onnx_runtime_computes_the_same() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    runs = ("T37*", "bi2-*", "ragged-T500*", "stream-H64", "cell-B64-H256")
    unfit = {"proj*": "no projection", "bfloat16": "takes float32, not bfloat16"}
    _check_peer("ort", "inference", dict.fromkeys(runs) | unfit)


@pytest.mark.filterwarnings("ignore")  # what other people's packages warn of is theirs
def test_opacus_computes_the_same() -> None:
    pytest.importorskip("opacus")
    runs = ("T37*", "bi2-*", "ragged-T500*", "stream-H64")
    _check_peer("opacus", "training", dict.fromkeys(runs) | {"proj*": "drops proj_size", "cell": "no LSTMCell"})


@pytest.mark.filterwarnings("ignore")
def test_per_sample_gradients_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opacus")
    names = "T37-B5-I53-H77,ragged-T500-B16-I32-H32"
    assert private.main(["--quick", "--threads", "1", "--seconds", "0.001", "--only", names]) == 0
    dense, ragged = (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-2:])
    assert [bool(cell.strip()) for cell in dense] == [True] * 9 + [False] * 4
    assert [index for index, cell in enumerate(ragged) if not cell.strip()] == [4, 7, 9, 10, 11, 12]  # no vmap


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = WORKLOADS["T37-B5-I53-H77"].shrunk()
    inputs = workload.inputs()

    def off(*_: Any) -> peers.Prepared:
        seen = results(module_of(workload, False), inputs)
        return peers.Prepared(lambda: None, seen | {"c_n": seen["c_n"] + 0.01})

    with pytest.raises(Unfit, match="off computes something else: c_n differs by 1"):
        peers.prepare(peers.Peer("off", off), workload, inputs, "inference", "cpu")

    def crash(*_: Any) -> peers.Prepared:
        raise OSError("no licence")

    with pytest.raises(Unfit, match="off fails: OSError: no licence"):
        peers.prepare(peers.Peer("off", crash), workload, inputs, "inference", "cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory of a process is read from /proc")
def test_memory_of_a_training_step() -> None:
    found = memory.measure_memory("ragged-T500-B16-I32-H32", "cpu", 1, "reference")
    assert found["note"] is None
    gates = WORKLOADS["ragged-T500-B16-I32-H32"].rows * 4 * 32 * 4 / 1e6
    for value in (found["nn_mb"], found["ours_mb"]):
        assert value is not None
        assert gates < value < 100 * gates


def test_small_things() -> None:
    assert [number(value) for value in (None, 0.01234, 1.234, 12.34, 1234.5)] == ["", "0.0123", "1.23", "12.3", "1234"]
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
