"""The Functions that kernel engines share, over a kernel written in Python: gradients of every order, in parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map_only

import torchlstm
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Dense, Engine, Problem, Weights
from torchlstm.engines.shared.access import access_of
from torchlstm.engines.shared.autograd import layer_of
from torchlstm.engines.shared.kernel import Accumulate
from torchlstm.parity import CASES, run_case

PART = 3  # steps that the backward hands over at a time


class PythonKernel:
    """The time loop in torch operations, forward and backward, with the bookkeeping of a kernel."""

    name = "python"

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
        acts, after = (x.new_empty(len(weights), rows, k * hidden) for k in (4, 1))
        for d, (w_ih, w_hh, b_ih, b_hh, w_hr) in enumerate(weights):
            for step in self._steps(problem, d == 1 or problem.reverse):
                n = step.stop - step.start
                gates = x[step] @ w_ih.t() + h_n[d, :n] @ w_hh.t()
                if b_ih is not None and b_hh is not None:
                    gates += b_ih + b_hh
                i, f, g, o = gates.chunk(4, -1)
                act = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1)
                i, f, g, o = act.chunk(4, -1)
                acts[d, step] = act
                c_n[d, :n] = f * c_n[d, :n] + i * g
                h = o * c_n[d, :n].tanh()
                h_n[d, :n] = h if w_hr is None else h @ w_hr.t()
                after[d, step] = c_n[d, :n]
                y[step, d * size : (d + 1) * size] = h_n[d, :n]
        return y, h_n, c_n, (acts, after) if save else ()

    def backward(
        self,
        problem: Problem,
        saved: tuple[Tensor, ...],
        h_0: Tensor,
        c_0: Tensor,
        weights: tuple[Weights, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        dacts: Tensor | None,
        dcells: Tensor | None,
        accumulate: Accumulate,
        needs_h_0: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.backwards += 1
        acts, after, *projected_h = saved
        y = (
            projected_h[0]
            if projected_h
            else torch.cat([(a[:, -c.shape[1] :] * c.tanh()) for a, c in zip(acts, after, strict=True)], -1)
        )
        size = h_0.shape[2]
        dh = torch.zeros_like(h_0) if dh_n is None else dh_n.clone()
        dc = torch.zeros_like(c_0) if dc_n is None else dc_n.clone()
        db = acts.new_zeros(len(weights), acts.shape[2])
        for d, (_, w_hh, _, _, w_hr) in enumerate(weights):
            steps = self._steps(problem, d == 1 or problem.reverse)
            for index, step in reversed(list(enumerate(steps))):
                n = step.stop - step.start
                h, c = h_0[d, :n].clone(), c_0[d, :n].clone()
                if index > 0:
                    earlier = steps[index - 1]
                    alive = slice(earlier.start, min(earlier.stop, earlier.start + n))
                    h[: alive.stop - alive.start] = y[alive, d * size : (d + 1) * size]
                    c[: alive.stop - alive.start] = after[d, alive]
                i, f, g, o = acts[d, step].chunk(4, -1)
                tanh_c = after[d, step].tanh()
                dh_t = dh[d, :n].clone()
                if dy is not None:
                    dh_t += dy[step, d * size : (d + 1) * size]
                draw = dh_t if w_hr is None else dh_t @ w_hr
                dc[d, :n] += draw * o * (1 - tanh_c**2)
                dc[d, :n] += 0 if dcells is None else dcells[d, step]
                slopes = [dc[d, :n] * g, dc[d, :n] * c, dc[d, :n] * i, draw * tanh_c]
                if dacts is not None:
                    slopes = [a + b for a, b in zip(slopes, dacts[d, step].chunk(4, -1), strict=True)]
                dgates = torch.cat([slopes[0] * i * (1 - i), slopes[1] * f * (1 - f), slopes[2] * (1 - g * g),
                                    slopes[3] * o * (1 - o)], -1)  # fmt: skip
                db[d] += dgates.sum(0)
                dh[d, :n], dc[d, :n] = dgates @ w_hh, dc[d, :n] * f
                accumulate(d, step, dgates, h, *((None, None) if w_hr is None else (dh_t, o * tanh_c)))
        return dh, dc, db

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        out.copy_(out + left @ right if add else left @ right)

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        return like.new_full(shape, torch.nan)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> PythonKernel:
    """A kernel behind the engine `python`, in force."""
    python = PythonKernel()
    engine = Engine("python", layer_of(python), refuses=lambda problem: problem.access.refusal)
    monkeypatch.setattr("torchlstm.call.dispatch.ENGINES", {"python": engine, "reference": ENGINES["reference"]})
    return python


FLOAT64 = [name for name, case in CASES.items() if case.dtype == torch.float64 and case.autocast is None]


@pytest.mark.parametrize("name", FLOAT64)
def test_parity(name: str, kernel: PythonKernel) -> None:
    result = run_case(CASES[name], engine="python")
    assert result.skipped is None
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]
    assert kernel.forwards


@pytest.mark.parametrize("name", ["L2-bi-proj3-dense", "L2-bi-proj3-unsorted", "zeros-hx-given", "batch-0"])
def test_parity_in_chunks(name: str, kernel: PythonKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchlstm.LSTM, "checkpoint_every", 3)
    result = run_case(CASES[name], engine="python")
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]
    assert len(kernel.forwards) == 2 * 3 * 4  # forward and again, chunks, layers and directions


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


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_per_sample_gradients_are_one_call_of_each_kernel(
    options: dict[str, Any], packed: bool, kernel: PythonKernel
) -> None:
    torch.manual_seed(0)
    module = torchlstm.LSTM(2, 3, dtype=torch.float64, **options)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    layers, sizes = module.num_layers, torch.tensor([2, 2, 1])

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        input = PackedSequence(x, sizes) if packed else x.unsqueeze(1)
        output, (h_n, c_n) = functional_call(module, weights, (input,))
        return (output.data if packed else output).pow(2).sum() + h_n.sum() + c_n.pow(2).sum()

    x = torch.randn(4, 5, 2, dtype=torch.float64)
    together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    assert (len(kernel.forwards), kernel.backwards) == (layers, layers)
    for index, sample in enumerate(x):
        alone = grad(loss)(weights, sample)
        torch.testing.assert_close({name: value[index] for name, value in together.items()}, alone)


def test_transforms_of_transforms(kernel: PythonKernel) -> None:
    module = torchlstm.LSTM(2, 3, dtype=torch.float64)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    x = torch.randn(2, 3, 4, 1, 2, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,))[0].pow(2).sum()

    alone = [[grad(loss)(weights, sample) for sample in row] for row in x]
    twice = vmap(vmap(grad(loss), in_dims=(None, 0)), in_dims=(None, 0))(weights, x)
    total = grad(lambda weights: vmap(lambda row: vmap(lambda each: loss(weights, each))(row).sum())(x).sum())(weights)
    for name in weights:
        expected = torch.stack([torch.stack([gradients[name] for gradients in row]) for row in alone])
        torch.testing.assert_close(twice[name], expected)
        torch.testing.assert_close(total[name], expected.sum((0, 1)))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
def test_second_derivatives_by_torch_func(kernel: PythonKernel) -> None:
    module, x = torchlstm.LSTM(2, 3, dtype=torch.float64), torch.randn(3, 1, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return module(x)[0].pow(2).sum()

    expected = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(loss))(x), expected)


def test_an_ensemble_has_gradients_of_its_own(kernel: PythonKernel) -> None:
    members = [torchlstm.LSTM(2, 3, bidirectional=True) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    x = torch.randn(4, 2, 2)
    found = vmap(grad(lambda weights: functional_call(members[0], weights, (x,))[0].pow(2).sum()))(weights)
    for index, member in enumerate(members):
        member(x)[0].pow(2).sum().backward()
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad)


def test_a_batch_of_cotangents_under_vmap(kernel: PythonKernel) -> None:
    call, arguments = functional()
    output, *_ = call(*arguments)
    rows = torch.randn(5, *output.shape, dtype=torch.float64)

    def pull(row: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, arguments, row, retain_graph=True)

    together = vmap(pull)(rows)
    assert kernel.backwards == 1
    for index, row in enumerate(rows):
        torch.testing.assert_close([g[index] for g in together], list(pull(row)))


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


def test_what_is_read_later_is_guarded(kernel: PythonKernel) -> None:
    """A bias is read by the gradients of gradients only."""
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2, requires_grad=True)
    output, _ = module(x)
    with torch.no_grad():
        module.bias_ih_l0.add_(1)
    torch.autograd.grad(output.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*to compute gradients of gradients"):
        torch.autograd.grad(output.sum(), x, retain_graph=True, create_graph=True)
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


class Wrapper(Tensor):
    """A tensor whose numbers are another one's."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        wrapper: Wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapper, lambda wrapper: wrapper.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, func(*args, **kwargs))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
def test_tensors_that_are_not_plain_memory(kernel: PythonKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses would be null, or another number's: the kernel sees memory, as an operator, or nothing."""
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2)
    expected = module(x)[0]
    run = kernel.forward

    def checked(problem: Problem, *tensors: Any) -> Any:
        flat = [
            tensors[0],
            tensors[1],
            tensors[2],
            *(t for direction in tensors[3] for t in direction if t is not None),
        ]
        assert access_of(flat).direct
        return run(problem, *tensors)

    monkeypatch.setattr(kernel, "forward", checked)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    torch.testing.assert_close(vmap(lambda each: module(each)[0])(x[None])[0], expected)
    grad(lambda weights: functional_call(module, weights, (x,))[0].sum())(weights)
    torch.testing.assert_close(torch.compile(module, backend="eager")(x)[0], expected)
    torch.testing.assert_close(module(torch.complex(x, -x).conj().imag)[0], expected)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as flops:
        module(x)
    assert flops.get_total_flops() > 0
    assert len(kernel.forwards) == 6
    torch.func.jvp(lambda x: module(x)[0], (x,), (x,))
    torch.testing.assert_close(module(Wrapper(x))[0].inner, expected)
    assert len(kernel.forwards) == 6
    with torchlstm.use_engine("python"), pytest.raises(torchlstm.EngineRefusal, match="a tensor is a Wrapper"):
        module(Wrapper(x))
