"""The heat map of a trace: what its panels show, of which sequence, and how they are labelled."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import torchlstm
from torchlstm.trace import Trace

pytest.importorskip("matplotlib")
from torchlstm.viz import gates

TITLES = {
    "input gate i": "i",
    "candidate g": "g",
    "forget gate f": "f",
    "cell state c": "c",
    "output gate o": "o",
    "hidden state h": "h",
}


def panels(figure: Any) -> dict[str, Any]:
    """The panels by the name of what they show; colour bars have no title."""
    return {TITLES[axes.get_title()]: axes for axes in figure.axes if axes.get_title()}


def shown(figure: Any) -> dict[str, Tensor]:
    found = {}
    for name, panel in panels(figure).items():
        (image,) = panel.images
        found[name] = torch.from_numpy(image.get_array().data.copy())
    return found


def trace_of(x: Any, **options: Any) -> Trace:
    torch.manual_seed(0)
    lstm = torchlstm.LSTM(4, 6, 2, bidirectional=True, **options)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(4)
    return lstm.trace(x)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-major", "batch-first"])
def test_the_panels_show_what_was_asked_for(batch_first: bool) -> None:
    trace = trace_of(torch.randn(3, 3, 4), batch_first=batch_first, proj_size=2)  # square: no shape tells T from B
    for layer, direction, sequence in ((0, 0, 0), (1, 1, 2), (-1, 0, -1)):
        found = shown(gates(trace, layer=layer, direction=direction, sequence=sequence, batch_first=batch_first))
        for name, value in trace.layers[layer][direction]._asdict().items():
            expected = value[sequence] if batch_first else value[:, sequence]
            assert torch.equal(found.pop(name), expected.detach().t())
        assert not found


@pytest.mark.parametrize("sequence", [0, 1, 2, -1])
def test_a_packed_sequence_is_shown_as_long_as_it_is(sequence: int) -> None:
    x, lengths = torch.randn(5, 3, 4), [2, 5, 3]
    trace = trace_of(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    alone = trace_of(x[: lengths[sequence], sequence])
    found, expected = (
        shown(gates(trace, layer=1, direction=1, sequence=sequence)),
        shown(gates(alone, layer=1, direction=1)),
    )
    assert found["c"].shape == (6, lengths[sequence])
    torch.testing.assert_close(found, expected)


def test_scales_and_labels() -> None:
    text = "Long short-term memory"
    trace = trace_of(torch.randn(len(text), 4))
    largest = trace.layers[0][0].c.abs().max().item()
    assert largest > 1
    figure = gates(trace, labels=list(text))
    found = panels(figure)
    for name, panel in found.items():
        low, high = (0.0, 1.0) if name in "ifo" else (-largest, largest) if name == "c" else (-1.0, 1.0)
        assert panel.images[0].get_clim() == pytest.approx((low, high))
        assert panel.images[0].get_cmap().name == ("viridis" if name in "ifo" else "RdBu_r")
        assert panel.get_ylabel() == "unit"
    for name in "oc":  # below the others
        assert [label.get_text() for label in found[name].get_xticklabels()] == list(text)
        assert list(found[name].get_xticks()) == list(range(len(text)))
        assert found[name].get_xlabel() == "step"
    assert len(figure.axes) == len(found) + 3  # a colour bar for each scale
    small = torchlstm.LSTM(4, 6).trace(torch.zeros(2, 4))
    assert panels(gates(small))["c"].images[0].get_clim() == (-1, 1)


def test_a_picture_in_any_dtype(tmp_path: Any) -> None:
    lstm = torchlstm.LSTM(4, 6, dtype=torch.bfloat16)
    figure = gates(lstm.trace(torch.randn(5, 2, 4, dtype=torch.bfloat16)))
    figure.savefig(tmp_path / "gates.png")
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_there() -> None:
    trace = trace_of(torch.randn(3, 5, 4))
    for wrong in ({"layer": 2}, {"direction": 2}, {"sequence": 5}):
        with pytest.raises(IndexError):
            gates(trace, **wrong)
    with pytest.raises(IndexError):
        gates(trace_of(torch.randn(3, 4)), sequence=1)
    with pytest.raises(ValueError, match="expected 3 labels, one for each step of the sequence, got 2"):
        gates(trace, labels="ab")
    with pytest.raises(ValueError, match=r"\(3, 5, 6\), are not laid out as batch_first=True says"):
        gates(trace, batch_first=True)
    with pytest.raises(ValueError, match="not laid out as batch_first=True says"):
        gates(trace_of(torch.randn(3, 3, 4)), batch_first=True)
    gates(trace_of(torch.full((3, 5, 4), torch.nan)))


def test_matplotlib_is_loaded_when_it_is_needed() -> None:
    program = """
import sys, torch, torchlstm
import torchlstm.viz
assert not any(name.split(".")[0] == "matplotlib" for name in sys.modules)
sys.modules["matplotlib"] = None
try:
    torchlstm.viz.gates(torchlstm.LSTM(2, 3).trace(torch.randn(4, 2)))
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install matplotlib" in done.stdout, done.stderr
