"""The border between Python and the CPU kernel: a wrong call raises, names the field, and writes nothing."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import torchlstm
from torchlstm.engines.cpu import engine as cpu

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

kernel: Any = cpu._kernel
# As in kernel.h; R is the size of a projection.
T, B, I, H, R, D = 5, 3, 4, 6, 2, 2  # noqa: E741 - the letters of kernel.h
P = T * B
Fields = dict[str, Any]


def sizes_fields(projected: bool = True, **other: Any) -> Fields:
    fields = {"isa": 3, "threads": 2, "element": 4, "steps": T, "batch": B, "input": I, "hidden": H}
    fields |= {"output": R if projected else H, "directions": D, "projected": projected, "reverse": False}
    return {**fields, "batch_sizes": None, **other}


def written(*shape: int) -> Tensor:
    return torch.full(shape, 777.0)


def weights(*shape: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape) / 4 for _ in range(D))


def forward_fields(projected: bool = True) -> Fields:
    size = R if projected else H
    sizes = kernel.sizes(**sizes_fields(projected))
    return {
        "sizes": sizes,
        **{"y": written(P, D * size), "h_n": written(D, B, size), "c_n": written(D, B, H)},
        **{"gates": written(D, P, 4 * H), "cells": written(D, P, H)},
        **{"x": torch.randn(P, I), "h_0": torch.randn(D, B, size), "c_0": torch.randn(D, B, H)},
        **{"w_ih": weights(4 * H, I), "w_hh": weights(4 * H, size), "b_ih": weights(4 * H), "b_hh": weights(4 * H)},
        "w_hr": weights(R, H) if projected else (None,) * D,
        "scratch": written(kernel.forward_scratch(sizes)),
    }


def backward_fields(projected: bool = True) -> Fields:
    given = forward_fields(projected)
    kernel.forward(**given)
    size, sizes, room = given["h_0"].shape[2], given["sizes"], 3 * B
    return {
        "sizes": sizes,
        **{"first": 0, "end": 3, "dgates": written(D, room, 4 * H + 5)[..., : 4 * H], "before": written(D, room, size)},
        "dh": written(D, room, size) if projected else None,
        "raw": written(D, room, H) if projected else None,
        **{"dh_0": written(D, B, size), "dc_0": written(D, B, H), "db": written(D, 4 * H)},
        **{"gates": given["gates"], "cells": given["cells"], "y": given["y"] if projected else None},
        **{"h_0": given["h_0"], "c_0": given["c_0"]},
        **{"dy": torch.randn(P, D * size), "dh_n": torch.randn(D, B, size), "dc_n": torch.randn(D, B, H)},
        **{"dacts": torch.randn(D, P, 4 * H), "dcells": torch.randn(D, P, H)},
        **{"w_hh": given["w_hh"], "w_hr": given["w_hr"], "scratch": written(kernel.backward_scratch(sizes))},
    }


def gemm_fields() -> Fields:
    """As much that it needs scratch memory."""
    given = {"isa": 3, "threads": 1, "out": written(200, 150), "left": torch.randn(200, 300)}
    given["right"] = torch.randn(300, 150)
    return {**given, "add": False, "scratch": written(kernel.gemm_scratch(**given))}


FIELDS: dict[str, Callable[[], Fields]] = {
    "sizes": sizes_fields,
    "forward": forward_fields,
    "forward-unprojected": lambda: forward_fields(projected=False),
    "backward": backward_fields,
    "backward-unprojected": lambda: backward_fields(projected=False),
    "gemm": gemm_fields,
    "peak": lambda: {"isa": 3, "threads": 2, "element": 4, "rounds": 10},
    "readable": lambda: {"matrix": torch.randn(3, 4), "turned": False},
}


class Sub(Tensor):
    pass


def tensors_of(fields: Fields) -> Iterator[Tensor]:
    """All but scratch memory, which is large and means nothing."""
    for value in (value for name, value in fields.items() if name != "scratch"):
        yield from (t for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))


def refused(call: str, fields: Fields, error: Any = (TypeError, ValueError), match: str | None = None) -> str:
    """What the kernel says of a call; nothing has been written then."""
    there = [
        t for t in tensors_of(fields) if t.device.type == "cpu" and not t.is_sparse and t.untyped_storage().nbytes()
    ]
    before = [t.clone() for t in there]
    with pytest.raises(error, match=match) as raised:
        getattr(kernel, call)(**fields)
    assert all(torch.equal(a, b) for a, b in zip(before, there, strict=True)), f"{call} has written"
    return str(raised.value)


def without_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def spread(tensor: Tensor) -> Tensor:
    """The same numbers, every other element of a larger tensor."""
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    return wide[..., ::2]


def wrong_tensors(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    yield from (("an int", 5), ("an address", tensor.data_ptr()), ("a list", [tensor]), ("a tuple", (tensor,)))
    yield from (("float64", tensor.double()), ("float16", tensor.half()), ("int64", tensor.long()))
    yield from (("complex", torch.complex(tensor, tensor)), ("a subclass", tensor.as_subclass(Sub)))
    yield from (("meta", tensor.to("meta")), ("sparse", tensor.to_sparse()), ("no memory", without_memory(tensor)))
    yield from (("one axis more", tensor[None]), ("every other", spread(tensor)), ("one number", tensor.new_zeros(())))
    for axis in range(tensor.dim()):
        yield f"short in axis {axis}", tensor.narrow(axis, 0, tensor.shape[axis] - 1).contiguous()
    if tensor.dim() > 1:
        yield "turned", tensor.transpose(0, -1).contiguous().transpose(0, -1)


def longer(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    for axis in range(tensor.dim()):
        yield f"long in axis {axis}", torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)


def wrong(field: str, kind: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values that a field of a call that is right otherwise must not have."""
    if kind == "int":
        yield from (("negative", -1), ("huge", 2**40), ("beyond C", 2**70), ("a float", 1.0), ("a flag", True))
        yield from (("a tensor", torch.tensor(1)), ("None", None), ("text", "1"))
    elif kind == "bool":
        yield from (("an int", 1), ("a tensor", torch.tensor(True)), ("None", None))
    elif kind == "Sizes":
        yield from (("an int", 3), ("None", None), ("a tensor", torch.zeros(12)), ("a tuple", tuple(range(12))))
    elif kind.startswith("tuple"):
        yield from (("None", None), ("a list", list(value)), ("one too many", (*value, value[0])), ("none", ()))
        yield from (("a tensor", value[0]), ("a tensor of two", torch.zeros(2)))
        if value[0] is None:
            yield "not asked for", (torch.zeros(R, H), None)
            return
        if "None" not in kind or field == "w_hr":
            yield "None in it", (value[0], None)
        for name, other in (*wrong_tensors(value[1]), *longer(value[1])):
            yield f"{name} in it", (value[0], other)
    elif value is None:
        yield from (("an int", 0), ("not asked for", torch.zeros(P, D * H)))
    elif field == "matrix":
        yield from (("an int", 5), ("meta", value.to("meta")), ("None", None), ("a subclass", value.as_subclass(Sub)))
    else:
        if field == "left":  # may be turned
            yield from ((name, other) for name, other in wrong_tensors(value) if name != "turned")
        else:
            yield from wrong_tensors(value)
        if field != "scratch":
            yield from longer(value)
        if kind == "Tensor" or field in ("cells", "dh", "raw", "dh_0", "y", "scratch"):
            yield "None", None


EVERY = [(which, field) for which in FIELDS for field in kernel.CALLS[which.split("-")[0]]]


@pytest.mark.parametrize(("which", "field"), EVERY)
def test_every_wrong_value_of_every_field(which: str, field: str) -> None:
    call = which.split("-")[0]
    right = FIELDS[which]()
    values = dict(wrong(field, kernel.CALLS[call][field], right[field]))
    assert len(values) >= 2
    # Where a field decides what others have to be, those are found wrong.
    decides = ("gates", "dgates", "out", "left", "first", "end", "steps", "hidden")
    for name, value in values.items():
        message = refused(call, {**right, field: value})
        assert re.match(rf"{call}\({field}[\[)]" if field not in decides else rf"{call}\(", message), (
            f"{name}: {message}"
        )
        assert re.search(r"expected .*, got .", message), f"{name}: {message}"


@pytest.mark.parametrize("which", FIELDS)
def test_calls_that_are_right(which: str) -> None:
    """What the tests above spoil would have run, and written all that is to be written."""
    fields, call = FIELDS[which](), which.split("-")[0]
    getattr(kernel, call)(**fields)
    last = {"db", "dh_0"}  # are written by the last part of a backward
    for name in {"y", "h_n", "c_n", "gates", "cells", "dgates", "before", "dh", "raw", "dc_0", "out"} - last:
        assert fields.get(name) is None or not (fields[name] == 777).any(), name


@pytest.mark.parametrize("which", FIELDS)
def test_fields_by_name(which: str) -> None:
    fields, call = FIELDS[which](), which.split("-")[0]
    for name in fields:
        refused(
            call, {k: v for k, v in fields.items() if k != name}, TypeError, f"{call}: the field '{name}' is missing"
        )
        misnamed = {k + "_" if k == name else k: v for k, v in fields.items()}
        refused(call, misnamed, TypeError, f"{call} has no field '{name}_'")
    refused(call, {**fields, "more": None}, TypeError, f"{call} has no field 'more'")
    with pytest.raises(TypeError, match=f"{call} takes fields by name only"):
        getattr(kernel, call)(*fields.values())
    # In any order, and with names that no code has interned.
    shuffled = {"".join(list(name)): value for name, value in reversed(fields.items())}
    getattr(kernel, call)(**shuffled)


def test_what_a_refusal_says() -> None:
    fields = forward_fields()
    message = refused("forward", {**fields, "y": torch.zeros(P, 3, dtype=torch.float64)}, TypeError)
    expected = "float32 (P, D * R) = (15, 4), contiguous, on the CPU"
    assert message == f"forward(y): expected {expected}, got float64 (15, 3), strides (3, 1)"
    message = refused("forward", {**fields, "w_hh": (fields["w_hh"][0], None)}, TypeError)
    assert message == "forward(w_hh[1]): expected float32 (4 * H, R) = (24, 2), contiguous, on the CPU, got None"
    message = refused("forward", {**fields, "scratch": written(3)}, ValueError)
    need = kernel.forward_scratch(fields["sizes"])
    assert message.startswith(f"forward(scratch): expected float32 (at least,) = ({need},), contiguous")
    message = refused("sizes", sizes_fields(hidden=0), ValueError)
    assert message == "sizes(hidden): expected an int from 1 to 2147483648, got 0"
    message = refused("gemm", {**gemm_fields(), "right": torch.zeros(150, 300).t()}, ValueError)
    assert message == (
        "gemm(right): expected float32 (K, N) = (300, 150), its rows contiguous, on the CPU, "
        "got float32 (300, 150), strides (1, 300)"
    )


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"element": 6}, r"sizes\(element\): expected 4 or 8, got 6"),
        ({"output": H + 1, "projected": False}, r"sizes\(output\): expected hidden = 6 without a projection, got 7"),
        ({"reverse": True}, r"sizes\(reverse\): expected False with two directions"),
        ({"directions": 3}, r"sizes\(directions\): expected an int from 1 to 2, got 3"),
        ({"batch_sizes": torch.tensor([3, 3, 2, 1])}, r"sizes\(batch_sizes\): expected int64 \(steps,\) = \(5,\)"),
        ({"batch_sizes": torch.tensor([4, 3, 2, 1, 1])}, r"batch_sizes\[0\]\): expected an int from 0 to 3, got 4"),
        ({"batch_sizes": torch.tensor([3, 2, 3, 1, 1])}, r"batch_sizes\[2\]\): expected an int from 0 to 2, got 3"),
        ({"batch_sizes": torch.tensor([3, 2, 1, 1, -1])}, r"batch_sizes\[4\]\): expected an int from 0 to 1, got -1"),
        ({"batch_sizes": torch.tensor([3, 2, 2, 1, 1]).int()}, r"sizes\(batch_sizes\): expected int64"),
        ({"batch_sizes": torch.ones(10).long()[::2]}, r"sizes\(batch_sizes\): expected int64"),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_contradict(other: Fields, match: str) -> None:
    refused("sizes", sizes_fields(**other), (TypeError, ValueError), match)


def test_ragged_rows_are_as_many_as_batch_sizes_say() -> None:
    batch_sizes = torch.tensor([3, 3, 2, 2, 1])
    sizes = kernel.sizes(**sizes_fields(batch_sizes=batch_sizes))
    refused(
        "forward", {**forward_fields(), "sizes": sizes}, ValueError, r"y\): expected float32 \(P, D \* R\) = \(11, 4\)"
    )
    # Who changes them afterwards changes nothing.
    batch_sizes.fill_(10**12)
    fields = forward_fields()
    fields |= {"sizes": sizes, "y": written(11, D * R), "x": torch.randn(11, I)}
    fields |= {
        "gates": written(D, 11, 4 * H),
        "cells": written(D, 11, H),
        "scratch": written(kernel.forward_scratch(sizes)),
    }
    kernel.forward(**fields)
    assert not (fields["y"] == 777).any()


def test_a_scratch_that_is_one_element_short() -> None:
    for which in ("forward", "backward", "gemm"):
        fields = FIELDS[which]()
        refused(
            which, {**fields, "scratch": fields["scratch"][:-1]}, ValueError, rf"{which}\(scratch\): expected float32"
        )


def test_parts_of_a_backward() -> None:
    """Steps within the sequence, and room for all of their rows."""
    fields = backward_fields()
    refused("backward", {**fields, "end": T + 1}, ValueError, r"backward\(end\): expected an int from 1 to 5, got 6")
    refused("backward", {**fields, "first": T}, ValueError, r"backward\(first\): expected an int from 0 to 4, got 5")
    refused("backward", {**fields, "first": 3}, ValueError, r"backward\(end\): expected an int from 4 to 5, got 3")
    refused(
        "backward", {**fields, "end": 4}, ValueError, r"backward\(dgates\): expected .* = \(2, 12, 24\), or more rows"
    )
    overlapping = written(3 * B * 4 * H * D).as_strided((D, 3 * B, 4 * H), (3 * B * 23, 23, 1))
    refused("backward", {**fields, "dgates": overlapping}, ValueError, r"backward\(dgates\)")
    apart = written(D, 3 * B + 1, 4 * H)[:, : 3 * B]
    refused("backward", {**fields, "dgates": apart}, ValueError, r"backward\(dgates\)")


def test_a_single_step_has_no_gradient_of_h_0() -> None:
    """It is the caller's product: kernel.h."""
    layer = torchlstm.LSTM(I, H)
    sizes = kernel.sizes(**sizes_fields(False, steps=1, directions=1))
    x, h_0, c_0 = torch.randn(B, I), torch.randn(1, B, H), torch.randn(1, B, H)
    w_ih, w_hh, b_ih, b_hh = (w.detach() for w in layer.all_weights[0])
    fields = {"sizes": sizes, "y": written(B, H), "h_n": written(1, B, H), "c_n": written(1, B, H)}
    fields |= {"gates": written(1, B, 4 * H), "cells": written(1, B, H), "x": x, "h_0": h_0, "c_0": c_0}
    fields |= {"w_ih": (w_ih,), "w_hh": (w_hh,), "b_ih": (b_ih,), "b_hh": (b_hh,), "w_hr": (None,), "scratch": None}
    kernel.forward(**fields)
    torch.testing.assert_close(fields["y"], layer(x[None], (h_0, c_0))[0][0].detach())
    back = backward_fields(projected=False)
    back |= {name: fields[name] for name in ("sizes", "gates", "cells", "h_0", "c_0", "w_hh", "w_hr")}
    back |= {
        "end": 1,
        "dgates": written(1, B, 4 * H),
        "before": None,
        "dc_0": written(1, B, H),
        "db": written(1, 4 * H),
    }
    back |= dict.fromkeys(("dy", "dh_n", "dc_n", "dacts", "dcells"))
    back |= {"dy": torch.randn(B, H), "scratch": written(kernel.backward_scratch(sizes))}
    refused("backward", {**back, "dh_0": written(1, B, H)}, TypeError, r"backward\(dh_0\): expected None, got float32")
    kernel.backward(**{**back, "dh_0": None})
    assert not (back["db"] == 777).any()


def test_layouts_of_matrices() -> None:
    """Row strides, the left one column by column too; an axis of length 1 may have any stride."""
    one = torch.randn(40)
    cases = [
        ((3, 4), (9, 1), True, True),
        ((3, 4), (0, 1), True, True),
        ((3, 4), (1, 9), False, True),
        ((3, 4), (9, 2), False, False),
        ((3, 4), (0, 0), False, False),
        ((3, 1), (9, 7), True, True),
        ((1, 4), (9, 7), False, True),
        ((1, 1), (9, 7), True, True),
    ]
    for shape, stride, by_rows, by_columns in cases:
        matrix = one.as_strided(shape, stride)
        found = [kernel.readable(matrix=matrix, turned=turned) for turned in (False, True)]
        assert found == [by_rows, by_columns], (shape, stride)
    assert not kernel.readable(matrix=torch.randn(3, 4, 5), turned=True)
    # What is written has rows that do not overlap.
    given = {**gemm_fields(), "scratch": None}
    shapes = {"left": torch.randn(3, 2), "right": torch.randn(2, 4)}
    refused("gemm", {**given, **shapes, "out": written(12).as_strided((3, 4), (2, 1))}, ValueError, r"gemm\(out\)")
    refused("gemm", {**given, **shapes, "out": written(4).expand(3, 4)}, ValueError, r"gemm\(out\)")


@pytest.mark.parametrize("size", [(3, 4, 0), (0, 4, 2), (3, 0, 2), (3, 0, 0)], ids=str)
def test_products_of_nothing(size: tuple[int, int, int]) -> None:
    rows, columns, terms = size
    left, right = torch.randn(rows, terms), torch.randn(terms, columns)
    for add in (False, True):
        whole = written(rows, columns + 1)
        cpu._CPU().multiply(whole[:, :columns], left, right, add)
        assert (whole[:, :columns] == (777 if add else 0)).all()
        assert (whole[:, columns:] == 777).all()


def test_the_last_steps_may_have_no_sequence() -> None:
    """Such a part of the backward has no rows: B * H is large enough for a part of one step."""
    rows = torch.randn(1024, 2, dtype=torch.float32)
    torch.manual_seed(0)
    ours, theirs = torchlstm.LSTM(2, 1024), torch.nn.LSTM(2, 1024)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        packed = torch.nn.utils.rnn.PackedSequence(rows, torch.tensor([1024, 0]))
        with torchlstm.use_engine("cpu"):
            module(packed)[0].data.sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3, msg=name)


def test_single_values() -> None:
    for wrong_one in (5, None, torch.zeros(3).data_ptr(), "text"):
        with pytest.raises(TypeError, match=r"huge\(tensor\): expected a tensor on the CPU, got"):
            kernel.huge(wrong_one)
        for scratch in ("forward_scratch", "backward_scratch"):
            with pytest.raises(TypeError, match=rf"{scratch}\(sizes\): expected what the call sizes returned, got"):
                getattr(kernel, scratch)(wrong_one)
    with pytest.raises(ValueError, match=r"huge\(tensor\): expected a contiguous tensor"):
        kernel.huge(torch.zeros(4, 3).t())
    kernel.huge(torch.empty(3 << 20))
    with pytest.raises(ValueError, match=r"isa\(wanted\): expected an int from 0 to 4, got 5"):
        kernel.isa(5)
    with pytest.raises(TypeError, match=r"isa\(wanted\)"):
        kernel.isa(torch.tensor(1))


def test_parameters_and_tensors_that_require_grad_are_read() -> None:
    fields = forward_fields()
    fields["w_ih"] = tuple(torch.nn.Parameter(w) for w in fields["w_ih"])
    fields["x"].requires_grad_()
    kernel.forward(**fields)
    assert not (fields["y"] == 777).any()
