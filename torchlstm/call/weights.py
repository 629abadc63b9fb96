"""The weights of a module, read at every call and checked against its plan."""

from typing import Any

from torch import Tensor

from ..engines.contract import Weights
from .checks import check_weight
from .plan import Form, Plan

_KINDS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")


def weights_of(plan: Plan, module: Any, x: Tensor) -> list[tuple[Weights, ...]]:
    """The weights of every layer and direction, L of D of `Weights`, for rows x (P, I).

    Raises RuntimeError for a dtype, device or shape that does not fit, and TypeError, as nn.LSTM does, for a weight
    that is None.  A module whose weights are computed anew at every call has a method `read_weight(name)`.
    """
    try:
        own = module._parameters
    except AttributeError:
        own = {}
    dtype, device = x.dtype, x.device
    read = getattr(type(module), "read_weight", None)
    layers: list[tuple[Weights, ...]] = []
    for layer in plan.layers:
        directions = []
        for parameters in layer:
            weights: list[Any] = []
            for kind, parameter in zip(_KINDS, parameters, strict=True):
                if parameter is None:
                    weights.append(None)
                    continue
                name, shape = parameter
                # Saves the 2 us of nn.Module's __getattr__ where the weight is a Parameter.
                weight = own.get(name) if read is None else read(module, name)
                if weight is None and (weight := getattr(module, name)) is None:
                    if plan.form not in (Form.STEP, Form.UNBATCHED_STEP):
                        raise TypeError(f"LSTM: Expected {name} to be a Tensor, got None")
                    # nn.LSTMCell allows one of its two biases to be None.
                    weight = x.new_zeros(shape)
                if weight.dtype != dtype or weight.device != device or weight.shape != shape:
                    check_weight(x, kind, weight, shape)
                weights.append(weight)
            directions.append(tuple(weights))
        layers.append(tuple(directions))
    return layers
