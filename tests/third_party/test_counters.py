"""Counters of parameters and operations: told of us, they give the numbers of the same model with nn.LSTM."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import torchlstm

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # thop's, of distutils; fvcore's, of torch.jit
    import fvcore.nn
    import ptflops
    import thop
    import torchinfo
    from deepspeed.profiling.flops_profiler import FlopsProfiler, get_model_profile

    import torchlstm.integrations.deepspeed
    import torchlstm.integrations.fvcore
    import torchlstm.integrations.ptflops
    import torchlstm.integrations.thop

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
STEPS, BATCH = 10, 5

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias": {"bias": False},
    "batch-first": {"batch_first": True},
    "projected": {"proj_size": 5},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "everything": {"num_layers": 3, "dropout": 0.5, "bidirectional": True, "proj_size": 5, "batch_first": True},
}


class Model(nn.Module):
    """An LSTM under a head, whose operations are counted too; packed inside, if asked."""

    def __init__(self, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.packed = packed
        self.lstm = nn.LSTM(8, 16, **options)
        self.head = nn.Linear((options.get("proj_size") or 16) * (1 + options.get("bidirectional", False)), 3)

    def forward(self, x: Tensor) -> Tensor:
        input: Any = x
        if self.packed:
            lengths = torch.tensor([10, 3, 7, 7, 1])
            input = pack_padded_sequence(x, lengths, self.lstm.batch_first, enforce_sorted=False)
        output, _ = self.lstm(input)
        scores: Tensor = self.head(output.data if self.packed else output)
        return scores


class Cell(nn.Module):
    """A loop over a cell."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16, **options)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x:
            state = self.cell(step, state)
        h: Tensor = state[0]
        return h


def by_thop(model: nn.Module, x: Tensor) -> Any:
    return thop.profile(model, (x,), verbose=False)


def by_ptflops(model: nn.Module, x: Tensor, backend: str = "pytorch") -> Any:
    options = {"as_strings": False, "print_per_layer_stat": False, "input_constructor": lambda _: x}
    found = ptflops.get_model_complexity_info(model, tuple(x.shape), backend=backend, **options)
    assert found != (None, None)  # what it gives of an error
    return found


def by_deepspeed(model: nn.Module, x: Tensor) -> Any:
    return get_model_profile(model, args=[x], print_profile=False, as_string=False)


COUNTERS: dict[str, Callable[..., Any]] = {"thop": by_thop, "ptflops": by_ptflops, "deepspeed": by_deepspeed}


def both(count: Callable[..., Any], model: nn.Module, x: Tensor, engine: str = "auto") -> tuple[Any, Any]:
    """Numbers of a model with nn.LSTM, and of the same model swapped."""
    theirs = count(model, x)
    with torchlstm.use_engine(engine):
        return theirs, count(torchlstm.swap(model), x)


def test_the_numbers_by_hand() -> None:
    """So that not both are wrong; ten steps of one sequence, under a head that counts as each library counts it."""
    model, x, parameters = torchlstm.swap(Model()), torch.randn(10, 1, 8), 4 * 16 * (8 + 16 + 2) + 17 * 3
    products, biases = 4 * 16 * (8 + 16), 2 * 4 * 16
    assert by_thop(model, x) == (10 * (products + 4 * 16 + biases + 4 * 16) + 10 * 16 * 3, parameters) == (18400, 1715)
    # ptflops divides by the first axis, DeepSpeed counts multiplications and additions.
    assert by_ptflops(model, x) == (products + 10 * 16 + biases + 17 * 3, parameters) == (1875, 1715)
    deepspeed = 10 * (2 * products - biases + 10 * 16 + biases) + 2 * 10 * 16 * 3
    assert by_deepspeed(model, x) == (deepspeed, 10 * 16 * 3, parameters) == (33280, 480, 1715)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("counter", COUNTERS)
def test_equal_to_the_model_with_nn_lstm(counter: str, name: str, engine: str) -> None:
    theirs, ours = both(COUNTERS[counter], Model(**OPTIONS[name]), torch.randn(BATCH, STEPS, 8), engine)
    assert ours == theirs
    assert ours[-1] == sum(weight.numel() for weight in Model(**OPTIONS[name]).parameters())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("counter", COUNTERS)
def test_the_cell(counter: str, bias: bool, engine: str) -> None:
    theirs, ours = both(COUNTERS[counter], Cell(bias=bias), torch.randn(STEPS, BATCH, 8), engine)
    assert ours == theirs
    assert ours[0] > STEPS * 16 * 24


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_input(name: str) -> None:
    """Of which thop alone has a rule; the other two fail at nn.LSTM too, DeepSpeed without clearing up."""
    x = torch.randn((BATCH, STEPS, 8) if OPTIONS[name].get("batch_first") else (STEPS, BATCH, 8))
    theirs, ours = both(by_thop, Model(packed=True, **OPTIONS[name]), x)
    assert ours == theirs


def test_packed_input_by_ptflops_fails_as_with_nn_lstm(capsys: pytest.CaptureFixture[str]) -> None:
    for model in (Model(packed=True), torchlstm.swap(Model(packed=True))):
        with pytest.raises(AssertionError):
            by_ptflops(model, torch.randn(STEPS, BATCH, 8))
        assert "'PackedSequence' object has no attribute 'shape'" in capsys.readouterr().out


def test_what_is_counted_is_taken_off_again() -> None:
    model, x = torchlstm.swap(Model()), torch.randn(STEPS, BATCH, 8)
    before, expected = set(vars(model.lstm)), model(x)
    for count in COUNTERS.values():
        assert count(model, x) == count(model, x)
        assert not model.lstm._forward_hooks
        assert not model.lstm._forward_pre_hooks
        assert set(vars(model.lstm)) == before
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert torch.mm is torch._C._VariableFunctions.mm


@pytest.mark.parametrize("engine", ENGINES)
def test_deepspeed_around_a_training_step(engine: str) -> None:
    """The profiler as DeepSpeed's engine uses it: started for one step, where a sibling's operations go on counting."""

    def count(model: nn.Module, x: Tensor) -> Any:
        profiler = FlopsProfiler(model)
        found = []
        for _ in range(2):
            profiler.start_profile()
            model(x).sum().backward()
            found.append((profiler.get_total_flops(), profiler.get_total_macs(), profiler.get_total_params()))
            profiler.print_model_profile(detailed=True)
            profiler.end_profile()
        assert found[0] == found[1]
        return found[0]

    with contextlib.redirect_stdout(io.StringIO()):
        theirs, ours = both(count, Model(), torch.randn(STEPS, BATCH, 8), engine)
    assert ours == theirs


INTERPRETED = """
import torch, torchlstm
import test_counters as here
x = torch.randn(4, 2, 8)
for count in (here.by_ptflops, here.by_deepspeed):
    theirs, ours = here.both(count, here.Model(bidirectional=True, proj_size=5), x, "cuda")
    assert ours == theirs, (ours, theirs)
print("equal")
"""


def test_products_of_the_cuda_engine_are_not_counted_twice() -> None:
    """It multiplies by torch.mm, of which ptflops and DeepSpeed count every call; in Triton's interpreter."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("equal\n"), result.stderr


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_operators_by_ptflops(name: str) -> None:
    """Its other backend, against an nn.LSTM that torch takes apart; time-major, or torch adds one bias on its own."""
    options = {**OPTIONS[name], "batch_first": False}
    with torch.backends.mkldnn.flags(enabled=False):
        theirs, ours = both(
            lambda model, x: by_ptflops(model, x, "aten"), Model(**options), torch.randn(BATCH, STEPS, 8)
        )
    assert ours == theirs


def torch_flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_torch_and_fvcore_count_every_product(packed: bool, name: str, engine: str) -> None:
    """Which they do not of nn.LSTM; a row's product with a matrix is a multiply-add for each element of the matrix."""
    options = OPTIONS[name]
    model = torchlstm.swap(Model(packed, **options))
    x = torch.randn((BATCH, STEPS, 8) if options.get("batch_first") else (STEPS, BATCH, 8))
    rows = 10 + 3 + 7 + 7 + 1 if packed else STEPS * BATCH
    expected = rows * sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    with torchlstm.use_engine(engine):
        assert torch_flops(model, x) == 2 * expected
    assert fvcore.nn.FlopCountAnalysis(model, x).total() == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fvcore_of_the_cell_and_of_other_scripted_functions(caplog: pytest.LogCaptureFixture) -> None:
    model = torchlstm.swap(Cell())
    found = fvcore.nn.FlopCountAnalysis(model, torch.randn(STEPS, BATCH, 8))
    assert found.total() == STEPS * BATCH * 4 * 16 * (8 + 16)
    assert not found.unsupported_ops().get("prim::CallFunction")

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = torch.jit.script(scripted)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.function(x)
            return result

    assert fvcore.nn.FlopCountAnalysis(Other(), torch.randn(3, 3)).total() == 0
    assert "Unsupported operator prim::CallFunction encountered 1 time(s)" in caplog.text


def scripted(x: Tensor) -> Tensor:
    return x @ x


@pytest.mark.parametrize("name", OPTIONS)
def test_torchinfo_needs_no_telling(name: str) -> None:
    def count(model: nn.Module, x: Tensor) -> tuple[int, int]:
        found = torchinfo.summary(model, input_data=x, verbose=0)
        return found.total_params, found.total_mult_adds

    theirs, ours = both(count, Model(**OPTIONS[name]), torch.randn(BATCH, STEPS, 8))
    assert ours == theirs
