"""Lengths, resets and jagged input, compiled and exported: the plan is one operator, its sizes known when it runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

import torchlstm

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"engine 'cpu': {reason}", allow_module_level=True)

T, B, F, H = 6, 3, 2, 4


@pytest.fixture(autouse=True)
def compilers_start_anew() -> None:
    torch.compiler.reset()


def observe(call: Any, module: torchlstm.LSTM, x: Tensor, *rest: Any) -> list[Tensor]:
    """Results, and the gradients of the input and all parameters."""
    x = x.clone().requires_grad_()
    output, (h_n, c_n) = call(x, *rest)
    loss = output.square().sum() + (h_n * 3).sum() + c_n.sum()
    return [output, h_n, c_n, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=["plain", "most"]
)
@pytest.mark.parametrize("given", ["lengths", "list", "resets", "both", "state"])
def test_one_graph(options: dict[str, Any], given: str) -> None:
    torch.manual_seed(1)
    module = torchlstm.LSTM(F, H, **options)
    shape = (B, T) if module.batch_first else (T, B)
    x = torch.randn(*shape, F)
    lengths = {"lengths": torch.tensor([2, T, 0]), "list": [2, T, 0], "both": torch.tensor([2, T, 0])}.get(given)
    resets = None if given in ("lengths", "list") else torch.rand(shape) < 0.3
    count = module.num_layers * (1 + module.bidirectional)
    state = (torch.randn(count, B, H), torch.randn(count, B, H)) if given == "state" else None

    def call(x: Tensor, lengths: Any, resets: Any, state: Any) -> Any:
        return module(x, state, lengths=lengths, resets=resets, reset_state=state)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = (observe(run, module, x, lengths, resets, state) for run in (compiled, call))
    torch.testing.assert_close(found, expected)


def test_no_recompilation_for_other_sizes() -> None:
    module = torchlstm.LSTM(F, H, 2)
    compiled = torch.compile(
        lambda x, lengths, resets: module(x, lengths=lengths, resets=resets),
        fullgraph=True,
        dynamic=True,
        backend="eager",
    )

    def run(steps: int, batch: int) -> None:
        x, lengths = torch.randn(steps, batch, F), torch.randint(0, steps + 1, (batch,))
        resets = torch.rand(steps, batch) < 0.2
        torch.testing.assert_close(compiled(x, lengths, resets)[0], module(x, lengths=lengths, resets=resets)[0])

    run(5, 3)
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, batch in ((9, 3), (30, 4), (17, 7)):
            run(steps, batch)


def test_what_a_compiler_cannot_see_is_checked_at_run_time() -> None:
    module, x = torchlstm.LSTM(F, H), torch.randn(T, B, F)
    compiled = torch.compile(lambda lengths: module(x, lengths=lengths)[0], fullgraph=True, backend="aot_eager")
    compiled(torch.tensor([1, 2, 3]))
    with pytest.raises(
        RuntimeError, match="Expected lengths from 0 to 6, the steps of the input, got 7 for sequence 1"
    ):
        compiled(torch.tensor([1, 7, 3]))


def test_exported_with_dynamic_time_and_batch() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torchlstm.LSTM(F, H, bidirectional=True)

        def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
            return self.lstm(x, lengths=lengths, resets=resets)[0]

    model, time, batch = Model(), torch.export.Dim("time"), torch.export.Dim("batch")
    example = (torch.randn(T, B, F), torch.tensor([2, T, 0]), torch.rand(T, B) < 0.3)
    dynamic = ({0: time, 1: batch}, {0: batch}, {0: time, 1: batch})
    program = torch.export.export(model, example, dynamic_shapes=dynamic)
    other = (torch.randn(9, 5, F), torch.tensor([9, 0, 1, 4, 2]), torch.rand(9, 5) < 0.3)
    for arguments in (example, other):
        torch.testing.assert_close(program.module()(*arguments), model(*arguments))


def test_operator_by_torchs_own_checks() -> None:
    lengths, resets = torch.tensor([2, T, 0]), torch.rand(T, B) < 0.3
    for given in ((lengths, None), (None, resets), (lengths, resets)):
        torch.library.opcheck(
            torch.ops.torchlstm.cut.default,
            (*given, T, B, B, 1, torch.device("cpu")),
            test_utils=("test_schema", "test_faketensor"),
        )


# Dynamo's own, where it looks at a nested tensor that is no leaf.
looked_at = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def jagged_of(values: Tensor, lengths: list[int]) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, *lengths]).cumsum(0))


@looked_at
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor scripts its own rules
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_jagged_in_one_graph(given: bool, backend: str) -> None:
    """Forward and backward, output and input combined; other lengths and numbers of sequences need no other graph."""
    torch.manual_seed(1)
    module = torchlstm.LSTM(F, H, 2, bidirectional=True, proj_size=1)  # as many features out as in

    def call(input: Tensor, hx: Any) -> Any:
        output, state = module(input, hx)
        return output * input, state

    def run(call: Any, values: Tensor, lengths: list[int], hx: Any) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (values, *(hx or ()))]
        input = jagged_of(leaves[0], lengths)
        output, (h_n, c_n) = call(input, tuple(leaves[1:]) or None)
        assert output.shape[:2] == input.shape[:2]
        loss = output.values().square().sum() + (h_n * 3).sum() + c_n.sum()
        return [output.values(), h_n, c_n, *torch.autograd.grad(loss, [*leaves, *module.parameters()])]

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for index, lengths in enumerate(([3, 0, 5, 2, 1], [4, 4, 4], [2, 7, 1, 1, 3, 2, 2])):
        hx = (torch.randn(4, len(lengths), 1), torch.randn(4, len(lengths), H)) if given else None
        values = torch.randn(sum(lengths), F)
        with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
            found = run(compiled, values, lengths, hx)
        torch.testing.assert_close(found, run(call, values, lengths, hx))


def test_jagged_and_padded_in_one_graph() -> None:
    """The longest sequence stays known: what pads the output inside of a graph has nothing else to go by."""
    module = torchlstm.LSTM(F, H)
    input = torch.nested.nested_tensor([torch.randn(n, F) for n in (2, 5, 3)], layout=torch.jagged)

    def call(input: Tensor) -> Tensor:
        return module(input)[0].to_padded_tensor(0.0)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert compiled(input).shape == (3, 5, H)
    torch.testing.assert_close(compiled(input), call(input))


def test_jagged_offsets_are_checked_at_run_time() -> None:
    module = torchlstm.LSTM(F, H)
    compiled = torch.compile(lambda input: module(input)[0].values(), fullgraph=True, backend="aot_eager")
    values = torch.randn(6, F)
    compiled(torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 6])))
    with pytest.raises(RuntimeError, match=r"within its 6 rows, got offsets \[0, 5, 4\]"):
        compiled(torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 5, 4])))


@looked_at
def test_jagged_with_holes_runs_outside_of_a_graph() -> None:
    module = torchlstm.LSTM(F, H)
    lengths = torch.tensor([3, 2, 4])
    input = torch.nested.narrow(torch.randn(3, 6, F), 1, torch.tensor([0, 1, 2]), lengths, layout=torch.jagged)

    def call(input: Tensor) -> Tensor:
        return module(input)[1][0]

    torch.testing.assert_close(torch.compile(call, backend="aot_eager")(input), call(input))
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="takes no jagged input with holes"):
        torch.compile(call, fullgraph=True, backend="aot_eager")(input)


def test_jagged_operator_by_torchs_own_checks() -> None:
    torch.library.opcheck(
        torch.ops.torchlstm.cut_jagged.default,
        (torch.tensor([0, 2, 2, 6]), 6, torch.device("cpu")),
        test_utils=("test_schema", "test_faketensor"),
    )
