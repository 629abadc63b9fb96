"""Replace torch.nn's LSTM classes in an existing model by torchlstm's, and back."""

import warnings
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from .cell import LSTMCell
from .engines.cuda import told
from .engines.cuda.classes import Form
from .lazy import LazyLSTM
from .lstm import LSTM

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

Model = TypeVar("Model", bound=nn.Module)


class Candidate(NamedTuple):
    """A module that `swap` or `freeze` looks at.

    Attributes:
        name: Its name in the model; "" is the model itself.
        module: The module.
        reason: Why it is left alone, or None if it is not.
    """

    name: str
    module: nn.Module
    reason: str | None

    @property
    def note(self) -> str | None:
        """Whether nn.LSTM was faster on this module's GPU, as `torchlstm qualify` measured.

        Returns:
            A sentence for an nn.LSTM on a GPU where nn.LSTM was faster than the engine that would be chosen. None
            where it was not, or was not measured.
        """
        module = self.module
        if self.reason is not None or not isinstance(module, nn.LSTM) or module.weight_hh_l0.device.type != "cuda":
            return None
        weight = module.weight_hh_l0
        rnn: Any = torch.backends.cudnn.rnn
        return told.rival(
            weight.device.index,
            Form(
                dtype=weight.dtype,
                tf32=weight.dtype == torch.float32 and rnn.fp32_precision == "tf32",
                hidden=module.hidden_size,
                directions=2 if module.bidirectional else 1,
                reverse=False,
                projected=module.proj_size > 0,
                ragged=False,
                trace=False,
            ),
        )


def _reason(module: nn.Module) -> str | None:
    """Say why this instance of nn.LSTM or nn.LSTMCell, or of a subclass, is left alone; None if it is not."""
    kind = type(module)
    if kind not in _OURS:
        if hasattr(module, "parametrizations"):
            return f"it is parametrized, which made its class a subclass of {kind.__mro__[1].__name__}: swap first"
        return f"its class {kind.__module__}.{kind.__qualname__} is a subclass, whose own methods swapping would lose"
    if "forward" in vars(module):
        return "it has a forward of its own, set on the instance"
    return None


def plan_swap(model: nn.Module) -> list[Candidate]:
    """Say what `swap(model)` would do, without doing it.

    Args:
        model: Any module.

    Returns:
        One `Candidate` for every nn.LSTM and nn.LSTMCell in the model, subclasses included. Each has a `reason` if it
        would be left alone, and a `note` if nn.LSTM was measured to be faster on its GPU.

    Examples:
        >>> from torch import nn
        >>> import torchlstm
        >>> model = nn.ModuleDict({"lstm": nn.LSTM(8, 16)})
        >>> [(name, reason) for name, module, reason in torchlstm.plan_swap(model)]
        [('lstm', None)]
    """
    return [
        Candidate(name, module, _reason(module))
        for name, module in model.named_modules()
        if isinstance(module, (nn.LSTM, nn.LSTMCell))
    ]


def swap(model: Model) -> Model:
    """Turn every nn.LSTM and nn.LSTMCell of a model into torchlstm's, in place.

    The modules stay the same objects and only change their class. Parameters, names, hooks, modes, tied modules and
    optimizers that hold the parameters are unchanged. Subclasses are left alone, with one warning that names them.

    Args:
        model: Any module, also one that is itself an nn.LSTM.

    Returns:
        The model.

    Examples:
        >>> from torch import nn
        >>> import torchlstm
        >>> model = torchlstm.swap(nn.Sequential(nn.LSTM(8, 16)))
        >>> type(model[0])
        <class 'torchlstm.lstm.LSTM'>
    """
    plan = plan_swap(model)
    for _, module, reason in plan:
        if reason is None:
            module.__class__ = _OURS[type(module)]
    left = [f"{name or 'the model itself'}: {reason}" for name, _, reason in plan if reason]
    if left:
        warnings.warn("swap left alone: " + "; ".join(left), stacklevel=2)
    return model


def restore(model: Model) -> Model:
    """Undo `swap`: turn every torchlstm LSTM and LSTMCell of a model into torch.nn's, in place.

    A LazyLSTM before its first call is left alone, with a warning that names it.

    Args:
        model: Any module.

    Returns:
        The model.

    Examples:
        >>> from torch import nn
        >>> import torchlstm
        >>> model = torchlstm.restore(torchlstm.swap(nn.Sequential(nn.LSTM(8, 16))))
        >>> type(model[0])
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    lazy = [name or "the model itself" for name, module in model.named_modules() if isinstance(module, LazyLSTM)]
    if lazy:
        why = "torch.nn has no lazy LSTM, and a LazyLSTM becomes a plain one when it is called"
        warnings.warn(f"restore left alone: {', '.join(lazy)}: {why}", stacklevel=2)
    for module in model.modules():
        if theirs := _THEIRS.get(type(module)):
            module.__class__ = theirs
            if isinstance(module, nn.LSTM):
                # cuDNN needs the weights in one chunk of memory; torchlstm does not.
                module.flatten_parameters()
    return model
