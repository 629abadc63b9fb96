"""How a failure is reported: why a peer does not run a workload, and an error in one line."""


class Unfit(Exception):
    """A peer cannot be compared on a workload; the message says why, and goes into the table."""


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, for a cell or a note of a table."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:120]}"
