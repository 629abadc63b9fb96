"""What is run on a GPU, without one: its steps in Triton's interpreter, and its code for CUDA on a GPU that is none."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch

from benchmarks import gpu_check, gpu_compile, gpu_device, gpu_kernels, gpu_slopes, gpu_stress, memory
from benchmarks.__main__ import main as measure
from benchmarks.environment import environment
from benchmarks.gate import judge_workload
from benchmarks.workloads import WORKLOADS, select
from torchlstm.engines.contract import Engine
from torchlstm.engines.cuda import loops
from torchlstm.engines.cuda.launch import NoRoom
from torchlstm.engines.reference import engine as reference
from torchlstm.parity import CASES
from torchlstm.parity.run import tf32, tf32_allowed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that is none, on which the engine "cuda" is the reference; the list of its waits."""
    from torchlstm.engines import ENGINES

    monkeypatch.setitem(ENGINES, "cuda", Engine("cuda", reference.layer))
    waits = fake_cuda.install(monkeypatch)
    with fake_cuda.OnCPU():
        yield waits


@pytest.mark.long
@pytest.mark.skipif("TORCHLSTM_TEST_DRY_RUN" not in os.environ, reason="a minute: only with TORCHLSTM_TEST_DRY_RUN=1")
def test_dry_run(tmp_path: Path) -> None:
    """Every step starts, does a little of what it is for, and ends well."""
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [ROOT / "benchmarks" / "gpu_check.sh", "--dry-run", "found"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    out = tmp_path / "found"
    lines = [json.loads(line) for line in (out / "check.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [step.name for step in gpu_check.steps(out)]
    bad = [line for line in lines if line["exit"] != 0]
    assert not bad, "".join((out / f"{line['name']}.log").read_text()[-2000:] for line in bad)
    assert done.returncode == 0, done.stdout + done.stderr
    stress = [json.loads(line) for line in (out / "stress.jsonl").read_text().splitlines()]
    assert {trial["outcome"] for trial in stress} == set(gpu_stress._GOOD)
    written = {"parity-cuda.json", "parity-reference.json", "slopes.jsonl", "stress.jsonl", "benchmarks-cuda.json"}
    assert written <= {file.name for file in out.iterdir()}
    assert list((out / "qualified").rglob("*.json"))


def test_limits_fit_into_ten_minutes(tmp_path: Path) -> None:
    steps = gpu_check.steps(tmp_path)
    assert sum(step.limit for step in steps) <= gpu_check.SECONDS <= 590
    assert len({step.name for step in steps}) == len(steps)


def test_steps_ask_for_what_there_is(tmp_path: Path) -> None:
    """The workloads by name, and the machine first and the sanitizer last."""
    steps = {step.name: step for step in gpu_check.steps(tmp_path)}
    for name in ("benchmarks", "benchmarks-cuda"):
        command = list(steps[name].command)
        assert select(command[command.index("--workloads") + 1], command[command.index("--device") + 1])
    assert [next(iter(steps)), list(steps)[-1]] == ["machine", "memcheck"]
    order = [name for name in steps if name.startswith(("compile", "parity", "stress", "benchmarks"))]
    assert order == ["compile", "parity-reference", "parity-cuda", "stress", "benchmarks-cuda", "benchmarks"]


def _step(*code: str, limit: int = 60) -> gpu_check.Step:
    command = [sys.executable, "-c", *code]
    return gpu_check.Step("one", limit, command, ["no-such-program"])


def test_a_step_is_kept_with_its_last_line_and_code(tmp_path: Path) -> None:
    step = _step("import os; print('first'); print(os.environ['TORCHLSTM_CACHE']); raise SystemExit(3)")
    line = gpu_check.run(step, tmp_path, False)
    assert (line["exit"], line["last"]) == (3, str(tmp_path / "qualified"))
    assert (tmp_path / "one.log").read_text().startswith("first\n")
    assert gpu_check.run(step, tmp_path, True)["last"] == "not run: no no-such-program on the PATH"


def test_a_step_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    step = gpu_check.Step("one", 1, ["sh", "-c", "sleep 600 & echo $!; wait"], [])
    line = gpu_check.run(step, tmp_path, False)
    assert line["exit"] is None
    assert line["last"].startswith("killed after 1 s; ")
    state = Path("/proc", line["last"].split()[-1], "stat")
    for _ in range(1000):  # until its end has reached it
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("a process is left behind")


@pytest.mark.parametrize(("others", "code"), [("", 0), ("12, python, 300 MiB", 1)], ids=["alone", "shared"])
def test_whoever_else_is_on_the_card_is_told(
    others: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncase $1 in *compute-apps*) echo '{others}';; *) echo 'Fake GPU, 1.2';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_check.main(["--machine"]) == code
    assert capsys.readouterr().out == f"Fake GPU, 1.2\nother processes: {others or 'none'}\n"


def test_stress_goes_on_in_another_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that ends its process is bad, and those after it run."""
    file = tmp_path / "stress.jsonl"
    file.touch()
    code = (
        "import json, os, sys\n"
        "names = ['a', 'b', 'c', 'd']\n"
        "for name in names[names.index(sys.argv[-1]) + 1 if '--after' in sys.argv else 0:]:\n"
        "    if name == 'c': os.abort()\n"
        f"    line = json.dumps(dict(name=name, repeats=1, seconds=0.0, outcome='same bits'))\n"
        f"    print(line, file=open({str(file)!r}, 'a'))\n"
    )
    found = gpu_stress.run_in_children([sys.executable, "-c", code], ["a", "b", "c", "d"], file, 1.0)
    assert [one.outcome for one in found] == ["same bits"] * 2 + ["the process ended with exit code -6", "same bits"]
    assert "exit code -6" in capsys.readouterr().out


def test_stress_on_a_gpu_that_is_none(cuda: list[str]) -> None:
    """Streams, graphs and waits; and that other bits, NaN elsewhere and a graph's other results are told."""
    device = gpu_device.device_of()
    assert device.type == "cuda"
    (case, *_), replays = gpu_stress.cases(False, gpu_stress._TINY), fake_cuda.Graph.replays
    for run in (gpu_stress.cautious, gpu_stress.idle, gpu_stress.busy, gpu_stress.together, gpu_stress.replayed):
        waits = len(cuda)
        assert run(case, device, 0.0).outcome == "same bits"
        assert len(cuda) > waits
    assert fake_cuda.Graph.replays - replays == 2 * gpu_stress._LEAST
    assert gpu_stress.poisoned(case, device).outcome == "its own sequence only"


@pytest.mark.parametrize("run", ["idle", "busy", "together", "replayed"])
def test_stress_tells_other_bits(run: str, cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchlstm.engines import ENGINES

    calls = 0

    def drifting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        y, h_n, c_n = reference.layer(*arguments)
        return y + 1e-6 * calls, h_n, c_n

    for name in ("cuda", "reference", "cpu"):
        monkeypatch.setitem(ENGINES, name, Engine(name, drifting))
    monkeypatch.setattr("torchlstm.call.native._connected", False)
    (case, *_) = gpu_stress.cases(False, gpu_stress._TINY)
    found = getattr(gpu_stress, run)(case, gpu_device.device_of(), 0.0)
    assert "differs" in found.outcome


def test_a_failing_trial_is_told_and_the_next_one_runs(cuda: list[str]) -> None:
    def fails(*_: Any) -> gpu_stress.Found:
        raise RuntimeError("an illegal memory access")

    (case, *_) = gpu_stress.cases(False, gpu_stress._TINY)
    trials = [gpu_stress.Trial("bad", case, fails), gpu_stress.Trial("good", case, gpu_stress.idle)]
    found: list[gpu_stress.Found] = []
    gpu_stress.run_here(trials, gpu_device.device_of(), 0.0, found.append)
    assert [(one.name, one.outcome) for one in found] == [
        ("bad", "RuntimeError: an illegal memory access"),
        ("good", "same bits"),
    ]


def test_every_trial_has_a_name_of_its_own() -> None:
    trials = gpu_stress.trials(list(gpu_stress.cases(False)))
    assert len({trial.name for trial in trials}) == len(trials) > 100
    assert trials[0].run is gpu_stress.cautious
    assert {trial.run for trial in trials} == {
        gpu_stress.cautious, gpu_stress.idle, gpu_stress.busy, gpu_stress.poisoned, gpu_stress.together,
        gpu_stress.replayed,
    }  # fmt: skip
    assert {"slices-float32-dense-T2000", "slices-tiles-bfloat16-dense-two-streams", "rows-float16-dense-inf"} <= {
        trial.name for trial in trials
    }


def test_slopes() -> None:
    assert gpu_slopes.line((10, 30), (2.0, 4.0)) == {"us_a_step": 100.0, "us_a_call": 1000.0}


def test_slopes_and_kernels_on_a_gpu_that_is_none(cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = gpu_slopes.shape(4, 2, torch.float32, (8, 9), gpu_device.device_of())
    assert row["nn"] == row["cuda"] == {mode: {"us_a_step": 0.0, "us_a_call": 1000.0} for mode in row["nn"]}
    assert cuda
    x = torch.randn(3, 2, 4, requires_grad=True)
    assert gpu_kernels.kernels(torch.nn.LSTM(4, 4), x, gpu_stress.use_engine("cuda"))


def test_a_kernel_that_is_refused_fails_what_was_to_try_it(cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_said", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gpu_device.device_of()
        with pytest.raises(RuntimeWarning, match="a GPU refused the kernel"):
            loops._without_room(NoRoom("too many blocks in cooperative launch"))


def test_everything_is_compiled_before() -> None:
    names = {module.name for module in gpu_compile.modules(False)}
    assert names >= {case.name for case in CASES.values() if not case.dtype.is_complex}
    assert names >= {case.name for case in gpu_stress.cases(False)} | {"grid-bfloat16-B64-H1024", "cell-B8-H256"}


def test_a_module_that_cannot_be_compiled_is_told(cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (workload,) = gpu_compile.modules(True)
    assert gpu_compile.compile_one(workload).error is None
    from torchlstm.engines import ENGINES

    def fails(*_: Any) -> Any:
        raise ValueError("no such layout\nand more")

    monkeypatch.setitem(ENGINES, "cuda", Engine("cuda", fails))
    assert gpu_compile.compile_one(workload).error == "ValueError: no such layout"


def test_the_benchmarks_on_a_gpu_that_is_none(
    cuda: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `python -m benchmarks --device cuda` asks of CUDA, and the run that it writes row by row."""
    file = tmp_path / "run.json"
    names = "grid-float32-B1-H64,rest-bfloat16-ragged-H256,cell-B8-H256,lengths-*,resets-*,streamed-H64"
    with tf32(("matmul",)):  # after which torch's older `allow_tf32` cannot be asked
        code = measure(["--device", "cuda", "--quick", "--no-memory", "--seconds", "0.001", "--workloads", names,
                        "--json", str(file)])  # fmt: skip
    run = json.loads(file.read_text())
    assert code == 0, capsys.readouterr().out
    assert {row["outcome"] for row in run["rows"]} == {"measured"}
    assert len(run["rows"]) == 7
    gpu = run["environment"]["gpu"]
    assert (gpu["name"], gpu["capability"], gpu["cudnn_allow_tf32"], gpu["matmul_allow_tf32"]) == (
        "Fake GPU", "9.0", False, True,
    )  # fmt: skip
    assert run["environment"]["machine_slug"] == "fake-gpu"
    assert cuda


def test_memory_on_a_gpu_that_is_none(cuda: list[str]) -> None:
    assert memory.peak_of(lambda: None, "cuda") == 2.5
    assert cuda == ["synchronize", "synchronize"]


def test_a_killed_run_leaves_the_rows_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import run as runs

    original = runs.measure

    def killed(workload: Any, *arguments: Any) -> Any:
        if workload.name == "cell-B8-H64":
            raise KeyboardInterrupt
        return original(workload, *arguments)

    monkeypatch.setattr(runs, "measure", killed)
    file = tmp_path / "run.json"
    arguments = ["--quick", "--threads", "1", "--seconds", "0.001", "--json", str(file)]
    with pytest.raises(KeyboardInterrupt):
        measure([*arguments, "--workloads", "cell-B1-H16,cell-B8-H64"])
    assert [row["workload"] for row in json.loads(file.read_text())["rows"]] == ["cell-B1-H16"]


def test_the_gate_knows_tf32(cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("benchmarks.gate.judge", lambda *arguments: seen.append(arguments[-1]))
    layer, cell = WORKLOADS["T1-B1-I256-H256"].shrunk(), WORKLOADS["cell-B1-H16"].shrunk()
    with tf32(("rnn",)):
        judge_workload(layer, "cuda")
        judge_workload(cell, "cuda")
        judge_workload(layer, "cpu")
    assert seen == [True, False, False]


def test_settings_are_given_back() -> None:
    before = [tf32_allowed(what) for what in ("rnn", "matmul")]
    with tf32(("matmul",)):
        assert [tf32_allowed(what) for what in ("rnn", "matmul")] == [False, True]
    assert [tf32_allowed(what) for what in ("rnn", "matmul")] == before
    assert environment("cpu")["gpu"] is None
