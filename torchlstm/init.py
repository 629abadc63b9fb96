"""Initialisation of LSTMs: forget-gate bias, orthogonal recurrent weights, chrono, and a learned initial state.

The functions whose names end in _ change parameters in place and return the module. They take torchlstm's LSTM and
LSTMCell, torch.nn's, cells of `torchlstm.cells` with four gates, stacks of them, and any model that contains these.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call.packing import batch_of
from .cells.gated import GatedCell
from .cells.norm import LayerNormLSTMCell
from .cells.stack import CellStack

Model = TypeVar("Model", bound=nn.Module)
_INPUT, _FORGET = 0, 1  # places of these gates along the 4H axis


@torch.no_grad()
def forget_bias_(module: Model, value: float) -> Model:
    """Set the bias of every forget gate (Gers et al. 2000; Jozefowicz et al. 2015 recommend 1).

    Args:
        module: A module with LSTMs in it.
        value: The sum of an LSTM's two biases: bias_ih is set to it, and bias_hh to zero. Other gates keep their
            biases.

    Returns:
        The module.

    Raises:
        ValueError: The module contains no LSTM with biases.

    Examples:
        >>> import torchlstm
        >>> lstm = torchlstm.init.forget_bias_(torchlstm.LSTM(8, 2), 1.0)
        >>> lstm.bias_ih_l0.chunk(4)[1].tolist()
        [1.0, 1.0]
    """
    for biases in _biases(module):
        for index, bias in enumerate(biases):
            bias.chunk(4)[_FORGET].fill_(0 if index else value)
    return module


@torch.no_grad()
def chrono_(module: Model, longest: float) -> Model:
    """Spread the memory of the units over time scales of 1 to `longest` steps (Tallec and Ollivier 2018, equation 16).

    The forget gate's bias is log(u), with u uniform in [1, longest - 1], and the input gate's is -log(u). The paper's
    bias is the sum of an LSTM's two. It does not define the biases of the other gates, and they are unchanged.

    Args:
        module: A module with LSTMs in it.
        longest: The longest dependency that is expected, in steps; at least 2.

    Returns:
        The module.

    Raises:
        ValueError: `longest` is below 2, or the module contains no LSTM with biases.

    Examples:
        >>> import torchlstm
        >>> lstm = torchlstm.init.chrono_(torchlstm.LSTM(8, 16), longest=100)
        >>> i, f, _, _ = lstm.bias_ih_l0.chunk(4)
        >>> bool((f >= 0).all()), bool((i == -f).all())
        (True, True)
    """
    if not longest >= 2:
        raise ValueError(f"longest must be at least 2 steps, got {longest}")
    for biases in _biases(module):
        drawn = torch.empty_like(biases[0].chunk(4)[_FORGET]).uniform_(1, longest - 1).log_()
        for index, bias in enumerate(biases):
            bias.chunk(4)[_FORGET].copy_(drawn if index == 0 else torch.zeros_like(drawn))
            bias.chunk(4)[_INPUT].copy_(-drawn if index == 0 else torch.zeros_like(drawn))
    return module


@torch.no_grad()
def orthogonal_(module: Model, gain: float = 1.0) -> Model:
    """Make the recurrent weights of every gate orthogonal, times a gain (Saxe et al. 2014).

    The part of weight_hh that belongs to a gate, (H, R), gets orthonormal columns: W^T W = gain^2 I, since R is at
    most H.

    Args:
        module: A module with LSTMs in it.
        gain: The factor.

    Returns:
        The module.

    Raises:
        ValueError: The module contains no LSTM.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.init.orthogonal_(torchlstm.LSTM(8, 16))
        >>> w = lstm.weight_hh_l0.chunk(4)[0]
        >>> torch.allclose(w.T @ w, torch.eye(16), atol=1e-5)
        True
    """
    for cell in _cells(module):
        for gate in cell["weight_hh"].chunk(4):
            if gate.dtype in (torch.float16, torch.bfloat16):
                gate.copy_(nn.init.orthogonal_(gate.float(), gain))  # torch has no QR in half precision
            else:
                nn.init.orthogonal_(gate, gain)
    return module


class LearnedState(nn.Module):
    """An LSTM, or a stack of cells, with a learned initial state, the same for all sequences.

    The parameters `initial`, each (L * D, size), start at zero. `forward` uses them when it is called without hx.

    Args:
        lstm: A torchlstm.LSTM, torch.nn.LSTM or `CellStack`, or any module that is called like these.
        sizes: The sizes of its states, (R, H) for an LSTM. None: those of the module, if its class is known.

    Raises:
        TypeError: `sizes` is None, and the module is of another class.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.init.LearnedState(torchlstm.LSTM(8, 16))
        >>> output, state = lstm(torch.randn(10, 4, 8))
        >>> [tuple(tensor.shape) for tensor in lstm.initial]
        [(1, 16), (1, 16)]
    """

    def __init__(self, lstm: nn.Module, sizes: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if sizes is None:
            sizes = _state_sizes(lstm)
        count = int(lstm.num_layers) * (2 if lstm.bidirectional else 1)  # type: ignore[arg-type]
        like = next(lstm.parameters())
        self.lstm = lstm
        self.initial = nn.ParameterList(
            nn.Parameter(torch.zeros(count, size, dtype=like.dtype, device=like.device)) for size in sizes
        )

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Call the module, from the learned state unless another one is given.

        Args:
            input: As the module takes it.
            hx: Another initial state; None for the learned one.

        Returns:
            The results of the module.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> lstm = torchlstm.init.LearnedState(torchlstm.LSTM(8, 16))
            >>> output, (h_n, c_n) = lstm(torch.randn(10, 4, 8))
            >>> h_n.shape
            torch.Size([1, 4, 16])
        """
        return self.lstm(input, self.state(input) if hx is None else hx)

    def state(self, input: Tensor | PackedSequence) -> tuple[Tensor, ...]:
        """Expand the learned state to an hx for this input.

        Args:
            input: As the module takes it.

        Returns:
            A tuple of tensors (L * D, B, size), or (L * D, size) for unbatched input.

        Examples:
            >>> import torch
            >>> import torchlstm
            >>> h, c = torchlstm.init.LearnedState(torchlstm.LSTM(8, 16)).state(torch.randn(10, 4, 8))
            >>> h.shape
            torch.Size([1, 4, 16])
        """
        if isinstance(input, PackedSequence):
            batch = batch_of(input, None)
        elif input.dim() == 2:
            return tuple(self.initial)
        else:
            batch = input.shape[0 if self.lstm.batch_first or input.layout == torch.jagged else 1]
        return tuple(tensor.unsqueeze(1).expand(-1, batch, -1) for tensor in self.initial)


def _state_sizes(lstm: nn.Module) -> tuple[int, ...]:
    if isinstance(lstm, CellStack):
        return lstm.state_sizes
    if isinstance(lstm, nn.RNNBase) and lstm.mode == "LSTM":
        return lstm.proj_size or lstm.hidden_size, lstm.hidden_size
    raise TypeError(f"the states of a {type(lstm).__name__} are not known: give their sizes")


def _cells(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the parameters weight_hh, bias_ih and bias_hh of every layer and direction, as far as they exist."""
    found = False
    for part in module.modules():
        if isinstance(part, nn.RNNBase) and part.mode == "LSTM":
            suffixes = [
                f"_l{k}{way}" for k in range(part.num_layers) for way in ("", "_reverse")[: 1 + part.bidirectional]
            ]
        elif _is_lstm_cell(part):
            suffixes = [""]
        else:
            continue
        for suffix in suffixes:
            found = True
            named = {name: getattr(part, name + suffix, None) for name in ("weight_hh", "bias_ih", "bias_hh")}
            if isinstance(part, LayerNormLSTMCell):
                named["bias_ih"] = part.bias
            yield {name: tensor for name, tensor in named.items() if tensor is not None}
    if not found:
        raise ValueError(f"there is no LSTM in {type(module).__name__}")


def _is_lstm_cell(part: nn.Module) -> bool:
    if isinstance(part, nn.RNNCellBase):
        return int(part.weight_hh.shape[0]) == 4 * part.hidden_size
    return isinstance(part, LayerNormLSTMCell) or (isinstance(part, GatedCell) and part.gates == 4)


def _biases(module: nn.Module) -> list[list[Tensor]]:
    """Return the biases of every layer and direction; the gates see the sum of each list."""
    found = [[cell[name] for name in ("bias_ih", "bias_hh") if name in cell] for cell in _cells(module)]
    if not any(found):
        raise ValueError(f"the LSTM in {type(module).__name__} has no biases")
    return [biases for biases in found if biases]
