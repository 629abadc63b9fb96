"""LazyLSTM: an LSTM that takes its input_size from its first input."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.rnn import PackedSequence

from .call import checks
from .call.jagged import check_jagged, is_jagged
from .engines.shared.torch_private import infer_parameters, init_flat_weights
from .lstm import LSTM
from .trace import Trace

# Called as (requires_grad, device, dtype), which torch's declared type does not allow.
_UNINITIALIZED: Any = UninitializedParameter


class LazyLSTM(LazyModuleMixin, LSTM):
    """An LSTM without input_size: the first call, or `trace`, takes it from its input.

    That call turns the module into a plain LSTM. Until then it is one of torch.nn's lazy modules: every parameter is a
    torch.nn.UninitializedParameter, which has a dtype and a device but no shape and no values. The first call draws all
    parameters, with the values that LSTM(input_size, ...) would draw at that moment. The parameters stay the same
    objects.

    `load_state_dict` with an LSTM's parameters sets input_size; loaded parameters are not drawn, and the first call
    still turns the module into a plain LSTM. `swap` leaves a LazyLSTM alone. So does `restore` before the first call,
    with a warning, because torch.nn has no lazy LSTM.

    Input of the wrong form raises LSTM's errors, and input without features raises ValueError; nothing is drawn then.

    Args:
        hidden_size: Units of the cell state, H.
        num_layers: Stacked layers.
        bias: Whether the gates have biases.
        batch_first: Dense input and output are (B, T, features) instead of (T, B, features).
        dropout: The probability that an element of a layer's output is zeroed in training, except after the last layer.
        bidirectional: Every layer also reads the sequence backwards.
        proj_size: If greater than zero, h has so many units, a linear projection of o * tanh(c).
        device: Where the parameters will be.
        dtype: The dtype of the parameters.
        checkpoint_every: As in `LSTM`.

    Raises:
        ValueError: An option is out of range.
        TypeError: An option has the wrong type.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.LazyLSTM(16, num_layers=2)
        >>> output, state = lstm(torch.randn(10, 4, 8))
        >>> lstm
        LSTM(8, 16, num_layers=2)
    """

    cls_to_become = LSTM

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | None = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        # Only the parameters' names are needed: the meta device allocates nothing and draws no random number.
        super().__init__(1, hidden_size, *options, "meta", dtype, checkpoint_every=checkpoint_every)
        self.input_size = 0
        for name, _ in list(self.named_parameters()):
            # Also those whose shape is known: values that they had now would be lost when all are drawn.
            setattr(self, name, _UNINITIALIZED(True, device, dtype))
        init_flat_weights(self)

    def initialize_parameters(self, input: Tensor | PackedSequence, *_: Any, **__: Any) -> None:
        """Draw the parameters that have no values yet, for this input. The first call calls it.

        Args:
            input: The input of that call, in any form that an LSTM takes.
            *_: Other arguments of the call, which are not needed.
            **__: The same.

        Raises:
            ValueError: The input has no features.
            RuntimeError: No LSTM takes this input.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> lstm = torchlstm.LazyLSTM(16)
            >>> lstm.initialize_parameters(torch.randn(10, 4, 8))
            >>> lstm.weight_ih_l0.shape
            torch.Size([64, 8])
        """
        missing: dict[str, Any] = {name: weight for name, weight in self.named_parameters() if is_lazy(weight)}
        if not missing:
            # The parameters were loaded by other means than the hook below.
            self.input_size = self.input_size or self.weight_ih_l0.shape[1]
            return
        # Known already if a part of the parameters was loaded.
        size = self.input_size or _features(input)
        like = next(iter(missing.values()))
        # A first call in inference mode must not make inference tensors, which cannot be trained.
        with torch.inference_mode(False), torch.no_grad():
            drawn = self._sized(size, like.device, like.dtype)
            for name, weight in missing.items():
                value = drawn.get_parameter(name)
                weight.materialize(value.shape)
                weight.copy_(value)
        self.input_size = size

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as LSTM does. Before they have shapes, do nothing."""
        if not self.has_uninitialized_params():
            super().reset_parameters()

    def trace(self, input: Tensor | PackedSequence, *args: Any, **keywords: Any) -> Trace:
        """Trace a call, as LSTM does. It may be the first call.

        Args:
            input: As `LSTM.trace` takes it.
            *args: As `LSTM.trace` takes them.
            **keywords: As `LSTM.trace` takes them.

        Returns:
            A `torchlstm.trace.Trace`.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> trace = torchlstm.LazyLSTM(16).trace(torch.randn(10, 4, 8))
            >>> trace.output.shape
            torch.Size([10, 4, 16])
        """
        infer_parameters(self, (input,))
        return self.trace(input, *args, **keywords)  # by its class, which is another now

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise LSTM's errors; before input_size is known, accept any input."""
        if self.input_size:
            super().check_input(input, batch_sizes)

    def extra_repr(self) -> str:
        """Return LSTM's text, without input_size."""
        return super().extra_repr().partition(", ")[2]

    def _sized(self, input_size: int, device: Any, dtype: torch.dtype | None = None) -> LSTM:
        """An LSTM of this input size, as it would be drawn now."""
        options = (self.num_layers, self.bias, self.batch_first, 0.0, self.bidirectional, self.proj_size)
        return LSTM(input_size, self.hidden_size, *options, device, dtype)

    def _lazy_load_hook(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Give shapes to the parameters that are about to be loaded, if all of them fit; torch registers this hook."""
        keys = {name: prefix + name for name, _ in self.named_parameters() if prefix + name in state_dict}
        given = {name: state_dict[key] for name, key in keys.items() if not is_lazy(state_dict[key])}
        inputs = [given[name] for name in ("weight_ih_l0", "weight_ih_l0_reverse") if name in given]
        size = self.input_size or (inputs[0].shape[-1] if inputs and inputs[0].dim() else 0)
        # Without these two names, no shape depends on the input size.
        expected = {name: weight.shape for name, weight in self._sized(size or 1, "meta").named_parameters()}
        if wrong := [name for name, value in given.items() if value.shape != expected[name]]:
            rest[-1].extend(
                f"size mismatch for {prefix}{name}: Expected {tuple(expected[name])}, got {tuple(given[name].shape)}"
                for name in wrong
            )
            return
        with torch.inference_mode(False), torch.no_grad():
            for name in given:
                weight: Any = self.get_parameter(name)
                if is_lazy(weight):
                    weight.materialize(expected[name])
        self.input_size = size

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        lazy = [name for name, weight in self.named_parameters() if is_lazy(weight)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in lazy:
            # If a parameter cannot stay the same object, as when moving to meta, torch makes a plain Parameter.
            if not is_lazy(weight := self.get_parameter(name)):
                setattr(self, name, _UNINITIALIZED(weight.requires_grad, weight.device, weight.dtype))
        init_flat_weights(self)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A pickled UninitializedParameter forgets its dtype.
        dtypes = {name: weight.dtype for name, weight in self.named_parameters()}
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"_dtypes": dtypes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        dtypes = state.pop("_dtypes")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for name, dtype in dtypes.items():
            weight: Any = self.get_parameter(name)
            if is_lazy(weight) and weight.dtype != dtype:
                weight.data = torch.empty(0, dtype=dtype, device=weight.device)


def _features(input: Tensor | PackedSequence) -> int:
    """The number of features of an input of any form; raises for what has none."""
    if isinstance(input, PackedSequence):
        checks.check_packed(input)
        data = input.data
        if data.dim() != 2:
            raise RuntimeError(f"LazyLSTM: Expected the data of a PackedSequence to be 2D, got {data.dim()}D instead")
    else:
        data = input
        if is_jagged(data):
            check_jagged("LazyLSTM", data)
        else:
            checks.check_tensor("LazyLSTM", data)
        if data.dim() not in (2, 3):
            raise ValueError(f"LazyLSTM: Expected input to be 2D or 3D, got {data.dim()}D instead")
    size = data.shape[-1]
    if size == 0:
        raise ValueError(f"LazyLSTM: input_size must be greater than zero, got input of shape {tuple(data.shape)}")
    return size
