"""The harness bites: engines that are wrong in one small way are caught."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchlstm import engines as engine_list
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Dense, Engine, Problem, Ragged, Weights, only_if_asked
from torchlstm.engines.reference import engine as reference
from torchlstm.parity import CASES, check, run_case

Result = tuple[Tensor, Tensor, Tensor]


def _honest(*arguments: Any) -> Result:
    return reference.layer(*arguments)


def _swap_gates(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
    """Input and forget gate exchanged, in the reverse direction only."""
    last = tuple(
        weight if weight is None or index == 4 else torch.cat([weight.chunk(4)[k] for k in (1, 0, 2, 3)])
        for index, weight in enumerate(weights[-1])
    )
    return _honest(problem, x, h, c, (*weights[:-1], last))


def _ignore_dc(*arguments: Any) -> Result:
    y, h_n, c_n = _honest(*arguments)
    return y, h_n, c_n.detach() + 0 * c_n


def _ignore_dh(*arguments: Any) -> Result:
    y, h_n, c_n = _honest(*arguments)
    return y, h_n.detach() + 0 * h_n, c_n


def _off(*arguments: Any) -> Result:
    y, h_n, c_n = _honest(*arguments)
    return y, h_n + 1e-5, c_n


def _swap_ragged_rows(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
    """Two sequences of a ragged batch exchanged at the first step."""
    if isinstance(problem.rows, Ragged):
        x = torch.cat([x[:2].flip(0), x[2:]])
    return _honest(problem, x, h, c, weights)


def _freeze_short_rows(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
    """The final state of sequences that end early lost."""
    y, h_n, c_n = _honest(problem, x, h, c, weights)
    if isinstance(problem.rows, Ragged):
        h_n = torch.cat([h_n[:, : int(problem.rows.batch_sizes[-1])], h[:, int(problem.rows.batch_sizes[-1]) :]], dim=1)
    return y, h_n, c_n


def _forget_initial_c(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
    return _honest(problem, x, h, torch.zeros_like(c) + 0 * c, weights)


def _leak(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
    """A NaN in one sequence reaches the others."""
    y, h_n, c_n = _honest(problem, x, h, c, weights)
    return y + 0 * y.sum(), h_n, c_n


def _no_bias(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
    """One of the two biases dropped from the gradient."""
    detached = [(w[0], w[1], w[2], None if w[3] is None else w[3].detach(), w[4]) for w in weights]
    return _honest(problem, x, h, c, tuple(detached))


MUTANTS: dict[str, tuple[Callable[..., Result], str]] = {
    "gates-swapped-in-reverse": (_swap_gates, "float32-everything-dense"),
    "final-dc-ignored": (_ignore_dc, "float32-dense"),
    "final-dh-ignored": (_ignore_dh, "float32-dense"),
    "h_n-off-by-1e-5": (_off, "float32-dense"),
    "ragged-rows-swapped": (_swap_ragged_rows, "float32-packed"),
    "short-rows-lose-their-state": (_freeze_short_rows, "float32-packed"),
    "initial-c-forgotten": (_forget_initial_c, "float32-dense"),
    "nan-leaks": (_leak, "nan-in-one-row"),
    "bias-gradient-missing": (_no_bias, "float64-dense"),
}


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Result]], None]:
    def install(layer: Callable[..., Result]) -> None:
        monkeypatch.setitem(ENGINES, "mutant", Engine("mutant", layer, automatic=only_if_asked))

    return install


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, mutate: Callable[..., None]) -> None:
    layer, case = MUTANTS[name]
    mutate(layer)
    result = run_case(CASES[case], engine="mutant")
    assert result.skipped is None
    assert not result.passed


@pytest.mark.parametrize("case", sorted({case for _, case in MUTANTS.values()}))
def test_the_unmutated_engine_passes(case: str, mutate: Callable[..., None]) -> None:
    mutate(_honest)
    assert "mutant" in engine_list()
    assert run_case(CASES[case], engine="mutant").passed


def test_dropout_mask_of_its_own_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask has to be nn.LSTM's, not just any: drawing once more before it shows."""

    def drawn_late(x: Tensor, p: float, training: bool) -> Tensor:
        torch.rand(1)
        return nn.functional.dropout(x, p, training)

    monkeypatch.setattr("torchlstm.call.stack.torch.dropout", drawn_late)
    # nn.LSTM draws inside its operator, out of reach of the patch.
    assert not run_case(CASES["dropout-0.3-dense"]).passed


@pytest.mark.parametrize("name", ["gates-swapped-in-reverse", "h_n-off-by-1e-5", "final-dc-ignored"])
def test_check_of_a_model_catches_a_mutant(name: str, mutate: Callable[..., None]) -> None:
    import torchlstm

    mutate(MUTANTS[name][0])
    torch.manual_seed(0)
    model, input = nn.LSTM(5, 6, bidirectional=True), torch.randn(7, 3, 5)
    assert check(model, input).passed
    with torchlstm.use_engine("mutant"):
        report = check(model, input)
    assert not report.passed
    assert "DIFFER" in str(report)


def test_a_missing_gradient_is_caught(mutate: Callable[..., None]) -> None:
    def severed(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
        return _honest(problem, x.detach(), h, c, weights)

    mutate(severed)
    result = run_case(CASES["float32-dense"], engine="mutant")
    assert [verdict.name for verdict in result.verdicts if verdict.reason] == ["grad input"]


def test_dense_rows_reach_an_engine_as_dense(mutate: Callable[..., None]) -> None:
    """Packed input whose sequences are equally long is a dense problem."""
    seen: list[type] = []

    def spy(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Weights, ...]) -> Result:
        seen.append(type(problem.rows))
        return _honest(problem, x, h, c, weights)

    mutate(spy)
    for case in ("equal-hx-given", "packed-hx-given"):
        run_case(CASES[case], engine="mutant")
    assert seen == [Dense, Dense, Ragged, Ragged]
