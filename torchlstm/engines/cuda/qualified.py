"""Automatic choice of the CUDA engine: the loop that a record of this GPU says is right and faster, or why none.

A record is read once a process, when the engine is first asked about a GPU: a call looks into tables in memory.  The
choice depends on a problem's form, B and T alone, so that a forward and its backward, and all ranks of a process group,
run the same.
"""

import json
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ..contract import Problem
from ..shared import torch_private
from ..shared.access import DIRECT
from .classes import LOOPS, Decisions, Form, Interval, Point, class_of, form_of, intervals, least_steps
from .device import gpu_of
from .identity import digest, identity_of
from .launch import INTERPRETED
from .records import Measured, Record, decide, find, together

# Switches records off: nothing is then chosen automatically.
VARIABLE = "TORCHLSTM_QUALIFIED"
COMMAND = "torchlstm qualify"
# The key in a process group's store under which the first rank publishes its decisions.
_STORED = "torchlstm/qualified"


class Standing(NamedTuple):
    """What automatic choice is based on for a GPU.

    decisions  of the classes that were right
    classes    all that was measured
    ignored    files that are no records of this GPU and this process, with the reasons
    nothing    why nothing can be chosen, or None
    """

    decisions: Decisions
    classes: dict[str, tuple[Measured, ...]]
    records: tuple[Record, ...] = ()
    ignored: tuple[str, ...] = ()
    nothing: str | None = None


# By the index of a GPU: the records' standing, and what the ranks of the process group `_group_of[0]` have agreed on.
_standings: dict[int | None, Standing] = {}
_agreed: dict[int | None, Standing] = {}
_group_of: list[Any] = [None]
_tables: dict[tuple[Any, ...], tuple[Interval, ...]] = {}
# The loop of each kind of call so far, or why there is none; cleared when there are too many.
_answers: dict[tuple[Any, ...], tuple[str | None, str]] = {}
_MOST = 4096
_warned: set[str] = set()


def reload() -> None:
    """Forget what was read: the next call reads records anew."""
    for known in (_standings, _agreed, _tables, _answers, _warned):
        known.clear()


def automatic(problem: Problem, tf32: bool) -> Problem | str:
    """As `contract.Engine.automatic`.

    tf32  whether products of float32 may round their operands to TF32
    """
    if torch_private.is_exporting():
        return "but is not chosen in an exported program, which may run elsewhere"
    if problem.access.transformed or (torch.compiler.is_compiling() and _transforms()):
        return "but is not chosen inside a transform of torch.func, where the size of the batch is not known"
    if problem.access is not DIRECT:
        # T and B may be symbols, which cannot be looked up.
        return problem._replace(loop=loop) if (loop := _loop(problem, tf32)) else "but no record chooses it here"
    _follow_group()
    key = (type(problem.rows), problem.rows.steps, problem[1:9], problem.trace, problem.checkpoint_every,
           problem.reverse, tf32)  # fmt: skip
    if (known := _answers.get(key)) is None:
        if len(_answers) >= _MOST:
            _answers.clear()
        known = _answers[key] = (_loop(problem, tf32), "")
        if known[0] is None:
            known = _answers[key] = (None, _why_not(problem, tf32))
    loop, why = known
    return problem._replace(loop=loop) if loop else why


@torch_private.constant
def _transforms() -> bool:
    """Whether what is compiled is inside a transform of torch.func."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _loop(problem: Problem, tf32: bool) -> str | None:
    """The loop that is chosen for a problem, or None."""
    parts = list(parts_of(problem, tf32))
    for loop in LOOPS:
        if all(_allowed(loop, form, problem, steps) for form, steps in parts):
            return loop
    return None


def parts_of(problem: Problem, tf32: bool) -> Iterator[tuple[Form, Any]]:
    """What a problem is run as: forms, and from how many steps on they have to be fast; None: they need not be.

    Chunks of steps run each direction alone, and may leave a chunk of one step.
    """
    form, steps, every = form_of(problem, tf32), problem.rows.steps, problem.checkpoint_every
    if every is None:
        yield form, steps
        return
    for direction in range(problem.directions):
        alone = form._replace(directions=1, reverse=problem.reverse or direction == 1)
        if every == 1 or steps == 1:
            yield alone._replace(single=True), 1
            continue
        yield alone, min(steps, every)
        if steps > every and steps % every == 1:
            yield alone._replace(single=True), None


def _allowed(loop: str, form: Form, problem: Problem, steps: Any) -> bool:
    # One step is the same program in either loop.
    wanted = "steps" if form.single else loop
    for run, few, many, least in _table(problem.device.index, *form):
        # Under a compiler B and T may be symbols: what they are compared with becomes a condition of the program.
        if run == wanted and few <= problem.batch and problem.batch <= many and (steps is None or steps >= least):
            return True
    return False


@torch_private.constant
def _table(index: int | None, *fields: Any) -> tuple[Interval, ...]:
    """What is chosen for problems of a form on a GPU."""
    group = _follow_group()
    key = (index, fields)
    if (known := _tables.get(key)) is None:
        decisions = _basis(index).decisions
        known = _tables[key] = intervals(decisions, Form(*fields), gpu_of(index), cooperate=group is None)
    return known


def _follow_group() -> Any:
    """The process group, or None; what was decided beside another one is forgotten."""
    group = _group()
    if group is not _group_of[0]:
        _group_of[0] = group
        for known in (_agreed, _tables, _answers):
            known.clear()
    return group


def _basis(index: int | None) -> Standing:
    """What the choice on a GPU is based on: its records, or what the ranks agreed on; warns once if it has none."""
    own = standing_of(index)
    if not own.records and not INTERPRETED and os.environ.get(VARIABLE) != "0":
        text = f"the CUDA engine is not chosen on cuda:{index}: no record says that it is right and faster there; "
        text += f"run `{COMMAND}` once, or set {VARIABLE}=0 to hear no more of it"
        _warn(f"{text} ({len(own.ignored)} ignored: {own.ignored[0]})" if own.ignored else text)
    if _group_of[0] is None:
        return own
    if index not in _agreed:
        _agreed[index] = _agree(index)
    return _agreed[index]


def standing_of(index: int | None) -> Standing:
    """What the records say of a GPU, read once."""
    if index in _standings:
        return _standings[index]
    standing = Standing({}, {}, nothing=f"records are switched off ({VARIABLE}=0)")
    if os.environ.get(VARIABLE) != "0":
        try:
            records, ignored = find(identity_of(index))
        except Exception as error:  # whatever a folder, a driver or an installation can be like: no call fails for it
            records, ignored = [], [f"records cannot be read: {type(error).__name__}: {error}"]
        classes = together(records)
        why = None if records else f"there is no record of it: run `{COMMAND}`"
        standing = Standing(decide(classes), classes, tuple(records), tuple(ignored), why)
    _standings[index] = standing
    return standing


def _group() -> Any:
    """The process group of all ranks, or None where there is one process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
        return None
    return distributed.group.WORLD


def _agree(index: int | None) -> Standing:
    """Publish this rank's decisions, or take those that another rank has published first; no rank waits for another."""
    own = standing_of(index)
    try:
        mine = {"identity": digest(identity_of(index)), "decisions": own.decisions}
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        theirs = json.loads(store.compare_set(_STORED, "", json.dumps(mine)))
        decisions = {name: tuple(Point(*point) for point in points) for name, points in theirs["decisions"].items()}
    except Exception as error:  # stores differ, and may be gone: no call fails for it
        why = f"the ranks could not agree on it ({type(error).__name__})"
        _warn(f"the CUDA engine is not chosen: {why}: {error}")
        return own._replace(decisions={}, nothing=why)
    if theirs["identity"] != mine["identity"]:
        why = "the rank that decided first runs on another GPU or other software"
        _warn(f"the CUDA engine is not chosen on this rank: {why}")
        return own._replace(decisions={}, nothing=why)
    if own.nothing and os.environ.get(VARIABLE) == "0":
        return own
    nothing = None if decisions else "the rank that decided first has no record that chooses it"
    return own._replace(decisions=decisions, nothing=nothing)


def _warn(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(f"torchlstm: {text}", stacklevel=2)


def _why_not(problem: Problem, tf32: bool) -> str:
    """The clause that says why a problem is not chosen."""
    index, parts = problem.device.index, list(parts_of(problem, tf32))
    standing = _basis(index)
    if standing.nothing:
        return f"but is not chosen: {standing.nothing}"
    # Of several parts, one that no loop is chosen for; else each loop lacks another one.
    missing = [part for part in parts if not any(_allowed(loop, part[0], problem, part[1]) for loop in LOOPS)]
    form, steps = (missing or parts)[0]
    return f"but is not chosen: {_of_classes(standing, index, problem.batch, form, steps)}"


def _of_classes(standing: Standing, index: int | None, batch: int, form: Form, steps: Any) -> str:
    """What a record says of the classes that a form may be run by."""
    told = {}
    for loop in LOOPS:
        kind = class_of(form, batch, loop, gpu_of(index))
        if kind.loop == loop:
            together_alone = kind.cooperates and _group_of[0] is not None
            told[loop] = (
                "its programs wait for each other, which they may not beside other ranks' communication"
                if together_alone
                else _of_class(standing, str(kind), form.hidden, batch, steps)
            )
    return "; ".join(f"{loop}: {why}" for loop, why in told.items())


def _of_class(standing: Standing, name: str, hidden: int, batch: int, steps: Any) -> str:
    rows = standing.classes.get(name, ())
    points = standing.decisions.get(name, ())
    for row in rows:
        if row.reason is not None:
            return f"at H={row.hidden} B={row.batch}, {row.reason}"
    if not points:
        return "not measured"
    if (least := least_steps(points, hidden, batch)) is not None:
        return f"T={steps} is below the fewest steps at which it was faster, {least}"
    slow = [point for point in points if point.least is None]
    if any((point.hidden, point.batch) == (hidden, batch) for point in slow) or len(slow) == len(points):
        return "it was not faster than reference"
    sizes = ", ".join(f"H={point.hidden} B={point.batch}" for point in points if point.least is not None)
    return f"H={hidden} B={batch} is not between sizes at which it was faster: {sizes}"
