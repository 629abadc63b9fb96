"""Parity with torch.nn.LSTM: the table of cases, how they are run and judged, and `check` for your own model."""

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
