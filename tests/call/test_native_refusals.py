"""Calls that are not for C: each takes the way in Python, where its result or its error is the right one."""

import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from both_ways import tensors_of, watched
from torch import Tensor, nn

import torchlstm
from torchlstm.call import dispatch, native

if not native._connected:
    pytest.skip("the extension was not compiled", allow_module_level=True)


def negated(shape: tuple[int, ...]) -> Tensor:
    """A tensor whose memory holds the negatives of its values."""
    tensor = torch.randn(shape, dtype=torch.complex64).conj().imag
    assert tensor.is_neg()
    return tensor


class Checked(torchlstm.LSTM):
    """An LSTM with a check of its own."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        super().check_input(input, batch_sizes)


def special() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls that are right, and not for C."""
    module, x, hx = torchlstm.LSTM(5, 7), torch.randn(6, 3, 5), (torch.randn(1, 3, 7), torch.randn(1, 3, 7))

    def with_mode(mode: Any, *arguments: Any) -> Callable[[], Any]:
        def call() -> Any:
            with mode():
                return module(*arguments)

        return call

    def traced() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            return torch.jit.trace(module, (x,), check_trace=False)(x)

    def dropped() -> Any:
        with torch.no_grad():
            return torchlstm.LSTM(5, 7, 2, dropout=0.5)(x)

    def turned(part: str) -> Any:
        other = torchlstm.LSTM(5, 7)
        if part == "weight":
            other.weight_hh_l0 = nn.Parameter(torch.randn(7, 28).t())
        return other(x, tuple(torch.randn(1, 7, 3).transpose(1, 2) if part == "state" else each for each in hx))

    @contextmanager
    def recorded() -> Iterator[None]:
        dispatch.record_layers(itertools.repeat(None))
        yield
        dispatch.record_layers(None)

    class Functions(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    class Operations(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    class Named(Tensor):
        pass

    yield "autocast", with_mode(lambda: torch.autocast("cpu", torch.bfloat16), x)
    yield "function mode", with_mode(Functions, x)
    yield "dispatch mode", with_mode(Operations, x)
    yield "profiler", with_mode(torch.autograd.profiler.profile, x)
    yield "forward AD", with_mode(torch.autograd.forward_ad.dual_level, x)
    yield "another engine", with_mode(lambda: torchlstm.use_engine("reference"), x)
    yield "vmap", lambda: torch.vmap(lambda each: module(each)[0])(torch.randn(2, 6, 3, 5))
    yield "a trace", traced
    yield "a transform of something else", lambda: torch.func.grad(lambda scale: module(x)[0].sum() * scale)(x.sum())
    yield "recorders", with_mode(recorded, x)
    yield "states in another order", lambda: turned("state")
    yield "a weight in another order", lambda: turned("weight")
    yield "negated", lambda: module(negated((6, 3, 5)))
    yield "negated state", lambda: module(x, (negated((1, 3, 7)), hx[1]))
    # Whose elements count as adjacent.
    yield "negated, one feature", lambda: torchlstm.LSTM(1, 7)(negated((6, 3, 1)))
    yield "negated, one element", lambda: torchlstm.LSTMCell(1, 7)(negated((1,)))
    one = torchlstm.LSTM(5, 1), torch.randn(6, 1, 5), torch.randn(1, 1, 1)
    yield "negated h of one unit", lambda: one[0](one[1], (negated((1, 1, 1)), one[2]))
    yield "negated c of one unit", lambda: one[0](one[1], (one[2], negated((1, 1, 1))))
    yield "subclass", lambda: module(x.as_subclass(Named))
    yield "states as a list", lambda: module(x, list(hx))
    yield "bfloat16", lambda: torchlstm.LSTM(5, 7, dtype=torch.bfloat16)(x.bfloat16())
    yield "meta", lambda: torchlstm.LSTM(5, 7, device="meta")(x.to("meta"))
    yield "checkpoints", lambda: torchlstm.LSTM(5, 7, checkpoint_every=2)(x)
    yield "dropout", dropped
    yield "trained layers", lambda: torchlstm.LSTM(5, 7, 2)(x)
    yield "checks of a subclass", lambda: Checked(5, 7)(x)
    yield "lengths", lambda: module(x, lengths=[6, 2, 3])
    yield "packed", lambda: module(nn.utils.rnn.pack_padded_sequence(x, [6, 3, 2]))
    yield "no features at all", lambda: module(torch.randn(6, 0, 5))
    yield "more layers than names", lambda: torchlstm.LSTM(5, 7, 17).eval().requires_grad_(False)(x)


@pytest.mark.parametrize(("name", "call"), list(special()), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_special_is_not_for_c(name: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    with watched(monkeypatch) as taken:
        torch.manual_seed(1)
        first = call()
    assert not any(taken), name
    with monkeypatch.context() as patch:
        patch.setattr(native, "_connected", False)
        torch.manual_seed(1)
        second = call()
    for a, b in zip(tensors_of(first), tensors_of(second), strict=True):
        assert a.is_meta or torch.equal(a, b)


def test_the_weights_are_those_of_the_moment() -> None:
    """As they are replaced, moved, tied, taken away, or passed by `functional_call`."""
    torch.manual_seed(0)
    theirs, ours = nn.LSTM(5, 7), torchlstm.LSTM(5, 7)
    x = torch.randn(6, 3, 5)

    def same() -> None:
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])

    ours.load_state_dict(theirs.state_dict())
    same()
    for module in (theirs, ours):
        torch.manual_seed(1)
        module.weight_ih_l0 = nn.Parameter(torch.randn(28, 5))
        with torch.no_grad():
            module.weight_hh_l0.mul_(0.5)
    same()
    values = {name: torch.randn_like(value) for name, value in theirs.named_parameters()}
    found = [torch.func.functional_call(module, values, (x,))[0] for module in (theirs, ours)]
    torch.testing.assert_close(*found)
    for module in (theirs, ours):
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    same()


def test_an_error_is_that_of_the_checks() -> None:
    module, x = torchlstm.LSTM(5, 7), torch.randn(6, 3, 5)
    cases: list[tuple[Any, str]] = [
        ((x[..., :4],), "Expected 5, got 4"),
        ((x, (torch.zeros(1, 2, 7), torch.zeros(1, 3, 7))), r"Expected hidden\[0\] size \(1, 3, 7\), got \[1, 2, 7\]"),
        ((x.double(),), "dtype"),
        ((x, (None, None)), "Tensor"),
        ((x[0, 0],), "2D or 3D"),
    ]
    for arguments, message in cases:
        with pytest.raises((RuntimeError, TypeError, ValueError), match=message) as error:
            module(*arguments)
        shown = "".join(traceback.format_exception(error.value))
        assert "_kernel" not in shown


def test_an_interrupt_within_a_call_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives where Python runs: in the one function of ours that C calls."""

    def interrupted() -> int:
        raise KeyboardInterrupt

    module, x = torchlstm.LSTM(5, 7), torch.randn(6, 3, 5)
    with monkeypatch.context() as patch:
        patch.setattr(native.threads, "count", interrupted)
        native._connect()
        with pytest.raises(KeyboardInterrupt):
            module(x)
        with pytest.raises(KeyboardInterrupt), torch.no_grad():
            module(x)
    native._connect()
    module(x)
