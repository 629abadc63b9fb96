"""Once this is imported, fvcore's FlopCountAnalysis counts every product of an LSTM and LSTMCell, not only the first.

fvcore reads the graph that torch.jit.trace records. nn.LSTM is one node there, for which fvcore has no rule and counts
nothing. Ours is a product with the input, for which it has a rule, and the loop over time, a call of a function, for
which it has none. A fused multiply-add counts as one, as everywhere in fvcore.

Examples:
    >>> import torch, torchlstm
    >>> from fvcore.nn import FlopCountAnalysis
    >>> import torchlstm.integrations.fvcore
    >>> FlopCountAnalysis(torchlstm.LSTM(8, 16).eval(), torch.randn(10, 4, 8)).total()
    61440
"""

import logging
import math
from typing import Any

from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS

_CALL = "prim::CallFunction"


def _call(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the multiply-adds of the loop of `engines/loop.py`; return 0, with a warning, for other functions."""
    function, *arguments = inputs
    if function.node().s("name") != "loop" or len(arguments) < 4:
        logging.getLogger("fvcore.nn.jit_analysis").warning("Unsupported operator %s encountered 1 time(s)", _CALL)
        return 0
    *rows, _ = arguments[0].type().sizes()  # (T, B, 4H) or (P, 4H)
    weights = arguments[3].node().inputs()  # (4H, R), and (R, H) of a projection
    return int(math.prod(rows) * sum(math.prod(weight.type().sizes()) for weight in weights))


# There is no public function for all analyses; `set_op_handle` changes one analysis only.
_DEFAULT_SUPPORTED_OPS.setdefault(_CALL, _call)
