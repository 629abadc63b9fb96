"""Private names of torch (except the CUDA engine's): what each is used for, and what happens without it.

Names are looked up once, at import.  If this torch lacks one, a replacement takes its place, which is as correct and
mostly slower, or which raises an error that says so; and a warning names it.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn


class Private(NamedTuple):
    """What a name is used for, and what happens if torch lacks it."""

    use: str
    without: str


_OUT_OF_C = "calls take the slower path in Python"

# Every name, beginning with "torch".  `tests/engines/shared/test_torch_private.py` removes each of them in turn.
NAMES = {
    "torch._C.__file__": Private(
        "leads to torch's OpenMP runtime where torch has it for itself", "layers run on one thread there"
    ),
    "torch._C._is_tracing": Private(
        "is torch.jit tracing? asked in C", "torch.jit.is_tracing is asked, a little slower"
    ),
    "torch._C._functorch.peek_interpreter_stack": Private(
        "is a torch.func transform active?", f"{_OUT_OF_C}, and kernels run as operators, as in a transform"
    ),
    "torch._C._functorch.is_batchedtensor": Private(
        "are lengths or resets mapped by vmap?", "they raise torch's own error about vmap instead of ours"
    ),
    "torch._C._len_torch_dispatch_stack": Private(
        "is a dispatch mode active?", f"{_OUT_OF_C}, and kernels run as operators, as under a mode"
    ),
    "torch._C._len_torch_function_stack": Private(
        "is a function mode active? asked in C", "torch.overrides.has_torch_function is asked, a little slower"
    ),
    "torch._C._is_any_autocast_enabled": Private(
        "is autocast on?", f"{_OUT_OF_C}, where the autocast of the input's device is asked about"
    ),
    "torch._C._has_storage": Private(
        "has a tensor memory of its own? none has in a vmap of autograd's", "its storage is asked for, slower"
    ),
    "torch._C._get_tracing_state": Private(
        "traces the step of a cell while torch.jit traces its stack", "to trace a stack of cells raises RuntimeError"
    ),
    "torch._C._set_tracing_state": Private(
        "traces the step of a cell while torch.jit traces its stack", "to trace a stack of cells raises RuntimeError"
    ),
    "torch._C._current_graph_task_id": Private(
        "which gradients belong to one backward? of integrations.backpack",
        "a backward with BackPACK raises RuntimeError",
    ),
    "torch._check": Private(
        "tells torch.export that a batch is not negative", "torch.export decides by itself whether it needs to be told"
    ),
    "torch._dynamo.decorators.justknobs_check._dynamo_marked_constant": Private(
        "marks functions whose results are constants to torch.compile, which need not be imported for it",
        "torch.compile traces into them: it may cut a program in two, and refuses to with fullgraph",
    ),
    "torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack": Private(
        "unpacks a frozen module's weights apart from torch.func's transforms", "transforms see them being unpacked"
    ),
    "torch._subclasses.fake_tensor.FakeTensor": Private(
        "a tensor without numbers: kernels run as operators on it", "the reference engine runs on it"
    ),
    "torch.autograd.forward_ad._current_level": Private(
        "is forward-mode differentiation active? then kernels refuse",
        f"{_OUT_OF_C}; kernels refuse inside torch.func's transforms, and tensors that have a tangent",
    ),
    "torch.autograd.profiler._is_profiler_enabled": Private(
        "does a profiler want to see the layers by name?", f"{_OUT_OF_C}, and all layers are named, slower"
    ),
    "torch.compiler._is_exporting_flag": Private(
        "is a program being exported? to torch 2.11's compiler `is_exporting` is always true",
        "torch.compiler.is_exporting is asked",
    ),
    "torch.cuda._sleep": Private(
        "begins two layers together, in `torchlstm qualify`", "`torchlstm qualify` raises RuntimeError"
    ),
    "torch.nn.Module._apply": Private(
        "keeps a LazyLSTM lazy on its way to the meta device", "it becomes what torch makes of it"
    ),
    "torch.nn.Module._buffers": Private(
        "puts tensors of a trace in the place of a cell's buffers", "to trace a stack of such cells raises RuntimeError"
    ),
    "torch.nn.Module._parameters": Private(
        "finds a weight in a tenth of the time of an attribute", "attributes are asked for; as of `_buffers` in a trace"
    ),
    "torch.nn.RNNBase._init_flat_weights": Private(
        "RNNBase's own list of a LazyLSTM's parameters", "there is none to be kept"
    ),
    "torch.nn.modules.lazy.LazyModuleMixin._infer_parameters": Private(
        "draws a LazyLSTM's parameters where `trace` is its first call", "such a first call raises RuntimeError"
    ),
    "torch.nn.modules.lazy.LazyModuleMixin._lazy_load_hook": Private(
        "makes room in a LazyLSTM for what `load_state_dict` loads, if all of it fits",
        "torch's own makes room, and the first call finds what does not fit",
    ),
    "torch.nested._internal.nested_tensor.NestedTensor._maybe_max_seqlen": Private(
        "the longest sequence of a jagged tensor, if known",
        "it is found anew, slower; in a compiled call it is not known",
    ),
    "torch.nested._internal.nested_tensor.NestedTensor._maybe_min_seqlen": Private(
        "the shortest sequence of a jagged tensor, if known",
        "it is found anew, slower; in a compiled call it is not known",
    ),
    "torch.nested._internal.nested_tensor.NestedTensor._ragged_idx": Private(
        "which axis of a jagged tensor is the ragged one?", "jagged input raises RuntimeError"
    ),
    "torch.ops.aten._unsafe_view": Private(
        "gives a result its shape without making it a view", "it is copied into its shape"
    ),
    "torch.overrides.has_torch_function_unary": Private(
        "does a subclass of Tensor see operations?", "torch.overrides.has_torch_function is asked, a little slower"
    ),
    "torch.utils._python_dispatch._disable_current_modes": Private(
        "unpacks a frozen module's weights apart from dispatch modes", "modes see them being unpacked"
    ),
    "torch.utils._pytree": Private(
        "finds the tensors in what a model takes and returns, in `parity.check`", "`parity.check` raises RuntimeError"
    ),
    "torch.Tensor.__dlpack_c_exchange_api__": Private(
        "reads tensors in C; the extension looks it up itself", "there is no CPU engine, and `engines` says why"
    ),
    "torch.Tensor._backward_hooks": Private(
        "has a weight hooks? `plan_freeze` leaves such a module alone", "they are lost in freezing"
    ),
    "torch.Tensor._post_accumulate_grad_hooks": Private(
        "has a weight hooks? `plan_freeze` leaves such a module alone", "they are lost in freezing"
    ),
    "torch.Tensor._version": Private(
        "has an argument been changed in place that only gradients of gradients read?",
        "autograd asks, and refuses such a change in every backward",
    ),
}

# Attributes of instances, and of what torch imports when it is used: they are missed when they are asked for.
_LATER = ("torch._dynamo.", "torch.nn.Module._buffers", "torch.nn.Module._parameters", "torch.nested.")


def find(name: str) -> Any:
    """The object with this dotted name, or None."""
    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found


def complaint(name: str) -> str:
    """The message for a missing name."""
    return f"torch {torch.__version__} no longer has {name} ({NAMES[name].use}): {NAMES[name].without}"


def _or_raise(name: str) -> Any:
    """A function of torch, or if it is missing one that raises RuntimeError."""

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(complaint(name))

    return find(name) or missing


def _yes(*_: Any) -> bool:
    return True


def _no(*_: Any) -> bool:
    return False


def _has_storage(tensor: Tensor) -> bool:
    try:
        tensor.untyped_storage()
    except RuntimeError:  # NotImplementedError is one
        return False
    return True


def _copied(tensor: Tensor, shape: list[int]) -> Tensor:
    return tensor.reshape(shape).clone()


Answer = Callable[..., Any]

# The file of torch's extension.
LIBRARY: str | None = find("torch._C.__file__")

# --- what torch is doing at the moment ---

is_tracing: Answer = find("torch._C._is_tracing") or torch.jit.is_tracing  # type: ignore[attr-defined]
# The innermost transform, or None.
peek_interpreter_stack: Answer = find("torch._C._functorch.peek_interpreter_stack") or _yes
is_batchedtensor: Answer = find("torch._C._functorch.is_batchedtensor") or _no
len_torch_dispatch_stack: Answer = find("torch._C._len_torch_dispatch_stack") or _yes
len_torch_function_stack: Answer = find("torch._C._len_torch_function_stack") or partial(
    torch.overrides.has_torch_function, (None,)
)
is_any_autocast_enabled: Answer = find("torch._C._is_any_autocast_enabled") or _yes
get_tracing_state: Answer = _or_raise("torch._C._get_tracing_state")
set_tracing_state: Answer = _or_raise("torch._C._set_tracing_state")
with suppress(ImportError):
    import torch._functorch.pyfunctorch
clear_interpreter_stack: Answer = (
    find("torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack") or nullcontext
)
disable_modes: Answer = find("torch.utils._python_dispatch._disable_current_modes") or nullcontext
current_graph_task_id: Answer = _or_raise("torch._C._current_graph_task_id")

_HAS_EXPORTING = find("torch.compiler._is_exporting_flag") is not None


def is_exporting() -> bool:
    """Whether a program is being exported; right also while a compiler traces this function."""
    return bool(torch.compiler._is_exporting_flag) if _HAS_EXPORTING else torch.compiler.is_exporting()


_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant(function: _Function) -> _Function:
    """Mark a function whose result is a constant of a compiled program.

    `torch.compiler.assume_constant_result` sets the same attribute, and imports the compiler to do so: a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# Where `_current_level` and `_is_profiler_enabled` stand, which change; C reads them from the dict of the same.
forward_ad: Any = torch.autograd.forward_ad
if find("torch.autograd.forward_ad._current_level") is None:
    forward_ad = SimpleNamespace(_current_level=0)
profiler: Any = torch.autograd.profiler
if find("torch.autograd.profiler._is_profiler_enabled") is None:
    profiler = SimpleNamespace(_is_profiler_enabled=True)


def may_be_dual(tensors: Iterable[Tensor | None]) -> bool:
    """Whether forward mode may involve these tensors, given that `_current_level` does not rule it out."""
    if forward_ad is torch.autograd.forward_ad or peek_interpreter_stack() is not None:
        return True
    unpacked = (torch.autograd.forward_ad.unpack_dual(tensor) for tensor in tensors if tensor is not None)
    return any(each.tangent is not None for each in unpacked)


# --- tensors ---

with suppress(ImportError):
    import torch._subclasses.fake_tensor
FakeTensor: type = find("torch._subclasses.fake_tensor.FakeTensor") or type("FakeTensor", (), {})
has_storage: Answer = find("torch._C._has_storage") or _has_storage
has_torch_function_unary: Answer = find("torch.overrides.has_torch_function_unary") or (
    lambda tensor: torch.overrides.has_torch_function((tensor,))
)
# As `view`, but to autograd the result is not a view, so that it may be detached or changed in place.  Correct only if
# nothing else uses the original tensor, as in torch's own matmul.
unsafe_view: Answer = getattr(find("torch.ops.aten._unsafe_view"), "default", _copied)
expect: Answer = find("torch._check") or _no
sleep: Answer = _or_raise("torch.cuda._sleep")
HAS_VERSIONS = hasattr(torch.empty(0), "_version")
_HOOKS = [name for name in ("_backward_hooks", "_post_accumulate_grad_hooks") if hasattr(torch.empty(0), name)]


def has_hooks(tensor: Tensor) -> bool:
    """Whether a tensor has hooks on its gradient."""
    return any(getattr(tensor, name) for name in _HOOKS)


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, if `HAS_VERSIONS`; -1 for inference tensors, which do not count it."""
    return -1 if tensor.is_inference() else tensor._version


def ragged_axis(jagged: Any) -> int:
    """Which axis of a jagged tensor is the ragged one."""
    axis: int | None = getattr(jagged, "_ragged_idx", None)
    if axis is None:
        raise RuntimeError(complaint("torch.nested._internal.nested_tensor.NestedTensor._ragged_idx"))
    return axis


def known_lengths(jagged: Any) -> tuple[Any, Any]:
    """The lengths of the shortest and longest sequence of a jagged tensor; None if it does not know them."""
    try:
        return jagged._maybe_min_seqlen, jagged._maybe_max_seqlen
    except AttributeError:
        lengths = jagged.offsets().diff() if jagged.lengths() is None else jagged.lengths()
        # A compiler does not know the numbers in a tensor.
        if torch.compiler.is_compiling() or not lengths.numel():
            return None, None
        return int(lengths.min()), int(lengths.max())


# --- modules ---


def put_tensor(module: nn.Module, name: str, tensor: Any) -> None:
    """Replace a parameter or buffer by a tensor, which need not be a Parameter."""
    for kind in ("_parameters", "_buffers"):
        if (own := vars(module).get(kind)) is not None and name in own:
            own[name] = tensor
            return
    raise RuntimeError(complaint(f"torch.nn.Module.{'_buffers' if hasattr(module, '_parameters') else '_parameters'}"))


def infer_parameters(module: Any, inputs: tuple[Any, ...]) -> None:
    """Initialise a lazy module's parameters and give it its final class."""
    name = "torch.nn.modules.lazy.LazyModuleMixin._infer_parameters"
    if find(name) is None:
        raise RuntimeError(complaint(name))
    module._infer_parameters(module, inputs)


def init_flat_weights(module: Any) -> None:
    """Renew RNNBase's own list of parameters."""
    getattr(module, "_init_flat_weights", _no)()


# --- parity.check ---

pytree: Any = find("torch.utils._pytree")
if pytree is None:
    _none = _or_raise("torch.utils._pytree")
    pytree = SimpleNamespace(tree_map=_none, tree_flatten_with_path=_none, keystr=_none)


# The names that this torch lacks.
MISSING = [name for name in NAMES if not name.startswith(_LATER) and find(name) is None]
if MISSING:
    warnings.warn(
        "torchlstm: " + "; ".join(map(complaint, MISSING)) + ".  A newer torchlstm may know what took their place.",
        RuntimeWarning,
        stacklevel=2,
    )
