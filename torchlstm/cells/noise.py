"""LSTMs with noise in the recurrence during training: zoneout, variational and recurrent dropout, weight drop."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.contract import Weights
from ..equations import lstm_cell
from ..lstm import LSTM
from .gated import GatedCell
from .stack import CellStack, State, check_rate


class ZoneoutLSTMCell(GatedCell):
    r"""An LSTM cell whose units sometimes keep their previous state (Krueger et al. 2017).

        c' = d_c * c + (1 - d_c) * (f * c + i * g)
        h' = d_h * h + (1 - d_h) * o * \tanh(f * c + i * g)

    In training, d_c and d_h are 0 or 1, drawn for every unit, step and sequence. In eval mode they are their
    expectations, zoneout_c and zoneout_h.

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.
        zoneout_c: The probability that a unit of c keeps its state.
        zoneout_h: The probability that a unit of h keeps its state.

    Raises:
        ValueError: A probability is not within [0, 1].

    Examples:
        >>> import torch
        >>> from torchlstm.cells import ZoneoutLSTM
        >>> _, (h_n, c_n) = ZoneoutLSTM(8, 16, zoneout_c=1.0)(torch.randn(10, 4, 8))
        >>> c_n.count_nonzero().item()
        0
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, zoneout_c: float = 0.5, zoneout_h: float = 0.05
    ) -> None:
        check_rate("zoneout_c", zoneout_c)
        check_rate("zoneout_h", zoneout_h)
        super().__init__(input_size, hidden_size, bias)
        self.zoneout_c, self.zoneout_h = zoneout_c, zoneout_h

    def as_lstm(self) -> Weights | None:
        """Return the weights of a plain LSTM that computes the same.

        Returns:
            The weights if no unit ever keeps its state, else None.
        """
        return self.lstm_weights() if self.zoneout_c == 0 and self.zoneout_h == 0 else None

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 4H).
            state: h and c, (n, H) each.

        Returns:
            The new h and c.
        """
        h, c = state
        new_h, new_c = lstm_cell(gates_x, h, c, self.weight_hh, None)
        return self._hold(h, new_h, self.zoneout_h), self._hold(c, new_c, self.zoneout_c)

    def _hold(self, old: Tensor, new: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return new
        if self.training:
            return torch.where(torch.rand_like(old) < rate, old, new)
        return torch.lerp(new, old, rate)

    def extra_repr(self) -> str:
        """Return the sizes and the rates."""
        return f"{super().extra_repr()}, zoneout_c={self.zoneout_c}, zoneout_h={self.zoneout_h}"


class VariationalLSTMCell(GatedCell):
    """An LSTM cell that drops units of h on their way into the gates, the same at every step (Gal and Ghahramani 2016).

    One mask is drawn for each sequence and shared by the four gates (the paper's tied weights). Kept units are scaled
    by 1 / (1 - recurrent_dropout). The output and c are never dropped. The paper's masks on the inputs of layers are
    the stack's `dropout` with `variational=True`.

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.
        recurrent_dropout: The probability that a unit is dropped.

    Raises:
        ValueError: The probability is not within [0, 1].

    Examples:
        >>> import torch
        >>> from torchlstm.cells import VariationalLSTMCell
        >>> state = (torch.zeros(4, 16), torch.zeros(4, 16))
        >>> (mask,) = VariationalLSTMCell(8, 16, recurrent_dropout=0.5).constants(state)
        >>> sorted(set(mask.flatten().tolist()))
        [0.0, 2.0]
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, recurrent_dropout: float = 0.25) -> None:
        check_rate("recurrent_dropout", recurrent_dropout)
        super().__init__(input_size, hidden_size, bias)
        self.recurrent_dropout = recurrent_dropout

    def as_lstm(self) -> Weights | None:
        """Return the weights of a plain LSTM that computes the same.

        Returns:
            The weights if nothing is dropped, else None.
        """
        return None if self.training and self.recurrent_dropout > 0 else self.lstm_weights()

    def constants(self, state: State) -> State:
        """Draw the masks of all sequences.

        Args:
            state: h and c, (B, H) each.

        Returns:
            A tuple of one mask (B, H).
        """
        return (F.dropout(torch.ones_like(state[0]), self.recurrent_dropout, self.training),)

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 4H).
            state: h, c and the mask, (n, H) each.

        Returns:
            The new h and c.
        """
        h, c, mask = state
        return lstm_cell(gates_x, h * mask, c, self.weight_hh, None)

    def extra_repr(self) -> str:
        """Return the sizes and the rate."""
        return f"{super().extra_repr()}, recurrent_dropout={self.recurrent_dropout}"


class RecurrentDropoutLSTMCell(GatedCell):
    """An LSTM cell that drops units of the candidate, so that no memory is lost (Semeniuta et al. 2016).

        c' = f * c + i * d(g)

    Args:
        input_size: Features of the input, I.
        hidden_size: Units of h and c, H.
        bias: Whether the gates have biases.
        recurrent_dropout: The probability that a unit of g is dropped; kept units are scaled by 1 / (1 - probability).
        per_sequence: Draw one mask for all steps of a sequence instead of one for every step; the paper has both.

    Raises:
        ValueError: The probability is not within [0, 1].

    Examples:
        >>> import torch
        >>> from torchlstm.cells import RecurrentDropoutLSTM
        >>> _, (h_n, c_n) = RecurrentDropoutLSTM(8, 16, recurrent_dropout=1.0)(torch.randn(10, 4, 8))
        >>> c_n.count_nonzero().item()
        0
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        recurrent_dropout: float = 0.25,
        per_sequence: bool = False,
    ) -> None:
        check_rate("recurrent_dropout", recurrent_dropout)
        super().__init__(input_size, hidden_size, bias)
        self.recurrent_dropout, self.per_sequence = recurrent_dropout, per_sequence

    def as_lstm(self) -> Weights | None:
        """Return the weights of a plain LSTM that computes the same.

        Returns:
            The weights if nothing is dropped, else None.
        """
        return None if self.training and self.recurrent_dropout > 0 else self.lstm_weights()

    def constants(self, state: State) -> State:
        """Draw the masks of all sequences, if each has one mask for all its steps.

        Args:
            state: h and c, (B, H) each.

        Returns:
            A tuple of one mask (B, H), or ().
        """
        return (self._drop(torch.ones_like(state[1])),) if self.per_sequence else ()

    def forward(self, gates_x: Tensor, state: State) -> State:
        """Compute one step.

        Args:
            gates_x: What `input_part` returned, (n, 4H).
            state: h, c and, if there is one for all steps, the mask, (n, H) each.

        Returns:
            The new h and c.
        """
        h, c, *mask = state
        i, f, g, o = self.gate_sums(gates_x, h)
        g = torch.tanh(g)
        g = g * mask[0] if mask else self._drop(g)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
        return torch.sigmoid(o) * torch.tanh(c), c

    def _drop(self, tensor: Tensor) -> Tensor:
        return F.dropout(tensor, self.recurrent_dropout, self.training)

    def extra_repr(self) -> str:
        """Return the sizes, the rate, and how often a mask is drawn."""
        rate = f"recurrent_dropout={self.recurrent_dropout}, per_sequence={self.per_sequence}"
        return f"{super().extra_repr()}, {rate}"


class ZoneoutLSTM(CellStack):
    """A stack of `ZoneoutLSTMCell`, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them, and the cell's: zoneout_c, zoneout_h.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import ZoneoutLSTM
        >>> output, (h_n, c_n) = ZoneoutLSTM(8, 16, zoneout_h=0.1)(torch.randn(10, 4, 8))
        >>> output.shape
        torch.Size([10, 4, 16])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(ZoneoutLSTMCell, *args, **options)


class VariationalLSTM(CellStack):
    """A stack of `VariationalLSTMCell` whose dropout between layers is variational as well, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them, with variational=True by default, and the cell's: recurrent_dropout.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import VariationalLSTM
        >>> lstm = VariationalLSTM(8, 16, num_layers=2, dropout=0.2, recurrent_dropout=0.3)
        >>> lstm(torch.randn(10, 4, 8))[0].shape
        torch.Size([10, 4, 16])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(VariationalLSTMCell, *args, **{"variational": True} | options)


class RecurrentDropoutLSTM(CellStack):
    """A stack of `RecurrentDropoutLSTMCell`, called as torch.nn.LSTM is.

    Args:
        *args: As `stack_cells` takes them after the cell.
        **options: As `stack_cells` takes them, and the cell's: recurrent_dropout, per_sequence.

    Examples:
        >>> import torch
        >>> from torchlstm.cells import RecurrentDropoutLSTM
        >>> output, (h_n, c_n) = RecurrentDropoutLSTM(8, 16, per_sequence=True)(torch.randn(10, 4, 8))
        >>> output.shape
        torch.Size([10, 4, 16])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(RecurrentDropoutLSTMCell, *args, **options)


class WeightDropLSTM(LSTM):
    """An LSTM that drops weights between hidden units (DropConnect, as in AWD-LSTM; Merity et al. 2018).

    Parameters and state_dict are an LSTM's. The engines of an LSTM compute it, at their speed.

    Args:
        *args: As `torchlstm.LSTM` takes them.
        weight_dropout: The probability that an element of weight_hh is dropped in training. Every call draws anew for
            each layer and direction; kept elements are scaled by 1 / (1 - weight_dropout).
        **options: As `torchlstm.LSTM` takes them.

    Raises:
        ValueError: The probability is not within [0, 1].

    Examples:
        >>> import torch
        >>> from torchlstm.cells import WeightDropLSTM
        >>> lstm = WeightDropLSTM(8, 16, weight_dropout=0.3)
        >>> lstm(torch.randn(10, 4, 8))[0].shape
        torch.Size([10, 4, 16])
    """

    def __init__(self, *args: Any, weight_dropout: float = 0.5, **options: Any) -> None:
        check_rate("weight_dropout", weight_dropout)
        super().__init__(*args, **options)
        self.weight_dropout = weight_dropout

    def read_weight(self, name: str) -> Tensor:
        """Return a weight as the next call uses it.

        Args:
            name: The name of the parameter.

        Returns:
            The parameter; a recurrent weight with dropout in training.
        """
        weight: Tensor = getattr(self, name)
        return F.dropout(weight, self.weight_dropout, self.training) if name.startswith("weight_hh") else weight

    def extra_repr(self) -> str:
        """Return nn.LSTM's text, and the rate."""
        return f"{super().extra_repr()}, weight_dropout={self.weight_dropout}"
