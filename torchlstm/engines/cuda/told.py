"""What users are told about records: which one chose a call, what is in them, and where nn.LSTM was faster."""

import time
from collections.abc import Iterator

from ..contract import Problem
from .classes import LOOPS, Form, class_of
from .device import GPU, gpu_of
from .qualified import COMMAND, Standing, automatic, parts_of, standing_of
from .records import Record, decide

# The dtypes that are named if nothing was tried of them.
_USUAL = ("float32-tf32", "bfloat16", "float16")


def credit(problem: Problem, tf32: bool) -> str:
    """The clause about a problem that is chosen: by which loop and record; "" of a problem that is not."""
    chosen = automatic(problem, tf32)
    if isinstance(chosen, str):
        return ""
    form, _ = next(parts_of(problem, tf32))
    name = str(
        class_of(form, problem.batch, "steps" if form.single else chosen.loop or "", gpu_of(problem.device.index))
    )
    records = [record for record in standing_of(problem.device.index).records if name in record.classes]
    where = f"record {records[0].path} of {_age(records[0])}" if records else "the rank that decided first"
    return f"by its {chosen.loop} loop: qualified, {where}"


def _age(record: Record) -> str:
    days = max(0.0, time.time() - record.written) / 86400
    return f"{time.strftime('%Y-%m-%d', time.localtime(record.written))} ({days:.0f} days old)"


def described(index: int | None) -> list[str]:
    """What `torchlstm info` says of a GPU's records: which, how old, what is in them, why others are ignored."""
    standing = standing_of(index)
    lines = [f"none: {standing.nothing}"] if standing.nothing else []
    for record in standing.records:
        faster = right = 0
        for points in decide(record.classes).values():
            faster += any(point.least is not None for point in points)
            right += bool(points)
        count = len(record.classes)
        told = f"{faster} of {count} classes qualify, {right - faster} right but not faster, {count - right} wrong"
        lines.append(f"{record.path}, {_age(record)}: {told}")
        for name, rows in record.classes.items():
            lines += [f"  wrong: {name}, H={row.hidden} B={row.batch}: {row.reason}" for row in rows if row.reason]
    missing = [dtype for dtype in _USUAL if not any(name.startswith(f"{dtype} ") for name in standing.decisions)]
    if standing.records and missing:
        lines.append(f"nothing of {', '.join(missing)}: run `{COMMAND} --dtype ..`")
    return [*lines, *(f"ignored: {why}" for why in standing.ignored)]


def rival(index: int | None, form: Form) -> str | None:
    """Where a record says that nn.LSTM was faster on a GPU than what automatic choice takes there, or None.

    form  of dense batches; B and T are those at which most would be lost
    """
    worst: tuple[float, str] | None = None
    standing = standing_of(index)
    batches = {row.batch for rows in standing.classes.values() for row in rows if row.hidden == form.hidden}
    for batch in sorted(batches):
        for row in _chosen_rows(standing, form, batch, gpu_of(index)):
            ours, theirs = row["chosen"], row["nn"]
            told = f"nn.LSTM was faster at B={batch}, T={row['steps']:.0f}: {theirs:.1f} us a step, ours {ours:.1f}"
            if theirs < ours and (worst is None or ours / theirs > worst[0]):
                worst = ours / theirs, told
    return None if worst is None else worst[1]


def _chosen_rows(standing: Standing, form: Form, batch: int, gpu: GPU) -> Iterator[dict[str, float]]:
    """The times of the loop that is chosen at a size that was measured, or of reference where none is."""
    for loop in LOOPS:
        name = str(class_of(form, batch, loop, gpu))
        for row in standing.classes.get(name, ()):
            if (row.hidden, row.batch) != (form.hidden, batch) or not row.speed:
                continue
            good = name in standing.decisions and row.least is not None
            if good or loop == LOOPS[-1]:
                for each in row.speed:
                    taken = good and row.least is not None and each["steps"] >= row.least
                    yield {**each, "chosen": each["ours"] if taken else each["reference"]}
            if good:
                return
