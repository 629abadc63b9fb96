"""PyTorch's own module database, run with torchlstm's classes in the place of torch.nn.LSTM and torch.nn.LSTMCell.

The checks are those of PyTorch's test/test_modules.py that concern these modules on a CPU, written for pytest, and
comparisons with torch.nn besides.
"""

import copy
import functools
import io
import itertools
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree

import torchlstm
from torchlstm.parity import judge

# Imported, PyTorch's test code forbids assignments such as `torch.backends.cudnn.enabled = False` to the whole process,
# and says that hypothesis is missing, which nothing here uses.
with mock.patch.object(torch.backends, "disable_global_flags"), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Fail to import hypothesis", ImportWarning)
    from torch.testing._internal.common_modules import (
        ErrorModuleInput,
        FunctionInput,
        ModuleErrorEnum,
        ModuleInfo,
        ModuleInput,
        module_db,
    )
    from torch.testing._internal.common_utils import freeze_rng_state, gradcheck, gradgradcheck, noncontiguous_like

OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: torchlstm.LSTM, nn.LSTMCell: torchlstm.LSTMCell}
ENTRIES: dict[str, ModuleInfo] = {info.name: info for info in module_db if info.module_cls in OURS}
DTYPES = (torch.float32, torch.float64)


def _map(change: Callable[[Tensor], Tensor], given: FunctionInput) -> FunctionInput:
    """The call with its tensors changed, leaves of their own."""
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda leaf: change(leaf.detach()).requires_grad_(), (given.args, given.kwargs)
    )
    return FunctionInput(*args, **kwargs)


class Sample(NamedTuple):
    """One input of the database, drawn anew at every use, so that no test sees another's gradients."""

    info: ModuleInfo
    dtype: torch.dtype
    training: bool
    index: int

    def draw(self) -> ModuleInput:
        drawn = copy.copy(_draw(self.info, self.dtype, self.training)[self.index])
        drawn.forward_input = _map(torch.clone, drawn.forward_input)
        return drawn

    def build(self, kind: type[nn.Module], given: FunctionInput) -> nn.Module:
        torch.manual_seed(3)
        return kind(*given.args, **given.kwargs).to(self.dtype).train(self.training)

    def pair(self) -> tuple[nn.Module, nn.Module, ModuleInput]:
        """Our module and torch.nn's with the same weights, and the input."""
        drawn = self.draw()
        theirs = self.build(self.info.module_cls, drawn.constructor_input)
        ours = self.build(OURS[self.info.module_cls], drawn.constructor_input)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return ours, theirs, drawn

    def ours(self) -> tuple[nn.Module, FunctionInput]:
        ours, _, drawn = self.pair()
        return ours, drawn.forward_input


@functools.cache
def _draw(info: ModuleInfo, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
        return list(samples)


def _draw_errors(info: ModuleInfo, dtype: torch.dtype) -> list[ErrorModuleInput]:
    return list(info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False))


def _words(given: FunctionInput) -> list[str]:
    options = {
        name: value for name, value in given.kwargs.items() if value and name not in ("input_size", "hidden_size")
    }
    return [name if value is True else f"{name}{value}" for name, value in options.items()]


def _samples(dtypes: Sequence[torch.dtype], modes: Sequence[bool]) -> Iterator[Any]:
    for info, dtype, training in itertools.product(ENTRIES.values(), dtypes, modes):
        for index, drawn in enumerate(_draw(info, dtype, training)):
            words = [info.name, str(dtype)[6:], "train" if training else "eval", *_words(drawn.constructor_input)]
            words += ["hx"] if len(drawn.forward_input.args) > 1 else []
            yield pytest.param(Sample(info, dtype, training, index), id="-".join(words))


def _errors() -> Iterator[Any]:
    for info, dtype in itertools.product(ENTRIES.values(), DTYPES):
        for index, drawn in enumerate(_draw_errors(info, dtype)):
            message = re.sub(r"\W+", " ", drawn.error_regex).strip().replace(" ", "_")[:48]
            yield pytest.param(info, dtype, index, id=f"{info.name}-{str(dtype)[6:]}-{index}-{message}")


def _time_major(sample: Sample) -> bool:
    return not sample.draw().constructor_input.kwargs.get("batch_first", False)


def _has_everything(sample: Sample) -> bool:
    """Whether biases and an initial state are there: what is left out otherwise is a part of this."""
    drawn = sample.draw()
    return drawn.constructor_input.kwargs.get("bias", True) and len(drawn.forward_input.args) > 1


every_sample = pytest.mark.parametrize("sample", list(_samples(DTYPES, (True, False))))
# Where the mode can make no difference.
every_training_sample = pytest.mark.parametrize("sample", list(_samples(DTYPES, (True,))))
# Differences take a while, those of gradients a second each; unbatched input is the same with and without batch_first.
DOUBLES = [sample for sample in _samples((torch.float64,), (True,)) if _time_major(*sample.values)]
every_double_sample = pytest.mark.parametrize("sample", DOUBLES)
every_whole_double_sample = pytest.mark.parametrize(
    "sample", [sample for sample in DOUBLES if _has_everything(*sample.values)]
)


def _call(module: Callable[..., Any], given: FunctionInput) -> Any:
    with freeze_rng_state():
        return module(*given.args, **given.kwargs)


def _leaves(given: FunctionInput) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves((given.args, given.kwargs)) if isinstance(leaf, Tensor)]


def _backward(outputs: Any, strided: bool = False) -> None:
    """Pull random numbers, the same in every call, back from every output."""
    generator = torch.Generator().manual_seed(7)
    flat = pytree.tree_leaves(outputs)
    grads = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in flat]
    torch.autograd.backward(flat, [noncontiguous_like(grad) if strided else grad for grad in grads])


def _grads(module: nn.Module, given: FunctionInput) -> dict[str, Tensor | None]:
    grads = {f"input {index}": leaf.grad for index, leaf in enumerate(_leaves(given))}
    return grads | {name: parameter.grad for name, parameter in module.named_parameters()}


def _assert_same(ours: Any, theirs: Any, dtype: torch.dtype) -> None:
    assert all(leaf is not None for leaf in pytree.tree_leaves(theirs, is_leaf=lambda leaf: leaf is None))
    if dtype == torch.float64:
        assert_close(ours, theirs, atol=1e-10, rtol=0, check_stride=False)
    else:
        assert_close(ours, theirs, atol=2e-6, rtol=1e-5, check_stride=False)


def test_the_database_has_both_modules() -> None:
    """Without entries the tests below would be empty."""
    assert set(ENTRIES) == {"nn.LSTM", "nn.LSTMCell"}
    for info in ENTRIES.values():
        assert set(DTYPES) <= set(info.dtypes)
        samples = _draw(info, torch.float32, training=True)
        assert samples
        assert all(drawn.forward_input is not None and drawn.reference_fn is not None for drawn in samples)
        assert {drawn.error_on for drawn in _draw_errors(info, torch.float32)} >= {ModuleErrorEnum.FORWARD_ERROR}


def test_the_process_keeps_its_flags() -> None:
    assert not torch.backends.flags_frozen()


@every_sample
def test_as_torch_nn(sample: Sample) -> None:
    """Outputs and every gradient of torch.nn's module with the same weights."""
    ours, theirs, drawn = sample.pair()
    seen = []
    for module in (ours, theirs, copy.deepcopy(theirs).double()):
        dtype = next(module.parameters()).dtype
        given = _map(lambda leaf: leaf.to(dtype, copy=True), drawn.forward_input)  # noqa: B023
        outputs = _call(module, given)
        _backward(outputs)
        seen.append(_grads(module, given) | {f"output {k}": leaf for k, leaf in enumerate(pytree.tree_leaves(outputs))})
        assert all(tensor is not None for tensor in seen[-1].values())
    assert not [verdict for verdict in judge(*seen, sample.dtype) if verdict.reason]


@every_training_sample
def test_initial_weights(sample: Sample) -> None:
    given = sample.draw().constructor_input
    theirs = sample.build(sample.info.module_cls, given).state_dict()
    ours = sample.build(OURS[sample.info.module_cls], given).state_dict()
    assert list(ours) == list(theirs)
    assert_close(ours, theirs, atol=0, rtol=0)


@every_sample
def test_reference(sample: Sample) -> None:
    """The database's own reference, the call with a batch of one, made of our module and of torch.nn's."""
    ours, theirs, drawn = sample.pair()
    outputs = _call(ours, drawn.forward_input)
    for module in (ours, theirs):
        expected = drawn.reference_fn(module, *drawn.forward_input.args, **drawn.forward_input.kwargs)
        _assert_same(outputs, expected, sample.dtype)


@every_training_sample
def test_non_contiguous(sample: Sample) -> None:
    """Inputs and incoming gradients of any stride."""
    ours, given = sample.ours()
    expected = _call(ours, given)
    _backward(expected)
    expected_grads = _grads(ours, given)
    for strided_inputs, strided_grads in ((True, False), (False, True), (True, True)):
        ours.zero_grad()
        strided = _map(noncontiguous_like if strided_inputs else torch.clone, given)
        assert any(leaf.is_contiguous() for leaf in _leaves(strided)) != strided_inputs
        outputs = _call(ours, strided)
        _backward(outputs, strided_grads)
        _assert_same(outputs, expected, sample.dtype)
        _assert_same(_grads(ours, strided), expected_grads, sample.dtype)


def _assert_gradients(check: Callable[..., bool], sample: Sample) -> None:
    ours, given = sample.ours()

    def flat(*_: Tensor) -> tuple[Tensor, ...]:
        # The tensors that are moved are those of the call and of the module themselves.
        return tuple(pytree.tree_leaves(_call(ours, given)))

    info = sample.info
    assert check(
        flat,
        (*_leaves(given), *ours.parameters()),
        nondet_tol=info.gradcheck_nondet_tol,
        fast_mode=info.gradcheck_fast_mode,
    )


@every_double_sample
def test_grad(sample: Sample) -> None:
    """Gradients against differences, batched gradients too."""
    _assert_gradients(gradcheck, sample)


@every_whole_double_sample
def test_gradgrad(sample: Sample) -> None:
    """Gradients of gradients, likewise."""
    assert sample.info.supports_gradgrad
    _assert_gradients(gradgradcheck, sample)


@every_sample
def test_pickle_and_copies(sample: Sample) -> None:
    """A module that has run, pickled, saved, copied or rebuilt from its saved weights, computes what it did."""
    ours, given = sample.ours()
    expected = _call(ours, given)
    saved, weights = io.BytesIO(), io.BytesIO()
    torch.save(ours, saved)
    torch.save(ours.state_dict(), weights)
    saved.seek(0), weights.seek(0)
    rebuilt = sample.build(type(ours), sample.draw().constructor_input)
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter.zero_()
    rebuilt.load_state_dict(torch.load(weights, weights_only=True))
    others = {
        "pickle": pickle.loads(pickle.dumps(ours)),
        "save": torch.load(saved, weights_only=False),
        "deepcopy": copy.deepcopy(ours),
        "state_dict": rebuilt,
    }
    for name, other in others.items():
        assert type(other) is type(ours), name
        assert other.training == ours.training, name
        assert_close(_call(other, given), expected, atol=0, rtol=0)


@every_training_sample
def test_repr(sample: Sample) -> None:
    ours, theirs, _ = sample.pair()
    assert repr(ours) == repr(theirs)


@every_training_sample
def test_zero_grad(sample: Sample) -> None:
    ours, given = sample.ours()
    _backward(_call(ours, given))
    once = {name: parameter.grad.clone() for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert set(once) == set(dict(ours.named_parameters()))
    _backward(_call(ours, given))
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, 2 * once[name])
    ours.zero_grad(set_to_none=False)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in ours.parameters())
    ours.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["nn.LSTM", "nn.LSTMCell"])
def test_factory_arguments(name: str, device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are made on the device and in the dtype asked for, not moved there."""
    made: list[Tensor] = []
    new = nn.Parameter.__new__

    def spy(cls: type, data: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made.append(data)
        return new(cls, data, *args, **kwargs)

    kind = OURS[ENTRIES[name].module_cls]
    for drawn in _draw(ENTRIES[name], dtype, training=True):
        given = drawn.constructor_input
        made.clear()
        with monkeypatch.context() as patch:
            patch.setattr(nn.Parameter, "__new__", spy)
            module = kind(*given.args, **given.kwargs, device=device, dtype=dtype)
            with torch.device(device):
                kind(*given.args, **given.kwargs, dtype=dtype)
        count = len(list(module.parameters()))
        assert len(made) >= 2 * count > 0
        assert {(tensor.device.type, tensor.dtype) for tensor in made} == {(device, dtype)}
        assert {(tensor.device.type, tensor.dtype) for tensor in module.parameters()} == {(device, dtype)}


def _copy(weights: dict[str, Tensor], module: nn.Module) -> None:
    # Not by load_state_dict: where tensors are swapped it refuses those of nn.RNNBase, which holds weak references.
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[name])


@every_training_sample
@pytest.mark.parametrize("swap_tensors", [False, True], ids=["assign", "swap"])
@torch.no_grad()
def test_conversions(sample: Sample, swap_tensors: bool) -> None:
    """To another dtype, memory format and device and back: the weights arrive, and the module computes with them."""
    ours, given = sample.ours()
    expected = _call(ours, given)
    weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
    other = torch.float32 if sample.dtype == torch.float64 else torch.float64
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap_tensors)
    try:
        ours.to(other)
        moved = _call(ours, _map(lambda leaf: leaf.to(other), given))
        _assert_same(moved, pytree.tree_map(lambda output: output.to(other), expected), torch.float32)
        _copy(weights, ours.to(sample.dtype))
        ours.to(memory_format=torch.channels_last)
        assert_close(_call(ours, given), expected, atol=0, rtol=0)
        ours.to("meta")
        on_meta = _call(ours, _map(lambda leaf: leaf.to("meta"), given))
        assert_close(on_meta, pytree.tree_map(lambda output: output.to("meta"), expected))
        _copy(weights, ours.to_empty(device="cpu"))
        assert_close(_call(ours, given), expected, atol=0, rtol=0)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@every_sample
def test_training_flag(sample: Sample) -> None:
    """Whether `training` is read in a call is what the database says of the module."""
    ours, given = sample.ours()
    expected = _call(ours, given)
    del ours.training
    try:
        assert_close(_call(ours, given), expected, atol=0, rtol=0)
    except AttributeError:
        if not sample.info.train_and_eval_differ:
            raise


@pytest.mark.parametrize(("info", "dtype", "index"), list(_errors()))
def test_errors(info: ModuleInfo, dtype: torch.dtype, index: int) -> None:
    """The database's exception, and torch.nn's words to the letter."""
    drawn = _draw_errors(info, dtype)[index]
    constructor, forward = drawn.module_error_input.constructor_input, drawn.module_error_input.forward_input
    messages = []
    for kind in (OURS[info.module_cls], info.module_cls):
        if drawn.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(drawn.error_type, match=drawn.error_regex) as raised:
                kind(*constructor.args, **constructor.kwargs)
        else:
            assert drawn.error_on == ModuleErrorEnum.FORWARD_ERROR
            module = kind(*constructor.args, **constructor.kwargs).to(dtype)
            with pytest.raises(drawn.error_type, match=drawn.error_regex) as raised:
                module(*forward.args, **forward.kwargs)
        messages.append((raised.type, str(raised.value)))
    assert messages[0] == messages[1]
