"""What `torchlstm qualify` tries: the classes of the selected problems on this GPU, and their sizes."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import torch

from ..engines.cuda.classes import LOOPS, Class, Form, class_of
from ..engines.cuda.device import GPU

Size = tuple[int, int]  # H, B

# Common sizes; sizes between two of one class count too.  A size takes tens of seconds on a GPU (seen on an H200), so
# other sizes must be selected: --hidden, --batch, --for.
_HIDDEN = (32, 64, 128, 256, 512, 1024)
_BATCH = (1, 16, 64)
DTYPES = ("float32", "float32-strict", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Asked:
    """The selected problems: every combination of these.

    dtypes      of `DTYPES`; float32 has products in TF32, as torch allows for an LSTM, float32-strict does not
    checkpoint  also with `checkpoint_every`, which runs each direction alone
    """

    hidden: tuple[int, ...]
    batch: tuple[int, ...]
    dtypes: tuple[str, ...]
    directions: tuple[int, ...] = (1,)
    forms: tuple[str, ...] = ("dense",)
    projected: tuple[bool, ...] = (False,)
    trace: bool = False
    checkpoint: bool = False


class Job(NamedTuple):
    """A class and the sizes at which a child process tries it.

    quick    fewer repeats and fewer T
    compile  compile its kernels and run nothing
    """

    kind: Class
    sizes: tuple[Size, ...]
    device: str
    quick: bool
    compile: bool = False

    def plain(self) -> dict[str, Any]:
        """The job as plain data, for JSON."""
        return {**self._asdict(), "kind": self.kind._asdict()}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Job":
        """The inverse of `plain`."""
        sizes = tuple((hidden, batch) for hidden, batch in plain["sizes"])
        return cls(Class(**plain["kind"]), sizes, plain["device"], plain["quick"], plain["compile"])


def everything(interpreted: bool, quick: bool) -> Asked:
    """The default selection, on a GPU or in Triton's interpreter."""
    if interpreted:
        dtypes = ("float32", "bfloat16") if quick else DTYPES
        return Asked((8, 16), (1, 4), dtypes, (1,) if quick else (1, 2), ("dense", "ragged"))
    if quick:
        return Asked((64, 128, 256, 512), (1, 16), ("float32", "bfloat16"))
    return Asked(_HIDDEN, _BATCH, ("float32", "bfloat16", "float16"), (1,), ("dense", "ragged"))


def jobs_of(asked: Iterable[Asked], gpu: GPU, device: str, quick: bool) -> list[Job]:
    """The classes of the selected problems with their sizes; those without waiting programs come first."""
    found: dict[Class, set[Size]] = {}
    for each in asked:
        for form, batch in _forms(each):
            for loop in LOOPS:
                found.setdefault(class_of(form, batch, loop, gpu), set()).add((form.hidden, batch))
    order = sorted(found, key=lambda kind: (kind.cooperates, str(kind)))
    return [Job(kind, _thinned(kind, sorted(found[kind])), device, quick) for kind in order]


def _thinned(kind: Class, sizes: list[Size]) -> tuple[Size, ...]:
    """The step loop runs all sizes alike, so only the outermost sizes and one between them are tried."""
    if kind.loop != "steps":
        return tuple(sizes)
    hiddens, batches = sorted({h for h, _ in sizes}), sorted({b for _, b in sizes})
    keep = {hiddens[0], hiddens[len(hiddens) // 2], hiddens[-1]}
    return tuple((h, b) for h, b in sizes if h in keep and b in (batches[0], batches[-1]))


def _forms(asked: Asked) -> Iterable[tuple[Form, int]]:
    ways: list[tuple[int, bool]] = [(directions, False) for directions in asked.directions]
    if asked.checkpoint:
        ways = [(1, False), *([(1, True)] if 2 in asked.directions else [])]
    for dtype, hidden, batch, way, form, projected in product(
        asked.dtypes, asked.hidden, asked.batch, ways, asked.forms, asked.projected
    ):
        ragged = form == "ragged"
        # A batch of one sequence is dense.
        size = max(batch, 2) if ragged else batch
        kind: torch.dtype = getattr(torch, dtype.removesuffix("-strict"))
        yield Form(kind, dtype == "float32", hidden, *way, projected, ragged, asked.trace), size


def without(jobs: Sequence[Job], known: dict[str, set[Size]]) -> list[Job]:
    """The jobs without the known sizes."""
    left = [job._replace(sizes=tuple(s for s in job.sizes if s not in known.get(str(job.kind), ()))) for job in jobs]
    return [job for job in left if job.sizes]


def as_json(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """The selection as plain data."""
    return [asdict(each) for each in asked]
