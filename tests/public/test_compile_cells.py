"""torch.compile of stacks: the whole in one graph, or every cell by itself."""

from typing import Any

import pytest
import torch
from own_cells import Split
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import torchlstm
from torchlstm import cells

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),  # Inductor scripts rules of its own
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # Dynamo looks at a cell's state, no leaf
    pytest.mark.usefixtures("one_thread"),
]

KINDS: dict[str, Any] = {
    "own": lambda **options: torchlstm.stack_cells(Split, 3, 4, **options),
    "layer-norm": lambda **options: torchlstm.LayerNormLSTM(3, 4, **options),
    "zoneout": lambda **options: cells.ZoneoutLSTM(3, 4, **options),
    "variational": lambda **options: cells.VariationalLSTM(3, 4, **options),
}


def observe(run: Any, module: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    output, states = run(x)
    results = [output, *states]
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(t.shape, generator=generator) for t in results]
    return results + list(torch.autograd.grad(results, [x, *module.parameters()], cotangents))


@pytest.mark.parametrize("name", KINDS)
def test_one_graph(name: str) -> None:
    """Without Inductor, which compiles every step anew."""
    torch._dynamo.reset()
    stack = KINDS[name](num_layers=2, bidirectional=True)
    x = torch.randn(4, 2, 3, requires_grad=True)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(observe(compiled, stack, x), observe(stack, stack, x))


def test_cells_compiled_one_by_one() -> None:
    """`cell.compile()`: one small graph, whatever T and the form of the input."""
    torch._dynamo.reset()
    stack = torchlstm.LayerNormLSTM(3, 4)
    x = torch.randn(4, 2, 3, requires_grad=True)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 3]))
    expected, ragged = observe(stack, stack, x), stack(packed)
    for cell in stack.cells:
        cell.compile(backend="aot_eager")
    torch.testing.assert_close(observe(stack, stack, x), expected)
    torch.testing.assert_close(stack(packed)[0].data, ragged[0].data)
    torch.testing.assert_close(stack(packed)[1], ragged[1])
