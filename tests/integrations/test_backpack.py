"""Per-sample gradients by BackPACK: those of a loop over the samples, whatever the module and the form of its input."""

import copy
from collections.abc import Sequence

import pytest
import torch
from sample_loops import BATCH, ENGINES, FORMS, LENGTHS, OPTIONS, RESULTS, build, draw, loop, losses, ours_of
from torch import Tensor, nn

import torchlstm

backpack = pytest.importorskip("backpack")
from backpack import extensions  # noqa: E402

import torchlstm.integrations.backpack  # noqa: E402


def check(found: nn.Module, expected: dict[str, Tensor], rtol: float = 1e-10, atol: float = 1e-10) -> None:
    for name, weight in found.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None
            assert not hasattr(weight, "grad_batch")
            continue
        torch.testing.assert_close(weight.grad_batch, expected[name], rtol=rtol, atol=atol, msg=name)
        torch.testing.assert_close(weight.grad, expected[name].sum(0), rtol=rtol, atol=atol * 4, msg=name)


def compare(theirs: nn.LSTM, form: str, engine: str, dtype: torch.dtype, used: Sequence[str] = RESULTS) -> None:
    input, hx = draw(theirs, form, dtype)
    expected = loop(theirs, input, hx, used)
    module = backpack.extend(ours_of(theirs))
    torch.manual_seed(3)
    with torchlstm.use_engine(engine):
        loss = losses(theirs, module(input, hx), used).sum()
        with backpack.backpack(extensions.BatchGrad()):
            loss.backward()
    check(module, expected, *((1e-10, 1e-10) if dtype == torch.float64 else (1e-4, 2e-5)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_equal_to_a_loop(engine: str, name: str, form: str) -> None:
    compare(build(name), form, engine, torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("used", RESULTS)
def test_a_loss_on_one_result(used: str, engine: str) -> None:
    for form in ("dense", "packed"):
        compare(build("everything"), form, engine, torch.float64, (used,))


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_and_frozen_parameters(engine: str) -> None:
    compare(build("everything", torch.float32), "dense", engine, torch.float32)
    theirs = build("dropout")
    theirs.weight_hh_l1.requires_grad_(False)
    for layer_0 in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        theirs.get_parameter(layer_0).requires_grad_(False)
    compare(theirs, "packed", engine, torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["dropout", "everything"])
def test_lengths_are_a_packed_sequence(name: str, engine: str) -> None:
    theirs = build(name)
    expected = loop(theirs, *draw(theirs, "packed-states", torch.float64), RESULTS)
    padded, hx = draw(theirs, "states", torch.float64)
    module = backpack.extend(ours_of(theirs))
    torch.manual_seed(3)
    with torchlstm.use_engine(engine), backpack.backpack(extensions.BatchGrad()):
        losses(theirs, module(padded, hx, lengths=LENGTHS), RESULTS).sum().backward()
    check(module, expected)


def test_a_sample_without_steps() -> None:
    torch.manual_seed(0)
    module, x = torchlstm.LSTM(3, 4, dtype=torch.float64), torch.randn(5, 3, 3, dtype=torch.float64)
    hx = tuple(torch.randn(1, 3, 4, dtype=torch.float64) for _ in range(2))
    weights = list(module.parameters())
    per_sample = [torch.autograd.grad(module(x, hx, lengths=[2, 0, 5])[0][:, n].sum(), weights) for n in range(3)]
    with backpack.backpack(extensions.BatchGrad()):
        backpack.extend(module)(x, hx, lengths=[2, 0, 5])[0].sum().backward()
    for weight, gradients in zip(weights, zip(*per_sample, strict=True), strict=True):
        torch.testing.assert_close(weight.grad_batch, torch.stack(gradients), rtol=1e-10, atol=1e-10)
        assert weight.grad_batch[1].eq(0).all()


class Tagger(nn.Module):
    """An embedding, an LSTM, a cell over its output, a head that BackPACK knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)
        self.lstm = torchlstm.LSTM(3, 4, batch_first=True)
        self.cell = torchlstm.LSTMCell(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, words: Tensor) -> Tensor:
        output, _ = self.lstm(self.embedding(words))
        state = None
        for step in output.unbind(1):
            state = self.cell(step, state)
        scores: Tensor = self.head(state[0])
        return scores


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # of the embedding, by torch
@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_with_a_cell_and_a_loss_of_backpacks(engine: str) -> None:
    torch.manual_seed(0)
    model, words, labels = Tagger(), torch.randint(9, (4, 6)), torch.randint(2, (4,))
    weights = dict(model.named_parameters())
    per_sample = []
    for n in range(4):
        one = nn.functional.cross_entropy(model(words)[n : n + 1], labels[n : n + 1]) / 4
        per_sample.append(torch.autograd.grad(one, list(weights.values())))
    expected = {name: torch.stack(each) for name, each in zip(weights, zip(*per_sample, strict=True), strict=True)}
    for part in model.children():
        backpack.extend(part)
    criterion = backpack.extend(nn.CrossEntropyLoss())
    for _ in range(2):  # the second backward writes anew
        model.zero_grad()
        with torchlstm.use_engine(engine), backpack.backpack(extensions.BatchGrad()):
            criterion(model(words), labels).backward()
        check(model, expected, 1e-4, 1e-6)


def test_equal_to_backpacks_own_lstm() -> None:
    """In the one form that BackPACK takes: one layer, batch first, the loss on its output alone."""
    theirs = backpack.extend(build("plain"))
    theirs.batch_first = True
    ours = torchlstm.LSTM(3, 4, batch_first=True, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(BATCH, 6, 3, dtype=torch.float64, requires_grad=True)
    for module in (theirs, backpack.extend(ours)):
        with backpack.backpack(extensions.BatchGrad()):
            module(x)[0].pow(2).sum().backward()
    check(ours, {name: weight.grad_batch for name, weight in theirs.named_parameters()})


def test_some_samples_and_two_extensions() -> None:
    theirs = build("bidirectional")
    x, _ = draw(theirs, "dense", torch.float64)
    expected = loop(theirs, x, None, RESULTS)
    module = backpack.extend(ours_of(theirs))
    some = extensions.BatchGrad(subsampling=[2, 0])
    some.savefield = "some"
    with backpack.backpack(some, extensions.BatchGrad()):
        losses(theirs, module(x), RESULTS).sum().backward()
    check(module, expected)
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weight.some, expected[name][[2, 0]], rtol=1e-10, atol=1e-10)


def test_the_hook_for_each_module_finds_all_of_its_gradients() -> None:
    """Also of the first module of a model, to whose input no gradient goes."""
    module, seen = backpack.extend(torchlstm.LSTM(3, 4, 2)), []

    def hook(module: nn.Module) -> None:
        seen.append({name: tuple(weight.grad_batch.shape) for name, weight in module.named_parameters()})

    with backpack.backpack(extensions.BatchGrad(), extension_hook=hook):
        module(torch.randn(5, 7, 3))[0].sum().backward()
    assert seen == [{name: (7, *weight.shape) for name, weight in module.named_parameters()}]


def test_nothing_is_saved_where_nobody_asked() -> None:
    module, x = backpack.extend(torchlstm.LSTM(3, 4)), torch.randn(5, 2, 3)
    module(x)[0].sum().backward()
    with backpack.disable():
        output = module(x)[0]
    with backpack.backpack(extensions.BatchGrad()):
        output.sum().backward()
        with torch.no_grad():
            module(x)
    assert not hasattr(module.weight_hh_l0, "grad_batch")
    plain = copy.deepcopy(module)
    with backpack.backpack(extensions.BatchGrad()):
        plain(x)[0].sum().backward()  # a copy is extended as its original is
    assert plain.weight_hh_l0.grad_batch.shape == (2, 16, 4)


def test_under_autocast() -> None:
    torch.manual_seed(0)
    module, x, found = torchlstm.LSTM(3, 4, 2), torch.randn(5, 2, 3), []
    for enabled in (False, True):
        private = backpack.extend(copy.deepcopy(module))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, _ = private(x)
        with backpack.backpack(extensions.BatchGrad()):
            output.float().pow(2).sum().backward()
        found.append([weight.grad_batch for weight in private.parameters()])
    assert all(gradient.dtype == torch.float32 for gradient in found[1])
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0.05)


def test_what_cannot_be_is_said() -> None:
    module, x = backpack.extend(torchlstm.LSTM(3, 4)), torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match="gradients are not added up: call LSTM without resets"):
        module(x, resets=torch.zeros(5, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="recorded by an eager call"):
        torch.compile(module, backend="eager", fullgraph=True)(x)
    with backpack.backpack(extensions.BatchGrad()):
        loss = module(x)[0].sum() + module(x[:, :1])[0].sum()
        with pytest.raises(RuntimeError, match=r"one backward has batches of (1 and 2|2 and 1) samples"):
            loss.backward()
    with (
        backpack.backpack(extensions.BatchL2Grad()),
        pytest.warns(UserWarning, match="batch_l2 does not have an extension for Module <class 'torchlstm"),
    ):
        module(x)[0].sum().backward()
    with (
        backpack.backpack(extensions.DiagGGNExact()),
        pytest.raises(NotImplementedError, match="diag_ggn_exact does not have an extension for Module"),
    ):
        module(x)[0].sum().backward()
    extended = backpack.extend(torchlstm.LSTM(3, 4))
    extended.peephole = nn.Parameter(torch.zeros(4))
    with pytest.raises(NotImplementedError, match="BackPACK: LSTM has a parameter peephole"):
        extended(x)


def test_extended_before_swapped() -> None:
    x = torch.randn(5, 2, 3, requires_grad=True)
    module = torchlstm.swap(backpack.extend(nn.LSTM(3, 4)))
    with (
        backpack.backpack(extensions.BatchGrad()),
        pytest.raises(RuntimeError, match="BackPACK hooks this LSTM as a module it knows: extend the model after"),
    ):
        module(x)[0].sum().backward()
    back = torchlstm.restore(backpack.extend(torchlstm.LSTM(3, 4)))
    with pytest.raises(RuntimeError, match="this LSTM was torchlstm's when it was extended: extend the model after"):
        back(x)
