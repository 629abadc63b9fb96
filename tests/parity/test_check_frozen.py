"""`torchlstm.parity.check(model, ..., freeze=...)`: a frozen copy beside the model."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm
from torchlstm.parity import check


class Model(nn.Module):
    """An LSTM of torch.nn with dropout, one of ours, a subclass, a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(8, 64, 2, dropout=0.4)
        self.cell = torchlstm.LSTMCell(64, 5)
        self.lazy = torchlstm.LazyLSTM(5)

    def forward(self, x: Tensor, *, scale: float) -> dict[str, Any]:
        output, (h_n, _) = self.lstm(x * scale)
        return {"cell": self.cell(output[-1])[0], "h_n": h_n, "count": 3}


@pytest.mark.parametrize("weights", [None, torch.float16, torch.int8], ids=str)
def test_report(weights: Any) -> None:
    model = Model()
    before = copy.deepcopy(model.lstm.state_dict())
    report = check(model, torch.randn(7, 3, 8), scale=0.5, freeze=weights)
    assert [d.name for d in report.differences] == ["output['cell']", "output['h_n']"]
    assert report.frozen == ["lstm", "cell"]
    assert report.left_alone == ["lazy: it is lazy, and becomes an LSTM at its first call: call it first"]
    bound = {None: 1e-6, torch.float16: 1e-3, torch.int8: 2e-2}[weights]
    for difference in report.differences:
        assert 0 <= difference.mean <= difference.largest <= bound
        assert (difference.largest > 1e-6) == (weights is not None)
        assert 0.01 < difference.scale < 1
    ratio = {None: 1.0, torch.float16: 0.5, torch.int8: 0.25}[weights]
    assert report.bytes_after / report.bytes_before == pytest.approx(ratio, rel=0.15)
    lines = str(report).splitlines()
    assert lines[0].split() == ["tensor", "largest", "difference", "mean", "largest", "element"]
    what = "as they are" if weights is None else f"in {weights}"
    assert lines[3] == f"frozen, weights {what}: lstm, cell"
    assert lines[4].startswith("left alone: lazy")
    assert lines[5] == f"weights: {report.bytes_before:,} bytes, frozen {report.bytes_after:,}"
    assert "x as fast" in lines[6]
    # The user's model is as it was.
    assert type(model.lstm) is nn.LSTM
    assert all(torch.equal(value, before[name]) for name, value in model.lstm.state_dict().items())


def test_bits_are_the_same_as_they_are() -> None:
    report = check(torchlstm.LSTM(8, 16), torch.randn(7, 3, 8), freeze=None)
    assert [d.largest for d in report.differences] == [0.0, 0.0, 0.0]


def test_nan_elsewhere_is_no_small_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = torchlstm.FrozenLSTM.forward

    def broken(*args: Any, **keywords: Any) -> Any:
        output, state = forward(*args, **keywords)
        output[0] = math.nan
        return output, state

    monkeypatch.setattr(torchlstm.FrozenLSTM, "forward", broken)
    report = check(nn.LSTM(8, 16), torch.randn(7, 3, 8), freeze=torch.int8)
    assert report.differences[0].largest == math.inf
    assert report.differences[1].largest < 1e-2


def test_nothing_to_freeze() -> None:
    with pytest.raises(ValueError, match="nothing to freeze in Linear: it contains no LSTM"):
        check(nn.Linear(2, 2), torch.randn(3, 2), freeze=None)
    with pytest.raises(
        ValueError, match=r"nothing to freeze in LSTM: .the model itself.: its weights are torch.float64"
    ):
        check(nn.LSTM(2, 2).double(), torch.randn(3, 2).double(), freeze=torch.int8)
    with pytest.raises(ValueError, match="Expected weights to be one of"):
        check(nn.LSTM(2, 2), torch.randn(3, 2), freeze="int8")  # type: ignore[call-overload]
