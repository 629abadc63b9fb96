"""The command `torchlstm qualify`: arguments, order of work, exit codes."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import torch

from .. import __version__
from ..engines.cuda import engine as cuda
from ..engines.cuda.device import GPU
from ..engines.cuda.identity import Identity
from ..engines.cuda.launch import INTERPRETED
from ..engines.cuda.records import Measured, Unusable, merge, path_of, read
from . import report
from .models import Unreadable, lstms_of
from .probe import probe
from .run import Children, Lost
from .wanted import DTYPES, Asked, Job, as_json, everything, jobs_of, without

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], int, str], Iterator[Item]]

HELP = "try the CUDA engine's kernels on this GPU, and let automatic choice take those that are right and faster"
_DESCRIPTION = f"""{HELP}.

Each class of kernels is tried in a process of its own, with a time limit: outputs and all gradients against
torch.nn.LSTM, NaN and Inf, the same bits again and again, idle and beside other work, two layers on two streams, CUDA
graphs; then the time of a step of ours, of the reference engine and of nn.LSTM.  What is found is written to a record
on this machine, class by class: a run that is stopped goes on where it was.  Nothing is sent anywhere.

In Triton's interpreter (TRITON_INTERPRET=1) no time is taken: what is right is chosen there, and there only.

exit codes: 0 something qualifies, 1 something that ran was wrong, or nothing qualifies, 2 it could not start
"""
_PROBING = 120.0
# Processes that compile at the same time; each needs the compiler's memory and a context on the GPU.
_COMPILERS = 8


class _Stop(Exception):
    """The command cannot continue; the text is for the user."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "qualify", help=HELP, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--for", dest="model", metavar="MODEL.pt", help="the LSTMs in this file: a model or state_dict")
    parser.add_argument("--hidden", metavar="H", type=_size, nargs="+", help="hidden sizes")
    parser.add_argument("--batch", metavar="B", type=_size, nargs="+", help="batch sizes; what lies between counts too")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="float32 has TF32 products, float32-strict has not")
    parser.add_argument("--directions", type=int, choices=(1, 2), nargs="+")
    parser.add_argument("--form", choices=("dense", "ragged"), nargs="+", help="sequences of one length, or of several")
    parser.add_argument("--proj", action="store_true", help="layers with a projection (proj_size)")
    parser.add_argument("--trace", action="store_true", help="LSTM.trace instead of calls")
    parser.add_argument("--checkpoint", action="store_true", help="layers with checkpoint_every")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats; a minute in the interpreter")
    parser.add_argument("--json", metavar="FILE", help="write all that was found here too")
    parser.add_argument("--device", default=None, help="cuda, or cuda:1 (default: the current device)")


def _size(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a size is 1 at least, got {number}")
    return number


def run(arguments: argparse.Namespace, error: Callable[[str], NoReturn], progress: Progress[Any]) -> int:
    """Run the command; returns its exit code.

    error     prints a line and exits with 2
    progress  draws a progress bar: see `command.progress`
    """
    try:
        return _run(arguments, progress)
    except _Stop as why:
        error(str(why))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, progress: Progress[Any]) -> int:
    asked = list(_asked(arguments))
    if arguments.json:
        try:
            open(arguments.json, "a", encoding="utf-8").close()
        except OSError as error:
            raise _Stop(f"cannot write {arguments.json}: {error.strerror}") from None
    device = _device(arguments.device)
    with Children() as children:
        found = _probed(children, device)
        identity: Identity = found["identity"]
        gpu = GPU(**{**found["gpu"], "capability": tuple(found["gpu"]["capability"])})
        _write(identity, {})
        classes = read(path_of(identity), identity).classes
        jobs = jobs_of(asked, gpu, found["device"], arguments.quick)
        known = {name: {(row.hidden, row.batch) for row in rows if not row.reason} for name, rows in classes.items()}
        left = without(jobs, known)
        if found["told"]:
            print(f"note: {found['told']}", flush=True)
        print(f"{gpu.name}: {len(jobs)} classes, {len(left)} of them with sizes still to try", flush=True)
        stopped = False
        try:
            _try(children, left, identity, progress)
        except KeyboardInterrupt:
            stopped = True
    classes = read(path_of(identity), identity).classes
    print("\n".join(report.lines(jobs, classes)))
    good, wrong, slow = report.summary(jobs, classes)
    end = "; interrupted: run it again to go on" if stopped else ""
    print(f"{good} classes qualify, {wrong} wrong, {slow} right but not faster{end}; record: {path_of(identity)}")
    if arguments.json:
        content = {"torchlstm": __version__, "identity": identity, "asked": as_json(asked),
                   "found": report.plain(jobs, classes)}  # fmt: skip
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
    if stopped:
        return 130
    return 0 if good and not wrong else 1


def _asked(arguments: argparse.Namespace) -> Iterator[Asked]:
    """The problems that the arguments select."""
    usual = everything(INTERPRETED, arguments.quick)
    changed: dict[str, Any] = {name: tuple(given) for name, given in (
        ("hidden", arguments.hidden), ("batch", arguments.batch), ("dtypes", arguments.dtype),
        ("directions", arguments.directions), ("forms", arguments.form),
    ) if given}  # fmt: skip
    if arguments.proj:
        changed["projected"] = (True,)
    changed |= {"trace": arguments.trace, "checkpoint": arguments.checkpoint}
    if not arguments.model:
        yield Asked(**{**vars(usual), **changed})
        return
    if arguments.hidden or arguments.dtype or arguments.proj:
        raise _Stop("--for says which sizes, dtypes and projections: leave --hidden, --dtype and --proj out")
    try:
        layers = lstms_of(arguments.model)
    except Unreadable as why:
        raise _Stop(str(why)) from None
    for layer in sorted(layers):
        if layer.dtype not in DTYPES:
            raise _Stop(f"{arguments.model} has an LSTM of {layer.dtype}: the CUDA engine has {', '.join(DTYPES)}")
        its = {"hidden": (layer.hidden,), "dtypes": (layer.dtype,), "directions": (layer.directions,),
               "projected": (layer.projected,), "checkpoint": layer.checkpoint or arguments.checkpoint}  # fmt: skip
        yield Asked(**{**vars(usual), **changed, **its})


def _device(asked: str | None) -> str:
    if reason := cuda.ENGINE.unavailable():
        hint = "" if torch.cuda.is_available() else "; TRITON_INTERPRET=1 tries the kernels in Triton's interpreter"
        raise _Stop(f"no CUDA device: {reason}{hint}" if hint else reason)
    if INTERPRETED:
        if asked not in (None, "cpu"):
            raise _Stop(f"Triton's interpreter runs on cpu, not on {asked}")
        return "cpu"
    try:
        device = torch.device(asked or "cuda")
    except RuntimeError:
        raise _Stop(f"{asked!r} is no device: cuda, or cuda:0 to cuda:{torch.cuda.device_count() - 1}") from None
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise _Stop(f"{asked} is not one of the {torch.cuda.device_count()} CUDA devices here")
    return str(device)


def _probed(children: Children, device: str) -> dict[str, Any]:
    try:
        found = probe(device) if INTERPRETED else next(children.lines({"probe": device}, _PROBING))
    except (Lost, StopIteration) as why:
        raise _Stop(f"{device} does not answer: {why}") from None
    return _checked(found)


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    if found["refused"]:
        raise _Stop(str(found["refused"]))
    if found["others"]:
        raise _Stop(f"{found['device']} is not free, {found['others']}: times would say nothing; try when it is")
    return found


def _write(identity: Identity, found: dict[str, Sequence[Measured]]) -> None:
    try:
        merge(identity, found)
        read(path_of(identity), identity)
    except (OSError, Unusable) as error:
        why = getattr(error, "strerror", None) or error
        raise _Stop(f"cannot write the record {path_of(identity)}: {why}; set TORCHLSTM_CACHE to a folder") from None


def _try(children: Children, jobs: list[Job], identity: Identity, progress: Progress[Any]) -> None:
    """Compile, then try the classes, and write each to the record when it is done."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not INTERPRETED:
        workers = max(1, min(_COMPILERS, processors // 2))
        compiled = children.side_by_side(children.compiled, jobs, workers)
        for _ in progress(compiled, len(jobs), "compile"):
            pass
    # On a GPU one at a time, since a timed class needs the GPU to itself.
    done = children.side_by_side(children.tried, jobs, min(4, processors) if INTERPRETED else 1)
    for job, rows in progress(done, len(jobs), "qualify"):
        _write(identity, {str(job.kind): rows})
        if sys.stdout.isatty():
            continue
        print(f"{'wrong' if any(row.reason for row in rows) else 'right'}  {job.kind}", flush=True)
