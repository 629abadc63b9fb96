"""Stream: an LSTM that reads a sequence in chunks and carries its state from one chunk to the next."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from .call import checks
from .call.dispatch import takes_native
from .cell import LSTMCell
from .engines.cpu import frozen
from .frozen import Frozen
from .lstm import LSTM

State = tuple[Tensor, Tensor]


class Stream:
    """Feeds a module a sequence in chunks of any length; the outputs are those of one call on the whole sequence.

    In training, dropout between layers draws a new mask for every chunk.

    Args:
        module: A torchlstm.LSTM, FrozenLSTM or LSTMCell, or torch.nn's; not bidirectional.
        hx: The initial state, to which `reset` also returns, as the module takes it; None for zeros.
        grad: False: no output has a gradient. True: every chunk has its own graph, and the state is detached between
            chunks (truncated backpropagation through time).

    Raises:
        TypeError: The module is of another class.
        ValueError: The module is bidirectional: it would need the end of the sequence first.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> stream = torchlstm.Stream(torchlstm.LSTM(8, 16))
        >>> outputs = [stream(chunk) for chunk in torch.randn(10, 4, 8).split(3)]
        >>> [len(output) for output in outputs]
        [3, 3, 3, 1]
    """

    _in_place = False  # for streams that were pickled by versions without it

    def __init__(self, module: nn.Module, hx: State | None = None, *, grad: bool = False) -> None:
        kind = getattr(module, "_orig_mod", module)  # of a compiled module
        self._is_cell = isinstance(kind, LSTMCell | nn.LSTMCell)
        if not self._is_cell and not isinstance(kind, LSTM | nn.LSTM):
            raise TypeError(f"Stream: Expected an LSTM or LSTMCell, got {type(kind).__qualname__}")
        if getattr(kind, "bidirectional", False):
            raise ValueError("Stream: a bidirectional LSTM needs the end of a sequence before its first output")
        if hx is not None:
            checks.check_pair("Stream", hx)
        self._module: Any = module
        # No other code then holds the state, so it can be written in place.
        self._in_place = isinstance(module, Frozen) and not grad
        self._start, self._grad = hx, grad
        self._state: State | None = None
        self._batch: tuple[int, ...] | None = None  # (B,), () if unbatched, None before the first chunk

    def __call__(self, input: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the output for the next chunk.

        Over a frozen LSTM or cell the state is updated in place, and a call with `out` allocates no tensor.

        Args:
            input: The next chunk: (T, B, I), (B, T, I) if batch_first, or (T, I) unbatched; for a cell one step, (B,
                I) or (I,). T may be 0. B is that of the first chunk. A PackedSequence is not accepted.
            out: A tensor of the output's shape that the output is written into, or None for a new tensor.

        Returns:
            The output, (T, B, R) in the input's form, or h of a cell; `out` itself if it was given.

        Raises:
            RuntimeError: The chunk has another batch size than the first one, or `out` has the wrong shape.
            ValueError: `out` is given to a stream with grad=True.
            TypeError: The chunk or `out` is not a tensor.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> stream = torchlstm.Stream(torchlstm.freeze(torchlstm.LSTM(8, 16)))
            >>> buffer = torch.empty(1, 4, 16)
            >>> stream(torch.randn(1, 4, 8), out=buffer) is buffer
            True
        """
        # No other trace needs the question: the kernel takes no tensors that stand for something else.
        if self._in_place and self._batch is not None and not is_dynamo_compiling():
            done: Tensor | None = self._step_in_place(input, out)
            if done is not None:
                return done
        if out is not None:
            self._check_out(input, out)
            return out.copy_(self(input))
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise RuntimeError("Stream: torch.jit.trace would keep the state of its example: trace the module itself")
        checks.check_tensor("Stream", input)
        steps, batch = self._sizes(input)
        if self._batch is not None and batch != self._batch:
            was, got = (f"{each[0]} sequences" if each else "unbatched input" for each in (self._batch, batch))
            raise RuntimeError(f"Stream: Expected {was}, as in the first chunk, got {got}: reset() begins anew")
        if steps == 0:
            self._module.check_input(input if batch else input.unsqueeze(1), None)
            output = input.new_zeros(*input.shape[:-1], self._module.proj_size or self._module.hidden_size)
        elif self._grad or not torch.is_grad_enabled():
            output = self._step(input)
        else:
            with torch.no_grad():
                output = self._step(input)
        self._batch = batch
        return output

    def _step_in_place(self, input: Tensor, out: Tensor | None) -> Any:
        """Run a chunk by one call of the kernel, or change nothing and return None where it does not take the call."""
        module: Any = self._module
        packed, state = module._store.packed, self._state
        if packed is None or state is None or not takes_native():
            return None
        if self._is_cell:
            h = state[0]
            fits = out is None or (type(out) is Tensor and out.shape == h.shape and not out.requires_grad)
            if not fits or not frozen.step_cell(packed, input, state):
                return None
            # The output must not share memory with the state.
            return h.clone() if out is None else out.copy_(h)
        if module.dropout and module.training:
            return None
        return frozen.step(packed, input, state, out, module.batch_first)

    def _check_out(self, input: Any, out: Any) -> None:
        """Raise unless the output for this input can be written into `out`."""
        checks.check_tensor("Stream", input)
        if self._grad:
            raise ValueError("Stream: out has no history, and this stream has gradients: it was made with grad=True")
        if not isinstance(out, Tensor):
            raise TypeError(f"Stream: Expected out to be a Tensor, got {type(out).__name__}")
        size = self._module.hidden_size if self._is_cell else self._module.proj_size or self._module.hidden_size
        if out.shape != (*input.shape[:-1], size):
            raise RuntimeError(f"Stream: Expected out of shape {(*input.shape[:-1], size)}, got {tuple(out.shape)}")
        if out.requires_grad:
            raise RuntimeError("Stream: out has no history, and this tensor requires grad")

    def _step(self, input: Tensor) -> Tensor:
        output: Tensor
        result = self._module(input, self._start if self._state is None else self._state)
        output, (h, c) = (result[0], result) if self._is_cell else result
        if self._in_place and self._is_cell:
            h = h.clone()  # the output must not share memory with the state
        self._state = (h.detach(), c.detach()) if h.requires_grad else (h, c)
        return output

    def _sizes(self, input: Tensor) -> tuple[int, tuple[int, ...]]:
        """T, and B if there is one."""
        if self._is_cell:
            return 1, tuple(input.shape[:-1])
        if input.dim() < 3:
            return input.shape[0] if input.dim() == 2 else 1, ()
        first, second = input.shape[:2]
        return (second, (first,)) if self._module.batch_first else (first, (second,))

    @property
    def state(self) -> State | None:
        """The state (h, c) after the last chunk, as the module returns it; before the first chunk, the initial state.

        It can be set, and the next chunk continues from it. Over a frozen module it is a copy.

        Returns:
            The tuple (h, c), or None before the first chunk of a stream that was made without hx.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> stream = torchlstm.Stream(torchlstm.LSTM(8, 16))
            >>> output = stream(torch.randn(3, 4, 8))
            >>> stream.state[0].shape
            torch.Size([1, 4, 16])
        """
        if self._state is None:
            return self._start
        if not self._in_place:
            return self._state
        h, c = self._state
        return h.clone(), c.clone()

    @state.setter
    def state(self, state: State) -> None:
        checks.check_pair("Stream", state)
        # The caller's tensors are not written in place: with `_batch` None, the next chunk makes new ones.
        self._state, self._batch = (state[0].detach(), state[1].detach()), None

    def reset(self, rows: Any = None) -> None:
        """Return all sequences, or some of them, to the initial state.

        Args:
            rows: None for all; the next chunk may then have another batch size. Otherwise a bool mask (B,), or the
                indices of sequences.

        Raises:
            RuntimeError: The mask has the wrong shape, or the input is unbatched.
            TypeError: `rows` is neither bool nor integer.
            IndexError: An index is out of range.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> stream = torchlstm.Stream(torchlstm.LSTM(8, 16))
            >>> output = stream(torch.randn(3, 4, 8))
            >>> stream.reset([1])
            >>> stream.state[0][0].count_nonzero(1).tolist()
            [16, 0, 16, 16]
        """
        if rows is None:
            self._state = self._batch = None
            return
        if self._batch is None or self._state is None:
            return
        if not self._batch:
            raise RuntimeError(
                "Stream: rows are sequences of a batch, and the input is unbatched: reset() without rows"
            )
        mask = self._mask(torch.as_tensor(rows), self._batch[0]).to(self._state[0].device).unsqueeze(1)
        zero = [state.new_zeros(()) for state in self._state]
        h, c = (
            torch.where(mask, start.detach(), state)
            for start, state in zip(self._start or zero, self._state, strict=True)
        )
        self._state = h, c

    @staticmethod
    def _mask(rows: Tensor, batch: int) -> Tensor:
        """Rows, given as a mask or as indices, as a mask (B,)."""
        if rows.dtype == torch.bool:
            if rows.shape != (batch,):
                raise RuntimeError(f"Stream: Expected a mask of {batch} rows, got shape {tuple(rows.shape)}")
            return rows
        if rows.numel() and (rows.is_floating_point() or rows.is_complex()):
            raise TypeError(f"Stream: Expected rows to be a bool mask or integers, got {rows.dtype}")
        rows = rows.flatten().to(torch.int64)
        if ((rows < 0) | (rows >= batch)).any():
            raise IndexError(f"Stream: Expected rows from 0 to {batch - 1}, got {rows.tolist()}")
        return torch.zeros(batch, dtype=torch.bool, device=rows.device).index_fill_(0, rows, True)
