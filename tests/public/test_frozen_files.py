"""Frozen modules in files, pickles, copies and other processes: weights as they were rounded, nothing packed."""

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

import torchlstm

FORMATS = (None, torch.bfloat16, torch.float16, torch.int8)
RATIOS = {None: 1.0, torch.bfloat16: 0.5, torch.float16: 0.5, torch.int8: 0.25}
every_format = pytest.mark.parametrize("weights", FORMATS, ids=str)
X = torch.linspace(-2, 2, 40).view(5, 2, 4)


def frozen(weights: Any, seed: int = 1) -> torchlstm.FrozenLSTM:
    torch.manual_seed(seed)
    return torchlstm.FrozenLSTM(4, 6, 2, bidirectional=True, proj_size=3, weights=weights)


def saved(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@every_format
def test_state_dict_has_torch_names_and_the_format(weights: Any) -> None:
    state = frozen(weights).state_dict()
    float_state = torchlstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3).state_dict()
    assert [key for key in state if not key.endswith("_scale")] == list(float_state)
    for key, value in float_state.items():
        assert state[key].shape == value.shape
        assert state[key].dtype == (weights if weights is not None and key.startswith("weight") else torch.float32)
    scales = {key: tuple(value.shape) for key, value in state.items() if key.endswith("_scale")}
    if weights is torch.int8:
        assert scales["weight_hr_l1_reverse_scale"] == (3,)
        assert list(state)[:3] == ["weight_ih_l0", "weight_ih_l0_scale", "weight_hh_l0"]
    assert len(scales) == (12 if weights is torch.int8 else 0)


@every_format
def test_values_are_those_of_rounding(weights: Any) -> None:
    torch.manual_seed(1)
    module = torchlstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3)
    state = frozen(weights).state_dict()
    for key, value in module.state_dict().items():
        if weights is torch.int8 and key.startswith("weight"):
            scale = state[key + "_scale"]
            assert torch.equal(state[key], (value / scale[:, None]).round().to(torch.int8))
            torch.testing.assert_close(scale, value.abs().amax(1) / 127, rtol=2**-16, atol=0)
            # No digit is lost where they are widened.
            product = state[key].float() * scale[:, None]
            assert torch.equal(product.double(), state[key].double() * scale[:, None].double())
        else:
            assert torch.equal(state[key], value.to(state[key].dtype))


@every_format
def test_load(weights: Any) -> None:
    first, second = frozen(weights), frozen(weights, seed=2)
    assert not torch.equal(first(X)[0], second(X)[0])
    state = torch.load(io.BytesIO(saved(first.state_dict())), weights_only=True)
    assert str(second.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(first(X)[0], second(X)[0])


@every_format
def test_load_of_float_weights_rounds_them(weights: Any) -> None:
    module = torchlstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3)
    loaded = frozen(weights)
    loaded.load_state_dict(module.state_dict())
    expected = torchlstm.freeze(copy.deepcopy(module), weights)
    assert torch.equal(loaded(X)[0], expected(X)[0])
    # And a float module that was thawed gives back what it was thawed from.
    loaded.load_state_dict({key: value.double() for key, value in module.state_dict().items()})
    assert torch.equal(loaded(X)[0], expected(X)[0])


def test_load_within_a_model_of_a_frozen_file() -> None:
    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return nn.ModuleDict({"lstm": nn.LSTM(4, 6), "cell": nn.LSTMCell(6, 5), "head": nn.Linear(5, 2)})

    first, second = (torchlstm.freeze(model(seed), torch.int8) for seed in (1, 2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first["lstm"](X)[0], second["lstm"](X)[0])
    h = torch.randn(2, 6)
    assert torch.equal(first["cell"](h)[0], second["cell"](h)[0])


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A state with some keys changed; of a value None the key is gone."""

    def change(state: dict[str, Any]) -> dict[str, Any]:
        state = {**state, **{key: c(state[key]) if callable(c) else c for key, c in changes.items() if c is not None}}
        return {key: value for key, value in state.items() if key not in changes or changes[key] is not None}

    return change


def _low(values: Tensor) -> Tensor:
    values = values.clone()
    values[0, 0] = -128
    return values


def _nan(values: Tensor) -> Tensor:
    return values.float() * float("nan")


def weight(change: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return changed(weight_hh_l0=change)


def scale(change: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return changed(weight_hh_l0_scale=change)


def bias(change: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return changed(bias_hh_l0=change)


MISSING, UNEXPECTED = r"Missing key\(s\).*\"%s\"", r"Unexpected key\(s\).*\"%s\""
WRONG_KEYS: dict[str, tuple[Any, Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "missing": (torch.int8, changed(weight_hh_l0=None, weight_hh_l0_scale=None), MISSING % "weight_hh_l0"),
    "missing-bias": (None, bias(None), MISSING % "bias_hh_l0"),
    "missing-scale": (torch.int8, scale(None), MISSING % "weight_hh_l0_scale"),
    "unexpected": (torch.int8, changed(weight_xx=torch.zeros(1)), UNEXPECTED % "weight_xx"),
    "scale-of-floats": (torch.int8, weight(Tensor.float), UNEXPECTED % "weight_hh_l0_scale"),
    "scale-elsewhere": (torch.float16, scale(torch.zeros(24)), UNEXPECTED % "weight_hh_l0_scale"),
}
NO_FIT: dict[str, tuple[Any, Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "shape": (torch.int8, weight(lambda v: v[:, :2]), r"weight_hh_l0: Expected \(24, 3\), got \(24, 2\)"),
    "scale-shape": (torch.int8, scale(lambda v: v[1:]), r"mismatch for weight_hh_l0_scale: Expected \(24,\)"),
    "bias-shape": (torch.float16, bias(torch.zeros(3)), r"mismatch for bias_hh_l0: Expected \(24,\), got \(3,\)"),
    "other-16-bits": (torch.float16, weight(Tensor.bfloat16), r"torch.float16, or torch.float32 .*got torch.bfloat16"),
    "int8-for-16-bits": (
        torch.bfloat16,
        weight(Tensor.char),
        r"weight_hh_l0: Expected torch.bfloat16, .*got torch.int8",
    ),
    "16-bits-for-int8": (torch.int8, weight(Tensor.half), r"weight_hh_l0: Expected torch.int8, .*got torch.float16"),
    "int8-for-floats": (None, weight(Tensor.char), "weight_hh_l0: Expected torch.float32, got torch.int8"),
    "int64-bias": (torch.int8, bias(Tensor.long), "bias_hh_l0: Expected torch.float32, got torch.int64"),
    "minus-128": (torch.int8, weight(_low), "weight_hh_l0: Expected integers from -127 to 127, got -128"),
    "nan": (torch.float16, weight(_nan), "weight_hh_l0: Expected finite weights"),
    "nan-scale": (torch.int8, scale(_nan), "weight_hh_l0_scale: Expected finite float32 of at least 0"),
    "negative-scale": (torch.int8, scale(Tensor.neg), "weight_hh_l0_scale: Expected finite float32 of at least 0"),
    "integer-scale": (torch.int8, scale(Tensor.long), r"weight_hh_l0_scale: .*got torch.int64"),
    "no-tensor": (torch.int8, weight(3), "weight_hh_l0: Expected a tensor, got int"),
    "meta": (torch.int8, bias(lambda v: v.to("meta")), r"bias_hh_l0: .*on the meta device"),
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_wrong_keys_are_told(name: str) -> None:
    weights, change, message = WRONG_KEYS[name]
    with pytest.raises(RuntimeError, match=message):
        frozen(weights).load_state_dict(change(dict(frozen(weights, seed=2).state_dict())))


@pytest.mark.parametrize("name", NO_FIT)
def test_what_does_not_fit_is_told_and_changes_nothing(name: str) -> None:
    weights, change, message = NO_FIT[name]
    module = frozen(weights)
    expected = module(X)[0]
    state = change(dict(frozen(weights, seed=2).state_dict()))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            module.load_state_dict(state, strict=strict)
    assert torch.equal(module(X)[0], expected)


def test_not_strict_loads_what_is_there() -> None:
    first, second = frozen(torch.int8), frozen(torch.int8, seed=2)
    state = dict(second.state_dict())
    del state["weight_hh_l1"], state["bias_ih_l0"]
    found = first.load_state_dict({**state, "other": torch.zeros(1)}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (
        ["bias_ih_l0", "weight_hh_l1"],
        ["weight_hh_l1_scale", "other"],
    )
    mixed = first.state_dict()
    assert torch.equal(mixed["weight_ih_l1"], second.state_dict()["weight_ih_l1"])
    assert torch.equal(mixed["weight_hh_l1"], frozen(torch.int8).state_dict()["weight_hh_l1"])


def test_a_float_module_does_not_take_a_frozen_file() -> None:
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_ih_l0_scale"):
        torchlstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3).load_state_dict(frozen(torch.int8).state_dict())


def test_state_dict_is_a_copy() -> None:
    for weights in FORMATS:
        for module in (frozen(weights), torchlstm.FrozenLSTM(4, 6, dtype=torch.float64)):
            x = X.to(module.state_dict()["bias_ih_l0"].dtype)
            expected = module(x)[0]
            for value in module.state_dict().values():
                value.zero_()
            assert torch.equal(module(x)[0], expected)


def test_buffers_and_hooks_of_the_user_load_too() -> None:
    first, second = frozen(torch.int8), frozen(torch.int8, seed=2)
    for module, value in ((first, 1.0), (second, 2.0)):
        module.register_buffer("mine", torch.tensor(value))
    second.register_load_state_dict_pre_hook(lambda _, state, prefix, *__: state.update({"mine": torch.tensor(3.0)}))
    second.load_state_dict(first.state_dict())
    assert second.mine == 3
    assert torch.equal(second(X)[0], first(X)[0])


@pytest.mark.parametrize(("weights", "ratio"), RATIOS.items(), ids=str)
def test_files_and_pickles_are_as_small_as_the_weights(weights: Any, ratio: float) -> None:
    module = torchlstm.LSTM(256, 256)
    size = len(saved(module.state_dict()))
    small = torchlstm.freeze(copy.deepcopy(module), weights)
    for data in (saved(small.state_dict()), saved(small), pickle.dumps(small)):
        # Biases and scales are a hundredth.
        assert len(data) == pytest.approx(ratio * size, rel=0.05)


@every_format
def test_copies_compute_the_same_and_are_their_own(weights: Any) -> None:
    module = frozen(weights).eval()
    expected = module(X)[0]
    copies = (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(io.BytesIO(saved(module)), weights_only=False),
    )
    for twin in copies:
        assert type(twin) is torchlstm.FrozenLSTM
        assert not twin.training
        assert torch.equal(twin(X)[0], expected)
        assert repr(twin) == repr(module)
        twin.load_state_dict(frozen(weights, seed=2).state_dict())
        assert not torch.equal(twin(X)[0], expected)
        assert torch.equal(module(X)[0], expected)
    cell = torchlstm.FrozenLSTMCell(4, 6, weights=weights)
    assert torch.equal(pickle.loads(pickle.dumps(cell))(X[0])[0], cell(X[0])[0])
    thawed = pickle.loads(pickle.dumps(torchlstm.freeze(nn.LSTM(4, 6))))
    assert type(torchlstm.thaw(thawed)) is nn.LSTM


READ = """
import sys, torch, torchlstm
module, x, expected = torch.load(sys.argv[1], weights_only=False)
y = module(x)[0]
assert (y - expected).abs().max() < 1e-3, (y - expected).abs().max()
assert sys.argv[2] in str(torchlstm.explain(module, x)), torchlstm.explain(module, x)
"""


@pytest.mark.skipif(torchlstm.engines()["cpu"] is not None, reason="there is no kernel")
def test_another_instruction_set_packs_anew(tmp_path: Path) -> None:
    module = frozen(torch.int8)
    torch.save((module, X, module(X)[0]), tmp_path / "model.pt")
    environment = {**os.environ, "TORCHLSTM_ISA": "portable"}
    command = [sys.executable, "-c", READ, str(tmp_path / "model.pt"), "packed for portable"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def child(module: Any, x: Tensor, queue: Any) -> None:
    """In another process: whether the weights lie in shared memory, and what is computed from them."""
    packed = module._store.packed
    queue.put((packed is not None and packed.data.is_shared(), module(x)[0].tolist()))


@pytest.mark.parametrize(
    ("shared", "isa"), [(False, ""), (True, "portable")], ids=["own", "shared-other-instruction-set"]
)
def test_other_processes(shared: bool, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = frozen(torch.int8)
    expected = module(X)[0]
    if shared:
        assert module.share_memory() is module
        assert torch.equal(module(X)[0], expected)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    if isa:
        monkeypatch.setenv("TORCHLSTM_ISA", isa)
    process = context.Process(target=child, args=(module, X, queue))
    process.start()
    is_shared, found = queue.get()
    process.join()
    assert process.exitcode == 0
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-3)
    # What is sent is shared, as every tensor is.
    assert is_shared == (not isa and module._store.packed is not None)
