"""Calls whose whole way is in C: bit for bit what the way in Python computes, and never where something is special."""

import functools
import pickle
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from both_ways import assert_same, both_ways, tensors_of
from torch import Tensor, nn

import torchlstm
from torchlstm.call import native

if not native._connected:
    pytest.skip("the extension was not compiled", allow_module_level=True)

Make = Callable[[], tuple[Any, list[Any]]]


def lstm(shape: tuple[int, ...], *sizes: int, states: bool = True, dtype: Any = torch.float32, **options: Any) -> Make:
    """An LSTM, and the arguments of a call."""

    def make() -> tuple[Any, list[Any]]:
        module = torchlstm.LSTM(*sizes, dtype=dtype, **options)
        x = torch.randn(*shape, sizes[0], dtype=dtype)
        count = module.num_layers * (2 if module.bidirectional else 1)
        batch = () if len(shape) == 1 else (shape[0 if module.batch_first else 1],)
        h, c = (
            torch.randn(count, *batch, size, dtype=dtype)
            for size in (module.proj_size or module.hidden_size, module.hidden_size)
        )
        return module, [x, (h, c)] if states else [x]

    return make


def cell(shape: tuple[int, ...], *sizes: int, states: bool = True, dtype: Any = torch.float32, **options: Any) -> Make:
    """As `lstm`, an LSTMCell."""

    def make() -> tuple[Any, list[Any]]:
        x, h, c = (torch.randn(*shape, size, dtype=dtype) for size in (sizes[0], sizes[1], sizes[1]))
        return torchlstm.LSTMCell(*sizes, dtype=dtype, **options), [x, (h, c)] if states else [x]

    return make


FORMS: dict[str, Make] = {
    "cell": cell((3,), 5, 7),
    "cell without states": cell((1,), 5, 7, states=False),
    "cell without bias": cell((3,), 7, 7, bias=False),
    "cell unbatched": cell((), 5, 7),
    "cell of doubles": cell((2,), 33, 40, dtype=torch.float64),
    "large cell": cell((40,), 130, 70),
    "a step": lstm((1, 3), 5, 7),
    "steps": lstm((6, 3), 5, 7),
    "without states": lstm((6, 3), 5, 7, states=False),
    "as wide as its input": lstm((6, 3), 7, 7),
    "without bias": lstm((6, 3), 5, 7, bias=False),
    "batch_first": lstm((3, 6), 5, 7, batch_first=True),
    "batch_first, one step": lstm((3, 1), 5, 7, batch_first=True),
    "batch_first, one sequence": lstm((1, 6), 5, 7, batch_first=True),
    "batch_first, without states": lstm((3, 6), 7, 7, batch_first=True, bidirectional=True, states=False),
    "unbatched": lstm((6,), 5, 7),
    "unbatched, batch_first": lstm((6,), 5, 7, batch_first=True, bidirectional=True),
    "both directions": lstm((6, 3), 5, 7, bidirectional=True),
    "one step in both directions": lstm((1, 3), 5, 7, bidirectional=True),
    "projected": lstm((6, 3), 5, 7, proj_size=4),
    "projected, one step": lstm((1, 3), 5, 7, proj_size=4),
    "projected, all": lstm((3, 6), 5, 7, proj_size=4, bidirectional=True, batch_first=True),
    "layers": lstm((6, 3), 5, 7, 3, dropout=0.0),
    "layers, all": lstm((3, 6), 5, 7, 2, proj_size=4, bidirectional=True, batch_first=True, states=False),
    "doubles": lstm((6, 3), 5, 7, dtype=torch.float64),
    "one unit": lstm((6, 1), 1, 1),
    "a backward in parts": lstm((90, 20), 8, 600, dtype=torch.float64),
}


@pytest.mark.parametrize("name", FORMS)
def test_inference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, arguments = FORMS[name]()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            in_c, in_python = both_ways(lambda: module(*arguments), monkeypatch)
        assert_same(tensors_of(in_c), tensors_of(in_python))
        for result in tensors_of(in_c):
            assert result.is_inference() == (mode is torch.inference_mode)
            assert not result._is_view()
            # Small ones lie in memory that is not torch's.
            assert result.untyped_storage().resizable() == (result.nbytes > 64 << 10)
    assert type(in_c) is type(in_python)


def test_small_results_are_tensors_like_others() -> None:
    x, states = torch.randn(3, 5), (torch.randn(3, 7), torch.randn(3, 7))
    cell = torchlstm.LSTMCell(5, 7)
    with torch.no_grad():
        h, c = cell(x, states)
    del cell
    for result in (h, c):
        assert result.data_ptr() % 64 == 0
        kept = result.clone()
        assert torch.equal(pickle.loads(pickle.dumps(result)), kept)
        assert (result.numpy() == kept.numpy()).all()
        assert torch.equal(result.share_memory_(), kept)
        result.resize_(7).zero_()
        with pytest.raises(RuntimeError, match="not resizable"):
            result.resize_(100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_calls_keep_the_interpreters_lock_and_long_ones_do_not(dtype: torch.dtype) -> None:
    """A thread that waits for the lock gets it when a call releases it, since nobody else takes it from this one."""
    small, long = torchlstm.LSTMCell(32, 32, dtype=dtype), torchlstm.LSTM(64, 64)
    x, state, rows = torch.randn(1, 32).to(dtype), torch.zeros(1, 32, dtype=dtype), torch.randn(60, 4, 64)
    begin, taken, before = threading.Lock(), threading.Event(), sys.getswitchinterval()

    def take() -> None:
        with begin:
            taken.set()

    begin.acquire()
    thread = threading.Thread(target=take)
    thread.start()
    try:
        sys.setswitchinterval(1000)
        with torch.no_grad():
            small(x, (state, state))  # the first one reads files
            begin.release()
            results = [small(x, (state, state)) for _ in range(5_000)]  # to free a tensor releases the lock
            kept = not taken.is_set()
            results += [long(rows) for _ in range(200)]
            released = taken.is_set()
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert (len(results), kept, released) == (5_200, True, True)


# What else of a training step: which arguments want a gradient, and what comes in.
WANTS = {
    "all": lambda name: True,
    "weights": lambda name: "weight" in name or "bias" in name,
    "input": lambda name: name == "x",
    "states": lambda name: name in ("h", "c"),
    "c and one bias": lambda name: name == "c" or "bias_hh" in name,
    "matrices of h": lambda name: "weight_hh" in name or "weight_hr" in name,
}
INCOMING = ("all", "first", "last", "expanded", "turned", "negated")


def incoming(results: list[Tensor], kind: str) -> list[Tensor | None]:
    """Gradients of results."""
    full: list[Any] = [torch.randn_like(result) for result in results]
    if kind == "first":
        return [*full[:1], *[None] * (len(full) - 1)]
    if kind == "last":
        return [*[None] * (len(full) - 1), *full[-1:]]
    if kind == "expanded":
        return [torch.randn(()).to(result.dtype).expand(result.shape) for result in results]
    if kind == "negated":
        return [torch.complex(each, each).conj().imag for each in full]
    if kind == "turned":
        return [torch.randn_like(result.mT.contiguous()).mT if result.dim() > 1 else result for result in results]
    return full


@pytest.mark.parametrize("name", [name for name in FORMS if not name.startswith("layers")])
def test_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, arguments = FORMS[name]()
    x, *rest = arguments
    named = {"x": x, **dict(zip(("h", "c"), rest[0] if rest else (), strict=False)), **dict(module.named_parameters())}
    kinds = [("all", kind) for kind in INCOMING] + [(wants, "all") for wants in WANTS]
    if name == "a backward in parts":  # it is large
        kinds = [("all", "all"), ("input", "turned"), ("weights", "last")]
    for wants, kind in kinds:
        wanted = [each for key, each in named.items() if WANTS[wants](key)]
        if not wanted:
            continue
        for key, each in named.items():
            each.requires_grad_(WANTS[wants](key))
        in_c, in_python = (tensors_of(each) for each in both_ways(lambda: module(*arguments), monkeypatch))
        assert_same(in_c, in_python)
        assert in_c[0].grad_fn is not None
        assert "Training" in in_c[0].grad_fn.name()
        cotangents = incoming([each.detach() for each in in_c], kind)
        used = [(a, b, g) for a, b, g in zip(in_c, in_python, cotangents, strict=True) if g is not None]
        grads = [
            torch.autograd.grad([use[side] for use in used], wanted, [use[2] for use in used], allow_unused=True,
                                retain_graph=True)
            for side in (0, 1)
        ]  # fmt: skip
        assert_same(list(grads[0]), list(grads[1]))
        again = torch.autograd.grad([use[0] for use in used], wanted, [use[2] for use in used], allow_unused=True)
        assert_same(list(again), list(grads[1]))


@pytest.mark.parametrize(
    "name", ["cell", "cell unbatched", "batch_first", "without states", "projected, all", "doubles"]
)
def test_gradients_of_gradients_and_batches_of_cotangents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, arguments = FORMS[name]()
    arguments[0].requires_grad_()
    wanted = [arguments[0], *module.parameters()]
    found = []
    for results in both_ways(lambda: module(*arguments), monkeypatch):
        torch.manual_seed(1)
        results = tensors_of(results)
        cotangents = [torch.randn_like(result) for result in results]
        batch = [torch.randn(3, *result.shape, dtype=result.dtype) for result in results]
        many = torch.autograd.grad(results, wanted, batch, retain_graph=True, is_grads_batched=True)
        pull = functools.partial(torch.autograd.grad, results, wanted, retain_graph=True)
        mapped = torch.vmap(lambda *g, pull=pull: pull(g))(*batch)
        grads = torch.autograd.grad(results, wanted, cotangents, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)
        found.append([*many, *mapped, *(grad.detach() for grad in grads), *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def views(x: Tensor) -> dict[str, Tensor]:
    """x (6, 4, 5) in memory of other orders."""
    return {
        "batch before time": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other feature": torch.stack([x, x], -1)[..., 0],
        "every other step": torch.cat([x, x], 1).view(12, 4, 5)[::2],
        "one sequence for all": x[:, :1].expand(6, 4, 5),
        "a part": torch.cat([x, x], 2)[..., :5],
        "from an offset": torch.cat([x, x])[6:],
        "features first": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }


@pytest.mark.parametrize("batch_first", [False, True])
def test_inputs_of_any_strides(batch_first: bool) -> None:
    torch.manual_seed(0)
    module = torchlstm.LSTM(5, 7, bidirectional=True, batch_first=batch_first)
    for name, view in views(torch.randn(6, 4, 5)).items():
        results = []
        for x in (view, view.contiguous()):
            x = x.detach().requires_grad_()
            y, (h, c) = module(x)
            grads = torch.autograd.grad(y.square().sum() + h.sum() + c.sum(), [x, *module.parameters()])
            results.append([y, h, c, *grads])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b), name


def test_saved_tensor_hooks_see_what_is_saved() -> None:
    module, x = torchlstm.LSTM(5, 7), torch.randn(6, 3, 5)
    seen: list[Tensor] = []
    y = module(x)[0]
    expected = torch.autograd.grad(y.sum(), list(module.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(t), t.clone())[1], lambda t: t):
        y = module(x)[0]
    assert seen
    for a, b in zip(torch.autograd.grad(y.sum(), list(module.parameters())), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_few_frames_of_python(kind: str, trained: bool) -> None:
    """A plain call enters few of our functions in Python; what is added to them is added to every call of a cell."""
    module = getattr(torchlstm, kind)(3, 4)
    x = torch.randn(5, 2, 3) if kind == "LSTM" else torch.randn(2, 3)
    entered: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "/torchlstm/" in frame.f_code.co_filename:
            entered.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)

    with torch.set_grad_enabled(trained):
        module(x)
        sys.setprofile(watch)
        try:
            module(x)
        finally:
            sys.setprofile(None)
    if not trained:
        assert len(entered) == 4, entered  # forward, call_lstm, takes_native; threads.count
        return
    names = {name.rsplit(".", 1)[-1] for name in entered}
    few = {"forward", "call_lstm", "call_cell", "takes_native", "count", "separate", "version", "<listcomp>"}
    assert names <= few, entered


def test_the_instruction_set_is_the_one_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, x = torchlstm.LSTM(90, 70), torch.randn(5, 3, 90)
    found = []
    for name in ("portable", "best"):
        monkeypatch.setattr(native.engine, "_isa", name)
        in_c, in_python = both_ways(lambda: module(x)[0], monkeypatch)
        assert torch.equal(in_c, in_python)
        found.append(in_c)
    if native.engine.instruction_set() != "portable":
        assert not torch.equal(*found)


def test_a_weight_that_another_thread_replaces_meanwhile() -> None:
    """A call reads the old one or the new one, and none that is gone."""
    module, x = torchlstm.LSTM(8, 256, bias=False), torch.randn(20, 4, 8)
    other = [torch.randn_like(module.weight_hh_l0) for _ in range(2)]

    def weights(index: int) -> nn.Parameter:
        return nn.Parameter(other[index].clone(), requires_grad=False)

    module.requires_grad_(False)
    expected = []
    for index in (0, 1):
        module.weight_hh_l0 = weights(index)
        expected.append(module(x)[0])
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            for index in (0, 1):
                module.weight_hh_l0 = weights(index)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        found = [module(x)[0] for _ in range(100)]
    finally:
        done.set()
        thread.join()
    assert all(any(torch.equal(y, each) for each in expected) for y in found)
