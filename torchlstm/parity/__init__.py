"""Parity with torch.nn.LSTM: the case table, how it is run and judged, and `check` for a user's own model."""

from .cases import CASES, Case
from .check import Report, check
from .digits import Ratio, digits
from .frozen import FrozenReport
from .judge import Verdict, judge
from .run import Result, run_case, select

__all__ = [
    "CASES",
    "Case",
    "FrozenReport",
    "Ratio",
    "Report",
    "Result",
    "Verdict",
    "check",
    "digits",
    "judge",
    "run_case",
    "select",
]
