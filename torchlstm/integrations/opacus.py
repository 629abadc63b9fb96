"""Training with differential privacy: once this is imported, opacus finds per-sample gradients in LSTM and LSTMCell.

GradSampleModule and PrivacyEngine then accept models that contain them, with every option and form of input, in the
modes "hooks", "functorch" (here the same as "hooks") and "ghost", which opacus limits to one call of a module a step.
The mode "ew", torch's ExpandedWeights, has no LSTM and fails.

opacus' hooks see the inputs and outputs of a module, but neither states, packed rows nor the values between layers. So
nothing is hooked here: the backward of each layer hands over every sample's gradients
(`engines/shared/per_sample.py`).

Raises:
    NotImplementedError: In a call: a weight is not a Parameter of the module itself, or the mode is "ghost_fsdp" or
        "ghost_tp".
    RuntimeError: In a call: the private model is compiled.

Examples:
    >>> import torch, torchlstm
    >>> from opacus import GradSampleModule
    >>> import torchlstm.integrations.opacus
    >>> lstm = torchlstm.LSTM(8, 16, batch_first=True)
    >>> GradSampleModule(lstm)(torch.randn(4, 10, 8))[0].sum().backward()
    >>> lstm.weight_hh_l0.grad_sample.shape
    torch.Size([4, 64, 16])
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler, register_norm_sampler
from opacus.grad_sample.grad_sample_module import create_or_accumulate_grad_sample
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from ..call.dispatch import record_layers
from ..cell import LSTMCell
from ..engines.shared.per_sample import Samples
from ..lstm import LSTM
from .samples import order_of, parameters_of


class _Layer(nn.Module):
    """The parameters of one layer, by `kernel.flatten`, as a module for which opacus can keep its records."""

    activations: list[Any]
    max_batch_len: int

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.flat = weights
        for index, weight in enumerate(weights):
            self.register_parameter(str(index), weight)


class _Recorder:
    """One forward of one layer; see `contract.Recorder`.

    order  where in the rows each sample is, None if in its own place
    """

    def __init__(self, hooks: Any, layer: _Layer, order: Tensor | None) -> None:
        self.hooks, self.layer, self.order = hooks, layer, order

    def begin(self, batch: int) -> None:
        # opacus counts a parameter's forwards, to know after which backward its gradient is complete.
        self.layer.max_batch_len = max(batch, getattr(self.layer, "max_batch_len", 0))
        self.hooks.capture_activations_hook(self.layer, [], None)

    def wanted(self) -> bool:
        return bool(self.hooks.hooks_enabled)

    def record(self, samples: Samples) -> None:
        self.layer.activations[-1] = [samples, self.order]
        # A one in place of the gradients: opacus only scales them, to undo the mean over the batch.
        one = torch.ones((), dtype=torch.float64)
        # The mode "functorch" would transform the layer's forward, and this layer has none.
        forced, self.hooks.force_functorch = self.hooks.force_functorch, False
        try:
            self.hooks.capture_backprops_hook(self.layer, None, (one,), self.hooks.loss_reduction, True)
        finally:
            self.hooks.force_functorch = forced


class _Recording:
    """The hooks before and after every forward of a module of ours."""

    def __init__(self, hooks: Any, module: LSTM | LSTMCell) -> None:
        self.hooks = hooks
        self.layers = [_Layer(weights) for weights in parameters_of("opacus", module)]

    def start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self.hooks.hooks_enabled and module.training and torch.is_grad_enabled()):
            return
        order = order_of("opacus", module, args, kwargs)
        record_layers(
            _Recorder(self.hooks, layer, order) if any(weight.requires_grad for weight in layer.flat) else None
            for layer in self.layers
        )

    def stop(self, *_: Any) -> None:
        record_layers(None)


_iterate: Callable[..., Iterator[nn.Module]] = GradSampleHooks.iterate_submodules


def _iterate_submodules(self: Any, module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that opacus hooks. Ours get other hooks, once, when opacus adds its own."""
    if not isinstance(module, (LSTM, LSTMCell)):
        yield from _iterate(self, module)
        return
    handles, recorded = self._module.autograd_grad_sample_hooks, self.__dict__.setdefault("_torchlstm", [])
    if module in recorded or not any(weight.requires_grad for weight in module.parameters(recurse=False)):
        return
    for kind in type(self).__mro__:
        if issubclass(kind, GradSampleHooksFastGradientClipping) and kind.__name__.endswith(("FSDP", "TP")):
            raise NotImplementedError(
                f"opacus: {kind.__name__} does not know torchlstm; use the mode 'ghost' or 'hooks', with DDP"
            )
    recorded.append(module)
    recording = _Recording(self, module)
    handles.append(module.register_forward_pre_hook(recording.start, with_kwargs=True))
    handles.append(module.register_forward_hook(recording.stop, always_call=True))


GradSampleHooks.iterate_submodules = _iterate_submodules


@register_grad_sampler(_Layer)  # type: ignore[untyped-decorator]
def _gradients(layer: _Layer, activations: list[Any], scale: Tensor) -> dict[nn.Parameter, Tensor]:
    """Give every parameter its gradients here: opacus would copy what is returned."""
    samples, order = activations
    for index, weight in enumerate(layer.flat):
        if weight.requires_grad:
            gradient = samples.gradient(index, scale.item(), order)
            if hasattr(weight, "_current_grad_sample") or len(gradient) < layer.max_batch_len:
                create_or_accumulate_grad_sample(param=weight, grad_sample=gradient, max_batch_len=layer.max_batch_len)
            else:
                weight._current_grad_sample = gradient  # type: ignore[attr-defined]
    return {}


@register_norm_sampler(_Layer)  # type: ignore[untyped-decorator]
def _norms(layer: _Layer, activations: list[Any], scale: Tensor) -> dict[nn.Parameter, Tensor]:
    """The norms (B,) of every parameter's gradients."""
    samples, order = activations
    norms = {}
    for weight in layer.parameters():
        places = [index for index, each in enumerate(layer.flat) if each is weight]
        if len(places) == 1:
            norm = samples.norm(places[0]) * scale.item()
            norms[weight] = norm if order is None else norm.index_select(0, order)
        else:
            total = sum(samples.gradient(index, scale.item(), order) for index in places)
            norms[weight] = total.flatten(1).norm(dim=1)
    return norms
