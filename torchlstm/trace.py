"""The results of `LSTM.trace`: the states and gates of every step."""

from typing import Any, NamedTuple

from torch import Tensor

from .call.packing import Packed, unpack
from .call.plan import Plan
from .call.stack import Traced


class States(NamedTuple):
    """The states and gates of one direction of one layer at every step.

    The names are those of the equations in `torchlstm.equations`. h has the shape (T, B, R), the others (T, B, H), in
    the form of the input: batch_first and unbatched input are honoured, a PackedSequence gives PackedSequences, and
    jagged input gives jagged tensors.

    Attributes:
        h: o * tanh(c), or its projection; before the dropout between layers.
        c: The cell state, f * c_before + i * g.
        i: The input gate, after its sigmoid.
        f: The forget gate, after its sigmoid.
        g: The candidate, after its tanh.
        o: The output gate, after its sigmoid.
    """

    h: Any
    c: Any
    i: Any
    f: Any
    g: Any
    o: Any


class Trace(NamedTuple):
    """The results of a forward, and the states and gates of every layer and direction.

    All of it can be differentiated. The states are views of what the backward needs: after writing into one, the
    backward raises an error.

    Attributes:
        output: As `LSTM.forward` returns it.
        state: (h_n, c_n), as `LSTM.forward` returns it.
        layers: `layers[layer][direction]` is a `States`; direction 1 is the reverse one.
    """

    output: Any
    state: tuple[Tensor, Tensor]
    layers: list[list[States]]


def states_of(plan: Plan, packed: Packed, traced: Traced) -> list[States]:
    """Bring the states of one layer into the form of the input, for each direction."""
    y, acts, cells = traced
    # `chunk` and `unbind` make all views in one operation, so that the gradient is one concatenation.
    directions = zip(y.chunk(acts.shape[0], dim=1), cells.unbind(), acts.unbind(), strict=True)
    return [
        States(*(unpack(plan, packed, rows) for rows in (h, c, *gates.chunk(4, dim=1)))) for h, c, gates in directions
    ]
