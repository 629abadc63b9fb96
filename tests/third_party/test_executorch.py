"""ExecuTorch compiles and runs a decomposed program: unrolled, and as a scan with dynamic time."""

import warnings
from typing import Any

import pytest
import torch

import torchlstm

pytest.importorskip("executorch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's code
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 3},
}


def check(module: torchlstm.LSTM, program: torch.export.ExportedProgram, *steps: int) -> None:
    """ExecuTorch's numbers for so many steps are the module's."""
    loaded = Runtime.get().load_program(to_edge(program).to_executorch().buffer)
    method = loaded.load_method("forward")
    for each in steps:
        x = torch.randn(each, 3, 2)
        output, (h_n, c_n) = module(x)
        torch.testing.assert_close(method.execute([x]), [output, h_n, c_n])


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_length(options: dict[str, Any]) -> None:
    module, x = torchlstm.LSTM(2, 4, **options).eval(), torch.randn(5, 3, 2)
    program = torch.export.export(module, (x,))
    check(module, program.run_decompositions(torchlstm.export.decompositions()), 5)
    with torchlstm.use_engine("reference"):
        check(module, torch.export.export(module, (x,)), 5)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_length(options: dict[str, Any]) -> None:
    module, steps = torchlstm.LSTM(2, 4, **options).eval(), torch.export.Dim("steps", min=2, max=50)
    program = torch.export.export(module, (torch.randn(5, 3, 2),), dynamic_shapes={"input": {0: steps}})
    check(module, program.run_decompositions(torchlstm.export.decompositions()), 5, 9, 50)
