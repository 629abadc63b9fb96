"""Counts what a function calls: what a time would say where no time can be asserted."""

import sys
from types import FrameType, FunctionType
from typing import Any


def calls_within(function: Any, *arguments: Any) -> list[str]:
    """The functions, of Python and of C, that a function of Python calls itself."""
    assert isinstance(function, FunctionType)
    code, found = function.__code__, list[str]()

    def note(frame: FrameType, event: str, what: Any) -> None:
        if event == "c_call" and frame.f_code is code:
            found.append(what.__name__)
        elif event == "call" and frame.f_back is not None and frame.f_back.f_code is code:
            found.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return found
