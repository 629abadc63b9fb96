"""What works with nn.LSTM in the rest of PyTorch works here: transforms, export, surgery on weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import torchlstm

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True},
    "nobias": {"bias": False},
}


def double(**options: Any) -> torchlstm.LSTM:
    torch.manual_seed(3)
    return torchlstm.LSTM(2, 3, dtype=torch.float64, **options)


def calls(module: torchlstm.LSTM, packed: bool) -> tuple[Any, list[Tensor]]:
    """The module as a function of input, states and weights, and arguments for it."""
    names = [name for name, _ in module.named_parameters()]
    x = torch.randn(3, 3, 2, dtype=torch.float64)
    layers = module.num_layers * (1 + module.bidirectional)
    states = [torch.randn(layers, 3, size, dtype=torch.float64) for size in (module.proj_size or 3, 3)]

    def call(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        input = pack_padded_sequence(x, torch.tensor([2, 3, 1]), module.batch_first, False) if packed else x
        output, state = functional_call(module, dict(zip(names, weights, strict=True)), (input, (h, c)))
        return (output.data if isinstance(output, PackedSequence) else output, *state)

    arguments = [x, *states, *(parameter.detach() for parameter in module.parameters())]
    return call, [argument.clone().requires_grad_() for argument in arguments]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_gradcheck_and_gradgradcheck(options: dict[str, Any], packed: bool) -> None:
    call, arguments = calls(double(**options), packed)
    assert gradcheck(call, arguments)
    # Every entry of the second derivative where that takes a second, a random projection of it where it takes thirty.
    assert gradgradcheck(call, arguments, fast_mode=len(arguments) > 8)


def test_gradgradcheck_of_the_cell() -> None:
    cell = torchlstm.LSTMCell(2, 3, dtype=torch.float64)
    arguments = [torch.randn(4, size, dtype=torch.float64, requires_grad=True) for size in (2, 3, 3)]
    assert gradcheck(lambda x, h, c: cell(x, (h, c)), arguments)
    assert gradgradcheck(lambda x, h, c: cell(x, (h, c)), arguments)


def test_gradient_penalty_equals_nn_lstm() -> None:
    ours = double()
    theirs = nn.LSTM(2, 3, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        output, (_, c_n) = module(x)
        (slope,) = torch.autograd.grad(output.pow(2).sum() + c_n.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.pow(2).sum(), list(module.parameters())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_backward_twice_and_in_eval_mode() -> None:
    module = double().eval()
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = module(x)[0].sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    assert first.abs().max() > 0


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-major", "batch-first"])
def test_per_sample_gradients(batch_first: bool) -> None:
    module = double(batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 4, 2, dtype=torch.float64)  # five samples of four steps
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        output, (h_n, c_n) = functional_call(module, weights, (sample.unsqueeze(0 if batch_first else 1),))
        return output.pow(2).sum() + h_n.sum() + c_n.pow(2).sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for index, sample in enumerate(x):
        alone = grad(loss)(weights, sample)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index], value)


def test_vmap_over_inputs_and_over_an_ensemble() -> None:
    members = [torchlstm.LSTM(2, 3, 2) for _ in range(3)]
    x = torch.randn(6, 4, 5, 2)
    torch.testing.assert_close(vmap(lambda each: members[0](each)[0])(x), torch.stack([members[0](e)[0] for e in x]))
    weights, buffers = stack_module_state(members)
    output = vmap(lambda w, b: functional_call(members[0], (w, b), (x[0],))[0])(weights, buffers)
    torch.testing.assert_close(output, torch.stack([member(x[0])[0] for member in members]))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
def test_forward_mode_agrees_with_reverse_mode() -> None:
    module, x = double(), torch.randn(3, 1, 2, dtype=torch.float64)

    def output(x: Tensor) -> Tensor:
        return module(x)[0]

    torch.testing.assert_close(jacfwd(output)(x), jacrev(output)(x))
    tangent = torch.randn_like(x)
    _, pushed = jvp(output, (x,), (tangent,))
    torch.testing.assert_close(pushed, torch.tensordot(jacrev(output)(x), tangent, 3))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic-batch"])
def test_export(dynamic: bool) -> None:
    module = torchlstm.LSTM(2, 3, 2, bidirectional=True).eval()
    x = torch.randn(5, 4, 2)
    shapes = ({1: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes).module()
    for batch in (4, 9) if dynamic else (4,):
        x = torch.randn(5, batch, 2)
        torch.testing.assert_close(exported(x), module(x))


def test_compile_of_a_model_around_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), torchlstm.LSTM(2, 3)).eval()
    x = torch.randn(3, 4, 2)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_padding_does_not_leak_through_packing() -> None:
    module, lengths = torchlstm.LSTM(2, 3, bidirectional=True, batch_first=True), torch.tensor([3, 5, 2])
    clean = torch.randn(3, 5, 2)
    poisoned = clean.clone()
    for row, length in enumerate(lengths.tolist()):
        poisoned[row, length:] = float("nan")
    found = []
    for x in (clean, poisoned):
        output, state = module(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        found.append((pad_packed_sequence(output, batch_first=True)[0], *state))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_packed_output_keeps_its_indices() -> None:
    packed = pack_padded_sequence(torch.randn(5, 3, 2), torch.tensor([3, 5, 2]), enforce_sorted=False)
    output, _ = torchlstm.LSTM(2, 3)(packed)
    assert isinstance(output, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(output, name), getattr(packed, name))
    output, _ = torchlstm.LSTM(2, 3)(PackedSequence(packed.data, packed.batch_sizes))
    assert output.sorted_indices is None
    assert output.unsorted_indices is None


def test_norms_of_weights() -> None:
    for norm in (torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.parametrizations.orthogonal):
        module = torchlstm.LSTM(2, 3)
        norm(module, "weight_hh_l0")
        module(torch.randn(4, 2, 2))[0].sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_tied_weights_add_their_gradients() -> None:
    x = torch.randn(4, 2, 3)
    found = []
    for kind in (nn.LSTM, torchlstm.LSTM):
        torch.manual_seed(4)
        module = kind(3, 3, 2)
        module.weight_hh_l1 = module.weight_hh_l0
        module(x)[0].sum().backward()
        found.append(module.weight_hh_l0.grad)
    torch.testing.assert_close(found[1], found[0])


def test_swapped_tensors_and_shared_memory() -> None:
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert module(x.double())[0].dtype == torch.float64
    module.share_memory()
    assert module.weight_hh_l0.is_shared()
    assert module(x.double())[0].isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
def test_activation_checkpointing(reentrant: bool) -> None:
    module, x = torchlstm.LSTM(2, 3, 2, dropout=0.5), torch.randn(4, 2, 2, requires_grad=True)
    found = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        module.zero_grad()
        output = (checkpoint(module, x, use_reentrant=reentrant) if wrapped else module(x))[0]
        x.grad = None
        output.sum().backward()
        found.append([tensor.grad.clone() for tensor in (x, *module.parameters()) if tensor.grad is not None])
    torch.testing.assert_close(found[1], found[0])


def test_selective_checkpointing_sees_one_operator() -> None:
    """A policy that keeps the layer's result: under a dispatch mode, the layer is one operator."""
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2, requires_grad=True)
    seen = []

    def policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        seen.append(str(operator))
        return CheckpointPolicy.MUST_SAVE if "torchlstm" in str(operator) else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)

    found = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=False, context_fn=contexts)):
        found.append(torch.autograd.grad(run(x)[0].pow(2).sum(), [x, *module.parameters()]))
    torch.testing.assert_close(found[1], found[0])
    if torchlstm.engines()["cpu"] is None:
        assert "torchlstm.lstm.default" in seen


def test_averaged_model_and_hooks() -> None:
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2, requires_grad=True)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    torch.testing.assert_close(averaged(x)[0], module(x)[0])
    calls: list[str] = []
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_: calls.append("after"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.weight_hh_l0.register_hook(lambda gradient: calls.append(f"gradient {tuple(gradient.shape)}"))
    module(x)[0].sum().backward()
    assert sorted(calls) == ["after", "backward", "before", "gradient (12, 3)"]


def test_a_weight_that_is_a_tensor() -> None:
    """As weight-drop does: the Parameter lives under another name, and what is computed from it in its place."""
    module, x = torchlstm.LSTM(2, 3), torch.randn(4, 2, 2)
    raw = module.weight_hh_l0
    del module.weight_hh_l0
    module.register_parameter("weight_hh_l0_raw", raw)
    for factor in (1.0, 0.0):
        module.weight_hh_l0 = raw * factor
        output = module(x)[0]
        plain = torchlstm.LSTM(2, 3)
        weights = {name: getattr(module, name) for name, _ in plain.named_parameters()}
        torch.testing.assert_close(output, functional_call(plain, weights, (x,))[0])
        (gradient,) = torch.autograd.grad(output.sum(), raw)
        assert bool(gradient.any()) == (factor != 0)


def test_grad_scaler_training_under_autocast() -> None:
    module = torchlstm.LSTM(2, 3)
    optimizer, scaler = torch.optim.SGD(module.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=128.0)
    before = module.weight_ih_l0.detach().clone()
    with torch.autocast("cpu", dtype=torch.float16):
        output, _ = module(torch.randn(4, 2, 2))
    assert output.dtype == torch.float16
    scaler.scale(output.float().sum()).backward()
    scaler.step(optimizer)
    assert module.weight_ih_l0.dtype == torch.float32
    assert not torch.equal(module.weight_ih_l0, before)


AUTOCASTS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "dense": ({}, None, ("bfloat16",) * 3),
    "proj": ({"proj_size": 2}, None, ("bfloat16", "bfloat16", "float32")),
    "packed": ({"num_layers": 2}, [3, 2], ("float32",) * 3),
    "packed-proj": ({"proj_size": 2}, [3, 2], ("bfloat16", "bfloat16", "float32")),
}


@pytest.mark.parametrize(("options", "lengths", "dtypes"), AUTOCASTS.values(), ids=AUTOCASTS)
def test_dtypes_under_autocast(options: dict[str, Any], lengths: list[int] | None, dtypes: tuple[str, ...]) -> None:
    """As nn.LSTM's on CPU; the dense row also where oneDNN has no bfloat16."""
    module, x = torchlstm.LSTM(2, 3, **options), torch.randn(3, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (h_n, c_n) = module(x if lengths is None else pack_padded_sequence(x, lengths))
    output = output.data if isinstance(output, PackedSequence) else output
    assert tuple(str(tensor.dtype).removeprefix("torch.") for tensor in (output, h_n, c_n)) == dtypes
    output.float().sum().backward()
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_flops_are_those_of_the_products(options: dict[str, Any]) -> None:
    module, x = double(**options), torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    states = torch.randn(4, 3 if options.get("batch_first") else 5, 3, dtype=torch.float64)
    given = states[: module.num_layers * (1 + module.bidirectional)]
    hx = given[..., : module.proj_size or 3].clone().requires_grad_(), given.clone().requires_grad_()
    counts = []
    for engine in ("auto", "reference"):
        with torchlstm.use_engine(engine), FlopCounterMode(display=False) as counter:
            module(x, hx)[0].sum().backward()
        counts.append(counter.get_total_flops())
    rows, matrices = 15, [parameter for parameter in module.parameters() if parameter.dim() == 2]
    # Forward, the gradient of the other operand, and that of the matrix: each row 2 operations for an element.
    assert counts == [3 * 2 * rows * sum(matrix.numel() for matrix in matrices)] * 2
