"""`check`: tells whether your own model computes the same after `swap`, and how fast."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from ..engines.shared.torch_private import pytree
from ..swap import plan_swap, restore, swap
from .call import SEED, leaves, outputs_of
from .call import forward as call_forward
from .frozen import FrozenReport, check_frozen
from .judge import Verdict, judge
from .observe import Observation
from .report import table
from .timing import Pairs, interleave

_SECONDS = 0.5  # of timing, for either


class Report(NamedTuple):
    """The result of `check`. It prints as a table and is true if the models agree.

    Attributes:
        verdicts: One `Verdict` for every output and gradient.
        swapped: The names of the modules that were swapped.
        left_alone: "name: reason" of the modules that were not.
        forward: The time of a forward: the model as it is, and the swapped model.
        training: The time of a forward and backward of both.
    """

    verdicts: list[Verdict]
    swapped: list[str]
    left_alone: list[str]
    forward: Pairs
    training: Pairs

    @property
    def passed(self) -> bool:
        """Whether every output and every gradient agrees.

        Returns:
            True if no verdict has a reason.
        """
        return all(verdict.reason is None for verdict in self.verdicts)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        rows = [
            [v.name, f"{v.error:.1e}", f"{v.rival_error:.1e}", f"{v.bound:.1e}", v.reason or "ok"]
            for v in self.verdicts
        ]
        lines = table(["tensor", "difference", "control", "bound", ""], rows)
        lines.append(f"swapped: {', '.join(name or '(the model itself)' for name in self.swapped)}")
        lines += [f"left alone: {line}" for line in self.left_alone]
        for name, pairs in (("forward", self.forward), ("forward and backward", self.training)):
            lines.append(
                f"{name}: torch.nn {1e3 * pairs.first:.2f} ms, torchlstm {1e3 * pairs.second:.2f} ms, "
                f"{pairs.ratio:.2f}x as fast"
            )
        lines.append("the models agree" if self.passed else "the models DIFFER")
        return "\n".join(lines)


@overload
def check(model: nn.Module, *inputs: Any, freeze: torch.dtype | None, **kwargs: Any) -> FrozenReport: ...
@overload
def check(model: nn.Module, *inputs: Any, **kwargs: Any) -> Report: ...
def check(model: nn.Module, *inputs: Any, freeze: Any = False, **kwargs: Any) -> Report | FrozenReport:
    """Compare a model with its swapped copy: every output and gradient under one seed, and the time that both take.

    The bound comes from a control: the same model with every LSTM weight moved by about one unit in the last place. A
    difference near the control's is rounding.

    With `freeze`, compare the model with a frozen copy instead: the largest and the mean difference of every output,
    without gradients, the sizes, and the time.

    Args:
        model: Any module that contains an nn.LSTM or nn.LSTMCell; it is copied, not changed.
        *inputs: Positional arguments of a call; floating-point tensors in them are given gradients.
        freeze: False, or a format that `torchlstm.freeze` takes, None included.
        **kwargs: Keyword arguments of the call.

    Returns:
        A `Report`, or a `FrozenReport` with `freeze`.

    Raises:
        ValueError: There is nothing to swap or to freeze, or the model returns no floating-point tensor.

    Examples:
        >>> import torch
        >>> from torchlstm.parity import check
        >>> report = check(torch.nn.LSTM(8, 16), torch.randn(10, 4, 8))
        >>> report.passed
        True
    """
    if freeze is not False:
        return check_frozen(model, (inputs, kwargs), freeze, _SECONDS)
    theirs = restore(copy.deepcopy(model))
    plan = plan_swap(theirs)
    swapped = [candidate.name for candidate in plan if candidate.reason is None]
    left_alone = [f"{candidate.name}: {candidate.reason}" for candidate in plan if candidate.reason]
    if not swapped:
        why = "; ".join(left_alone) or "it contains no nn.LSTM and no nn.LSTMCell"
        raise ValueError(f"nothing to swap in {type(model).__name__}: {why}")
    control = copy.deepcopy(theirs)
    for name in swapped:
        _nudge(control.get_submodule(name))
    ours = copy.deepcopy(theirs)
    for name in swapped:
        swap(ours.get_submodule(name))
    call = (inputs, kwargs)
    truth, mine, other = (_observe(each, call) for each in (theirs, ours, control))
    weights = next(theirs.get_submodule(swapped[0]).parameters())
    device = weights.device.type

    def forward(module: nn.Module) -> Callable[[], Any]:
        return lambda: call_forward(module, *leaves(call, grad=False))

    def training(module: nn.Module) -> Callable[[], Any]:
        return lambda: _observe(module, call)

    return Report(
        judge(mine, other, truth, weights.dtype),
        swapped,
        left_alone,
        interleave(forward(theirs), forward(ours), device, _SECONDS),
        interleave(training(theirs), training(ours), device, _SECONDS),
    )


def _nudge(module: nn.Module) -> None:
    """Move every weight up or down by about one unit in the last place."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in module.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight.device) * 2 - 1
            weight.mul_(1 + signs.to(weight.real.dtype) * torch.finfo(weight.dtype).eps)


def _observe(module: nn.Module, call: tuple[Any, Any]) -> Observation:
    """Return the outputs and gradients of one call with random cotangents, by name."""
    args, kwargs = leaves(call, grad=True)
    module.zero_grad(set_to_none=True)
    torch.manual_seed(SEED)
    result = module(*args, **kwargs)
    outputs = outputs_of(module, result)
    seen: Observation = {name: value.detach() for name, value in outputs.items()}
    generator = torch.Generator().manual_seed(SEED)
    differentiable = [value for value in outputs.values() if value.requires_grad]
    cotangents = [torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device) for v in differentiable]
    if differentiable:
        torch.autograd.backward(differentiable, cotangents)
    for path, value in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(value, Tensor) and value.grad is not None:
            seen[f"grad input{pytree.keystr(path)}"] = value.grad
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            seen[f"grad {name}"] = parameter.grad
    return seen
