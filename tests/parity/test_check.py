"""`torchlstm.parity.check` on models of a user's own."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import torchlstm
from torchlstm.parity import check


class Model(nn.Module):
    """Dropout, a dictionary as output, an integer input, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 6, 2, dropout=0.4, bidirectional=True)
        self.cell = nn.LSTMCell(12, 5)
        self.dropout = nn.Dropout(0.3)

    def forward(self, tokens: Tensor, *, scale: Tensor) -> dict[str, Any]:
        output, (h_n, _) = self.lstm(self.embedding(tokens) * scale)
        return {"cell": self.cell(self.dropout(output[-1])), "h_n": h_n, "tokens": tokens}


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_report_names_every_output_and_gradient() -> None:
    torch.manual_seed(1)  # of one draw in a hundred, terms cancel in the gradient of the scale
    tokens, scale = torch.randint(0, 11, (7, 3)), torch.tensor(0.5)
    original = model()
    before = copy.deepcopy(original.state_dict())
    report = check(original, tokens, scale=scale)
    assert report.passed
    assert report
    names = [verdict.name for verdict in report.verdicts]
    assert names[:3] == ["output['cell'][0]", "output['cell'][1]", "output['h_n']"]
    assert "grad input[1]['scale']" in names
    assert {f"grad {name}" for name, _ in original.named_parameters()} <= set(names)
    assert report.swapped == ["lstm", "cell"]
    text = str(report)
    assert "the models agree" in text
    assert "forward and backward: torch.nn" in text
    # The user's model is as it was.
    assert type(original.lstm) is nn.LSTM
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert all(parameter.grad is None for parameter in original.parameters())
    assert scale.grad is None


def test_bare_lstm_with_packed_input_and_state() -> None:
    packed = pack_sequence([torch.randn(4, 3), torch.randn(6, 3)], enforce_sorted=False)
    state = (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    report = check(nn.LSTM(3, 5), packed, state)
    assert report.passed, str(report)
    assert report.swapped == [""]
    names = {verdict.name for verdict in report.verdicts}
    assert {"output[0].data", "output[1][0]", "output[1][1]", "grad input[0][1][0]", "grad weight_hh_l0"} <= names


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    report = check(nn.LSTM(16, 16, 2, dtype=dtype), torch.randn(12, 4, 16, dtype=dtype))
    assert report.passed, str(report)


def test_a_model_that_is_swapped_already() -> None:
    swapped = torchlstm.swap(model())
    assert check(swapped, torch.randint(0, 11, (7, 3)), scale=torch.tensor(1.0)).passed
    assert type(swapped.lstm) is torchlstm.LSTM


def test_subclasses_are_listed() -> None:
    class Mine(nn.LSTM):
        pass

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.mine = nn.LSTM(3, 4), Mine(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mine(self.plain(x)[0])[0]

    report = check(Both(), torch.randn(5, 2, 3))
    assert report.passed
    assert report.swapped == ["plain"]
    assert "Mine is a subclass" in str(report)


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match=r"nothing to swap in Linear: it contains no nn\.LSTM"):
        check(nn.Linear(2, 2), torch.randn(2, 2))

    class Mine(nn.LSTM):
        pass

    with pytest.raises(ValueError, match=r"nothing to swap in Mine: .* is a subclass"):
        check(Mine(2, 2), torch.randn(2, 2))

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(2, 2)

        def forward(self, x: Tensor) -> int:
            return len(self.lstm(x))

    with pytest.raises(ValueError, match="Counts returned no floating tensor to compare, but int"):
        check(Counts(), torch.randn(2, 2))


def test_frozen_model_and_inference_only_output() -> None:
    frozen = nn.LSTM(3, 4).requires_grad_(False)
    report = check(frozen, torch.randn(5, 2, 3))
    assert report.passed
    assert not any("weight" in verdict.name for verdict in report.verdicts)
