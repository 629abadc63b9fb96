"""How many threads a kernel may ask for: torch's number, limited by the cgroup's quota; one after a fork."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from threading import get_ident

import torch
from torch.compiler import is_compiling

# In a forked child: the id of the thread that forked (0 without a fork), and whether it must still be limited to one
# OpenMP thread.  Each thread has its own team of OpenMP threads, so threads that the child starts are not affected.
_forked, _pending = 0, False


def _after_fork() -> None:
    global _forked, _pending
    _forked, _pending = get_ident(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def mend_fork() -> None:
    """Limit the calling thread to one OpenMP thread, by `torch.set_num_threads`, at its first call after it forked.

    This protects torch's operations around a kernel, in the backward and the optimizer: all that touch more than 32,768
    elements ask for threads.  It is not done in the fork's hook, so that a child that computes no LSTM is not changed.
    """
    global _pending
    # Under a compiler this is a constant without a guard; the operators ask again when they run.
    if is_compiling() or not _pending or _forked != get_ident():
        return
    _pending = False
    torch.set_num_threads(1)


def _quotas(root: Path) -> Iterator[float]:
    """The number of processors that each cgroup of this process allows; versions 2 and 1, at their usual mounts."""
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
        # In a container the path may be the host's while only the root is mounted, so parents are tried too.
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
    """The cgroups' CPU quota in processors, rounded down, at least one; None without a limit.

    Read once, since reading the files at every call would cost more than a small layer.
    """
    try:
        return max(1, int(min(_quotas(root))))
    except (OSError, ValueError, LookupError, ZeroDivisionError):  # no Linux, no limit, or files of another kind
        return None


def count() -> int:
    """How many threads the calling thread may ask for; one after it forked, whatever torch's setting becomes.

    The processors that the process may use do not count here: the kernel asks OpenMP for them.
    """
    if _forked and _forked == get_ident():
        mend_fork()
        return 1
    threads, most = torch.get_num_threads(), quota()
    return threads if most is None or threads <= most else most
