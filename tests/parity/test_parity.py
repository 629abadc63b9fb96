"""Every parity case on every engine of this installation: outputs and all gradients against nn.LSTM."""

import pytest
import torch

import torchlstm
from torchlstm.parity import CASES, Case, run_case

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case(case: Case, engine: str) -> None:
    result = run_case(case, engine=engine)
    if result.skipped:
        pytest.skip(result.skipped)
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_runs_the_common_cases(engine: str) -> None:
    """A refusal is a skip above: here an engine that refuses everything fails."""
    for name in ("float32-dense", "float32-packed", "cell-float32", "float32-everything-dense"):
        assert run_case(CASES[name], engine=engine).skipped is None


def test_the_table_is_wide() -> None:
    assert len(CASES) >= 60
    assert {case.dtype for case in CASES.values()} >= {torch.float16, torch.bfloat16, torch.float32, torch.complex64}


def test_first_example_of_the_readme() -> None:
    """The numbers that everybody who compares nn.LSTM with a hand-written one starts from."""
    torch.manual_seed(666)
    input, h, c = torch.randn(2, 1, 3), torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    lstm = torchlstm.LSTM(
        input_size=3, hidden_size=4, num_layers=1, bias=True, batch_first=False, dropout=0, bidirectional=False
    )
    output, (h_n, c_n) = lstm(input, (h, c))
    expected = torch.tensor([[[0.1933, -0.0371, 0.1991, -0.4055]], [[0.2121, -0.0874, 0.0834, -0.1616]]])
    torch.testing.assert_close(output, expected, atol=5e-5, rtol=0)
    torch.testing.assert_close(h_n, expected[1:], atol=5e-5, rtol=0)
    torch.testing.assert_close(c_n, torch.tensor([[[0.5562, -0.1607, 0.2118, -0.3740]]]), atol=5e-5, rtol=0)
