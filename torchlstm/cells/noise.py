"""LSTMs with noise in the recurrence while they train: zoneout, variational and recurrent dropout, weight drop."""

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
    r"""An LSTM whose units keep, now and then, the state they had (Krueger et al. 2017).

        c' = d_c * c + (1 - d_c) * (f * c + i * g)
        h' = d_h * h + (1 - d_h) * o * \tanh(f * c + i * g)

    zoneout_c, zoneout_h  the probabilities of d_c = 1 and d_h = 1, drawn for every unit, step and sequence

    In eval mode d_c and d_h are their expectations, zoneout_c and zoneout_h.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, zoneout_c: float = 0.5, zoneout_h: float = 0.05
    ) -> None:
        check_rate("zoneout_c", zoneout_c)
        check_rate("zoneout_h", zoneout_h)
        super().__init__(input_size, hidden_size, bias)
        self.zoneout_c, self.zoneout_h = zoneout_c, zoneout_h

    def as_lstm(self) -> Weights | None:
        """The weights, where no unit is ever held."""
        return self.lstm_weights() if self.zoneout_c == 0 and self.zoneout_h == 0 else None

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 4H), state h, c (n, H)."""
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
        """The sizes and rates."""
        return f"{super().extra_repr()}, zoneout_c={self.zoneout_c}, zoneout_h={self.zoneout_h}"


class VariationalLSTMCell(GatedCell):
    """An LSTM that drops units of h on its way into the gates, the same at every step (Gal and Ghahramani 2016).

    recurrent_dropout  the probability that a unit is dropped; one mask a sequence, shared by the four gates (the
                       paper's tied weights), those kept scaled by 1 / (1 - recurrent_dropout)

    What comes out, and c, are never dropped.  The paper's masks on the inputs of layers are the stack's, with
    `dropout` and `variational=True`.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, recurrent_dropout: float = 0.25) -> None:
        check_rate("recurrent_dropout", recurrent_dropout)
        super().__init__(input_size, hidden_size, bias)
        self.recurrent_dropout = recurrent_dropout

    def as_lstm(self) -> Weights | None:
        """The weights, where nothing is dropped."""
        return None if self.training and self.recurrent_dropout > 0 else self.lstm_weights()

    def constants(self, state: State) -> State:
        """The mask of every sequence, (B, H)."""
        return (F.dropout(torch.ones_like(state[0]), self.recurrent_dropout, self.training),)

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 4H), state h, c and the mask (n, H)."""
        h, c, mask = state
        return lstm_cell(gates_x, h * mask, c, self.weight_hh, None)

    def extra_repr(self) -> str:
        """The sizes and the rate."""
        return f"{super().extra_repr()}, recurrent_dropout={self.recurrent_dropout}"


class RecurrentDropoutLSTMCell(GatedCell):
    r"""An LSTM that drops units of the candidate, so that no memory is lost (Semeniuta et al. 2016).

        c' = f * c + i * d(g)

    recurrent_dropout  the probability that a unit of g is dropped; those kept are scaled by 1 / (1 - rate)
    per_sequence       one mask for all steps of a sequence instead of one for every step; the paper has both
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
        """The weights, where nothing is dropped."""
        return None if self.training and self.recurrent_dropout > 0 else self.lstm_weights()

    def constants(self, state: State) -> State:
        """The mask of every sequence, (B, H), if it is one for all steps."""
        return (self._drop(torch.ones_like(state[1])),) if self.per_sequence else ()

    def forward(self, gates_x: Tensor, state: State) -> State:
        """One step: gates_x (n, 4H), state h, c and the mask if it is one for all steps (n, H)."""
        h, c, *mask = state
        i, f, g, o = self.gate_sums(gates_x, h)
        g = torch.tanh(g)
        g = g * mask[0] if mask else self._drop(g)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
        return torch.sigmoid(o) * torch.tanh(c), c

    def _drop(self, tensor: Tensor) -> Tensor:
        return F.dropout(tensor, self.recurrent_dropout, self.training)

    def extra_repr(self) -> str:
        """The sizes, the rate, and how often a mask is drawn."""
        rate = f"recurrent_dropout={self.recurrent_dropout}, per_sequence={self.per_sequence}"
        return f"{super().extra_repr()}, {rate}"


class ZoneoutLSTM(CellStack):
    """A stack of `ZoneoutLSTMCell`; the arguments are those of `stack_cells` after the cell, and the cell's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(ZoneoutLSTMCell, *args, **options)


class VariationalLSTM(CellStack):
    """A stack of `VariationalLSTMCell`, its dropout between layers variational too; arguments of both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(VariationalLSTMCell, *args, **{"variational": True} | options)


class RecurrentDropoutLSTM(CellStack):
    """A stack of `RecurrentDropoutLSTMCell`; the arguments are `stack_cells`' after the cell, and the cell's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(RecurrentDropoutLSTMCell, *args, **options)


class WeightDropLSTM(LSTM):
    """An LSTM that drops weights between hidden units (DropConnect, as in AWD-LSTM; Merity et al. 2018).

    The arguments are torchlstm.LSTM's, and

    weight_dropout  the probability that an element of weight_hh is dropped in training; drawn once a call for every
                    layer and direction, those kept scaled by 1 / (1 - weight_dropout)

    Parameters and state_dict are an LSTM's.  The engines of an LSTM compute it, at their speed.
    """

    def __init__(self, *args: Any, weight_dropout: float = 0.5, **options: Any) -> None:
        check_rate("weight_dropout", weight_dropout)
        super().__init__(*args, **options)
        self.weight_dropout = weight_dropout

    def read_weight(self, name: str) -> Tensor:
        """A weight as the call that is about to run has it."""
        weight: Tensor = getattr(self, name)
        return F.dropout(weight, self.weight_dropout, self.training) if name.startswith("weight_hh") else weight

    def extra_repr(self) -> str:
        """As nn.LSTM's, and the rate."""
        return f"{super().extra_repr()}, weight_dropout={self.weight_dropout}"
