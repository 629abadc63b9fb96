"""A progress bar, drawn only on a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, label: str, width: int = 30) -> Iterator[Item]:
    """Yield the items, drawing on stderr how many of `total` are done, if stderr is a terminal."""
    terminal = sys.stderr.isatty()
    start = time.monotonic()

    def draw(done: int) -> None:
        if terminal:
            bar = "#" * (width * done // max(total, 1))
            seconds = time.monotonic() - start
            sys.stderr.write(f"\r\033[K{label} [{bar:<{width}}] {done}/{total}  {seconds:.0f} s")
            sys.stderr.flush()

    draw(0)
    for done, item in enumerate(items):
        draw(done)
        yield item
    if terminal:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
