"""What composing costs and how far it goes: times, derivatives of the third order, float32, a scaler's training."""

import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from counted import calls_within
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, vmap

import torchlstm
from torchlstm.engines.shared.access import access_of
from torchlstm.parity.timing import interleave

KERNEL = torchlstm.engines()["cpu"] is None
ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]


def least(run: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def test_an_eager_call_asks_little_for_transforms() -> None:
    """To ask whether anything but plain tensors is about is all that an eager call does for them.

    Four questions a call, three a tensor, and none a parameter; `python -m benchmarks --workloads overhead` times them.
    """
    module = torchlstm.LSTM(2, 3, bidirectional=True, proj_size=2)
    tensors = [torch.randn(3, 2), *torch.randn(2, 2, 2, 3), *module.parameters()]
    assert len(tensors) == 13
    asked = ["is_compiling", "is_tracing", "peek_interpreter_stack", "_len_torch_dispatch_stack"]
    assert calls_within(access_of, chain(tensors)) == asked + ["is_neg", "is_conj", "_has_storage"] * 3


@pytest.mark.skipif(not KERNEL, reason="the reference engine is unrolled")
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor scripts rules of its own
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_compiling_does_not_take_longer_for_more_steps() -> None:
    def compiled(steps: int) -> None:
        torch._dynamo.reset()
        run = torch.compile(torchlstm.LSTM(4, 8), fullgraph=True)
        run(torch.randn(steps, 2, 4))[0].sum().backward()

    with torch._inductor.config.patch(force_disable_caches=True):
        compiled(8)  # what Inductor itself loads
        for _ in range(3):  # others may use the machine
            short, long = least(lambda: compiled(64), 2), least(lambda: compiled(512), 2)
            if long <= 1.3 * short:
                break
    assert long <= 1.3 * short


@pytest.mark.skipif(not KERNEL, reason="no kernel")
def test_per_sample_gradients_take_at_most_three_plain_steps() -> None:
    module, x = torchlstm.LSTM(64, 128), torch.randn(128, 16, 64)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,))[0].pow(2).sum()

    each = vmap(grad(lambda weights, sample: loss(weights, sample.unsqueeze(1))), in_dims=(None, 1))

    def plain() -> None:
        torch.autograd.grad(module(x)[0].pow(2).sum(), list(module.parameters()))

    ratios = []
    for _ in range(3):
        ratios.append(interleave(lambda: each(weights, x), plain, seconds=0.3).ratio)
        if ratios[-1] <= 3:
            break
    assert min(ratios) <= 3
    # And they are what they should be: their sum is the plain gradient.
    torch.testing.assert_close(
        {name: value.sum(0) for name, value in each(weights, x).items()}, grad(loss)(weights, x), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_third_derivatives_equal_those_of_nn_lstm(engine: str) -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    ours = torchlstm.LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    with torchlstm.use_engine(engine):
        for module in (theirs, ours):
            output, (h_n, c_n) = module(x)
            value = output.pow(3).sum() + h_n.pow(2).sum() + c_n.pow(3).sum()
            for _ in range(2):
                (slope,) = torch.autograd.grad(value, x, create_graph=True)
                value = slope.pow(2).sum()
            found.append(torch.autograd.grad(value, [x, *module.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)
    assert max(gradient.abs().max() for gradient in found[0]) > 1e-2


@pytest.mark.filterwarnings("ignore:.*is not a double precision:UserWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=["plain", "projected"])
def test_gradcheck_in_float32(options: dict[str, Any], engine: str) -> None:
    """In the dtype that the kernel is used in, whose differences are rough: a wrong gate is off by far more."""
    torch.manual_seed(0)
    module = torchlstm.LSTM(2, 3, **options)
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, state = functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return output, *state

    arguments = [t.detach().requires_grad_() for t in (torch.randn(4, 3, 2), *module.parameters())]
    with torchlstm.use_engine(engine):
        assert gradcheck(call, arguments, fast_mode=True, eps=2e-2, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_scalers_training_follows_float32(engine: str, dtype: torch.dtype) -> None:
    curves = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model, x = torchlstm.LSTM(3, 8), torch.randn(6, 16, 3)
        target = x.cumsum(0).tanh().repeat(1, 1, 3)[..., :8]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**40, growth_interval=1000)
        curve = []
        with torchlstm.use_engine(engine):
            for _ in range(60):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                    output, _ = model(x)
                loss = (output.float() - target).pow(2).mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                curve.append(loss.item())
        curves.append(curve)
        if enabled and dtype == torch.float16:
            assert scaler.get_scale() < 2.0**40  # it began too high: steps with infinite gradients were left out
    skipped = next(k for k in range(60) if curves[1][k] != curves[1][0]) - 1
    assert curves[0][-1] < 0.6 * curves[0][0]
    length = 60 - skipped
    assert curves[1][skipped:] == pytest.approx(curves[0][:length], rel=0.05)
