"""OpenMP threads after a fork: the thread that forked has lost its own, and an operation that asks for them hangs."""

import os
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


def count() -> int:
    """How many OpenMP threads the calling thread may ask for: one after a fork, whatever torch is told later."""
    if _forked and _forked == get_ident():
        mend_fork()
        return 1
    return torch.get_num_threads()
