"""Pictures of a trace. They need matplotlib, which is imported when one is drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The panels of both columns, from top to bottom.
_COLUMNS = (
    {"i": "input gate i", "f": "forget gate f", "o": "output gate o"},
    {"g": "candidate g", "h": "hidden state h", "c": "cell state c"},
)


def gates(
    trace: Trace,
    *,
    layer: int = 0,
    direction: int = 0,
    sequence: int = 0,
    batch_first: bool = False,
    labels: Sequence[str] | None = None,
) -> "Figure":
    """Draw the states and gates of one sequence in one direction of one layer: a heat map each of i, f, o, g, h and c.

    Steps run along x and units along y. i, f and o are shown from 0 to 1, g and h from -1 to 1. c is shown up to its
    largest magnitude, at least 1, on both sides of 0; so are g and h where a projected h exceeds 1.

    Args:
        trace: The result of `LSTM.trace`.
        layer: The layer; negative numbers count from the end.
        direction: 0, or 1 for the reverse direction.
        sequence: The sequence in the batch; negative numbers count from the end.
        batch_first: The module's own; without effect on jagged input.
        labels: One text for each step, shown under the lowest panels, such as the characters of a text.

    Returns:
        A matplotlib Figure that belongs to no window; call `.savefig(...)`, or show it in a notebook.

    Raises:
        ImportError: matplotlib is not installed.
        IndexError: The layer, direction or sequence does not exist.
        ValueError: The number of labels is wrong, or `batch_first` is not the module's.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> trace = torchlstm.LSTM(8, 16).trace(torch.randn(10, 4, 8))
        >>> figure = torchlstm.viz.gates(trace)
        >>> [axes.get_title() for axes in figure.axes if axes.get_title()][:2]
        ['input gate i', 'candidate g']
    """
    figure_type = _figure_type()
    states = trace.layers[layer][direction]
    _check_layout(trace, batch_first)
    values = {name: _of_sequence(value, sequence, batch_first) for name, value in states._asdict().items()}
    steps = values["c"].shape[0]
    if labels is not None and len(labels) != steps:
        raise ValueError(f"expected {steps} labels, one for each step of the sequence, got {len(labels)}")
    # h leaves -1 to 1 only if it is projected.
    h, c = (max(1.0, values[name].abs().max().item()) if steps else 1.0 for name in "hc")
    figure: Figure = figure_type(figsize=(2 * min(12.0, max(4.0, 0.11 * steps)), 7), layout="constrained")
    grid = figure.subplots(3, 2, sharex=True, squeeze=False)
    panels = {name: grid[row, column] for column, names in enumerate(_COLUMNS) for row, name in enumerate(names)}
    scales = (("ifo", "viridis", 0.0, 1.0), ("gh", "RdBu_r", -h, h), ("c", "RdBu_r", -c, c))
    for names, colours, low, high in scales:
        for name in names:
            style: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "cmap": colours}
            image = panels[name].imshow(values[name].t().numpy(), vmin=low, vmax=high, **style)
        figure.colorbar(image, ax=[panels[name] for name in names])
    for titles in _COLUMNS:
        for name, title in titles.items():
            panels[name].set_title(title)
            panels[name].set_ylabel("unit")
    for lowest in grid[-1]:
        lowest.set_xlabel("step")
        if labels is not None:
            lowest.set_xticks(range(steps), labels)
    return figure


def _figure_type() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("torchlstm.viz needs matplotlib, which is not installed: pip install matplotlib") from error
    return Figure


def _check_layout(trace: Trace, batch_first: bool) -> None:
    """Raise ValueError if the last step of direction 0 is not the final state."""
    c, c_n = trace.layers[0][0].c, trace.state[1][0]
    if isinstance(c, PackedSequence) or c.is_nested or c.dim() == 2 or not c.numel():
        return
    last = c[:, -1] if batch_first else c[-1]
    if last.shape != c_n.shape or not last.isclose(c_n, rtol=0, atol=0, equal_nan=True).all():
        raise ValueError(
            f"the states of this trace, {tuple(c.shape)}, are not laid out as batch_first={batch_first} says: "
            f"pass the module's own batch_first"
        )


def _of_sequence(value: Any, sequence: int, batch_first: bool) -> Tensor:
    """One sequence (T, F) of what may be a batch, on the CPU."""
    if isinstance(value, PackedSequence):
        sizes = value.batch_sizes
        place = torch.arange(int(sizes[0]))[sequence]
        if value.unsorted_indices is not None:
            place = value.unsorted_indices[place].cpu()
        starts = sizes.cumsum(0) - sizes
        rows = value.data[(starts + place)[sizes > place].to(value.data.device)]
    elif value.is_nested:
        rows = value.unbind()[sequence]
    elif value.dim() == 2:
        rows = value[:, :] if sequence in (0, -1) else value[None][sequence]
    else:
        rows = value[sequence] if batch_first else value[:, sequence]
    plain: Tensor = rows.detach().cpu().float()
    return plain
