"""`torchlstm qualify` as a program, in Triton's interpreter, and what other processes then choose."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_children
import pytest
import torch

from torchlstm.__main__ import main
from torchlstm.engines.cuda import records
from torchlstm.engines.cuda.device import GPU
from torchlstm.qualify import command
from torchlstm.qualify.run import Children

pytest.importorskip("triton")
pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
# Of what `--quick` tries in the interpreter a quarter.
QUICK = ["-m", "torchlstm", "qualify", "--quick", "--dtype", "float32", "--hidden", "16"]
CLASSES = 4  # fused and steps, dense and ragged


def environment(cache: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "TORCHLSTM_"))}
    return {**plain, "PYTHONPATH": path, "TORCHLSTM_CACHE": str(cache), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
            **more}  # fmt: skip


def run(cache: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment(cache, **more), capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip


def record_in(cache: Path) -> tuple[Path, dict[str, Any]]:
    (path,) = (cache / "qualified").glob("*.json")
    return path, json.loads(path.read_text())


def _with(cache: Path) -> list[str]:
    """The processes that were given this cache folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TORCHLSTM_CACHE={cache}\0".encode() in (process / "environ").read_bytes() + b"\0":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, int, dict[str, Any], list[str]]]:
    """A run that is interrupted after the first class: its folder, text, exit code, record, and what was left over."""
    cache = tmp_path_factory.mktemp("cache")
    process = subprocess.Popen(
        [sys.executable, *QUICK], env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(("right", "wrong")):
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=60)
    for _ in range(50):
        if not (left := _with(cache)):
            break
        time.sleep(0.1)
    return cache, "".join(said) + rest, process.returncode, record_in(cache)[1], left


@pytest.fixture(scope="module")
def finished(stopped: tuple[Path, Any, Any, dict[str, Any], Any]) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same again, which goes on."""
    cache = stopped[0]
    return cache, run(cache, *QUICK, "--json", str(cache / "found.json"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_an_interrupt_leaves_what_is_finished_and_no_process(stopped: tuple[Path, str, int, Any, list[str]]) -> None:
    _, text, code, content, left = stopped
    assert code == 130, text
    assert "interrupted: run it again to go on" in text
    assert "Traceback" not in text
    assert 1 <= len(content["classes"]) < CLASSES
    assert left == []


def test_a_run_goes_on_where_it_was(stopped: tuple[Path, Any, Any, Any, Any], finished: tuple[Path, Any]) -> None:
    cache, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    known = len(stopped[3]["classes"])
    assert f"{CLASSES} classes, {CLASSES - known} of them with sizes still to try" in done.stdout
    assert f"{CLASSES} classes qualify, 0 wrong, 0 right but not faster" in done.stdout
    path, content = record_in(cache)
    assert str(path) in done.stdout
    assert content["identity"]["gpu"] == "Triton's interpreter"
    assert len(content["classes"]) == CLASSES
    for rows in content["classes"].values():
        assert [(row["reason"], row["least"], row["speed"]) for row in rows] == [(None, 1, [])] * 2
        assert {row["note"] for row in rows} == {"chosen without a measurement of speed"}
    found = json.loads((cache / "found.json").read_text())
    assert len(found["found"]) == CLASSES * 2


CHOICES = """
import io, sys, pathlib, torch, torchlstm
from contextlib import redirect_stdout
from torchlstm.__main__ import main
from torchlstm.engines.cuda import qualified
from torchlstm.engines.cuda import engine as cuda

record = pathlib.Path(sys.argv[1])
lstm, x = torchlstm.LSTM(5, 12 + 4), torch.randn(3, 2, 5, requires_grad=True)
loops = []
for (loop, layer) in list(cuda._LAYERS.items()):
    cuda._LAYERS[loop] = lambda problem, *rest, layer=layer: loops.append(problem.loop) or layer(problem, *rest)

def chosen(lstm=lstm, x=x):
    qualified.reload()
    return torchlstm.explain(lstm, x).decisions[0].engine

decision = torchlstm.explain(lstm, x).decisions[0]
assert decision.engine == "cuda", decision
assert f"by its fused loop: qualified, record {record} of " in str(decision), decision
output, _ = lstm(x)
assert loops == ["fused"], loops
output.sum().backward()
with torchlstm.use_engine("reference"):
    torch.testing.assert_close(lstm(x)[0], output)
packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 5), torch.randn(2, 5)])
assert chosen(x=packed) == "cuda"
assert chosen(x=torch.randn(3, 5, 5)) == "cpu"  # more sequences than were measured
assert chosen(torchlstm.LSTM(5, 24)) == "cpu"
assert chosen(torchlstm.LSTM(5, 16, dtype=torch.bfloat16), x.bfloat16()) == "cpu"

# A compiled call chooses what an eager one does, and an exported one nothing.
kernels = []
def spy(graph, _):
    kernels.extend(node.args[0] for node in graph.graph.nodes if "torchlstm" in str(node.target))
    return graph
from torch._dynamo.backends.common import aot_autograd
def compiled(*shapes, **options):
    kernels.clear()
    torch._dynamo.reset()
    run = torch.compile(lambda x: lstm(x)[0], fullgraph=True, backend=aot_autograd(fw_compiler=spy), **options)
    with torch.no_grad():
        for shape in shapes:
            run(torch.randn(*shape))
    return list(kernels)
assert compiled((3, 2, 5)) == ["cuda"]
assert compiled((3, 5, 5)) == ["cpu"]
assert set(compiled((3, 2, 5), (4, 2, 5), (7, 2, 5))) == {"cuda"}
assert set(compiled((3, 2, 5), (3, 3, 5))) == {"cuda"}
assert set(compiled((3, 2, 5), (3, 3, 5), (3, 9, 5))) == {"cuda", "cpu"}
assert compiled((3, 4, 5), dynamic=True) == ["cuda"]
lstm_of = torch.func.vmap(lambda x: lstm(x)[0], in_dims=1)
loops.clear()
lstm_of(torch.randn(3, 2, 2, 5))
kernels.clear()
with torch.no_grad():
    torch.compile(lstm_of, fullgraph=True, backend=aot_autograd(fw_compiler=spy))(torch.randn(3, 2, 2, 5))
assert loops == [], loops
assert kernels == ["cpu"], kernels
for strict in (False, True):
    program = torch.export.export(lstm, (torch.randn(3, 2, 5),), strict=strict)
    assert [n.args[0] for n in program.graph.nodes if "torchlstm" in str(n.target)] == ["cpu"]

def info():
    qualified.reload()
    text = io.StringIO()
    with redirect_stdout(text):
        assert main(["info"]) == 0
    return text.getvalue()

assert f"record     interpreter: {record}, " in info()
assert "4 of 4 classes qualify" in info()
assert "nothing of bfloat16, float16" in info()
text = record.read_text()
record.write_text(text[: len(text) // 2])
assert chosen() == "cpu"
assert f"ignored: {record}: it is damaged: no JSON" in info()
record.unlink()
assert chosen() == "cpu"
assert "record     interpreter: none: there is no record of it" in info()
record.write_text(text)
assert chosen() == "cuda"
print("done")
"""


def test_another_process_chooses_what_qualified(finished: tuple[Path, Any]) -> None:
    cache, _ = finished
    path, _ = record_in(cache)
    done = run(cache, "-W", "ignore", "-c", CHOICES, str(path))
    assert done.stdout.endswith("done\n"), done.stdout[-2000:] + done.stderr[-4000:]


def test_records_of_the_interpreter_are_none_of_this_process(finished: tuple[Path, Any]) -> None:
    path, content = record_in(finished[0])
    with pytest.raises(records.Unusable, match="made on something else: gpu Triton's interpreter, here NVIDIA H200"):
        records.read(path, {**content["identity"], "gpu": "NVIDIA H200"})


RANK = """
import sys, warnings, torch, torchlstm
rank = int(sys.argv[1])
store = torch.distributed.FileStore(sys.argv[2], 3)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=3)
lstm, x = torchlstm.LSTM(5, 16), torch.randn(3, 2, 5)
if rank:
    torch.distributed.barrier()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    decision = torchlstm.explain(lstm, x).decisions[0]
if not rank:
    torch.distributed.barrier()
lstm(x)[0].sum().backward()
for parameter in lstm.parameters():
    torch.distributed.all_reduce(parameter.grad)
told = [str(each.message) for each in caught if "torchlstm" in str(each.message)]
print(decision.engine, told)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available() or sys.platform != "linux",
    reason="no gloo here",
)
def test_ranks_choose_the_same(finished: tuple[Path, Any], tmp_path: Path) -> None:
    """The first has a record, the second none, the third is compiled for something else."""
    own: list[tuple[Path, dict[str, str]]] = [
        (finished[0], {}),
        (tmp_path, {}),
        (tmp_path, {"TRITON_F32_DEFAULT": "ieee"}),
    ]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], env=environment(cache, **more),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, (cache, more) in enumerate(own)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120) for rank in ranks]
    # A process of gloo may end badly after all its work: see tests/public/test_distributed.py.
    texts = [out.strip() for out, _ in said]
    assert texts[:2] == ["cuda []", "cuda []"], said
    assert texts[2].startswith("cpu ['torchlstm: the CUDA engine is not chosen on this rank: the rank that decided"), (
        said
    )


REFUSED = """
import os, sys
from torchlstm.__main__ import main
for arguments in ARGUMENTS:
    try:
        main(["qualify", *arguments])
    except SystemExit as end:
        print("ended with", end.code, flush=True)
        print("-", file=sys.stderr, flush=True)
"""


def test_what_cannot_start_says_so_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = {
        "cannot write the record .*file/qualified/.*: Not a directory; set TORCHLSTM_CACHE": ["--quick"],
        "Triton's interpreter runs on cpu, not on cuda": ["--device", "cuda"],
        "--for says which sizes": ["--for", "x.pt", "--hidden", "3"],
        "cannot read x.pt: No such file": ["--for", "x.pt"],
        "cannot write no/such/folder.json": ["--json", "no/such/folder.json"],
        "argument --hidden: a size is 1 at least, got 0": ["--hidden", "0"],
        "invalid choice: 'int8'": ["--dtype", "int8"],
    }
    done = run(tmp_path / "file", "-c", REFUSED.replace("ARGUMENTS", repr(list(wrong.values()))))
    assert done.stdout == "ended with 2\n" * len(wrong), done.stderr
    for line, expected in zip(done.stderr.split("\n-\n"), wrong, strict=False):
        assert "\n" not in line
        assert re.search(expected, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["qualify"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "no CUDA device" in error
    assert "TRITON_INTERPRET=1" in error
    assert error.count("\n") == 1


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The command on a GPU that is not there: what its probe says, to be changed."""
    gpu = GPU("NVIDIA H200", (9, 0), 132, 227 << 10)
    said = {"device": "cuda:0", "refused": None, "identity": {"gpu": "NVIDIA H200"}, "gpu": gpu._asdict(),
            "others": None, "told": None}  # fmt: skip
    monkeypatch.setenv("TORCHLSTM_CACHE", str(tmp_path))
    monkeypatch.setattr(command, "_device", lambda _: "cuda:0")
    monkeypatch.setattr(command, "_probed", lambda *_: command._checked(said))
    return said


def _qualify(*arguments: str) -> int:
    return main(["qualify", "--hidden", "64", "--batch", "1", "--dtype", "bfloat16", "--form", "dense", *arguments])


@pytest.mark.parametrize(("how", "code"), [("wrong", 1), ("traps", 1), ("slower", 1)])
def test_exit_codes_and_what_is_kept(
    how: str, code: int, on_a_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Children", lambda: Children([sys.executable, fake_children.__file__, how]))
    assert _qualify() == code
    text = capsys.readouterr().out
    path = records.path_of({"gpu": "NVIDIA H200"})
    rows = [row for rows in records.read(path, {"gpu": "NVIDIA H200"}).classes.values() for row in rows]
    assert len(rows) == 2
    for row in rows:
        assert (row.reason is None) == (how == "slower")
        assert (row.reason or "no: not faster than reference") in text


def test_what_went_wrong_is_tried_again_and_what_was_right_is_not(
    on_a_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for how, left in (("wrong", 2), ("slower", 2), ("wrong", 0)):
        monkeypatch.setattr(
            command, "Children", lambda how=how: Children([sys.executable, fake_children.__file__, how])
        )
        _qualify()
        assert f"2 classes, {left} of them with sizes still to try" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"others": "other processes compute on it (17)"}, "cuda:0 is not free, other processes compute on it (17)"),
        ({"refused": "it needs a GPU of compute capability 8.0 or newer"}, "it needs a GPU of compute capability"),
    ],
    ids=["busy", "too-old"],
)
def test_a_gpu_that_is_busy_or_too_old_is_not_tried(
    said: dict[str, Any], words: str, on_a_gpu: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_gpu |= said
    with pytest.raises(SystemExit) as end:
        _qualify()
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(records.folder().glob("*"))


def test_a_models_layers_are_what_is_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.LSTM(3, 20, bidirectional=True, dtype=torch.bfloat16), path)
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    (asked,) = command._asked(parser.parse_args(["qualify", "--for", str(path), "--batch", "2", "8"]))
    assert (asked.hidden, asked.batch, asked.dtypes, asked.directions) == ((20,), (2, 8), ("bfloat16",), (2,))
