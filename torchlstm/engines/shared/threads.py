"""How many threads a kernel may ask for: torch's number, less where a cgroup grants less; after a fork one."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from threading import get_ident

import torch
from torch.compiler import is_compiling

# The thread that forked, in its child, and whether it still has to be held to one OpenMP thread; 0 if there is none.
# Each thread has OpenMP threads of its own: those that the child starts find theirs alive.
_forked, _pending = 0, False


def _after_fork() -> None:
    global _forked, _pending
    _forked, _pending = get_ident(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def mend_fork() -> None:
    """Hold the calling thread to one OpenMP thread, by `torch.set_num_threads`, at its first call after it forked.

    It is for the operations of torch around a kernel, those of the backward and of the optimizer: all that touch more
    than 32,768 elements ask for threads.  Not in the hook itself: a child that computes no LSTM is left as it is.
    """
    global _pending
    # A compiler takes its own question as a constant, and guards nothing; the operators ask again when they run.
    if is_compiling() or not _pending or _forked != get_ident():
        return
    _pending = False
    torch.set_num_threads(1)


def _quotas(root: Path) -> Iterator[float]:
    """The processors that each cgroup above this process grants it, in versions 2 and 1, mounted as usual."""
    files: tuple[str, ...]
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mounts, files = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), ("cpu.max",)
        elif "cpu" in controllers.split(","):
            mounts, files = (
                ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"),
                ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
            )
        else:
            continue
        # In a container the path may be the host's, and only the root is mounted.
        groups = [PurePosixPath(path), *PurePosixPath(path).parents]
        for folder in (root / mount / group.relative_to("/") for mount in mounts for group in groups):
            try:
                words = " ".join((folder / file).read_text(encoding="utf-8") for file in files).split()
            except OSError:
                continue
            if words[0] not in ("max", "-1"):
                yield int(words[0]) / int(words[1])


@cache
def quota(root: Path = Path("/")) -> int | None:
    """How many processors' time the cgroups grant this process, rounded down but at least one; None without a limit.

    Read once: files that are read in every call would cost more than a small layer.
    """
    try:
        return max(1, int(min(_quotas(root))))
    except (OSError, ValueError, LookupError, ZeroDivisionError):  # no Linux, no limit, or files of another kind
        return None


def count() -> int:
    """How many threads the calling thread may ask for: one after a fork, whatever torch is told later.

    Which processors the process may use is not asked here: the kernel asks OpenMP.
    """
    if _forked and _forked == get_ident():
        mend_fork()
        return 1
    threads, most = torch.get_num_threads(), quota()
    return threads if most is None or threads <= most else most
