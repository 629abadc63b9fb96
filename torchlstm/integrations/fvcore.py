"""Once this is imported, fvcore's FlopCountAnalysis counts every product of an LSTM and LSTMCell, not the first alone.

>>> import torchlstm.integrations.fvcore
>>> FlopCountAnalysis(model, x).total()

fvcore reads the graph that torch.jit.trace records.  nn.LSTM is one node there, for which it has no rule and counts
nothing; ours is the product with the input, for which it has one, and the loop over time as a call of a function, for
which it has none.  Fused multiply-adds count as one, as everywhere in fvcore.
"""

import logging
import math
from typing import Any

from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS

_CALL = "prim::CallFunction"


def _call(inputs: list[Any], outputs: list[Any]) -> int:
    """The multiply-adds of a call of a scripted function, the loop of `engines/loop.py`; 0 and a warning for others."""
    function, *arguments = inputs
    if function.node().s("name") != "loop" or len(arguments) < 4:
        logging.getLogger("fvcore.nn.jit_analysis").warning("Unsupported operator %s encountered 1 time(s)", _CALL)
        return 0
    *rows, _ = arguments[0].type().sizes()  # (T, B, 4H) or (P, 4H)
    weights = arguments[3].node().inputs()  # (4H, R), and (R, H) of a projection
    return int(math.prod(rows) * sum(math.prod(weight.type().sizes()) for weight in weights))


# No public door leads to all analyses; `set_op_handle` is one analysis' own.
_DEFAULT_SUPPORTED_OPS.setdefault(_CALL, _call)
