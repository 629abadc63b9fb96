"""What tests of packed weights share: modules, their weights as they are rounded, and the arithmetic written out in torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchlstm.engines.cpu import frozen
from torchlstm.engines.shared.rounding import Format, Rounded, as_float, rounded

FORMATS: tuple[Format, ...] = (None, torch.bfloat16, torch.float16, torch.int8)
# A row's largest activation becomes this integer.
STEPS = 32767
# A row without anything larger counts as zeros.
FAINT = 1e-33


def sizes_of(module: nn.LSTM) -> frozen.Sizes:
    return frozen.Sizes(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.bidirectional,
        module.proj_size,
        module.bias,
    )


def weights_of(module: nn.LSTM, format: Format) -> list[tuple[frozen.Direction, ...]]:
    def one(layer: int, suffix: str) -> frozen.Direction:
        def get(name: str) -> Tensor:
            return getattr(module, f"{name}_l{layer}{suffix}").detach()

        bias = get("bias_ih") + get("bias_hh") if module.bias else None
        w_hr = rounded(get("weight_hr"), format) if module.proj_size else None
        return rounded(get("weight_ih"), format), rounded(get("weight_hh"), format), bias, w_hr

    suffixes = ("", "_reverse")[: 1 + module.bidirectional]
    return [tuple(one(layer, suffix) for suffix in suffixes) for layer in range(module.num_layers)]


def packed_of(module: nn.LSTM, format: Format) -> frozen.Packed:
    packed = frozen.pack(sizes_of(module), weights_of(module, format))
    assert packed is not None
    return packed


def product(rows: Tensor, weight: Rounded, least: float) -> Tensor:
    """Rows (n, K) times a weight (N, K), in float64: of int8 the rows are rounded to 16 bits, and the integers' products exact."""
    if weight.scale is None:
        return rows.double() @ as_float(weight).double().T
    most = rows.float().abs().amax(1, keepdim=True).clamp(min=least)
    most = torch.where(most < FAINT, 0.0, most)
    inverse = torch.where(most == 0, 0.0, STEPS / most)
    integers = (rows.float() * inverse).round().double()
    return (integers @ weight.values.double().T) * (most.double() / STEPS) * weight.scale.double()


def direction(x: Tensor, weights: frozen.Direction, h: Tensor, c: Tensor, sizes: Sequence[int], reverse: bool) -> tuple[Tensor, ...]:
    """One direction on rows x (T, B, I), of which the first sizes[t] belong to step t: y (T, B, R), h_n (B, R), c_n (B, H)."""
    w_ih, w_hh, bias, w_hr = weights
    h, c, y = h.clone(), c.clone(), x.new_zeros(*x.shape[:2], h.shape[1])
    for t in range(len(sizes))[:: -1 if reverse else 1]:
        n = sizes[t]
        gates = product(x[t, :n], w_ih, 0) + product(h[:n], w_hh, 1 if w_hr is None else 0)
        i, f, g, o = (gates if bias is None else gates + bias.double()).chunk(4, 1)
        c[:n] = f.sigmoid() * c[:n] + i.sigmoid() * g.tanh()
        raw = o.sigmoid() * c[:n].tanh()
        h[:n] = y[t, :n] = raw if w_hr is None else product(raw, w_hr, 1)
    return y, h, c


def written_out(
    weights: list[tuple[frozen.Direction, ...]], x: Tensor, h_0: Tensor, c_0: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers in float64, as `direction`; states (L D, B, F)."""
    states, count = [], 0
    for layer in weights:
        outputs = []
        for d, one in enumerate(layer):
            y, h, c = direction(x, one, h_0[count].double(), c_0[count].double(), sizes, bool(d))
            outputs.append(y), states.append((h, c))
            count += 1
        x = torch.cat(outputs, 2)
    h_n, c_n = (torch.stack(part) for part in zip(*states, strict=True))
    return x, h_n, c_n
