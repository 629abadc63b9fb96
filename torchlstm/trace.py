"""What `LSTM.trace` returns: the states and gates of every step."""

from typing import Any, NamedTuple

from torch import Tensor

from .call.packing import Packed, unpack
from .call.plan import Plan
from .call.stack import Traced


class States(NamedTuple):
    r"""One direction of one layer at every step t, in the input's form: (T, B, R) of h, (T, B, H) of the others.

    With the names of the equations of `torchlstm.equations`:

        i, f, o   \sigma(...), the input, forget and output gate
        g         \tanh(...), the candidate
        c         f * c before + i * g
        h         o * \tanh(c), or its projection; before the dropout between layers

    batch_first and unbatched input are honoured; of a PackedSequence these are PackedSequences, of jagged input jagged.
    """

    h: Any
    c: Any
    i: Any
    f: Any
    g: Any
    o: Any


class Trace(NamedTuple):
    """The results of a forward, and what every layer and direction did at every step.

    output, state  as `forward` returns them
    layers         layers[layer][direction] is a `States`; direction 1 is the reverse one

    All of it can be differentiated.  The states are views of what the backward needs: one that is written into makes
    the backward raise an error.
    """

    output: Any
    state: tuple[Tensor, Tensor]
    layers: list[list[States]]


def states_of(plan: Plan, packed: Packed, traced: Traced) -> list[States]:
    """One layer's states in the form of the input, for each direction."""
    y, acts, cells = traced
    # `chunk` and `unbind` cut all at once: their gradient is one concatenation.
    directions = zip(y.chunk(acts.shape[0], dim=1), cells.unbind(), acts.unbind(), strict=True)
    return [
        States(*(unpack(plan, packed, rows) for rows in (h, c, *gates.chunk(4, dim=1)))) for h, c, gates in directions
    ]
