"""Small calls in bfloat16 and float16 without gradients: bit for bit, in C, what the way in Python computes."""

from functools import partial
from typing import Any

import pytest
import torch
from both_ways import assert_same, both_ways, tensors_of, watched

import torchlstm
from torchlstm.call import native

if not native._connected:
    pytest.skip("the extension was not compiled", allow_module_level=True)

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def equal(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert_same(*(tensors_of(each) for each in both_ways(call, monkeypatch)))


@dtypes
@pytest.mark.parametrize("states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("batch", [None, 1, 4], ids=["unbatched", "one", "four"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers(
    layers: int, directions: int, batch: int | None, states: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    options: tuple[dict[str, Any], ...]
    options = ({"bias": False}, {"batch_first": True}, {"proj_size": 3}, {"proj_size": 3, "batch_first": True})
    for given in options:
        module = torchlstm.LSTM(6, 8, layers, bidirectional=directions == 2, **given).to(dtype)
        for steps in (1, 2, 7):
            sizes = (steps,) if batch is None else (batch, steps) if module.batch_first else (steps, batch)
            of_states = (layers * directions,) if batch is None else (layers * directions, batch)
            h, c = torch.randn(*of_states, module.proj_size or 8).to(dtype), torch.randn(*of_states, 8).to(dtype)
            x, hx = torch.randn(*sizes, 6).to(dtype), (h, c) if states else None
            equal(partial(module, x, hx), monkeypatch)


@dtypes
def test_an_input_in_another_order(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = torchlstm.LSTM(6, 8).to(dtype), torch.randn(3, 4, 12).to(dtype)
    equal(lambda: module(x.transpose(0, 1)[..., :6]), monkeypatch)
    equal(lambda: module(x[:1, :1, :6].expand(5, 2, 6)), monkeypatch)


@dtypes
def test_a_cell(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = torchlstm.LSTMCell(6, 8).to(dtype)
    x, hx = torch.randn(5, 6).to(dtype), tuple(torch.randn(2, 5, 8).to(dtype))
    equal(lambda: cell(x), monkeypatch)
    equal(lambda: cell(x, hx), monkeypatch)
    equal(lambda: cell(x[0], (hx[0][0], hx[1][0])), monkeypatch)


@dtypes
def test_every_value_of_a_state(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With f = 1 and i = 0 a cell gives back c, and h is half its tanh, which rounds the smallest values."""
    c = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).unsqueeze(1)
    cell = torchlstm.LSTMCell(1, 1).to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.bias_ih.copy_(torch.tensor([-200.0, 200.0, 0.0, 0.0]))
        in_c, in_python = both_ways(lambda: cell(torch.zeros_like(c), (torch.zeros_like(c), c)), monkeypatch)
    for a, b in zip(in_c, in_python, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    finite = c.isfinite()
    # The kernel takes denormals of float32, which bfloat16 has too, for zero.
    usual = finite & (c.float().abs() >= torch.finfo(torch.float32).tiny)
    assert torch.equal(in_c[1][usual], c[usual])


@dtypes
def test_what_is_large_or_has_gradients_is_for_python(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = torchlstm.LSTM(6, 8).to(dtype), torchlstm.LSTM(500, 500).to(dtype)
    with watched(monkeypatch) as taken, torch.no_grad():
        large(torch.randn(1, 1, 500).to(dtype))
        small(torch.randn(40_000, 4, 6).to(dtype))
    assert taken == [False, False]
    with watched(monkeypatch) as taken:
        small(torch.randn(1, 1, 6).to(dtype))[0].sum().backward()
    assert taken == [False]
    assert small.weight_ih_l0.grad is not None
