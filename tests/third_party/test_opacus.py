"""Per-sample gradients for opacus: those of a loop over the samples, whatever the module and the form of its input."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import opacus
import pytest
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from sample_loops import ENGINES, FORMS, LENGTHS, OPTIONS, RESULTS, build, draw, loop, losses, ours_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import torchlstm
import torchlstm.integrations.opacus


def compare(
    theirs: nn.LSTM, form: str, engine: str, dtype: torch.dtype, used: Sequence[str], reduction: str = "sum"
) -> None:
    input, hx = draw(theirs, form, dtype)
    expected = loop(theirs, input, hx, used)
    private = GradSampleModule(ours_of(theirs), batch_first=theirs.batch_first, loss_reduction=reduction)
    torch.manual_seed(3)
    with torchlstm.use_engine(engine):
        loss = losses(theirs, private(input, hx), used)
        (loss.mean() if reduction == "mean" else loss.sum()).backward()
    rtol, atol = (1e-10, 1e-10) if dtype == torch.float64 else (1e-4, 2e-5)
    scale = len(loss) if reduction == "mean" else 1
    for name, weight in private._module.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None
            continue
        torch.testing.assert_close(weight.grad_sample, expected[name], rtol=rtol, atol=atol, msg=name)
        torch.testing.assert_close(weight.grad * scale, expected[name].sum(0), rtol=rtol, atol=atol * 4, msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_equal_to_a_loop(engine: str, name: str, form: str) -> None:
    compare(build(name), form, engine, torch.float64, RESULTS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("used", RESULTS)
def test_a_loss_on_one_result_in_either_reduction(used: str, engine: str) -> None:
    for form in ("dense", "packed"):
        compare(build("everything"), form, engine, torch.float64, (used,), "mean")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_float32_and_frozen_parameters(form: str, engine: str) -> None:
    compare(build("everything", torch.float32), form, engine, torch.float32, RESULTS)
    theirs = build("dropout")
    theirs.weight_hh_l0.requires_grad_(False)
    theirs.bias_ih_l2.requires_grad_(False)
    for layer_1 in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        theirs.get_parameter(layer_1).requires_grad_(False)
    compare(theirs, form, engine, torch.float64, RESULTS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["dropout", "everything"])
def test_lengths_are_a_packed_sequence(name: str, engine: str) -> None:
    theirs = build(name)
    expected = loop(theirs, *draw(theirs, "packed-states", torch.float64), RESULTS)
    padded, hx = draw(theirs, "states", torch.float64)
    private = GradSampleModule(ours_of(theirs), batch_first=theirs.batch_first, loss_reduction="sum")
    torch.manual_seed(3)
    with torchlstm.use_engine(engine):
        losses(theirs, private(padded, hx, lengths=LENGTHS), RESULTS).sum().backward()
    for name, weight in private._module.named_parameters():
        torch.testing.assert_close(weight.grad_sample, expected[name], rtol=1e-10, atol=1e-10, msg=name)


def test_gradients_of_input_and_states_are_the_plain_ones() -> None:
    theirs = build("everything")
    x, hx = draw(theirs, "states", torch.float64)
    ours = ours_of(theirs)
    found = []
    for engine in ENGINES:
        for module in (ours, GradSampleModule(copy.deepcopy(ours), loss_reduction="sum")):
            leaves = [tensor.clone().requires_grad_() for tensor in (x, *hx)]
            torch.manual_seed(3)
            with torchlstm.use_engine(engine):
                loss = losses(theirs, module(leaves[0], tuple(leaves[1:])), RESULTS).sum()
                found.append(torch.autograd.grad(loss, leaves))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


class Chunks(nn.Module):
    """One module called twice a step, the second time with fewer samples, and a cell called at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(3, 4, dtype=torch.float64)
        self.cell = torchlstm.LSTMCell(4, 2, dtype=torch.float64)
        self.head = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, x: Tensor, few: int) -> Tensor:
        output, state = self.lstm(x)
        again, _ = self.lstm(hx=tuple(each[:, :few] for each in state), input=x[:, :few])
        h = c = x.new_zeros(x.shape[1], 2)
        for step in output:
            h, c = self.cell(step, (h, c))
        score: Tensor = self.head(h).squeeze(1)
        return score + torch.cat([again.pow(2).sum((0, 2)), score.new_zeros(x.shape[1] - few)])


@pytest.mark.parametrize("engine", ENGINES)
def test_several_calls_and_the_cell(engine: str) -> None:
    torch.manual_seed(0)
    model, x = Chunks(), torch.randn(5, 3, 3, dtype=torch.float64)
    expected: dict[str, list[Tensor]] = {}
    for loss in model(x, 2):
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            expected.setdefault(name, []).append(gradient)
    private = GradSampleModule(model, loss_reduction="mean")
    for _ in range(2):
        with torchlstm.use_engine(engine):
            private(x, 2).mean().backward()
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.grad_sample, torch.stack(expected[name]), rtol=1e-10, atol=1e-10)
        private.zero_grad()
    private(x, 2).mean().backward()
    private(x, 2).mean().backward()  # accumulated over two batches: a list of two
    assert [len(weight.grad_sample) for weight in model.parameters()] == [2] * len(list(model.parameters()))


def test_tied_weights() -> None:
    torch.manual_seed(0)
    module = torchlstm.LSTM(4, 4, 2, dtype=torch.float64)
    module.weight_hh_l1 = module.weight_hh_l0
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    expected = [torch.autograd.grad(module(x)[0][:, n].sum(), module.weight_hh_l0)[0] for n in range(3)]
    private = GradSampleModule(module, loss_reduction="sum")
    private(x)[0].sum().backward()
    torch.testing.assert_close(module.weight_hh_l0.grad_sample, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_ghost_norms_of_weights_tied_within_a_layer() -> None:
    torch.manual_seed(0)
    module = torchlstm.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    module.weight_hh_l0_reverse = module.weight_hh_l0
    x = pack_padded_sequence(torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([1, 5, 3]), enforce_sorted=False)
    weights = list(module.parameters())
    found = [torch.autograd.grad(module(x)[1][0][:, n].sum(), weights) for n in range(3)]
    norms = torch.stack([torch.cat([gradient.flatten() for gradient in each]).norm() for each in found])
    ghost = GradSampleModuleFastGradientClipping(module, loss_reduction="mean", max_grad_norm=1.0)
    ghost(x)[1][0].sum((0, 2)).mean().backward()
    torch.testing.assert_close(ghost.get_norm_sample(), norms, rtol=1e-10, atol=1e-10)
    for weight, gradients in zip(weights, zip(*found, strict=True), strict=True):
        torch.testing.assert_close(weight.grad, sum(gradients) / 3, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [2, 60], ids=["few-steps", "many-steps"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_ghost_clipping(packed: bool, steps: int, engine: str) -> None:
    """The norms, and the clipped gradient of the second backward; with few steps, no per-sample gradient is made."""
    torch.manual_seed(0)
    module = torchlstm.LSTM(8, 6, 2, bidirectional=True, dropout=0.3, dtype=torch.float64)
    x: Any = torch.randn(steps, 3, 8, dtype=torch.float64)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([1, steps, steps // 2]), enforce_sorted=False)

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        _, (h_n, c_n) = model(x)
        total: Tensor = (h_n.pow(2).sum(2) + c_n.sum(2)).sum(0)
        return total

    by_hooks = GradSampleModule(copy.deepcopy(module), loss_reduction="mean")
    ghost = GradSampleModuleFastGradientClipping(module, loss_reduction="mean", max_grad_norm=0.5)
    with torchlstm.use_engine(engine):
        run(by_hooks).mean().backward()
        samples = [weight.grad_sample.flatten(1) for weight in by_hooks.parameters()]
        norms = torch.cat(samples, 1).norm(dim=1)
        loss = run(ghost)
        loss.mean().backward(retain_graph=True)
        torch.testing.assert_close(ghost.get_norm_sample(), norms, rtol=1e-8, atol=1e-10)
        module.zero_grad()
        ghost.disable_hooks()
        (ghost.get_clipping_coef() * loss).sum().backward()
        ghost.enable_hooks()
    factors = (0.5 / (norms + 1e-6)).clamp(max=1)
    assert factors.min() < 1
    for weight, gradients in zip(module.parameters(), samples, strict=True):
        torch.testing.assert_close(weight.grad.flatten(), factors @ gradients, rtol=1e-8, atol=1e-10)


class Classifier(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module] = torchlstm.LSTM) -> None:
        super().__init__()
        self.lstm = kind(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.lstm(x)
        scores: Tensor = self.head(output[:, -1])
        return scores


def train(model: nn.Module, mode: str, epochs: int = 1, noise: float = 0.0, poisson: bool = False) -> list[float]:
    """The losses of private training; the task is whether the mean of a series is positive."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, 3, generator=generator)
    data = torch.utils.data.TensorDataset(x, (x.mean((1, 2)) > 0).long())
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.5), nn.CrossEntropyLoss()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on secure random numbers, and on alphas of the accountant
        made = opacus.PrivacyEngine().make_private(
            module=model, optimizer=optimizer, criterion=criterion, data_loader=torch.utils.data.DataLoader(data, 16),
            noise_multiplier=noise, max_grad_norm=1.0, poisson_sampling=poisson, grad_sample_mode=mode,
        )  # fmt: skip
    model, optimizer, *middle, loader = made
    criterion = middle[0] if middle else criterion
    found = []
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # DPLSTM's
@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
def test_training_in_every_mode_has_the_losses_of_dplstm(mode: str) -> None:
    torch.manual_seed(0)
    ours = Classifier()
    theirs = Classifier(opacus.layers.DPLSTM)
    for part in ("lstm", "head"):
        theirs.get_submodule(part).load_state_dict(ours.get_submodule(part).state_dict())
    assert train(ours, mode, 5) == pytest.approx(train(theirs, "hooks", 5), abs=1e-4)


def test_training_with_noise_and_poisson_sampling_learns() -> None:
    torch.manual_seed(0)
    found = train(Classifier(), "hooks", 25, noise=0.3, poisson=True)
    assert sum(found[-10:]) < 0.8 * sum(found[:10])


def test_an_empty_batch() -> None:
    module = torchlstm.LSTM(3, 4, 2, bidirectional=True)
    private = GradSampleModule(module, loss_reduction="mean")
    private(torch.randn(5, 0, 3))[0].sum().backward()
    assert {tuple(weight.grad_sample.shape) for weight in module.parameters()} == {
        (0, *weight.shape) for weight in module.parameters()
    }
    assert all(weight.grad.eq(0).all() for weight in module.parameters())


def test_the_validator_leaves_it_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torchlstm.LSTM(3, 4))
    assert ModuleValidator.validate(model, strict=True) == []
    fixed = ModuleValidator.fix(model)
    assert type(fixed[1]) is torchlstm.LSTM
    swapped = torchlstm.swap(nn.Sequential(nn.LSTM(3, 4)))
    assert ModuleValidator.is_valid(swapped)


def test_hooks_come_off_and_nothing_is_recorded_without_them() -> None:
    module, x = torchlstm.LSTM(3, 4), torch.randn(5, 2, 3)
    before = set(module.__dict__)
    private = GradSampleModule(module)
    with torch.no_grad():
        private(x)
    module.eval()
    private(x)[0].sum().backward()
    assert module.weight_ih_l0.grad_sample is None
    module.train()
    private(x)[0].sum().backward()
    assert module.weight_ih_l0.grad_sample.shape == (2, 16, 3)
    assert private.to_standard_module() is module
    assert not hasattr(module.weight_ih_l0, "grad_sample")
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert set(module.__dict__) == before
    module(x)[0].sum().backward()


def test_under_autocast() -> None:
    torch.manual_seed(0)
    module, x = torchlstm.LSTM(3, 4, 2), torch.randn(5, 2, 3)
    found = []
    for enabled in (False, True):
        private = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, _ = private(x)
        output.float().pow(2).sum().backward()
        found.append([weight.grad_sample for weight in private.parameters()])
    assert all(gradient.dtype == torch.float32 for gradient in found[1])
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0.05)


def test_what_cannot_be_is_said() -> None:
    module, x = torchlstm.LSTM(3, 4), torch.randn(5, 2, 3)
    parametrized = torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(module), "weight_hh_l0")
    with pytest.raises(NotImplementedError, match=r"weight_hh_l0 of this .*LSTM is no Parameter of its own"):
        GradSampleModule(parametrized)
    extended = copy.deepcopy(module)
    extended.peephole = nn.Parameter(torch.zeros(4))
    with pytest.raises(NotImplementedError, match="has a parameter peephole that torchlstm does not know"):
        GradSampleModule(extended)
    private = GradSampleModule(module)
    with pytest.raises(RuntimeError, match="recorded by an eager call"):
        torch.compile(private, backend="eager", fullgraph=True)(x)
    with pytest.raises(
        RuntimeError, match="several sequences, whose gradients are not added up: call LSTM without resets"
    ):
        private(x, resets=torch.zeros(5, 2, dtype=torch.bool))
    output = private(x)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(output.pow(2).sum(), module.weight_hh_l0, create_graph=True)[0].sum().backward()
    with pytest.raises(RuntimeError, match="Expanded Weights"):
        opacus.grad_sample.GradSampleModuleExpandedWeights(torchlstm.LSTM(3, 4, batch_first=True))(x)
    for kind in (opacus.grad_sample.GradSampleModuleFastGradientClippingFSDP,):
        with pytest.raises(NotImplementedError, match="use the mode 'ghost' or 'hooks'"):
            kind(torchlstm.LSTM(3, 4))


def test_another_thread_is_not_recorded() -> None:
    """A forward that another thread makes in the middle of a private one."""
    from concurrent.futures import ThreadPoolExecutor

    module, other, x = torchlstm.LSTM(3, 4), torchlstm.LSTM(3, 4), torch.randn(5, 2, 3)
    private = GradSampleModule(module, loss_reduction="sum")
    with ThreadPoolExecutor(1) as pool:
        module.register_forward_pre_hook(lambda *_: pool.submit(other, x).result() and None)
        private(x)[0].sum().backward()
    assert module.weight_ih_l0.grad_sample.shape == (2, 16, 3)
