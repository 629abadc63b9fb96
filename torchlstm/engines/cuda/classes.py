"""Classes of the CUDA engine's programs: which problems are run by the same program, cut up in the same way.

A class is what can be right or wrong as one: the loop, the dtype and its products, the plan's cuts forward and
backward, and what else the kernels are compiled for.  Within a class H and B vary: they are measured at points, and a
problem is inside of what was measured where the four corners of a rectangle of H and B around it were.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch

from ..contract import Dense, Problem
from .device import GPU
from .plan import Slices, Steps, plan, steps

# The loops by preference.
LOOPS = ("fused", "steps")
# Fields of a cut that only count its programs: they follow from H and B.
_COUNTS = ("slices", "tiles")


class Form(NamedTuple):
    """The parts of a problem that decide its class, except B.

    tf32        whether products of float32 may round their operands to TF32; False of other dtypes
    single      one step: every loop is then a step alone
    """

    dtype: torch.dtype
    tf32: bool
    hidden: int
    directions: int
    reverse: bool
    projected: bool
    ragged: bool
    trace: bool
    single: bool = False


class Class(NamedTuple):
    """What is compiled for a problem.

    forward, backward  the plan's cuts, as text
    aligned            H is a multiple of 8: rows begin where 16 bytes can be read at once
    """

    loop: str
    dtype: str
    tf32: bool
    forward: str
    backward: str
    aligned: bool
    directions: int
    reverse: bool
    projected: bool
    ragged: bool
    trace: bool

    @property
    def cooperates(self) -> bool:
        """Whether programs wait for each other, so that all of them must have room at once."""
        return any(cut.startswith(Slices.__name__) for cut in (self.forward, self.backward))

    def __str__(self) -> str:
        """Its name in a record and in tables."""
        precision = "-tf32" * self.tf32
        words = [f"{self.dtype}{precision}", self.loop, "ragged" if self.ragged else "dense"]
        words.append("reverse" if self.reverse else f"D={self.directions}")
        words += ["projected"] * self.projected + ["trace"] * self.trace
        words += [] if self.aligned else ["H%8"]
        return " ".join([*words, *dict.fromkeys((self.forward, self.backward))])


def _text(cut: NamedTuple) -> str:
    fields = ",".join(f"{name}={value}" for name, value in cut._asdict().items() if name not in _COUNTS)
    return f"{type(cut).__name__}({fields})"


def form_of(problem: Problem, tf32: bool) -> Form:
    """The form of a problem without chunks."""
    return Form(
        dtype=problem.dtype,
        tf32=tf32 and problem.dtype == torch.float32,
        hidden=problem.hidden_size,
        directions=problem.directions,
        reverse=problem.reverse,
        projected=problem.proj_size > 0,
        ragged=not isinstance(problem.rows, Dense),
        trace=problem.trace,
        # A branch, not a comparison: a compiler then decides it for a symbolic number of steps.
        single=True if problem.rows.steps == 1 else False,  # noqa: SIM210
    )


def class_of(form: Form, batch: int, loop: str, gpu: GPU) -> Class:
    """The class of problems of a form and so many sequences, run by a loop on a GPU.

    Where "fused" comes down to steps, forward and backward, it is the class of "steps": the programs are the same.
    """
    cuts: list[Any] = [steps(), steps()]
    if loop == "fused":
        rows = Dense(1 if form.single else 2, batch)
        problem = Problem(
            rows, batch, 1, form.hidden, 0, form.directions, True, form.dtype, torch.device("cpu"), reverse=form.reverse
        )
        cuts = [plan(problem, direction, not form.tf32, gpu) for direction in ("forward", "backward")]
    if all(isinstance(cut, Steps) for cut in cuts):
        loop = "steps"
    return Class(
        loop=loop,
        dtype=str(form.dtype).removeprefix("torch."),
        tf32=form.tf32,
        forward=_text(cuts[0]),
        backward=_text(cuts[1]),
        aligned=form.hidden % 8 == 0,
        directions=form.directions,
        reverse=form.reverse,
        projected=form.projected,
        ragged=form.ragged,
        trace=form.trace,
    )


class Point(NamedTuple):
    """A size at which a class was measured and right.

    least  the fewest steps from which on it was faster than the engine that it takes the place of; None: at none
    """

    hidden: int
    batch: int
    least: int | None


# What a record comes down to: the points of the classes that were right, by the classes' names.
Decisions: TypeAlias = Mapping[str, tuple[Point, ...]]


def least_steps(points: Iterable[Point], hidden: int, batch: int) -> int | None:
    """From how many steps on a class is chosen at this size; None: it is not.

    A rectangle of H and B around the size counts whose four corners were measured and faster, and in which no point
    was measured that was not.
    """
    points = tuple(points)
    at = {(point.hidden, point.batch) for point in points if point.least is not None}
    hiddens, batches = sorted({size for size, _ in at}), sorted({count for _, count in at})
    found: list[int] = []
    for low in (size for size in hiddens if size <= hidden):
        for high in (size for size in hiddens if size >= hidden):
            for few in (count for count in batches if count <= batch):
                for many in (count for count in batches if count >= batch):
                    if not {(low, few), (low, many), (high, few), (high, many)} <= at:
                        continue
                    inside = [
                        point.least for point in points if low <= point.hidden <= high and few <= point.batch <= many
                    ]
                    if None not in inside:
                        found.append(max(least for least in inside if least is not None))
    return min(found, default=None)


class Interval(NamedTuple):
    """Problems of one form that a loop is chosen for: so many sequences, from so many steps on."""

    loop: str
    few: int
    many: int
    least: int


def intervals(decisions: Decisions, form: Form, gpu: GPU, cooperate: bool) -> tuple[Interval, ...]:
    """What is chosen for problems of a form, by B and T.

    cooperate  whether programs may wait for each other
    """
    batches = sorted({point.batch for points in decisions.values() for point in points})
    found: list[Interval] = []
    for loop in LOOPS:
        for batch in range(batches[0], batches[-1] + 1) if batches else ():
            kind = class_of(form, batch, loop, gpu)
            if kind.loop != loop or (kind.cooperates and not cooperate):
                continue
            least = least_steps(decisions.get(str(kind), ()), form.hidden, batch)
            if least is None:
                continue
            last = found[-1] if found else None
            if last and (last.loop, last.many, last.least) == (loop, batch - 1, least):
                found[-1] = last._replace(many=batch)
            else:
                found.append(Interval(loop, batch, batch, least))
    return tuple(found)
