"""FrozenLSTM and FrozenLSTMCell: modules for inference whose weights are packed once, optionally in 16 or 8 bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from .call import frozen as way
from .call.checks import check_lstm_input
from .call.dispatch import takes_native
from .call.frozen_load import load
from .call.frozen_weights import Store, store_of_module
from .call.packing import Packed, pack, pack_states, unpack, unpack_state
from .call.plan import Plan, plan_cell, plan_lstm
from .cell import LSTMCell
from .engines.cpu import frozen as kernel
from .engines.shared import torch_private
from .engines.shared.access import sees_functions
from .engines.shared.rounding import Format, Rounded
from .engines.shared.threads import mend_fork
from .lstm import LSTM
from .trace import Trace, states_of

State = tuple[Tensor, Tensor]

# Elements of the tensor on which `_apply` tries a conversion first.
_PROBE = 8


class Frozen(nn.Module):
    """What FrozenLSTM and FrozenLSTMCell share: weights that are not parameters, and how they are saved and loaded."""

    _store: Store
    # The class that `thaw` restores, and the parameters with requires_grad=False.
    _was: type[nn.Module]
    _untrained: frozenset[str] = frozenset()

    @property
    def weights(self) -> Format:
        """The format of the matrices.

        Returns:
            None (as they were), torch.bfloat16, torch.float16 or torch.int8.
        """
        return self._store.format

    def extra_repr(self) -> str:
        """Return the float module's text, and the format."""
        return super().extra_repr() + ("" if self.weights is None else f", weights={self.weights}")

    def reset_parameters(self) -> None:
        """Raise RuntimeError: there are no parameters."""
        if "_store" in self.__dict__:
            raise RuntimeError(f"{type(self).__name__}: its weights are frozen: torchlstm.thaw(model) first")
        super().reset_parameters()  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        store = self.__dict__.get("_store")
        if store is not None and name in store.names:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: its weights are packed. state_dict() has a copy of them, and "
                "torchlstm.thaw(model) gives the float module back"
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        store = self.__dict__.get("_store")
        if store is not None and name in store.names:
            raise AttributeError(
                f"{type(self).__name__}: {name} is packed and cannot be set: load_state_dict() takes new weights, and "
                "torchlstm.thaw(model) gives the float module back"
            )
        super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        packed = self._store.packed is not None
        for name, entry in self._store.entries().items():
            parts = entry if isinstance(entry, Rounded) else (entry, None)
            new = packed and isinstance(entry, Rounded)
            for suffix, tensor in zip(("", "_scale"), parts, strict=True):
                if tensor is not None:
                    destination[prefix + name + suffix] = tensor if new else tensor.clone()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        reports = (missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *reports)
        found = load(self._store, state_dict, prefix)
        unexpected_keys[:] = [key for key in unexpected_keys if key not in found.keys]
        missing_keys += found.missing if strict else []
        error_msgs += found.errors
        if found.store is not None:
            self._store = found.store

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        probe = torch.arange(1, _PROBE + 1, dtype=self._store.like.dtype, device="cpu")
        moved, name = fn(probe.clone()), type(self).__name__
        if moved.device != probe.device:
            raise RuntimeError(
                f"{name} runs on the CPU, and cannot be moved to {moved.device}: torchlstm.thaw(model) first"
            )
        if moved.dtype != probe.dtype:
            raise RuntimeError(
                f"{name}: weights frozen in {way.name_of(self._store)}, for inputs of {probe.dtype}, cannot become "
                f"{moved.dtype}: torchlstm.thaw(model), convert it, and freeze it again"
            )
        if not torch.equal(moved, probe):
            raise RuntimeError(f"{name}: frozen weights cannot be changed, as by to_empty(): load_state_dict() can")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._store.apply(fn)
        return self


class FrozenLSTM(Frozen, LSTM):
    """An LSTM for inference on the CPU: weights are packed once, and may be rounded to 16 or 8 bits.

    `freeze` turns every LSTM of a model into one. The constructor draws weights as LSTM does, for others to be loaded.

    Inputs, states and results are LSTM's: lengths, resets, packed and jagged input, autocast. `train()` only affects
    dropout between layers. There are no parameters. Nothing is differentiated: if input or states require gradients,
    the call works and a backward through it raises RuntimeError. Under transforms of torch.func and in programs of
    torch.export the weights are the rounded values as floats, and derivatives with respect to the input are theirs.

    `state_dict` has an LSTM's names, in the dtype of the format, and for int8 the scale of each row,
    "weight_ih_l0_scale" (4 * hidden_size,). `load_state_dict` takes that, or the float weights of an LSTM, which it
    rounds; if anything does not fit, the module is unchanged.

    Args:
        input_size: Features of the input.
        hidden_size: Units of the cell state, H.
        num_layers: Stacked layers.
        bias: Whether the gates have biases.
        batch_first: Dense input and output are (B, T, features) instead of (T, B, features).
        dropout: As in `LSTM`; only in training mode.
        bidirectional: Every layer also reads the sequence backwards.
        proj_size: If greater than zero, the units of h.
        weights: None: unchanged, and the results are LSTM's bit for bit. torch.bfloat16 or torch.float16: half the
            bytes of float32; sums are float32. torch.int8: a quarter; each row of a matrix has its own scale, and
            biases stay float32.
        dtype: The dtype of the weights if `weights` is None. Rounded weights are made from float32, and inputs are
            float32.

    Raises:
        ValueError: An option is out of range, or the format does not exist.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.FrozenLSTM(8, 16, weights=torch.int8)
        >>> keys = lstm.load_state_dict(torchlstm.LSTM(8, 16).state_dict())
        >>> output, (h_n, c_n) = lstm(torch.randn(10, 4, 8))
        >>> lstm
        FrozenLSTM(8, 16, weights=torch.int8)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        weights: Format = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__(input_size, hidden_size, *options, "cpu", dtype)
        become_frozen(self, store_of_module(self, weights), LSTM)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        reset_state: State | None = None,
    ) -> tuple[Any, State]:
        """Compute the output of every step and the final states, as `LSTM.forward` does.

        Args:
            input: As `LSTM.forward` takes it.
            hx: As `LSTM.forward` takes it.
            lengths: As `LSTM.forward` takes it.
            resets: As `LSTM.forward` takes it.
            reset_state: As `LSTM.forward` takes it.

        Returns:
            The output and the tuple (h_n, c_n), as `LSTM.forward` returns them, without gradients.

        Raises:
            RuntimeError: The input's dtype is not that of the float weights, or a shape does not fit.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> output, (h_n, c_n) = torchlstm.FrozenLSTM(8, 16)(torch.randn(10, 4, 8))
            >>> output.shape
            torch.Size([10, 4, 16])
        """
        if not is_compiling() and resets is None and reset_state is None and takes_native():
            packed = self._store.packed
            if packed is not None and not (self.dropout and self.training):
                results: tuple[Any, State] | None = kernel.run(packed, input, hx, lengths, self.batch_first, None)
                if results is not None:
                    return results
        if type(input) is not Tensor and sees_functions(input):
            extras = {"lengths": lengths, "resets": resets, "reset_state": reset_state}
            return torch.overrides.handle_torch_function(self.forward, (input,), input, hx, **extras)
        plan, rows, states = self._begin(input, hx, lengths, resets, reset_state)
        y, h_n, c_n = way.compute(self._store, plan, rows, states)
        return unpack(plan, rows, y), (unpack_state(plan, rows, h_n), unpack_state(plan, rows, c_n))

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        reset_state: State | None = None,
    ) -> Trace:
        """Trace a call as LSTM does, from the weights as floats; nothing has a gradient.

        Args:
            input: As `LSTM.trace` takes it.
            hx: As `LSTM.trace` takes it.
            lengths: As `LSTM.trace` takes it.
            resets: As `LSTM.trace` takes it.
            reset_state: As `LSTM.trace` takes it.

        Returns:
            A `torchlstm.trace.Trace`.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> torchlstm.FrozenLSTM(8, 16).trace(torch.randn(10, 4, 8)).layers[0][0].c.shape
            torch.Size([10, 4, 16])
        """
        plan, rows, states = self._begin(input, hx, lengths, resets, reset_state, trace=True)
        y, h_n, c_n, traced = way.trace(self._store, plan, rows, states)
        state = unpack_state(plan, rows, h_n), unpack_state(plan, rows, c_n)
        return Trace(unpack(plan, rows, y), state, [states_of(plan, rows, each) for each in traced])

    def _begin(
        self,
        input: Tensor | PackedSequence,
        hx: State | None,
        lengths: Any,
        resets: Any,
        reset_state: State | None,
        trace: bool = False,
    ) -> tuple[Plan, Packed, list[Tensor]]:
        mend_fork()
        way.check_dtype("FrozenLSTM", input, self._store)
        plan = plan_lstm(way.Seen(self, self._store), input, hx, lengths, resets, reset_state, trace)
        packed = pack(plan, input, hx, lengths, resets)
        return plan, packed, pack_states(plan, packed, hx, reset_state)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise LSTM's errors for an input."""
        way.check_dtype("FrozenLSTM", input, self._store)
        check_lstm_input(input, batch_sizes is not None, self._store.like, self.input_size)


class FrozenLSTMCell(Frozen, LSTMCell):
    """An LSTMCell for inference on the CPU; its weights are packed and may be rounded as in `FrozenLSTM`.

    Args:
        input_size: Features of the input.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.
        weights: The format of the matrices, as in `FrozenLSTM`.
        dtype: The dtype of the weights if `weights` is None.

    Raises:
        ValueError: The format does not exist.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> cell = torchlstm.FrozenLSTMCell(8, 16, weights=torch.bfloat16)
        >>> h, c = cell(torch.randn(4, 8))
        >>> h.shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        weights: Format = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, "cpu", dtype)
        become_frozen(self, store_of_module(self, weights), LSTMCell)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Compute one step.

        Args:
            input: (B, input_size), or (input_size,) unbatched.
            hx: The state (h, c), each (B, H), or (H,) for unbatched input; None for zeros.

        Returns:
            The new state (h, c), shaped as hx, without gradients.

        Raises:
            RuntimeError: The input's dtype is not that of the float weights, or a shape does not fit.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> h, c = torchlstm.FrozenLSTMCell(8, 16)(torch.randn(4, 8))
            >>> c.shape
            torch.Size([4, 16])
        """
        if not is_compiling() and takes_native() and (packed := self._store.packed) is not None:
            results: State | None = kernel.run_cell(packed, input, hx)
            if results is not None:
                return results
        if type(input) is not Tensor and sees_functions(input):
            return torch.overrides.handle_torch_function(self.forward, (input,), input, hx)
        plan, rows, states = self._begin(input, hx)
        _, h, c = way.compute(self._store, plan, rows, states)
        return unpack_state(plan, rows, h), unpack_state(plan, rows, c)

    def _begin(self, input: Tensor, hx: State | None) -> tuple[Plan, Packed, list[Tensor]]:
        """Plan a call, as FrozenLSTM does."""
        mend_fork()
        way.check_dtype("FrozenLSTMCell", input, self._store)
        plan = plan_cell(way.SeenCell(self, self._store), input, hx)
        packed = pack(plan, input, hx)
        return plan, packed, pack_states(plan, packed, hx)


def become_frozen(module: Any, store: Store, was: type[nn.Module]) -> None:
    """Turn an LSTM or LSTMCell into a frozen one with these weights; `thaw` will turn it into a `was`."""
    module._untrained = frozenset(name for name in store.names if not getattr(module, name).requires_grad)
    module._was = was
    for name in store.names:
        delattr(module, name)
    if not store.cell:
        # nn.RNNBase's lists of the parameters, which have been removed.
        module._flat_weights = [None] * len(store.names)
        module._flat_weight_refs = [None] * len(store.names)
    module.__class__ = FrozenLSTMCell if store.cell else FrozenLSTM
    module._store = store


def become_float(module: Any, floats: dict[str, Tensor]) -> None:
    """Undo `become_frozen`, with these parameters."""
    untrained = module._untrained
    was, cell = module._was, module._store.cell
    for name in ("_store", "_was", "_untrained"):
        del module.__dict__[name]
    module.__class__ = was
    for name, tensor in floats.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=name not in untrained))
    if not cell:
        torch_private.init_flat_weights(module)
