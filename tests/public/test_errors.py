"""Bad input: nn.LSTM's own error where it is good, a clear one of the same kind where it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm

X, H, C = torch.randn(5, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
SIZES = torch.tensor([2, 2, 2, 1, 1])
ROWS = torch.randn(8, 3)
PACKED = PackedSequence(ROWS, SIZES)
UNSORTED = pack_padded_sequence(X, torch.tensor([3, 5]), enforce_sorted=False)


def made(kind: Any, change: Callable[[Any], None] | None = None) -> Any:
    torch.manual_seed(0)
    module = kind(3, 4, 2) if issubclass(kind, nn.RNNBase) else kind(3, 4)
    if change:
        change(module)
    return module


# Where nn.LSTM says it well: the same type and the same words.
SAME: dict[str, tuple[Any, ...]] = {
    "1-D": (X[0, 0],),
    "4-D": (X[None],),
    "features": (torch.randn(5, 2, 7),),
    "features-unbatched": (torch.randn(5, 7),),
    "input-float64": (X.double(),),
    "input-int64": (X.long(),),
    "hx-2-D": (X, (H[0], C[0])),
    "hx-mixed-ranks": (X, (H, C[0])),
    "hx-3-D-unbatched": (X[:, 0], (H, C)),
    "hx-size-unbatched": (X[:, 0], (H[:, 0, :2], C[:, 0])),
    "hx-layers": (X, (H[:1], C[:1])),
    "hx-batch": (X, (H[:, :1], C[:, :1])),
    "c-size": (X, (H, C[..., :2])),
    "no-steps": (X[:0],),
    "no-steps-unbatched": (X[:0, 0],),
    "no-steps-no-batch": (X[:0, :0],),
    "input-on-meta": (X.to("meta"),),
    "hx-on-meta": (X, (H.to("meta"), C.to("meta"))),
}

# Where it does not: the type, and what the message has to name.
CLEAR: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "list": (([1.0],), TypeError, r"Expected input to be a Tensor, got list"),
    "none": ((None,), TypeError, r"Expected input to be a Tensor, got NoneType"),
    "sparse": ((X.to_sparse(),), RuntimeError, r"got torch\.sparse_coo"),
    "hx-float64": ((X, (H.double(), C.double())), RuntimeError, r"hidden\[0\] dtype torch\.float32.*torch\.float64"),
    "c-float64": ((X, (H, C.double())), RuntimeError, r"hidden\[1\] dtype torch\.float32.*torch\.float64"),
    "hx-half": ((X, (H.half(), C.half())), RuntimeError, r"hidden\[0\] dtype torch\.float32.*torch\.float16"),
    "hx-stacked": ((X, torch.stack([H, C])), TypeError, r"two tensors, got one Tensor of shape \(2, 2, 2, 4\)"),
    "hx-one-tensor": ((X, H), TypeError, r"two tensors, got one Tensor of shape \(2, 2, 4\)"),
    "hx-generator": ((X, (s for s in (H, C))), TypeError, r"two tensors, got generator"),
    "hx-three": ((X, (H, C, C)), RuntimeError, r"two hidden states, got 3"),
    "hx-one": ((X, (H,)), RuntimeError, r"two hidden states, got 1"),
    "hx-half-none": ((X, (H, None)), TypeError, r"hx\[1\] to be a Tensor, got NoneType"),
    "packed-float64": ((PACKED.to(torch.float64),), RuntimeError, r"input dtype \(torch\.float64\).*torch\.float32"),
    "packed-features": ((PackedSequence(torch.randn(8, 7), SIZES),), RuntimeError, r"Expected 3, got 7"),
    "packed-rank": ((PackedSequence(torch.randn(8, 1, 3), SIZES),), RuntimeError, r"2 dimensions, got 3"),
    "packed-hx-small": ((PACKED, (H[:, :1], C[:, :1])), RuntimeError, r"\(2, 2, 4\), got \[2, 1, 4\]"),
    "packed-hx-large": ((PACKED, (torch.randn(2, 3, 4),) * 2), RuntimeError, r"\(2, 2, 4\), got \[2, 3, 4\]"),
    "packed-hx-2-D": ((PACKED, (H[0], C[0])), RuntimeError, r"3-D but got \(2-D, 2-D\)"),
    "packed-hx-size": ((PACKED, (H[..., :2], C[..., :2])), RuntimeError, r"\(2, 2, 4\), got \[2, 2, 2\]"),
    "packed-hx-float64": ((PACKED, (H.double(), C)), RuntimeError, r"hidden\[0\] dtype torch\.float32"),
    "unsorted-hx-small": ((UNSORTED, (H[:, :1], C[:, :1])), RuntimeError, r"\(2, 2, 4\), got \[2, 1, 4\]"),
    "unsorted-hx-large": ((UNSORTED, (torch.randn(2, 3, 4),) * 2), RuntimeError, r"\(2, 2, 4\), got \[2, 3, 4\]"),
    "packed-too-long": ((PackedSequence(torch.randn(9, 3), SIZES),), RuntimeError, r"sum to 8 .* got 9"),
    "packed-too-short": ((PackedSequence(torch.randn(7, 3), SIZES),), RuntimeError, r"sum to 8 .* got 7"),
    "packed-rising": ((PackedSequence(ROWS, SIZES.flip(0)),), RuntimeError, r"must not rise.*\[1, 1, 2, 2, 2\]"),
    "packed-negative": ((PackedSequence(ROWS[:2], torch.tensor([2, 1, -1])),), RuntimeError, r"nor be negative"),
    "packed-empty": ((PackedSequence(ROWS[:0], SIZES[:0]),), RuntimeError, r"sequence length to be larger than 0"),
    "packed-int32": ((PackedSequence(ROWS, SIZES.int()),), RuntimeError, r"1-D and torch\.int64, got 1-D and .*int32"),
    "packed-2-D-sizes": ((PackedSequence(ROWS, SIZES[None]),), RuntimeError, r"1-D and torch\.int64, got 2-D"),
}  # fmt: skip

CELL_SAME: dict[str, tuple[Any, ...]] = {
    "3-D": (X,),
    "0-D": (X[0, 0, 0],),
    "features": (torch.randn(2, 5),),
    "hx-3-D": (X[0], (H, C[0])),
    "hx-batch": (X[0], (H[0, :1], C[0, :1])),
    "c-batch": (X[0], (H[0], C[0, :1])),
    "hx-size": (X[0], (H[0, :, :2], C[0, :, :2])),
    "c-size": (X[0], (H[0], C[0, :, :2])),
    "hx-size-unbatched": (X[0, 0], (H[0, 0, :2], C[0, 0, :2])),
}

CELL_CLEAR: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "list": (([1.0],), TypeError, r"Expected input to be a Tensor, got list"),
    "input-float64": ((X[0].double(),), RuntimeError, r"torch\.float64.*torch\.float32"),
    "hx-float64": ((X[0], (H[0].double(), C[0].double())), RuntimeError, r"hidden\[0\] dtype torch\.float32"),
    "c-float64": ((X[0], (H[0], C[0].double())), RuntimeError, r"hidden\[1\] dtype torch\.float32"),
    # These two end the process in torch.nn.LSTMCell, or say something about batch size 4.
    "unbatched-with-batched-hx": ((X[0, 0], (H[0], C[0])), RuntimeError, r"1-D input, hx\[0\] should also be 1-D"),
    "batched-with-unbatched-hx": ((X[0], (H[0, 0], C[0, 0])), RuntimeError, r"2-D input, hx\[0\] should also be 2-D"),
    "hx-stacked": ((X[0], torch.stack([H[0], C[0]])), TypeError, r"two tensors, got one Tensor"),
    "hx-three": ((X[0], (H[0],) * 3), RuntimeError, r"two hidden states, got 3"),
    "hx-half-none": ((X[0], (H[0], None)), TypeError, r"hx\[1\] to be a Tensor, got NoneType"),
    "hx-on-meta": ((X[0], (H[0].to("meta"),) * 2), RuntimeError, r"input tensor at cpu and hidden tensor at meta"),
}


def _same(theirs: type[nn.Module], ours: type[nn.Module], arguments: tuple[Any, ...]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011  (its type is what is compared)
        made(theirs)(*arguments)
    with pytest.raises(expected.type) as raised:
        made(ours)(*arguments)
    assert raised.type is expected.type
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("arguments", SAME.values(), ids=SAME)
def test_lstm_says_what_nn_lstm_says(arguments: tuple[Any, ...]) -> None:
    _same(nn.LSTM, torchlstm.LSTM, arguments)


@pytest.mark.parametrize("arguments", CELL_SAME.values(), ids=CELL_SAME)
def test_cell_says_what_nn_lstmcell_says(arguments: tuple[Any, ...]) -> None:
    _same(nn.LSTMCell, torchlstm.LSTMCell, arguments)


@pytest.mark.parametrize(("arguments", "kind", "message"), CLEAR.values(), ids=CLEAR)
def test_lstm_names_what_came_and_what_was_expected(
    arguments: tuple[Any, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        made(torchlstm.LSTM)(*arguments)


@pytest.mark.parametrize(("arguments", "kind", "message"), CELL_CLEAR.values(), ids=CELL_CLEAR)
def test_cell_names_what_came_and_what_was_expected(
    arguments: tuple[Any, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        made(torchlstm.LSTMCell)(*arguments)


def _data(name: str, value: Tensor) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        getattr(module, name).data = value

    return change


BAD_WEIGHTS: dict[str, tuple[Callable[[Any], None], type[Exception], str]] = {
    "shape": (_data("weight_hh_l0", torch.randn(16, 3)), RuntimeError, r"w_hh of shape \(16, 4\), got \(16, 3\)"),
    "dtype": (_data("weight_hh_l1", torch.randn(16, 4).double()), RuntimeError, r"w_hh torch\.float64"),
    "bias-shape": (_data("bias_ih_l1", torch.randn(4)), RuntimeError, r"b_ih of shape \(16,\), got \(4,\)"),
    "deleted": (lambda module: delattr(module, "weight_hh_l1"), AttributeError, r"weight_hh_l1"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_do_not_fit(change: Callable[[Any], None], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        made(torchlstm.LSTM, change)(X)


def test_autocast_does_not_hide_a_float64_weight() -> None:
    module = made(torchlstm.LSTM).double()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=r"does not match weight dtype"):
        module(X)


@pytest.mark.parametrize("reverse", [False, True], ids=["float32-to-float64", "float64-to-float32"])
def test_functional_call_with_parameters_of_another_dtype(reverse: bool) -> None:
    """The parameters given count, not those that the module was built with."""
    module = made(torchlstm.LSTM)
    given, other = torch.float64, torch.float32
    if reverse:
        module, given, other = module.double(), other, given
    parameters = {name: parameter.detach().to(given) for name, parameter in module.named_parameters()}
    twin = made(nn.LSTM).to(given)
    twin.load_state_dict(parameters)
    output, _ = torch.func.functional_call(module, parameters, (X.to(given),))
    torch.testing.assert_close(output, twin(X.to(given))[0])
    assert output.dtype == given
    with pytest.raises(ValueError, match="does not match weight dtype"):
        torch.func.functional_call(module, parameters, (X.to(other),))
    # And the module itself is what it was.
    assert module(X.to(other))[0].dtype == other
