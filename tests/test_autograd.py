"""The Functions that kernel engines share, over a kernel written in Python: gradients of every order, in parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import torchlstm
from torchlstm.engines import ENGINES
from torchlstm.engines.autograd import Accumulate, layer_of
from torchlstm.engines.contract import Dense, Engine, Problem, Weights
from torchlstm.parity import CASES, run_case

PART = 3  # steps that the backward hands over at a time


class PythonKernel:
    """The time loop in torch operations, forward and backward, with the bookkeeping of a kernel."""

    def __init__(self) -> None:
        self.forwards: list[bool] = []
        self.backwards = 0

    @staticmethod
    def _steps(problem: Problem, reverse: bool) -> list[slice]:
        """The rows of each step, in the order in which they are run."""
        rows = problem.rows
        sizes = [rows.batch] * rows.steps if isinstance(rows, Dense) else rows.batch_sizes.tolist()
        starts = [sum(sizes[:t]) for t in range(len(sizes))]
        steps = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        return steps[::-1] if reverse else steps

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        self.forwards.append(save)
        h_n, c_n, rows = h_0.clone(), c_0.clone(), x.shape[0]
        size, hidden = h_0.shape[2], c_0.shape[2]
        y = x.new_empty(rows, len(weights) * size)
        acts, before, after = (x.new_empty(len(weights), rows, k * hidden) for k in (4, 1, 1))
        previous = x.new_empty(len(weights), rows, size)
        for d, (w_ih, w_hh, b_ih, b_hh, w_hr) in enumerate(weights):
            for step in self._steps(problem, d == 1):
                n = step.stop - step.start
                gates = x[step] @ w_ih.t() + h_n[d, :n] @ w_hh.t()
                if b_ih is not None and b_hh is not None:
                    gates += b_ih + b_hh
                i, f, g, o = gates.chunk(4, -1)
                act = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1)
                i, f, g, o = act.chunk(4, -1)
                acts[d, step], before[d, step], previous[d, step] = act, c_n[d, :n], h_n[d, :n]
                c_n[d, :n] = f * c_n[d, :n] + i * g
                h = o * c_n[d, :n].tanh()
                h_n[d, :n] = h if w_hr is None else h @ w_hr.t()
                after[d, step] = c_n[d, :n]
                y[step, d * size : (d + 1) * size] = h_n[d, :n]
        return y, h_n, c_n, (acts, before, after, previous) if save else ()

    def backward(
        self,
        problem: Problem,
        saved: tuple[Tensor, ...],
        h_0: Tensor,
        c_0: Tensor,
        weights: tuple[Weights, ...],
        y: Tensor,
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        accumulate: Accumulate,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.backwards += 1
        acts, before, after, previous = saved
        size = h_0.shape[2]
        dh = torch.zeros_like(h_0) if dh_n is None else dh_n.clone()
        dc = torch.zeros_like(c_0) if dc_n is None else dc_n.clone()
        db = acts.new_zeros(len(weights), acts.shape[2])
        for d, (_, w_hh, _, _, w_hr) in enumerate(weights):
            for step in self._steps(problem, d == 1)[::-1]:
                n = step.stop - step.start
                i, f, g, o = acts[d, step].chunk(4, -1)
                tanh_c = after[d, step].tanh()
                dh_t = dh[d, :n].clone()
                if dy is not None:
                    dh_t += dy[step, d * size : (d + 1) * size]
                draw = dh_t if w_hr is None else dh_t @ w_hr
                dc[d, :n] += draw * o * (1 - tanh_c**2)
                slopes = dc[d, :n] * g, dc[d, :n] * before[d, step], dc[d, :n] * i, draw * tanh_c
                dgates = torch.cat([slopes[0] * i * (1 - i), slopes[1] * f * (1 - f), slopes[2] * (1 - g * g),
                                    slopes[3] * o * (1 - o)], -1)  # fmt: skip
                db[d] += dgates.sum(0)
                dh[d, :n], dc[d, :n] = dgates @ w_hh, dc[d, :n] * f
                accumulate(d, step, dgates, previous[d, step], *((None, None) if w_hr is None else (dh_t, o * tanh_c)))
        return dh, dc, db

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        out.copy_(out + left @ right if add else left @ right)

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        return like.new_full(shape, torch.nan)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> PythonKernel:
    """A kernel behind the engine `python`, in force."""
    python = PythonKernel()
    engine = Engine("python", layer_of(python), refuses=lambda problem: problem.wrapped)
    monkeypatch.setattr("torchlstm.dispatch.ENGINES", {"python": engine, "reference": ENGINES["reference"]})
    return python


FLOAT64 = [name for name, case in CASES.items() if case.dtype == torch.float64 and case.autocast is None]


@pytest.mark.parametrize("name", FLOAT64)
def test_parity(name: str, kernel: PythonKernel) -> None:
    result = run_case(CASES[name], engine="python")
    assert result.skipped is None
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]
    assert kernel.forwards


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "projected": {"bidirectional": True, "proj_size": 2, "num_layers": 2},
    "nobias": {"bias": False},
}


def functional(**options: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    torch.manual_seed(0)
    module = torchlstm.LSTM(2, 3, dtype=torch.float64, **options)
    names = [name for name, _ in module.named_parameters()]
    layers = module.num_layers * (1 + module.bidirectional)
    states = [torch.randn(layers, 2, size, dtype=torch.float64) for size in (module.proj_size or 3, 3)]
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    def call(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, state = functional_call(module, dict(zip(names, weights, strict=True)), (x, (h, c)))
        return (output, *state)

    return call, [t.detach().clone().requires_grad_() for t in (x, *states, *module.parameters())]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_gradients(options: dict[str, Any], kernel: PythonKernel) -> None:
    call, arguments = functional(**options)
    assert torch.autograd.gradcheck(call, arguments)
    assert kernel.backwards > 0
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=len(options) > 1)


def test_third_derivative(kernel: PythonKernel) -> None:
    call, arguments = functional()

    def slope(*arguments: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(call(*arguments)[0].pow(2).sum(), arguments[0], create_graph=True)
        return g

    assert torch.autograd.gradgradcheck(slope, arguments, fast_mode=True)


@pytest.mark.parametrize("used", ["output", "h_n", "c_n"])
def test_second_order_of_a_loss_on_one_result(used: str, kernel: PythonKernel) -> None:
    """Cotangents that do not exist count as zero, and have no gradient."""
    index = ["output", "h_n", "c_n"].index(used)
    found = []
    for engine in ("python", "reference"):
        call, arguments = functional()
        with torchlstm.use_engine(engine):
            (slope,) = torch.autograd.grad(call(*arguments)[index].pow(2).sum(), arguments[0], create_graph=True)
            found.append(torch.autograd.grad(slope.pow(2).sum(), arguments, allow_unused=True))
    torch.testing.assert_close(found[0], found[1])


def test_a_batch_of_cotangents(kernel: PythonKernel) -> None:
    """What `jacobian(vectorize=True)` and `is_grads_batched` do: the forward is plain, the backward is under vmap."""
    call, arguments = functional(bidirectional=True)
    output, *_ = call(*arguments)
    rows = torch.randn(5, *output.shape, dtype=torch.float64)
    together = torch.autograd.grad(output, arguments, rows, is_grads_batched=True, retain_graph=True)
    for index, row in enumerate(rows):
        alone = torch.autograd.grad(output, arguments, row, retain_graph=True)
        torch.testing.assert_close([g[index] for g in together], list(alone))
    jacobians = [
        torch.autograd.functional.jacobian(lambda x: call(x, *arguments[1:])[0], arguments[0], vectorize=vectorize)
        for vectorize in (False, True)
    ]
    torch.testing.assert_close(*jacobians)


def test_only_what_is_needed_is_saved_and_computed(kernel: PythonKernel) -> None:
    module = torchlstm.LSTM(2, 3)
    x = torch.randn(4, 2, 2)
    with torch.no_grad():
        module(x)
    module.requires_grad_(False)(x)
    assert kernel.forwards == [False, False]
    module.weight_hh_l0.requires_grad_(True)
    module(x)[0].sum().backward()
    assert kernel.forwards[2:] == [True]
    assert [name for name, parameter in module.named_parameters() if parameter.grad is not None] == ["weight_hh_l0"]


def test_gradients_do_not_share_memory(kernel: PythonKernel) -> None:
    module = torchlstm.LSTM(2, 3)
    module(torch.randn(4, 2, 2))[0].sum().backward()
    assert torch.equal(module.bias_ih_l0.grad, module.bias_hh_l0.grad)
    module.bias_ih_l0.grad.zero_()
    assert module.bias_hh_l0.grad.abs().max() > 0


def test_a_graph_may_run_twice(kernel: PythonKernel) -> None:
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2, requires_grad=True)
    loss = module(x)[0].sum()
    first = torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert kernel.backwards == 2


def test_output_changed_in_place_is_noticed(kernel: PythonKernel) -> None:
    output, _ = torchlstm.LSTM(2, 3)(torch.randn(4, 2, 2))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


class Wrapper(Tensor):
    """A tensor that is more than memory."""


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.func scripts its own rules
def test_tensors_that_are_not_plain_memory_go_elsewhere(kernel: PythonKernel) -> None:
    """Their addresses would be null, or another number's."""
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2)
    expected = module(x)[0]
    assert kernel.forwards
    kernel.forwards.clear()
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    torch.testing.assert_close(vmap(lambda each: module(each)[0])(x[None])[0], expected)
    grad(lambda weights: functional_call(module, weights, (x,))[0].sum())(weights)
    torch.testing.assert_close(torch.compile(module, backend="eager")(x)[0], expected)
    torch.testing.assert_close(module(x.as_subclass(Wrapper))[0].as_subclass(Tensor), expected)
    torch.testing.assert_close(module(torch._neg_view(-x))[0], expected)
    torch.func.jvp(lambda x: module(x)[0], (x,), (x,))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as flops:
        module(x)
    assert flops.get_total_flops() > 0
    assert kernel.forwards == []
    with torchlstm.use_engine("python"), pytest.raises(torchlstm.EngineRefusal, match="a tensor is a Wrapper"):
        module(x.as_subclass(Wrapper))
