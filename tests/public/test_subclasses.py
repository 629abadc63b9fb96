"""Subclasses of Tensor that keep numbers as Tensor does: the kernel runs, and types are those of nn.LSTM's results."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"proj_size": 2},
}


class Text(Tensor):
    """A type and nothing more."""


class Counted(Tensor):
    """Sees every operation, as fastai's tensors do."""

    seen: list[Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Weight(nn.Parameter):
    """A parameter of one's own."""


def of_type(results: Any) -> list[type]:
    """The types of all tensors of the results."""
    output, (h_n, c_n) = results
    return [type(t) for t in (output.data if isinstance(output, PackedSequence) else output, h_n, c_n)]


@pytest.mark.parametrize("kind", [Text, Counted])
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "states", "lengths"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_types_and_numbers_are_those_of_nn_lstm(options: dict[str, Any], form: str, kind: type[Tensor]) -> None:
    Counted.seen = []
    theirs = nn.LSTM(3, 4, dtype=torch.float64, **options)
    ours = torchlstm.LSTM(3, 4, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    size, count = options.get("proj_size", 4), 4 if "num_layers" in options else 1
    found = []
    for module in (theirs, ours):
        torch.manual_seed(0)
        x = torch.randn((5, 3) if form == "unbatched" else (5, 5, 3), dtype=torch.float64, requires_grad=True)
        given: Any = x.as_subclass(kind)
        states, keywords = (), {}
        if form == "packed":
            given = pack_padded_sequence(given, [3, 5, 1, 1, 2], module.batch_first, enforce_sorted=False)
        if form == "states":
            given = x
            states = (tuple(torch.randn(count, 5, n, dtype=torch.float64).as_subclass(kind) for n in (size, 4)),)
        if form == "lengths" and module is ours:
            keywords = {"lengths": [5] * 5}
        output, state = module(given, *states, **keywords)
        rows = output.data if form == "packed" else output
        (rows.sum() + 2 * state[0].sum() + 3 * state[1].sum()).backward()
        gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
        found.append((of_type((output, state)), [type(g) for g in gradients], [rows, *state, *gradients]))
        module.zero_grad()
    (types, gradient_types, values), (our_types, our_gradient_types, our_values) = found
    assert our_types == types == [kind] * 3
    assert our_gradient_types == gradient_types
    for a, b in zip(our_values, values, strict=True):
        torch.testing.assert_close(a.as_subclass(Tensor), b.as_subclass(Tensor), rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(torchlstm.engines()["cpu"] is not None, reason="the extension was not compiled")
@pytest.mark.parametrize("kind", [Text, Counted])
def test_the_kernel_runs(kind: type[Tensor]) -> None:
    Counted.seen = []
    module, x = torchlstm.LSTM(3, 4), torch.randn(5, 2, 3).as_subclass(kind)
    assert [decision.engine for decision in torchlstm.explain(module, x).decisions] == ["cpu"]
    with torchlstm.use_engine("cpu"):
        module(x)[0].sum().backward()
        cell = torchlstm.LSTMCell(3, 4)
        assert [type(state) for state in cell(x[0])] == [type(s) for s in nn.LSTMCell(3, 4)(x[0])] == [kind] * 2


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_a_call_is_one_operation_to_a_class_that_sees_them_all(kind: str) -> None:
    """What is computed within, it would slow down."""
    Counted.seen = []
    module, x = getattr(torchlstm, kind)(3, 4), torch.randn(2, 2, 3)
    module((x if kind == "LSTM" else x[0]).as_subclass(Counted))
    assert [operation for operation in Counted.seen if getattr(operation, "__name__", "") == "forward"]
    assert len(Counted.seen) == 1


@pytest.mark.parametrize("form", ["packed", "states"])
def test_a_layer_is_one_operation_where_the_input_is_no_such_tensor(form: str) -> None:
    """However many steps it has."""
    module, counts = torchlstm.LSTM(3, 4), []
    for steps in (2, 20):
        Counted.seen = []
        x, states = torch.randn(steps, 2, 3), torch.randn(2, 1, 2, 4).as_subclass(Counted)
        if form == "packed":
            module(pack_padded_sequence(x.as_subclass(Counted), [steps, 1]))
        else:
            module(x, tuple(states))
        counts.append(len(Counted.seen))
    assert counts[0] == counts[1]


@pytest.mark.skipif(torchlstm.engines()["cpu"] is not None, reason="the extension was not compiled")
def test_a_parameter_of_ones_own() -> None:
    module = torchlstm.LSTM(3, 4)
    x, expected = torch.randn(5, 2, 3), None
    for own in (False, True):
        if own:
            module.weight_ih_l0 = Weight(module.weight_ih_l0.data)
        with torchlstm.use_engine("cpu"):
            output, _ = module(x)
        assert type(output) is Tensor
        output.sum().backward()
        gradient, module.weight_ih_l0.grad = module.weight_ih_l0.grad, None
        expected = gradient if expected is None else expected
        assert torch.equal(gradient, expected)
