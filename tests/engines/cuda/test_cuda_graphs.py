"""CUDA graphs of the step loop, recorded and replayed by a stand-in for torch.cuda; kernels are torch operations."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_graphs import Call, FakeGraphs
from torch import Tensor

from torchlstm.engines.cuda import graphs
from torchlstm.engines.cuda import launch as launching

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CPU = torch.device("cpu")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGraphs]:
    """Graphs on the CPU, of 4 and 2 steps."""
    found = FakeGraphs()
    monkeypatch.setattr(graphs, "seam", found)
    monkeypatch.setattr(graphs, "STEPS", (4, 2))
    monkeypatch.setattr(launching, "launch", found.launch)
    # The tests fill uninitialised memory with NaN, which needs deterministic mode; without this graphs would be off.
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    yield found
    graphs.clear()


def plain(call: Call, way: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The results of the loop without graphs."""
    with monkeypatch.context() as patch:
        patch.setenv("TORCHLSTM_GRAPHS", "0")
        return call.run(way)


def check(call: Call, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for ours, true in zip(call.run(way), plain(call, way, monkeypatch), strict=True):
        assert torch.equal(ours, true)
        assert not ours.isnan().any()


LAYERS = {
    "float32": {}, "reverse": {"reverse": True}, "two-directions": {"directions": 2},
    "two-directions-bfloat16": {"directions": 2, "dtype": BFLOAT16}, "float64": {"dtype": FLOAT64},
    "float16": {"dtype": FLOAT16},
}  # fmt: skip


@pytest.mark.parametrize("way", ["forward", "inference", "backward", "backward-of-nothing-but-y"])
@pytest.mark.parametrize("layer", LAYERS)
def test_replayed_numbers(layer: str, way: str, fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call runs without graphs, the second captures 4 and 2 steps; each has its own weights and addresses."""
    calls = [Call(seed, **LAYERS[layer]) for seed in range(4)]
    check(calls[0], way, monkeypatch)
    assert (len(fake.captured), fake.replays) == (0, 0)
    check(calls[1], way, monkeypatch)
    assert (len(fake.captured), fake.replays) == (2, 2)
    check(calls[2], way, monkeypatch)
    assert (len(fake.captured), fake.replays) == (2, 4)
    # Other lengths run on the existing graphs.
    longer = Call(9, length=12, **LAYERS[layer])
    check(longer, way, monkeypatch)
    assert (len(fake.captured), fake.replays) == (2, 7)


def test_what_is_returned_belongs_to_the_call(fake: FakeGraphs) -> None:
    """Later calls on the same graph write into none of the tensors that an earlier one returned."""
    calls = [Call(seed) for seed in range(4)]
    calls[0].forward()
    first = calls[1].forward()
    kept = [tensor.clone() for tensor in first]
    calls[2].forward()
    assert fake.replays == 4
    for tensor, copy in zip(first, kept, strict=True):
        assert torch.equal(tensor, copy)


def test_graphs_made_in_inference_mode_serve_outside_of_it(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other way round: buffers are no inference tensors, which calls in other modes may not write into."""
    calls = [Call(seed) for seed in range(4)]
    calls[0].forward()
    with torch.inference_mode():
        Call(1).forward()
    check(calls[2], "forward", monkeypatch)
    with torch.inference_mode():
        check(calls[3], "forward", monkeypatch)
    assert (len(fake.captured), fake.replays) == (2, 6)


DIFFERENCES = {
    "batch": {"batch": 2}, "hidden": {"hidden": 6}, "dtype": {"dtype": FLOAT16}, "directions": {"directions": 2},
    "reverse": {"reverse": True}, "precision": {"precise": True},
}  # fmt: skip


@pytest.mark.parametrize("different", DIFFERENCES)
def test_what_differs_has_graphs_of_its_own(different: str, fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        check(Call(seed), "forward", monkeypatch)
    for seed, captures in ((3, 2), (4, 4)):
        check(Call(seed, **DIFFERENCES[different]), "forward", monkeypatch)
        assert len(fake.captured) == captures


def test_training_inference_and_backward_have_graphs_of_their_own(
    fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = ("forward", "inference", "backward", "backward-of-nothing-but-y")
    for seed in (1, 2, 3):
        for way in ways:
            check(Call(seed), way, monkeypatch)
    assert len(fake.captured) == 2 * len(ways)


def test_kernels_are_loaded_before_a_capture(fake: FakeGraphs) -> None:
    """The buffers have other addresses than the first call, so a kernel may be compiled anew for them."""
    Call(1).forward()
    fake.loaded.clear()
    Call(2).forward()
    assert not graphs.failures()
    assert len(fake.captured) == 2


def test_settings_of_products_are_part_of_the_key(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        Call(seed).forward()
    changed = SimpleNamespace(fp32_precision="tf32", allow_fp16_accumulation=True)
    monkeypatch.setattr(torch.backends.cuda, "matmul", changed)
    Call(3).forward()
    assert fake.replays == 2
    Call(4).forward()
    assert len(fake.captured) == 4


def test_the_oldest_is_dropped_when_there_are_too_many(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST", 2)
    for batch in (1, 2):
        for seed in (1, 2):
            check(Call(seed, batch=batch), "forward", monkeypatch)
    check(Call(3, batch=1), "forward", monkeypatch)  # used last
    for seed in (1, 2):
        check(Call(seed, batch=3), "forward", monkeypatch)
    assert fake.waited == ["main"]
    assert len(graphs._groups) == 2
    assert len(fake.captured) == 6
    check(Call(4, batch=1), "forward", monkeypatch)
    assert len(fake.captured) == 6
    for seed in (5, 6):
        check(Call(seed, batch=2), "forward", monkeypatch)
    assert len(fake.captured) == 8


def test_buffers_take_no_more_than_their_share(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        Call(seed).forward()
    (group,) = graphs._groups.values()
    # gates (1, 12, 20), y (12, 5), cells (1, 12, 5), h and c (1, 3, 5), w_hh (1, 20, 5), of 4 bytes.
    assert group.size == 4 * (240 + 60 + 60 + 30 + 100)
    monkeypatch.setattr(graphs, "_MOST_BYTES", 2 * group.size - 1)
    for seed in (1, 2):
        check(Call(seed, reverse=True), "forward", monkeypatch)
    assert fake.waited == ["main"]
    assert sum(group.size for group in graphs._groups.values()) <= graphs._MOST_BYTES


def test_large_weights_have_none(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """w_hh (1, 20, 5), h and c (1, 3, 5): 520 bytes."""
    monkeypatch.setattr(graphs, "_MOST_BYTES", 2 * 519)
    for seed in (1, 2):
        check(Call(seed), "forward", monkeypatch)
    assert not fake.captured
    assert graphs.failures() == ["a step is 360 bytes, weights and states are 520: too much to copy"]
    # That gave no warning; a capture that fails still gives one.
    fake.failure = RuntimeError("not permitted")
    Call(1, hidden=2).forward()
    with pytest.warns(RuntimeWarning, match="could not be captured"):
        Call(2, hidden=2).forward()


def test_a_group_that_fails_later_is_waited_for(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        check(Call(seed, length=4), "forward", monkeypatch)
    fake.failure = RuntimeError("not permitted")
    with pytest.warns(RuntimeWarning, match="could not be captured"):
        check(Call(3, length=6), "forward", monkeypatch)
    assert fake.waited == ["main"]
    assert not graphs._groups


@pytest.mark.parametrize(("most", "captured"), [(4 * 359, 1), (4 * 179, 0)], ids=["two-steps", "none"])
def test_large_steps_have_short_graphs(
    most: int, captured: int, fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of these sizes takes 90 numbers."""
    monkeypatch.setattr(graphs, "_MOST_OF_ONE", most)
    for seed in (1, 2, 3):
        check(Call(seed), "forward", monkeypatch)
    assert len(fake.captured) == captured
    assert fake.replays == 6 * captured
    assert [reason for reason in graphs.failures() if "too much to copy" in reason] == graphs.failures()
    assert len(graphs.failures()) == 1 - captured


def test_no_capture_while_memory_is_short(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.free = 1000
    for seed in (1, 2):
        check(Call(seed), "forward", monkeypatch)
    assert not fake.captured
    fake.free = 1 << 40
    for seed in (3, 4):
        check(Call(seed), "forward", monkeypatch)
    assert len(fake.captured) == 2


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("none left")])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_capture_that_fails_is_not_tried_again(
    way: str, error: Exception, fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.failure = error
    check(Call(1), way, monkeypatch)
    with pytest.warns(RuntimeWarning, match=f"could not be captured as a CUDA graph .*{error}.* TORCHLSTM_GRAPHS=0"):
        check(Call(2), way, monkeypatch)
    assert graphs.failures() == [f"{type(error).__name__}: {error}"]
    fake.failure = None
    check(Call(3), way, monkeypatch)
    assert fake.replays == 0
    assert not graphs._groups
    # Another shape is not affected; a second failure gives no second warning.
    for seed in (1, 2):
        check(Call(seed, batch=2), way, monkeypatch)
    assert fake.replays == 2
    fake.failure = error
    for seed in (1, 2):
        check(Call(seed, batch=1), way, monkeypatch)
    assert len(graphs.failures()) == 2


def test_an_interrupted_capture_is_no_failure(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.failure = KeyboardInterrupt()
    check(Call(1), "forward", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        Call(2).forward()
    fake.failure = None
    check(Call(3), "forward", monkeypatch)
    assert fake.replays == 2


def _capturing(fake: FakeGraphs, _: Any) -> None:
    fake.capturing = True


OFF = {
    "the-user-captures": _capturing,
    "deterministic": lambda _, patch: patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True),
    "anomaly": lambda _, patch: patch.setattr(torch, "is_anomaly_enabled", lambda: True),
    "blocking-launches": lambda _, patch: patch.setenv("CUDA_LAUNCH_BLOCKING", "1"),
    "switched-off": lambda _, patch: patch.setenv("TORCHLSTM_GRAPHS", "0"),
}


@pytest.mark.parametrize("off", OFF)
def test_no_graphs_then(off: str, fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    OFF[off](fake, monkeypatch)
    for seed in (1, 2, 3):
        Call(seed).forward()
    assert not fake.captured
    assert not graphs._seen


def test_ragged_batches_traces_and_short_loops_have_none(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2, 3):
        Call(seed, sizes=[3, 3, 3, 3, 2]).forward()
        Call(seed, length=1).forward()
        Call(seed).backward(trace=True)
    assert not fake.captured


def _in_threads(fake: FakeGraphs, streams: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on these streams at once, one thread each, and check every number."""
    fake.pause = 1e-4
    expected = {
        (seed, way): plain(Call(seed), way, monkeypatch) for seed in range(8) for way in ("forward", "backward")
    }
    wrong: list[Any] = []

    def train(number: int, stream: str) -> None:
        fake.local.stream = stream
        for round in range(4):
            seed = 4 * number + round
            for way in ("forward", "backward"):
                for ours, true in zip(Call(seed).run(way), expected[seed, way], strict=True):
                    if not torch.equal(ours, true):
                        wrong.append((number, seed, way))

    threads = [threading.Thread(target=train, args=each) for each in enumerate(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_streams_at_once_have_graphs_of_their_own(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    _in_threads(fake, ["main", "side"], monkeypatch)
    assert sorted(fake.captured) == ["main"] * 4 + ["side"] * 4
    assert len(graphs._groups) == 4


def test_two_threads_on_one_stream_take_turns(fake: FakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    _in_threads(fake, ["main", "main"], monkeypatch)
    assert len(fake.captured) == 4
