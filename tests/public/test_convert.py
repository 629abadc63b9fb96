"""Converters: the other library computes what we do with the converted weights, and nothing is lost on the way."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm
from torchlstm import convert

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's libraries
CLOSE = {"rtol": 1e-5, "atol": 2e-6}  # float32
STEPS, BATCH, FEATURES, HIDDEN = 6, 3, 4, 5

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two-layers-both-ways": {"num_layers": 2, "bidirectional": True},
    "nobias": {"bias": False},
    "nobias-both-ways": {"bias": False, "bidirectional": True},
}
every_option = pytest.mark.parametrize("name", OPTIONS)
Run = Callable[[torchlstm.LSTM, Tensor], list[Tensor]]


def lstm(name: str, kind: Any = torchlstm.LSTM) -> Any:
    torch.manual_seed(0)
    return kind(FEATURES, HIDDEN, batch_first=True, **OPTIONS[name])


def flat(result: Any) -> list[Tensor]:
    output, (h_n, c_n) = result
    return [output, h_n, c_n]


def tensors(*arrays: Any) -> list[Tensor]:
    return [torch.tensor(array.__array__()) for array in arrays]


def keras_layers(module: nn.RNNBase) -> list[Any]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip(
        "keras", reason='keras is not installed: pip install -c constraints.txt -e ".[convert]"'
    )

    layers = []
    for _ in range(module.num_layers):
        layer = keras.layers.LSTM(HIDDEN, use_bias=module.bias, return_sequences=True, return_state=True)
        layers.append(keras.layers.Bidirectional(layer) if module.bidirectional else layer)
    return layers


def run_keras(layers: list[Any], x: Any) -> list[Tensor]:
    """Output and states, the latter h and c of each direction."""
    ends: list[Any] = []
    for layer in layers:
        x, *state = layer(x)
        ends += state
    output, *states = (torch.as_tensor(tensor).detach().cpu() for tensor in (x, *ends))
    return [output, torch.stack(states[::2]), torch.stack(states[1::2])]


@every_option
def test_keras(name: str) -> None:
    module = lstm(name)
    layers = keras_layers(module)
    x = torch.randn(BATCH, STEPS, FEATURES)
    run_keras(layers, x.numpy())  # builds them
    # From Keras' own draws, its forget bias of 1 included.
    ours = convert.from_keras([layer.get_weights() for layer in layers], batch_first=True)
    torch.testing.assert_close(flat(ours(x)), run_keras(layers, x.numpy()), **CLOSE)
    for layer, weights in zip(layers, convert.to_keras(module), strict=True):
        layer.set_weights([weight.numpy() for weight in weights])
    torch.testing.assert_close(run_keras(layers, x.numpy()), flat(module(x)), **CLOSE)


def flax_run(cells: list[list[Any]], x: Tensor) -> list[Tensor]:
    jax = pytest.importorskip("jax", reason='jax is not installed: pip install -c constraints.txt -e ".[convert]"')
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    values, ends = x.numpy(), []
    for layer in cells:
        sides = []
        for d, parameters in enumerate(layer):
            network = linen.RNN(linen.OptimizedLSTMCell(HIDDEN), return_carry=True, reverse=d == 1, keep_order=True)
            variables = {"params": {"cell": jax.tree_util.tree_map(lambda leaf: leaf.__array__(), parameters)}}
            carry, side = network.apply(variables, values)
            sides.append(side)
            ends.append(carry)
        values = jax.numpy.concatenate(sides, axis=-1)
    # The carry is (c, h).
    return tensors(values, jax.numpy.stack([h for _, h in ends]), jax.numpy.stack([c for c, _ in ends]))


@every_option
def test_flax(name: str) -> None:
    module, x = lstm(name), torch.randn(BATCH, STEPS, FEATURES)
    torch.testing.assert_close(flax_run(convert.to_flax(module), x), flat(module(x)), **CLOSE)


def test_from_flax() -> None:
    """From Flax' own draws."""
    jax = pytest.importorskip("jax", reason="jax is not installed")
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    x = torch.randn(BATCH, STEPS, FEATURES)
    ways = [linen.RNN(linen.OptimizedLSTMCell(HIDDEN)) for _ in range(2)]
    network = linen.Bidirectional(*ways)
    variables = network.init(jax.random.PRNGKey(0), x.numpy())
    draws = [variables["params"][name]["cell"] for name in ("forward_rnn", "backward_rnn")]
    for cell in draws:
        cell["hf"]["bias"] = cell["hf"]["bias"] + 1.5
    ours = convert.from_flax([draws], batch_first=True)
    torch.testing.assert_close(ours(x)[0], *tensors(network.apply(variables, x.numpy())), **CLOSE)


def run_onnx(
    layers: list[dict[str, Tensor]], x: Tensor, attributes: dict[str, Any] | None = None, peepholes: Any = None
) -> list[Tensor]:
    """ONNX Runtime on a graph of LSTM nodes: x is (B, T, I)."""
    helper = pytest.importorskip("onnx.helper", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    value, ends = x.transpose(0, 1).contiguous(), []
    for node in layers:
        feeds = {"X": value, **node} | ({} if peepholes is None else {"P": peepholes})
        names = [name if name in feeds else "" for name in ("X", "W", "R", "B", "", "", "", "P")]
        while not names[-1]:
            names.pop()
        direction = "bidirectional" if len(node["W"]) == 2 else "forward"
        lstm_node = helper.make_node(
            "LSTM",
            names,
            ["Y", "Y_h", "Y_c"],
            hidden_size=node["R"].shape[2],
            direction=direction,
            **(attributes or {}),
        )
        graph = helper.make_graph(
            [lstm_node],
            "lstm",
            [helper.make_tensor_value_info(name, 1, list(tensor.shape)) for name, tensor in feeds.items()],
            [helper.make_tensor_value_info(name, 1, None) for name in ("Y", "Y_h", "Y_c")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        y, h_n, c_n = tensors(*session.run(None, {name: tensor.detach().numpy() for name, tensor in feeds.items()}))
        value = y.transpose(1, 2).flatten(2).contiguous()  # (T, D, B, H) -> (T, B, D*H)
        ends.append((h_n, c_n))
    return [value.transpose(0, 1), *(torch.cat(states) for states in zip(*ends, strict=True))]


@every_option
def test_onnx(name: str) -> None:
    module, x = lstm(name), torch.randn(BATCH, STEPS, FEATURES)
    torch.testing.assert_close(run_onnx(convert.to_onnx(module), x), flat(module(x)), rtol=1e-4, atol=1e-5)


def test_onnx_has_the_biases_of_the_input_first() -> None:
    """A runtime adds the two: its results do not show which is which."""
    module = lstm("two-layers-both-ways")
    for k, node in enumerate(convert.to_onnx(module)):
        for d, suffix in enumerate(("", "_reverse")):
            for half, name in zip(node["B"][d].chunk(2), ("bias_ih", "bias_hh"), strict=True):
                i, f, g, o = getattr(module, f"{name}_l{k}{suffix}").chunk(4)
                assert torch.equal(half, torch.cat([i, o, f, g]))


def test_peepholes_are_those_of_onnx() -> None:
    """Another implementation of two cells: ONNX has peepholes, and clips what goes into the gates, not c."""
    stack = torchlstm.cells.PeepholeLSTM(FEATURES, HIDDEN, batch_first=True)
    (cell,) = stack.cells
    plain = torchlstm.LSTM(FEATURES, HIDDEN)
    plain.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items() if "_p" not in name})
    peepholes = torch.cat([cell.weight_pi, cell.weight_po, cell.weight_pf])[None]
    x = torch.randn(BATCH, STEPS, FEATURES)
    found = run_onnx(convert.to_onnx(plain), x, peepholes=peepholes)
    torch.testing.assert_close(found, flat(stack(x)), rtol=1e-4, atol=1e-5)


def test_coupled_gates_are_those_of_onnx() -> None:
    stack = torchlstm.cells.CoupledLSTM(FEATURES, HIDDEN, batch_first=True)
    (cell,) = stack.cells
    plain = torchlstm.LSTM(FEATURES, HIDDEN)
    for name, value in cell.state_dict().items():
        i, g, o = value.chunk(3)
        getattr(plain, f"{name}_l0").data.copy_(torch.cat([i, torch.randn_like(i), g, o]))
    x = torch.randn(BATCH, STEPS, FEATURES)
    found = run_onnx(convert.to_onnx(plain), x, {"input_forget": 1})
    torch.testing.assert_close(found, flat(stack(x)), rtol=1e-4, atol=1e-5)


def test_haste_layout() -> None:
    """haste needs a CUDA compiler to install: this is its documented layout (i, g, f, o), computed by hand."""
    module, x = lstm("plain"), torch.randn(BATCH, STEPS, FEATURES)
    (layer,) = convert.to_haste(module)
    assert {name: tuple(value.shape) for name, value in layer.items()} == {
        "kernel": (FEATURES, 4 * HIDDEN), "recurrent_kernel": (HIDDEN, 4 * HIDDEN), "bias": (4 * HIDDEN,),
    }  # fmt: skip
    h = c = torch.zeros(BATCH, HIDDEN)
    for t in range(STEPS):
        gates = x[:, t] @ layer["kernel"] + h @ layer["recurrent_kernel"] + layer["bias"]
        i, g, f, o = gates.split(HIDDEN, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close([h, c], [state[0] for state in module(x)[1]])
    with pytest.raises(ValueError, match="bidirectional"):
        convert.to_haste(lstm("nobias-both-ways"))


LAYOUTS = {
    "keras": (convert.to_keras, convert.from_keras),
    "flax": (convert.to_flax, convert.from_flax),
    "onnx": (convert.to_onnx, convert.from_onnx),
    "haste": (convert.to_haste, convert.from_haste),
}


@every_option
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [torchlstm.LSTM, nn.LSTM], ids=["torchlstm", "torch.nn"])
def test_round_trip(layout: str, name: str, kind: Any) -> None:
    if layout == "haste" and OPTIONS[name].get("bidirectional"):
        pytest.skip("haste has one direction")
    there, back = LAYOUTS[layout]
    module = lstm(name, kind).double()
    state = torch.get_rng_state()
    out = there(module)
    again = back(out, batch_first=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(again) is torchlstm.LSTM
    mine, theirs = dict(again.named_parameters()), dict(module.named_parameters())
    for key, value in theirs.items():
        if "bias" in key and layout != "onnx":
            continue
        assert torch.equal(mine[key], value), key
    for key in (key for key in mine if key.startswith("bias_ih") and layout != "onnx"):
        total = theirs[key] + theirs[key.replace("ih", "hh")] if key in theirs else torch.zeros_like(mine[key])
        assert torch.equal(mine[key], total)
        assert not mine[key.replace("ih", "hh")].any()
    # What has been there and back goes there as it is, with or without numpy.
    arrays = torch.utils._pytree.tree_map(lambda tensor: tensor.numpy(), out)
    for source in (out, arrays):
        twice = torch.utils._pytree.tree_leaves(there(back(source)))
        assert all(torch.equal(a, b) for a, b in zip(twice, torch.utils._pytree.tree_leaves(out), strict=True))
    # Nobody who writes into what was given changes the module.
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for tensor in torch.utils._pytree.tree_leaves(out):
        tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


K, R, W = torch.randn(4, 20), torch.randn(5, 20), torch.randn(20)
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "gru": (lambda: convert.to_keras(nn.GRU(2, 3)), TypeError, "expected an LSTM, .* got GRU"),
    "cell": (lambda: convert.to_onnx(nn.LSTMCell(2, 3)), TypeError, "got LSTMCell"),
    "projection": (lambda: convert.to_flax(nn.LSTM(2, 3, proj_size=2)), ValueError, "proj_size=2, .* no projections"),
    "none": (lambda: convert.from_keras([]), ValueError, "at least one layer"),
    "count": (lambda: convert.from_keras([[K] * 5]), ValueError, "2 or 3 arrays .* got 5"),
    "shape": (
        lambda: convert.from_keras([[K, R, W[:16]]]),
        ValueError,
        r"layer 0: expected bias_ih of shape \(20,\), got \(16,\)",
    ),
    "gates": (lambda: convert.from_keras([[K[:, :19], R, W]]), ValueError, "four gates of the same size, got 19"),
    "later": (
        lambda: convert.from_keras([[K, R, W], [K, R, W]]),
        ValueError,
        r"layer 1: expected weight_ih of shape \(20, 5\), got \(20, 4\)",
    ),
    "bias": (lambda: convert.from_keras([[K, R, W], [R, R]]), ValueError, "layer 1 lacks a bias, unlike layer 0"),
    "directions": (
        lambda: convert.from_keras([[K, R, W], [R, R, W] * 2]),
        ValueError,
        "layer 1 has 2 directions, layer 0 has 1",
    ),
    "names": (lambda: convert.from_flax([[{"ii": {}}]]), ValueError, r"if, ig, io, hi, .* missing of \['ii'\]"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
