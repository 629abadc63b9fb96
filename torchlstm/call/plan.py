"""The plan of a call: all that its signature determines, in one value, or the error that torch.nn raises for it.

The signature is what is known of a call without the numbers in its tensors: types, dtypes, devices and shapes of the
arguments, the module's options, autocast.  A plan contains nothing of the weights.  Plans of eager calls are cached.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..engines.contract import Dense, Problem, stacked
from ..engines.shared.torch_private import is_any_autocast_enabled
from . import checks
from .jagged import is_jagged
from .precision import Precision, autocast_dtype, autocast_precision


class Form(Enum):
    """The form of the input, which is also that of the output."""

    TIME_MAJOR = "(T, B, I)"
    BATCH_FIRST = "(B, T, I)"
    UNBATCHED = "(T, I)"
    PACKED = "a PackedSequence"
    JAGGED = "a nested tensor of jagged layout, (B, j, I)"
    STEP = "of a cell, (B, I)"
    UNBATCHED_STEP = "of a cell, (I,)"


# One direction of one layer: names and expected shapes of w_ih, w_hh, b_ih, b_hh, w_hr; None for a missing one.
Parameters = tuple[tuple[str, tuple[int, ...]] | None, ...]


class Plan(NamedTuple):
    """How a call is computed, from its signature."""

    form: Form
    rows: Dense | None  # T and B; None where they depend on the numbers in a tensor
    states: int  # L*D
    sizes: tuple[int, ...]  # of the states: R, H
    directions: int
    segmented: bool = False  # whether lengths or resets cut the batch into segments
    resets: bool = False
    reset_state: bool = False  # whether one was given
    precision: Precision | None = None  # the dtypes under autocast; None without it
    dropout: float = 0.0  # between layers, in training
    trace: bool = False
    layers: tuple[tuple[Parameters, ...], ...] = ()  # L of D
    problems: tuple[Problem, ...] = ()  # L; where `rows` is None, theirs are placeholders

    @property
    def unbatched(self) -> bool:
        """Whether states have no batch axis."""
        return self.form in (Form.UNBATCHED, Form.UNBATCHED_STEP)


# The cache: plans of eager calls on plain tensors by signature.  When it is full, it is emptied.
_plans: dict[tuple[Any, ...], Plan] = {}
_MOST = 4096


def plan_lstm(
    module: Any,
    input: Tensor | PackedSequence,
    hx: Any,
    lengths: Any = None,
    resets: Any = None,
    reset_state: Any = None,
    trace: bool = False,
) -> Plan:
    """Plan a call of an LSTM, or raise nn.LSTM's error for it, or a clearer error of the same type.

    module  has nn.LSTM's attributes, and `checkpoint_every`
    The other arguments are those of `LSTM.forward`.
    """
    extras = lengths is not None or resets is not None or reset_state is not None
    key = None if extras else _signature(module, input, hx, "weight_ih_l0")
    if key is not None:
        sizes = (module.input_size, module.hidden_size, module.num_layers, module.proj_size)
        options = (module.bias, module.batch_first, module.bidirectional, module.dropout, module.training)
        key = (*key, *sizes, *options, module.checkpoint_every, trace)
        if (known := _plans.get(key)) is not None:
            return known
    checks.check_lstm_call(module, input, hx)
    every = module.checkpoint_every
    checks.check_every(every)
    if extras:
        checks.check_segmented_call(module, input, resets, reset_state)
    packed, jagged = isinstance(input, PackedSequence), is_jagged(input)
    x: Any = input.data if packed else input
    form, rows = _form(x, packed, jagged, module.batch_first)
    directions = 2 if module.bidirectional else 1
    # Without hx the dtype of the reset state counts.
    states = hx if hx is not None else reset_state if resets is not None else None
    c_0, fused = None if states is None else states[1], not packed and not module.proj_size
    precision = autocast_precision(x, c_0, module.proj_size > 0, fused)
    state_sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    first = Problem(
        rows=rows or Dense(0, 0),
        batch=rows.batch if rows else 0,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        proj_size=module.proj_size,
        directions=directions,
        bias=module.bias,
        dtype=x.dtype if precision is None else precision.compute,
        device=x.device,
        trace=trace,
        # A trace keeps every state, so there is nothing to recompute.
        checkpoint_every=None if trace else every,
    )
    plan = Plan(
        form,
        rows,
        module.num_layers * directions,
        state_sizes,
        directions,
        segmented=extras,
        resets=resets is not None,
        reset_state=reset_state is not None,
        precision=precision,
        dropout=module.dropout if module.training and module.num_layers > 1 else 0.0,
        trace=trace,
        layers=parameters_of(suffixes_of(module), module, bool(module.bias), module.proj_size),
        problems=stacked(first, module.num_layers),
    )
    return plan if key is None else _remember(key, plan)


def plan_cell(module: Any, input: Tensor, hx: Any) -> Plan:
    """Plan a call of an LSTMCell, or raise nn.LSTMCell's error for it, or a clearer error of the same type."""
    key = _signature(module, input, hx, "weight_ih")
    if key is not None:
        key = (*key, module.input_size, module.hidden_size, module.bias_ih is None and module.bias_hh is None)
        if (known := _plans.get(key)) is not None:
            return known
    checks.check_cell_call(module, input, hx)
    batched, hidden = input.dim() == 2, module.hidden_size
    bias = module.bias_ih is not None or module.bias_hh is not None
    rows = Dense(1, input.shape[0] if batched else 1)
    precision = autocast_precision(input, None if hx is None else hx[1], projected=False, fused=False)
    problem = Problem(
        rows=rows,
        batch=rows.batch,
        input_size=module.input_size,
        hidden_size=hidden,
        proj_size=0,
        directions=1,
        bias=bias,
        dtype=input.dtype if precision is None else precision.compute,
        device=input.device,
        cell=True,
    )
    plan = Plan(
        Form.STEP if batched else Form.UNBATCHED_STEP,
        rows,
        1,
        (hidden, hidden),
        1,
        precision=precision,
        layers=parameters_of([("",)], module, bias, 0),
        problems=(problem,),
    )
    return plan if key is None else _remember(key, plan)


def plan_stack(module: Any, input: Tensor | PackedSequence, hx: Any) -> Plan:
    """Plan a call of a `CellStack`, or raise an error.  Not cached: the stack's time loop takes far longer."""
    checks.check_stack_call(module, input, hx)
    packed, jagged = isinstance(input, PackedSequence), is_jagged(input)
    x: Any = input.data if packed else input
    form, rows = _form(x, packed, jagged, module.batch_first)
    return Plan(form, rows, module.num_layers * module.directions, module.state_sizes, module.directions)


def _form(x: Tensor, packed: bool, jagged: bool, batch_first: bool) -> tuple[Form, Dense | None]:
    """The form of an input, and its rows where their number is known from the shape.

    x  the input; of a PackedSequence or a jagged tensor its rows
    """
    if packed:
        return Form.PACKED, None
    if jagged:
        return Form.JAGGED, None
    if x.dim() == 2:
        return Form.UNBATCHED, Dense(x.shape[0], 1)
    if batch_first:
        return Form.BATCH_FIRST, Dense(x.shape[1], x.shape[0])
    return Form.TIME_MAJOR, Dense(x.shape[0], x.shape[1])


def _signature(module: Any, input: Any, hx: Any, weight: str) -> tuple[Any, ...] | None:
    """The part of the cache's key that input and states determine, or None for a call whose plan is not cached.

    In a traced or compiled call shapes are not numbers, and arguments of other types than torch's own must be checked.

    weight  the name of the parameter whose dtype the input must have
    """
    if checks.recorded():
        return None
    if type(input) is not Tensor or input.is_nested:
        return None
    try:
        parameter = module._parameters.get(weight)  # a tenth of the time of getattr
    except AttributeError:
        parameter = None
    dtype = (getattr(module, weight) if parameter is None else parameter).dtype
    device = input.device
    cast = autocast_dtype(device) if is_any_autocast_enabled() else None
    of_input = (type(module), input.shape, input.dtype, device, input.layout, dtype, cast)
    if hx is None:
        return of_input
    if type(hx) is not tuple or len(hx) != 2:
        return None
    h, c = hx
    if type(h) is not Tensor or type(c) is not Tensor:
        return None
    return (*of_input, h.shape, h.dtype, h.device, c.shape, c.dtype, c.device)


def _remember(key: tuple[Any, ...], plan: Plan) -> Plan:
    if len(_plans) >= _MOST:
        _plans.clear()
    _plans[key] = plan
    return plan


def suffixes_of(sizes: Any) -> list[tuple[str, ...]]:
    """L of D: what follows "weight_ih" and the like in the names of an LSTM's weights."""
    directions = 2 if sizes.bidirectional else 1
    return [(f"_l{k}", f"_l{k}_reverse")[:directions] for k in range(sizes.num_layers)]


def parameters_of(
    suffixes: Sequence[tuple[str, ...]], sizes: Any, bias: bool, proj: int
) -> tuple[tuple[Parameters, ...], ...]:
    """Names and expected shapes of the weights of every layer and direction.

    suffixes  as `suffixes_of` returns them; [("",)] for a cell
    sizes     has input_size and hidden_size
    """
    gates, hidden = 4 * sizes.hidden_size, sizes.hidden_size
    state = proj or hidden
    layers, features = [], sizes.input_size
    for names in suffixes:
        ways = []
        for name in names:
            biases = (("bias_ih" + name, (gates,)), ("bias_hh" + name, (gates,))) if bias else (None, None)
            matrices = (("weight_ih" + name, (gates, features)), ("weight_hh" + name, (gates, state)))
            ways.append((*matrices, *biases, ("weight_hr" + name, (proj, hidden)) if proj else None))
        layers.append(tuple(ways))
        features = state * len(names)
    return tuple(layers)
