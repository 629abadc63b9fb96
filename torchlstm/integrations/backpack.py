"""Per-sample gradients: after this import, BackPACK's BatchGrad finds them in LSTM and LSTMCell.

Import it before `backpack.extend`. Every option and form of input works, packed input and `lengths` too; samples are
in the order of the input. Gradients may arrive at the output and at both states. A module that is called several times
gets the sum, as a loop over a cell needs.

BackPACK's hooks see the inputs and outputs of a module, but neither states, packed rows nor the values between layers.
So nothing is hooked here: the backward of each layer hands over every sample's gradients
(`engines/shared/per_sample.py`). BackPACK's other extensions treat these modules as unknown ones.

Raises:
    RuntimeError: In a call: it has resets or is compiled, or the model was extended before this import or before
        `swap`.
    NotImplementedError: In a call: a weight is not a Parameter of the module itself.

Examples:
    >>> import backpack, torch, torchlstm
    >>> from backpack.extensions import BatchGrad
    >>> import torchlstm.integrations.backpack
    >>> lstm = backpack.extend(torchlstm.LSTM(8, 16))
    >>> with backpack.backpack(BatchGrad()):
    ...     lstm(torch.randn(10, 4, 8))[0].sum().backward()
    >>> lstm.weight_hh_l0.grad_batch.shape
    torch.Size([4, 64, 16])
"""

import functools
from typing import Any

import backpack
import torch
from backpack.context import CTX
from backpack.extensions import BatchGrad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from backpack.utils.hooks import no_op
from torch import Tensor, nn

from ..call.dispatch import record_layers
from ..cell import LSTMCell
from ..engines.shared.per_sample import Samples
from ..engines.shared.torch_private import current_graph_task_id
from ..lstm import LSTM
from .samples import order_of, parameters_of

_OURS = (LSTM, LSTMCell)
_EXTEND_LAST = (
    "extend the model after torchlstm.integrations.backpack is imported and its modules are swapped or restored"
)


class _Recorder:
    """One forward of one layer; see `contract.Recorder`.

    module  whose last layer in the backward this is, or None
    order   where in the rows each sample is, None if in its own place
    """

    def __init__(self, module: nn.Module | None, weights: list[nn.Parameter], order: Tensor | None) -> None:
        self.module, self.weights, self.order = module, weights, order

    def begin(self, batch: int) -> None:
        pass

    def wanted(self) -> bool:
        return bool(CTX.get_active_exts()) or CTX.get_extension_hook() is not no_op

    def record(self, samples: Samples) -> None:
        for extension in CTX.get_active_exts():
            if not isinstance(extension, BatchGrad):
                continue
            chosen = extension.get_subsampling()
            for index, weight in enumerate(self.weights):
                if weight.requires_grad:
                    gradient = samples.gradient(index, 1.0, self.order).to(weight.dtype)
                    _give(weight, extension.savefield, gradient if chosen is None else gradient[chosen])
        if self.module is not None:
            # BackPACK calls this when a module's backward ends, with the gradients of its hooks. Here there are none.
            backpack.hook_run_extensions(self.module, (), ())


def _give(weight: Any, field: str, gradient: Any) -> None:
    """Save gradients (B, ..) on a parameter, added to those that it was given earlier in the same backward."""
    backward = current_graph_task_id()
    before: Any = getattr(weight, field, None)
    if getattr(before, "_torchlstm_backward", None) == backward:
        if before.shape != gradient.shape:
            raise RuntimeError(
                f"BackPACK: one backward has batches of {len(before)} and {len(gradient)} samples for one parameter: "
                "which samples belong together is not known"
            )
        before += gradient
        return
    gradient._torchlstm_backward = backward
    setattr(weight, field, gradient)


def _start(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a forward."""
    if not (torch.is_grad_enabled() and backpack.disable.should_store_io()):
        return
    if type(module) not in _OURS:
        raise RuntimeError(
            f"BackPACK: this {type(module).__name__} was torchlstm's when it was extended: {_EXTEND_LAST}"
        )
    layers = parameters_of("BackPACK", module)
    trained = [k for k, weights in enumerate(layers) if any(weight.requires_grad for weight in weights)]
    if trained:
        order = order_of("BackPACK", module, args, kwargs)
        record_layers(
            _Recorder(module if k == trained[0] else None, weights, order) if k in trained else None
            for k, weights in enumerate(layers)
        )


def _stop(*_: Any) -> None:
    """After a forward, also one that has failed."""
    record_layers(None)


class _Recorded(FirstOrderModuleExtension):  # type: ignore[misc]
    """BatchGrad's extension for our modules: there is nothing left to do."""

    def __call__(self, extension: Any, module: nn.Module, g_inp: Any, g_out: Any) -> None:
        if g_out:
            raise RuntimeError(f"BackPACK hooks this {type(module).__name__} as a module it knows: {_EXTEND_LAST}")


_register_hooks, _init = backpack._register_hooks, BatchGrad.__init__


def _register_hooks_of_ours(module: nn.Module) -> None:
    """As BackPACK's, which is asked once for each module; ours get hooks of their own."""
    if type(module) not in _OURS:
        _register_hooks(module)
        return
    CTX.add_hook_handle(module.register_forward_pre_hook(_start, with_kwargs=True))
    CTX.add_hook_handle(module.register_forward_hook(_stop, always_call=True))


@functools.wraps(_init)
def _init_with_ours(self: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    for kind in _OURS:
        self.set_module_extension(kind, _Recorded())


backpack._register_hooks = _register_hooks_of_ours
BatchGrad.__init__ = _init_with_ours
