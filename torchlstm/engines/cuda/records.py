"""Records of which classes of the CUDA engine's programs were right and how fast: JSON files, one for each identity.

`torchlstm qualify` writes them, automatic choice reads them: the user's own, in a cache folder, and those that a
release may bring in torchlstm/qualified.  What cannot be read, or was made on something else, is ignored with a reason.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .classes import Decisions, Point
from .identity import Identity, difference, digest

SCHEMA = 1
# What a release brings.
SHIPPED = Path(__file__).parents[2] / "qualified"
# Seconds to wait for another process that writes the same record: writing takes milliseconds.
_PATIENCE = 10.0


class Measured(NamedTuple):
    """What was found of a class at one size.

    reason  why it does not qualify: what went wrong; None: it was right
    least   the fewest steps from which on it was faster than `reference`; 1 where speed was not asked; None: at none
    speed   for each number of steps: "steps", and in microseconds a step of a training "ours", "reference" and "nn",
            and "low", the low percentile of reference's time over ours that has to be above a bound
    """

    hidden: int
    batch: int
    reason: str | None
    least: int | None
    speed: tuple[dict[str, float], ...] = ()


class Record(NamedTuple):
    """A record that holds here: where it is, when it was last written (seconds since 1970), what was measured."""

    path: Path
    written: float
    classes: dict[str, tuple[Measured, ...]]


class Unusable(Exception):
    """A file is no record, or none that holds here; the reason is its text."""


def folder() -> Path:
    """Where the user's own records are: $TORCHLSTM_CACHE/qualified, or the same in the platform's cache folder."""
    if chosen := os.environ.get("TORCHLSTM_CACHE"):
        return Path(chosen) / "qualified"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "torchlstm" / "qualified"


def path_of(identity: Identity, place: Path | None = None) -> Path:
    """The file of an identity's record, the user's own unless another folder is given."""
    return (place or folder()) / f"{digest(identity)}.json"


def read(path: Path, identity: Identity) -> Record:
    """The record in a file.

    Raises FileNotFoundError, and Unusable with the reason why what is there is no record of this identity.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unusable(f"it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Unusable("it is damaged: no JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise Unusable("it is damaged: no record")
    if content.get("schema") != SCHEMA:
        raise Unusable(f"its form is {content.get('schema')}, and this torchlstm reads {SCHEMA}")
    if different := difference(content["identity"], identity):
        raise Unusable(f"it was made on something else: {different}")
    try:
        classes = {str(name): tuple(map(_measured, rows)) for name, rows in content["classes"].items()}
        return Record(path, float(content["written"]), classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"it is damaged: {type(error).__name__}, {error}") from None


def _measured(row: Any) -> Measured:
    hidden, batch, reason, least = row["H"], row["B"], row["reason"], row["least"]
    for number in (hidden, batch, *([] if least is None else [least])):
        if type(number) is not int or number < 1:
            raise ValueError(f"{number!r} is no size")
    if not (reason is None or isinstance(reason, str)):
        raise TypeError(f"{reason!r} is no reason")
    speed = tuple({str(name): float(value) for name, value in each.items()} for each in row["speed"])
    return Measured(hidden, batch, reason, least, speed)


def _row(found: Measured) -> dict[str, Any]:
    row = {"H": found.hidden, "B": found.batch, "reason": found.reason, "least": found.least, "speed": found.speed}
    # For people who read the file.
    unmeasured = found.least is not None and not found.speed
    return {**row, "note": "chosen without a measurement of speed"} if unmeasured else row


def find(identity: Identity) -> tuple[list[Record], list[str]]:
    """The records of an identity, the user's own first, and why others that are there are none of it."""
    records, ignored = [], []
    for place in (folder(), SHIPPED):
        try:
            paths = sorted(place.glob("*.json"))
        except OSError:
            continue
        for path in paths:
            try:
                records.append(read(path, identity))
            except FileNotFoundError:
                continue  # gone in the meantime
            except Unusable as why:
                ignored.append(f"{path}: {why}")
    return records, ignored


def together(records: Sequence[Record]) -> dict[str, tuple[Measured, ...]]:
    """What several records say of each class: the first that has it."""
    found: dict[str, tuple[Measured, ...]] = {}
    for record in records:
        found = {**record.classes, **found}
    return found


def decide(classes: dict[str, tuple[Measured, ...]]) -> Decisions:
    """What measurements come down to: a class that was wrong anywhere is chosen nowhere."""
    return {
        name: tuple(Point(row.hidden, row.batch, row.least) for row in rows)
        for name, rows in classes.items()
        if all(row.reason is None for row in rows)
    }


def merge(identity: Identity, found: dict[str, Sequence[Measured]]) -> Path:
    """Write measurements into the user's record, into what may be there by now; returns its path.

    The same sizes are replaced.  Raises OSError where the record cannot be written; it is then as it was.
    """
    path = path_of(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        try:
            classes = dict(read(path, identity).classes)
        except (FileNotFoundError, Unusable):
            classes = {}
        for name, rows in found.items():
            known = {(row.hidden, row.batch): row for row in (*classes.get(name, ()), *rows)}
            classes[name] = tuple(known[size] for size in sorted(known))
        content = {
            "schema": SCHEMA,
            "identity": identity,
            "written": time.time(),
            "classes": {name: [_row(row) for row in rows] for name, rows in classes.items()},
        }
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file that one process at a time can hold; the system lets it go if the process ends."""
    with path.open("a+b") as file:
        end = time.monotonic() + _PATIENCE
        while not _lock(file.fileno()):
            if time.monotonic() > end:
                raise TimeoutError(None, f"another process has held it for {_PATIENCE:.0f} s", str(path))
            time.sleep(0.01)
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
