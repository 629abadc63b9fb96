"""Runs a module on a case and names every tensor that results, gradients included."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .cases import Case
from .rivals import RIVALS, StepByStep

Observation = dict[str, Tensor | None]  # by name: "output", "h_n", "c_n", "grad input", "grad weight_ih_l0", ...


@dataclass
class Inputs:
    """The tensors of a call, with the same numbers for every module that is compared."""

    data: Tensor  # the padded input
    lengths: list[int] | None
    h_0: Tensor | None
    c_0: Tensor | None
    cotangents: dict[str, Tensor]
    keywords: dict[str, Any] = field(default_factory=dict)  # lengths or resets

    def to(self, device: torch.device, dtype: torch.dtype) -> "Inputs":
        """The same numbers as new leaves."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(device, dtype, copy=True)

        cotangents = {name: tensor.to(device, dtype) for name, tensor in self.cotangents.items()}
        data = move(self.data)
        assert data is not None
        return Inputs(data, self.lengths, move(self.h_0), move(self.c_0), cotangents, self.keywords)


def build(case: Case, lstm: type[nn.Module], cell: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """The case's module in a dtype; its weights are drawn in the case's dtype, so that all dtypes start equal."""
    torch.manual_seed(7)
    kind = cell if case.cell else lstm
    if kind is nn.LSTM:
        kind = StepByStep if case.trace else RIVALS.get(case.form, lstm)
    module = kind(case.input_size, case.hidden_size, dtype=case.dtype, **case.options).to(dtype)
    return module.train(case.training)


def draw(case: Case) -> Inputs:
    """Random input, states and cotangents of a case, in its dtype, on the CPU."""
    generator = torch.Generator().manual_seed(11)

    def randn(*shape: int) -> Tensor:
        wide = torch.complex128 if case.dtype.is_complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=wide).to(case.dtype)

    layers, directions = case.options.get("num_layers", 1), 1 + bool(case.options.get("bidirectional"))
    output_size = case.options.get("proj_size") or case.hidden_size
    batch = () if case.form == "unbatched" else (case.batch,)
    if case.cell:
        data = randn(*batch, case.input_size)
        leading: tuple[int, ...] = ()
        output_shape: tuple[int, ...] = (*batch, case.hidden_size)
    else:
        leading = (layers * directions,)
        steps: tuple[int, ...] = (case.steps, *batch)
        if batch and case.options.get("batch_first"):
            steps = steps[::-1]
        data, output_shape = randn(*steps, case.input_size), (*steps, directions * output_size)
    lengths = _lengths(case, generator)
    if lengths is not None:
        output_shape = (sum(lengths), directions * output_size)
    h_shape, c_shape = (*leading, *batch, output_size), (*leading, *batch, case.hidden_size)
    h_0, c_0 = (None, None) if case.hx == "none" else (randn(*h_shape), randn(*c_shape))
    if case.hx == "expanded":
        h_0, c_0 = (None if state is None else state[..., :1, :] for state in (h_0, c_0))
    data = data * case.scale
    if case.poison is not None:
        sequence = data[0] if case.cell or case.options.get("batch_first") else data[:, 0]
        sequence.reshape(-1, case.input_size)[0, 1] = case.poison
    cotangents = {"output": randn(*output_shape), "h_n": randn(*h_shape), "c_n": randn(*c_shape)}
    if case.cell:
        del cotangents["output"]
    keywords: dict[str, Any] = {}
    traced: dict[str, Tensor] = {}
    if case.trace:
        for layer in range(layers):
            for end in ("", "_reverse")[:directions]:
                wide = {"h": output_size} | dict.fromkeys("cifgo", case.hidden_size)
                traced |= {f"{name}_l{layer}{end}": randn(*steps, size) for name, size in wide.items()}
    if case.form == "lengths":
        keywords["lengths"] = torch.randint(1, case.steps + 1, (case.batch,), generator=generator)
    elif case.form == "resets":
        keywords["resets"] = torch.rand(steps, generator=generator) < 0.3
    return Inputs(data, lengths, h_0, c_0, {k: v for k, v in cotangents.items() if k in case.loss} | traced, keywords)


def _lengths(case: Case, generator: torch.Generator) -> list[int] | None:
    if case.form in ("packed", "unsorted", "zeros"):
        lengths = torch.randint(1, case.steps + 1, (case.batch,), generator=generator).tolist()
        lengths[case.batch // 2] = case.steps
        return sorted(lengths, reverse=True) if case.form == "packed" else lengths
    return [case.steps] * case.batch if case.form == "equal" else None


def _packed(case: Case, data: Tensor, lengths: list[int]) -> PackedSequence:
    batch_first = bool(case.options.get("batch_first"))
    packed = pack_padded_sequence(
        data, torch.tensor(lengths), batch_first, enforce_sorted=case.form in ("packed", "equal")
    )
    if case.form != "zeros":
        return packed
    sizes = torch.cat([packed.batch_sizes, packed.batch_sizes.new_zeros(2)])
    return PackedSequence(packed.data, sizes, packed.sorted_indices, packed.unsorted_indices)


def _state(case: Case, h_0: Tensor, c_0: Tensor) -> Any:
    if case.hx == "list":
        return [h_0, c_0]
    if case.hx == "aliased":
        return h_0, h_0
    if case.hx == "expanded":
        shape = (*h_0.shape[:-2], case.batch)
        return h_0.expand(*shape, h_0.shape[-1]), c_0.expand(*shape, c_0.shape[-1])
    if case.hx == "strided":
        return tuple(state.transpose(0, -1).contiguous().transpose(0, -1) for state in (h_0, c_0))
    return h_0, c_0


def observe(module: nn.Module, case: Case, inputs: Inputs) -> Observation:
    """Call a module, pull random cotangents back through it, and return every tensor by name.

    The seed is set before the call, so that a module that draws other dropout masks gets other results.  A missing
    gradient is None.
    """
    leaves = {"input": inputs.data, "h_0": inputs.h_0, "c_0": inputs.c_0}
    for name, leaf in leaves.items():
        if leaf is not None:
            leaf.requires_grad_(("input" if name == "input" else "hx") not in case.frozen)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in case.frozen)
    hx = None if inputs.h_0 is None or inputs.c_0 is None else _state(case, inputs.h_0, inputs.c_0)
    data = inputs.data if inputs.lengths is None else _packed(case, inputs.data, inputs.lengths)
    torch.manual_seed(13)
    with _autocast(case, inputs.data.device.type):
        call: Callable[..., Any] = module.trace if case.trace else module  # type: ignore[assignment]
        result = call(data, hx, **inputs.keywords)
    output, (h_n, c_n), *layers = (None, result) if case.cell else result
    output = output.data if isinstance(output, PackedSequence) else output
    seen: Observation = {"output": output, "h_n": h_n, "c_n": c_n}
    if case.cell:
        del seen["output"]
    if case.trace:
        seen |= _traced(layers[0])
    results = {name: tensor for name, tensor in seen.items() if tensor is not None and name in inputs.cotangents}
    torch.autograd.backward(
        list(results.values()), [inputs.cotangents[name].to(tensor.dtype) for name, tensor in results.items()]
    )
    for name, leaf in leaves.items():
        if leaf is not None and leaf.requires_grad:
            seen["grad " + name] = leaf.grad
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            seen["grad " + name] = parameter.grad
    return {name: None if tensor is None else tensor.detach() for name, tensor in seen.items()}


def _traced(layers: Any) -> Observation:
    """The states and gates of every step by name: "c_l0_reverse", ..."""
    seen: Observation = {}
    for layer, directions in enumerate(layers):
        for states, end in zip(directions, ("", "_reverse"), strict=False):
            each = states if isinstance(states, dict) else states._asdict()
            seen |= {f"{name}_l{layer}{end}": rows for name, rows in each.items()}
    return seen


def _autocast(case: Case, device: str) -> AbstractContextManager[Any]:
    return nullcontext() if case.autocast is None else torch.autocast(device, dtype=case.autocast)
