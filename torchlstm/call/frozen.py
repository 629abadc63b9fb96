"""A frozen module's call in Python: packed rows, computed from packed weights where a kernel can read them."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..engines.contract import Dense, Problem, Ragged, Rows, Weights, stacked
from ..engines.cpu import frozen
from ..engines.shared import torch_private
from ..engines.shared.access import DIRECT, access_of
from ..engines.shared.operators import _fold, _unfold
from . import dispatch
from .frozen_weights import Store, store_of
from .packing import Packed
from .plan import Form, Plan
from .precision import autocasts
from .stack import Traced, run_stack

NO_GRADIENT = (
    "a frozen LSTM has no gradients: call it under torch.no_grad(), or detach() what goes into it; "
    "to train through it, torchlstm.thaw(model)"
)


class Seen:
    """A frozen module as `plan_lstm` reads it: its parameters are packed, so `Store.like` stands in for them."""

    checkpoint_every = None

    def __init__(self, module: Any, store: Store) -> None:
        self._module, self._parameters = module, {}  # type: ignore[var-annotated]
        self.weight_ih_l0 = self.weight_ih = store.like
        self.bias_ih = self.bias_hh = store.like if store.sizes.bias else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class SeenCell(Seen):
    """As `Seen`, of a cell; a class of its own, since plans are cached by the module's class."""


def check_dtype(owner: str, input: Any, store: Store) -> None:
    """Raise ValueError for an input whose dtype does not fit these weights."""
    data = input.data if isinstance(input, PackedSequence) else input
    expected = store.like.dtype
    if not isinstance(data, Tensor) or data.dtype == expected or (autocasts(data) and autocasts(store.like)):
        return
    raise ValueError(
        f"{owner}: Expected input of {expected}, which weights frozen in {name_of(store)} go with, got {data.dtype}: "
        f"input.to({expected})"
    )


def name_of(store: Store) -> str:
    """The name of the format of frozen weights."""
    return str(store.format or store.like.dtype)


def why_float(store: Store, plan: Plan, dtype: torch.dtype) -> str | None:
    """Why a call computes from the weights as floats although they are frozen; None if a kernel reads them packed.

    dtype  of the arithmetic
    """
    if store.packed is None:
        return f"no kernel here reads weights in {name_of(store)} packed"
    if plan.trace:
        return "a trace has the gates too"
    if plan.dropout:
        return "there is dropout between layers"
    if dtype != store.like.dtype:
        return f"autocast computes in {dtype}"
    if not dispatch.takes_native():
        return "another engine is asked for"
    return None


def compute_dtype(store: Store, plan: Plan) -> torch.dtype:
    """The dtype of the arithmetic of a planned call."""
    return store.like.dtype if plan.precision is None or store.format is not None else plan.precision.compute


def compute(store: Store, plan: Plan, packed: Packed, states: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The results of a planned call on packed rows, as `run_stack` returns them: y (P, D*R), h_n, c_n.

    Under autocast, rounded weights still compute in float32; only the results have autocast's dtype.
    """
    precision, dtype = plan.precision, compute_dtype(store, plan)
    if precision is None:
        return _compute(store, plan, packed, states)
    problems = tuple(each._replace(dtype=dtype) for each in plan.problems)
    plan = plan._replace(precision=None, problems=problems)
    packed, states = packed._replace(data=packed.data.to(dtype)), [state.to(dtype) for state in states]
    with torch.autocast(packed.data.device.type, enabled=False):
        results = _compute(store, plan, packed, states)
    return precision.results(*results)


def trace(
    store: Store, plan: Plan, packed: Packed, states: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Traced]]:
    """As `run_stack` of a plan with a trace, from the weights as floats, without gradients."""
    with torch.no_grad():
        return run_stack(plan, packed, states, store.layers(packed.data.dtype))


def _compute(store: Store, plan: Plan, packed: Packed, states: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x, (h_0, c_0) = packed.data, states
    if torch_private.is_exporting():
        return run_stack(plan, packed, states, _constant_layers(store, x.dtype))[:3]
    if torch.compiler.is_compiling():
        sizes = packed.rows.batch_sizes if isinstance(packed.rows, Ragged) else None
        results = _operator(store.key, x, h_0, c_0, sizes, packed.rows.steps, plan.directions, plan.dropout)
        return results  # type: ignore[no-any-return]
    access = access_of((x, h_0, c_0))
    if access.transformed or access.refusal or torch_private.forward_ad._current_level >= 0:
        # Inside a transform it is unknown whether a gradient is wanted, so it flows as through the float module.
        return run_stack(plan, packed, states, store.layers(x.dtype))[:3]
    call = _Call(store, plan, packed, access is DIRECT)
    if torch.is_grad_enabled() and (x.requires_grad or h_0.requires_grad or c_0.requires_grad):
        results = _Untrainable.apply(call, x, h_0, c_0)  # type: ignore[no-untyped-call]
        return results  # type: ignore[no-any-return]
    return call.run(x, h_0, c_0)


class _Call(NamedTuple):
    """A call outside of compilers and transforms."""

    store: Store
    plan: Plan
    packed: Packed
    direct: bool  # whether a kernel may read the tensors' memory

    def run(self, x: Tensor, h_0: Tensor, c_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From packed weights where a kernel takes them, else from the weights as floats."""
        packed = self.packed._replace(data=x)
        if self.direct and why_float(self.store, self.plan, x.dtype) is None:
            results = _run_rows(self.store.packed, packed.rows, x, h_0, c_0)
            if results is not None:
                return results
        return run_stack(self.plan, packed, (h_0, c_0), self.store.layers(x.dtype))[:3]


def _run_rows(weights: Any, rows: Rows, x: Tensor, h_0: Tensor, c_0: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Run packed rows on the kernel; None if it does not take them."""
    if isinstance(rows, Dense):
        if not rows.steps or not rows.batch:
            return None
        results = frozen.run(weights, x.view(*rows, x.shape[1]), (h_0, c_0), None, False, None)
        if results is None:
            return None
        y, (h_n, c_n) = results
        # Not a view, since autograd would not allow to reshape one in place.
        return torch_private.unsafe_view(y, [x.shape[0], y.shape[2]]), h_n, c_n
    alive, batch = int(rows.batch_sizes[0]), h_0.shape[1]
    given = (h_0, c_0) if alive == batch else (h_0[:, :alive].contiguous(), c_0[:, :alive].contiguous())
    results = frozen.run(weights, PackedSequence(x, rows.batch_sizes), given, None, False, None)
    if results is None:
        return None
    y, (h_n, c_n) = results
    if alive < batch:
        # Sequences without steps, which are last, keep their states.
        h_n, c_n = torch.cat([h_n, h_0[:, alive:]], 1), torch.cat([c_n, c_0[:, alive:]], 1)
    return y.data, h_n, c_n


class _Untrainable(torch.autograd.Function):
    """A call whose results are part of the graph, so that a backward raises instead of silently losing a gradient."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, h_0: Tensor, c_0: Tensor) -> tuple[Tensor, ...]:
        """The results of a call."""
        return call.run(x, h_0, c_0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Raise RuntimeError."""
        raise RuntimeError(NO_GRADIENT)


# In a compiled program a frozen module is one operator for all layers, which finds the weights by their key.
_library = torch.library.Library("torchlstm", "FRAGMENT")
_library.define(
    "frozen(Tensor key, Tensor x, Tensor h_0, Tensor c_0, Tensor? batch_sizes, SymInt steps, int directions, "
    "float dropout) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.nondeterministic_seeded,),
)
# The cotangent is an argument so that a compiler does not move it into the forward.
_library.define("no_gradient(Tensor cotangent, Tensor like) -> Tensor")
_operator: Any = torch.ops.torchlstm.frozen.default
_no_gradient: Any = torch.ops.torchlstm.no_gradient.default


def _run(
    key: Tensor,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    directions: int,
    dropout: float,
) -> tuple[Tensor, ...]:
    store, batch = store_of(int(key)), h_0.shape[1]
    rows: Rows = Dense(steps, batch) if batch_sizes is None else Ragged(batch_sizes)
    sizes = store.sizes
    first = Problem(
        rows=rows,
        batch=batch,
        input_size=sizes.input_size,
        hidden_size=sizes.hidden_size,
        proj_size=sizes.proj_size,
        directions=directions,
        bias=sizes.bias,
        dtype=x.dtype,
        device=x.device,
        cell=store.cell,
    )
    widths = (sizes.proj_size or sizes.hidden_size, sizes.hidden_size)
    dense = rows if isinstance(rows, Dense) else None
    problems = stacked(first, sizes.num_layers)
    plan = Plan(Form.TIME_MAJOR, dense, len(h_0), widths, directions, dropout=dropout, problems=problems)
    results = _Call(store, plan, Packed(x, rows, batch, None), access_of((x, h_0, c_0)) is DIRECT).run(x, h_0, c_0)
    return tuple(result.contiguous() for result in results)


def _run_fake(_: Any, x: Tensor, h_0: Tensor, c_0: Tensor, __: Any, ___: Any, directions: int, ____: Any) -> Any:
    return x.new_empty(x.shape[0], directions * h_0.shape[2]), x.new_empty(h_0.shape), x.new_empty(c_0.shape)


def _run_mapped(info: Any, dims: Any, key: Tensor, *args: Any) -> Any:
    """Under vmap the mapped axis is merged into the batch."""
    count, (*tensors, sizes) = info.batch_size, args[:4]
    folded = [_fold(each, dim, axis, count) for each, dim, axis in zip(tensors, dims[1:4], (0, 1, 1), strict=True)]
    results = _operator(key, *folded, None if sizes is None else sizes * count, *args[4:])
    return tuple(_unfold(each, axis, count) for each, axis in zip(results, (0, 1, 1), strict=True)), (1, 2, 2)


def _refuse(*_: Tensor) -> Tensor:
    raise RuntimeError(NO_GRADIENT)


def _refuse_fake(_: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like)


def _backward(ctx: Any, cotangent: Tensor, *_: Any) -> Any:
    # A compiler always builds the backward, so the error must wait until the backward runs.
    return None, *(_no_gradient(cotangent, like) for like in ctx.saved_tensors), None, None, None, None


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[1:4])


_library.impl("frozen", _run, "CompositeExplicitAutograd")
_library.impl("no_gradient", _refuse, "CompositeExplicitAutograd")
torch.library.register_fake("torchlstm::frozen", _run_fake, lib=_library)
torch.library.register_fake("torchlstm::no_gradient", _refuse_fake, lib=_library)
torch.library.register_vmap("torchlstm::frozen", _run_mapped, lib=_library)
torch.library.register_autograd("torchlstm::frozen", _backward, setup_context=_setup, lib=_library)


# An exported program has the weights as floats, so that it needs no operator of ours.
def _constant_layers(store: Store, dtype: torch.dtype) -> list[tuple[Weights, ...]]:
    """The weights as constants of a program that is being exported, L of D of `Weights`."""
    # Dynamo accepts such a constant only as the result of an operation.
    inner = torch.compiler.is_dynamo_compiling()
    if not inner and store.format is not None and torch.onnx.is_in_onnx_export():
        warnings.warn(
            f"a frozen LSTM is exported to ONNX with float32 weights, as {store.format} has rounded them", stacklevel=2
        )
    made = {} if inner else store.constants()

    def weight(layer: int, direction: int, kind: int) -> Tensor:
        tensor = _constant(store.number, layer, direction, kind).detach() if inner else made[layer, direction, kind]
        return tensor.to(dtype)

    sizes = store.sizes
    there = (True, True, sizes.bias, sizes.bias, sizes.proj_size > 0)
    return [
        tuple(
            tuple(weight(k, d, kind) if there[kind] else None for kind in range(len(there)))  # type: ignore[misc]
            for d in range(2 if sizes.bidirectional else 1)
        )
        for k in range(sizes.num_layers)
    ]


@torch_private.constant
def _constant(number: int, layer: int, direction: int, kind: int) -> Tensor:
    return store_of(number).constants()[layer, direction, kind]
