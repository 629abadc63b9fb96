"""Per-sample gradients for opacus of a jagged nested tensor: those of its sequences one by one, in their order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping

import torchlstm
import torchlstm.integrations.opacus

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
LENGTHS = [3, 6, 1, 0, 6]
KINDS: dict[str, Callable[..., Any]] = {
    "hooks": GradSampleModule,
    "ghost": lambda module, **keywords: GradSampleModuleFastGradientClipping(module, max_grad_norm=1.0, **keywords),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_equal_to_a_loop(engine: str, kind: str) -> None:
    torch.manual_seed(0)
    lstm = torchlstm.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(length, 3, dtype=torch.float64) for length in LENGTHS]
    hx = tuple(torch.randn(4, len(LENGTHS), 4, dtype=torch.float64) for _ in range(2))
    expected: dict[str, list[torch.Tensor]] = {name: [] for name, _ in lstm.named_parameters()}
    for k, sequence in enumerate(sequences):
        state = tuple(each[:, k : k + 1] for each in hx)
        output, (h_n, c_n) = lstm(sequence.unsqueeze(1), state, lengths=[len(sequence)])
        loss = output.square().sum() + (h_n * 3).sum() + c_n.square().sum()
        for name, gradient in zip(expected, torch.autograd.grad(loss, list(lstm.parameters())), strict=True):
            expected[name].append(gradient)
    private = KINDS[kind](lstm, batch_first=True, loss_reduction="sum")
    with torchlstm.use_engine(engine):
        output, (h_n, c_n) = private(torch.nested.nested_tensor(sequences, layout=torch.jagged), hx)
        (output.values().square().sum() + (h_n * 3).sum() + c_n.square().sum()).backward()
    for name, weight in lstm.named_parameters():
        each = torch.stack(expected[name])
        if kind == "hooks":
            torch.testing.assert_close(weight.grad_sample, each, msg=name)
        else:
            torch.testing.assert_close(weight._norm_sample, each.flatten(1).norm(dim=1), msg=name)
