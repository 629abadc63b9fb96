"""The benchmark suite, what it says of the machine: its name, its limit, older runs, and rows that are no ratios."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import calls_within

import torchlstm
from benchmarks import limit, selection
from benchmarks.__main__ import main
from benchmarks.calls import call_of, module_of
from benchmarks.extras import Extra
from benchmarks.machine import described, processor, short, slugify
from benchmarks.ort import model_of
from benchmarks.record import Run, load
from benchmarks.report import markdown, text
from benchmarks.workloads import WORKLOADS, is_sweep

ROOT = Path(__file__).parents[2]
# What `benchmarks.frozen_accuracy` writes is no run.
SAVED = sorted(
    set((ROOT / "benchmarks" / "results").glob("*.json")) - {ROOT / "benchmarks/results/frozen-accuracy.json"}
)
kernel = limit.load()[0]
with_kernel = pytest.mark.skipif(kernel is None, reason=f"no cpu engine: {torchlstm.engines()['cpu']}")


def cpuinfo(vendor: str, family: int, model: int, flags: str) -> str:
    one = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: X\nflags\t\t: {flags}\n"
    return f"processor\t: 0\n{one}\nprocessor\t: 1\n{one}"


AVX2, AVX512 = "fpu avx avx2 fma", "fpu avx avx2 fma avx512f avx512dq avx512vl"
MACHINES = {
    "zen-2": (cpuinfo("AuthenticAMD", 23, 49, AVX2), "AMD family 23 model 49 (Zen 2), AVX2", "amd-zen-2"),
    "zen-3": (cpuinfo("AuthenticAMD", 25, 1, AVX2), "AMD family 25 model 1 (Zen 3), AVX2", "amd-zen-3"),
    "zen-4": (cpuinfo("AuthenticAMD", 25, 17, AVX512), "AMD family 25 model 17 (Zen 4), AVX-512", "amd-zen-4"),
    "zen-5": (cpuinfo("AuthenticAMD", 26, 2, AVX512), "AMD family 26 model 2 (Zen 5), AVX-512", "amd-zen-5"),
    "sapphire-rapids": (
        cpuinfo("GenuineIntel", 6, 143, AVX512),
        "Intel family 6 model 143 (Sapphire Rapids), AVX-512",
        "intel-sapphire-rapids",
    ),
    "unknown-model": (
        cpuinfo("AuthenticAMD", 25, 255, AVX2),
        "AMD family 25 model 255, AVX2",
        "amd-family-25-model-255",
    ),
    "unknown-vendor": (cpuinfo("Other", 7, 3, "sse4_2"), "Other family 7 model 3", "other-family-7-model-3"),
    "no-numbers": ("model name\t: Neoverse-V1\nFeatures\t: fp asimd\n", "Neoverse-V1, NEON", "neoverse-v1"),
}


@pytest.mark.parametrize(("info", "words", "slug"), MACHINES.values(), ids=MACHINES)
def test_a_machine_is_named_by_what_it_is(info: str, words: str, slug: str) -> None:
    known = processor(info)
    assert described(known) == words
    assert slugify(short(known)) == slug


def test_a_machine_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert described(processor("")) == "arm64"
    assert slugify("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-xeon"
    assert slugify("AMD EPYC 9R14 96-Core Processor") == "amd-epyc-9r14"
    assert slugify("NVIDIA H200") == "nvidia-h200"


@with_kernel
def test_the_limit_counts_operations() -> None:
    def operations(isa: int, element: int = 4, threads: int = 1, rounds: int = 100) -> int:
        return int(kernel.peak(isa=isa, threads=threads, element=element, rounds=rounds))

    # Chains of four numbers, of multiply-adds that are two operations.
    assert operations(0) in (100 * 14 * 4 * 2, 100 * 28 * 4 * 2)
    assert operations(0, rounds=300) == 3 * operations(0)
    for isa in (0, 1, 2):
        assert operations(isa) == 2 * operations(isa, element=8)
    assert operations(0, threads=2) == (2 if kernel.openmp else 1) * operations(0)
    if kernel.isa(2) == 2:
        assert operations(2) == 100 * 28 * 16 * 2
    if kernel.isa(4) == 4:
        assert operations(4) == 2 * operations(2)  # pairs
        assert operations(4, element=8) == operations(2, element=8)
    with pytest.raises(ValueError, match=r"peak\(element\): expected 4 or 8, got 5"):
        operations(0, element=5)


@with_kernel
def test_the_limit_is_measured_for_every_set_there_is() -> None:
    found = limit.register_limits(1, quick=True)
    assert found is not None
    assert set(found) == {
        name for name in ("portable", "avx2", "avx512") if kernel.isa(limit.ISAS[name]) == limit.ISAS[name]
    }
    for name, speeds in found.items():
        assert set(speeds) - {"bfloat16"} == {"float32", "float64"}
        assert all(speed > 0 for speed in speeds.values())
        assert "bfloat16" not in speeds or name == "avx512"


def test_which_limit_a_share_is_of() -> None:
    limits = {
        "portable": {"float32": 1.0, "float64": 0.5},
        "avx512": {"float32": 8.0, "float64": 4.0, "bfloat16": 16.0},
    }
    here: dict[str, Any] = {"product_gflops": {"float32": 5.0}, "limit_gflops": limits, "isa": "avx512"}
    found = {dtype: limit.peak_of(here, "cpu", dtype) for dtype in ("float32", "float64", "float16", "bfloat16")}
    assert found == {"float32": 8, "float64": 4, "float16": 8, "bfloat16": 16}
    assert limit.peak_of(here | {"isa": "portable"}, "cpu", "bfloat16") == 1  # it computes in float32
    assert limit.peak_of(here | {"limit_gflops": None, "isa": None}, "cpu", "float64") == 5
    assert limit.peak_of(here, "cuda", "float32") == 5
    assert limit.peak_of(here, "cuda", "float16") is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cells, of three steps, and of an overhead."""
    before, file = torch.get_num_threads(), tmp_path_factory.mktemp("run") / "run.json"
    chosen = "cell-B1-H16,cell-B1-H64,steps-T3-B1-H64,overhead-access"
    given = ["--quick", "--threads", "1", "--seconds", "0.001", "--workloads", chosen, "--json", str(file)]
    assert main(given) == 0
    torch.set_num_threads(before)
    return file


@pytest.fixture
def run(saved: Path) -> Run:
    """It, to be changed at will."""
    return load(saved)


@pytest.mark.parametrize("file", SAVED, ids=lambda file: file.stem)
def test_saved_runs_are_shown(file: Path) -> None:
    run = load(file)
    assert run["environment"]["machine"] in text(run)
    assert all(row["workload"] in markdown(run) for row in run["rows"] if not is_sweep(row["group"]))


def test_runs_of_schema_1_are_shown_with_the_peak_of_their_time(run: Run, tmp_path: Path) -> None:
    old: Any = copy.deepcopy(run)
    old["schema"] = 1
    del old["extras"], old["environment"]["isa"], old["environment"]["limit_gflops"], old["environment"]["cpu_design"]
    for row in old["rows"]:
        for mode in row["modes"].values():
            del mode["threads"]
    old["environment"] |= {"machine": "AMD EPYC", "product_gflops": {"float32": 83.4}}
    old["rows"][0]["modes"]["training"]["peak"] = 2.01
    file = tmp_path / "old.json"
    file.write_text(json.dumps(old))
    lines = text(load(file)).splitlines()
    assert lines[1].startswith("AMD EPYC, 1 thread, ")
    assert lines[2] == "peak: share of a large torch.mm, GF/s: float32 83"
    assert "| 201% |" in markdown(load(file))
    pytest.importorskip("matplotlib")
    assert main(["--render", str(file), "--plot", str(tmp_path)]) == 0
    drawn = (tmp_path / "roofline.svg").read_text(encoding="utf-8")
    assert "torch.mm, float32: 83 GF/s" in drawn
    assert "multiply-adds" not in drawn
    assert "cell-B1-H16" in (tmp_path / "short.svg").read_text(encoding="utf-8")


def test_a_schema_of_another_time_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"schema": 3}))
    with pytest.raises(ValueError, match="has schema 3, this program reads 1 and 2"):
        load(file)


def test_a_group_has_its_mean_and_its_least(run: Run) -> None:
    for row, ratio in zip(run["rows"], (0.5, 2.0, 3.0), strict=True):
        row["modes"]["inference"]["peers"]["nn"]["ratio"] = ratio
        row["modes"]["training"]["peers"]["nn"]["ratio"] = 2 * ratio
    shown = text(run)
    assert (
        "geometric mean of cell (2 workloads): nn/ours inference 1.00, least 0.50 of cell-B1-H16; "
        "nn/ours training 2.00, least 1.00 of cell-B1-H16"
    ) in shown
    assert "geometric mean of steps (1 workloads): nn/ours inference 3.00, least 3.00 of steps-T3-B1-H64" in shown


@with_kernel
def test_a_run_says_what_its_shares_are_of(run: Run) -> None:
    environment = run["environment"]
    isa, row = environment["isa"], run["rows"][0]
    assert f"peak: share of multiply-adds in registers, GF/s: {isa} float32 " in text(run)
    assert "torch.mm float32 " in text(run)
    assert f", kernel {isa}, 1 thread" in text(run)
    if row["engine"] == "cpu":
        mode = row["modes"]["training"]
        assert mode["peak"] == pytest.approx(mode["gflops"] / environment["limit_gflops"][isa]["float32"])


def test_fewer_threads_are_told(run: Run) -> None:
    assert "used 1 of" not in text(run)
    run["environment"]["threads"] = 2
    for mode, count in (("inference", 1), ("training", 2)):
        run["rows"][0]["modes"][mode]["threads"] = count
        run["rows"][1]["modes"][mode]["threads"] = None
        run["rows"][2]["modes"][mode]["threads"] = 1
    told = "used 1 of 2 threads: cell-B1-H16 inference, steps-T3-B1-H64 inference, steps-T3-B1-H64 training"
    assert told in text(run).splitlines()


def test_rows_of_another_kind(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run["extras"]
    assert (row["name"], row["group"], list(row["figures"]), row["note"]) == (
        "overhead-access",
        "overhead",
        ["ours us"],
        None,
    )
    shown = copy.deepcopy(run)
    shown["extras"] = [
        {"name": "crowd-2", "group": "crowd", "figures": {"calls/s": 12.0, "p99 ms": 0.5}, "note": None},
        {"name": "crowd-4", "group": "crowd", "figures": {}, "note": "no room"},
    ]
    assert "crowd              calls/s  p99 ms\ncrowd-2            12.0     0.500\ncrowd-4 (no room)" in text(shown)
    assert (
        "| crowd | calls/s | p99 ms |\n|---|---:|---:|\n| crowd-2 | 12.0 | 0.500 |\n| crowd-4 (no room) |  |  |"
        in markdown(shown)
    )

    def crash(_: Any) -> Any:
        raise OSError("no room")

    monkeypatch.setitem(selection.EXTRAS, "crowd-2", Extra("crowd-2", "crowd", crash))
    given = ["--quick", "--threads", str(torch.get_num_threads()), "--workloads", "crowd-*"]
    assert main(["--list", "--workloads", "crowd"]) == 0
    assert main(given) == 1
    printed = capsys.readouterr().out
    assert "crowd-2  crowd\n" in printed
    assert "crowd-2 (OSError: no room)" in printed


def test_no_closure_takes_part_in_a_short_call() -> None:
    """A call of 10 us is the module's and nothing else."""
    for name, training in (("cell-B1-H16", ["grad"]), ("steps-T1-B1-H64", ["grad"]), ("stream-H64", ["grad"])):
        small = WORKLOADS[name].shrunk()
        inputs = small.inputs()
        for ours in (True, False):
            module = module_of(small, ours)
            for mode, more in (("inference", []), ("training", training)):
                with torch.no_grad() if mode == "inference" else nullcontext():
                    call = call_of(mode, module, inputs)
                    call()
                    assert calls_within(call) == ["_wrapped_call_impl", *more], f"{name} {mode}"


def test_onnx_runtime_is_measured_on_one_step_of_one_sequence() -> None:
    onnx = pytest.importorskip("onnx")
    for size in (64, 256, 1024):
        workload = WORKLOADS[f"stream-H{size}"]
        sizes = workload.sizes()
        assert [sizes[letter] for letter in "TBIH"] == [1, 1, size, size]
        model = onnx.load_from_string(model_of(workload, module_of(workload, False)))
        assert [node.op_type for node in model.graph.node] == ["LSTM"]
