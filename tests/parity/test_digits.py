"""Rounding errors: how they compare with nn.LSTM's, and that the figure tells."""

import math
from typing import Any

import pytest
import torch

import torchlstm
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Engine, only_if_asked
from torchlstm.engines.cpu import engine as cpu
from torchlstm.parity import Ratio, digits
from torchlstm.parity.digits import _summary, shapes
from torchlstm.parity.report import digits_line

NAMES = {
    *("output", "h_n", "c_n", "grad input", "grad h_0", "grad c_0", "grad weight_ih_l0", "grad weight_hh_l0"),
    *("grad bias_ih_l0", "grad bias_hh_l0", "grad weight_hr_l0"),
}


@pytest.mark.skipif(torchlstm.engines()["cpu"] is not None, reason="no cpu engine")
@pytest.mark.parametrize("isa", ["portable", "avx2", "best"])
def test_the_cpu_engine_rounds_no_more_than_torch(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_isa", isa)
    found = digits("cpu")
    assert set(found) == NAMES
    for name, ratio in found.items():
        # Measured: 0.7 to 1.0, of weight_hr 1.1; with one chain along K 1.1 to 1.3, of weight_hr 1.5.
        assert ratio.mean <= (1.2 if "weight_hr" in name else 1.1), name
        # Of the portable set and h_n 1.50 on an Intel Xeon: there nn.LSTM's own errors are others.
        assert ratio.high <= 1.65, name


def test_a_lost_digit_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def rough(*arguments: Any) -> tuple[torch.Tensor, ...]:
        y, h_n, c_n = ENGINES["reference"].layer(*arguments)
        return y * (1 + 1e-6), h_n, c_n

    monkeypatch.setitem(ENGINES, "rough", Engine("rough", rough, automatic=only_if_asked))
    found = digits("rough")
    assert found["output"].mean > 2
    assert found["c_n"].mean < 1.2


def test_summary() -> None:
    assert _summary([0.5, 1.0, 2.0]) == (pytest.approx(1), 2)
    assert _summary([float(k) for k in range(1, 11)]) == (pytest.approx(math.factorial(10) ** 0.1), 9)


def test_shapes_are_the_same_at_every_call() -> None:
    assert list(shapes()) == list(shapes())
    assert {case.options.get("proj_size", 0) > 0 for case in shapes()} == {False, True}


def test_line() -> None:
    text = digits_line({"output": Ratio(0.876, 1.123), "h_n": Ratio(1, 2)})
    assert text.endswith(": output 0.88 / 1.12, h_n 1.00 / 2.00")
