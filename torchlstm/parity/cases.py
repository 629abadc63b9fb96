"""Every parity case, written once; pytest, the command line and a CUDA machine run this table."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One module and one call of it.

    Attributes:
        name: The name of the case.
        cell: Whether it is an LSTMCell.
        steps: T.
        batch: B.
        input_size: Features of the input.
        hidden_size: Units of c.
        options: Arguments of the constructor beside the sizes.
        form: dense, unbatched, packed (sorted), unsorted (packed), equal (packed, all of one length), zeros (packed,
            with steps at the end at which no sequence is alive), lengths or resets (dense, with that argument).
        hx: none, given, list, aliased, expanded or strided (not contiguous).
        dtype: The dtype of module and input.
        training: False: eval mode, without dropout.
        autocast: The dtype of an autocast region around the forward, or None.
        loss: The results that the loss depends on.
        frozen: Names of parameters that require no gradient; "input" and "hx" mean those.
        scale: The scale of the input; 1e4 saturates every gate.
        poison: A value that is written into one element of the input of sequence 0, or None.
        trace: The call is `LSTM.trace`, and the loss also depends on the states and gates of every step.
        tf32: What may round products of float32 to TF32 on CUDA: "rnn" for nn.LSTM, "matmul" for all others,
            nn.LSTMCell included.
        large: Too large for Triton's interpreter, and slow on a CPU: meant for a GPU.
    """

    name: str
    cell: bool = False
    steps: int = 7
    batch: int = 3
    input_size: int = 5
    hidden_size: int = 6
    options: dict[str, Any] = field(default_factory=dict)
    form: str = "dense"
    hx: str = "given"
    dtype: torch.dtype = torch.float64
    training: bool = True
    autocast: torch.dtype | None = None
    loss: tuple[str, ...] = ("output", "h_n", "c_n")
    frozen: tuple[str, ...] = ()
    scale: float = 1.0
    poison: float | None = None
    trace: bool = False
    tf32: tuple[str, ...] = ()
    large: bool = False

    @property
    def rounds_to_tf32(self) -> bool:
        """Whether the products of torch.nn's module may round to TF32 on CUDA.

        Returns:
            True or False.
        """
        return self.dtype == torch.float32 and ("matmul" if self.cell else "rnn") in self.tf32

    @property
    def dropout(self) -> float:
        """The dropout that this case draws.

        On CUDA only 0 and 1 can be compared, because the masks of cuDNN cannot be drawn again.

        Returns:
            The probability; 0 in eval mode.
        """
        return float(self.options.get("dropout", 0)) if self.training else 0.0


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)

_EVERYTHING = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _options() -> Iterator[Case]:
    """Every combination of the constructor's options, dense and packed."""
    for layers in (1, 2):
        for bias in (True, False):
            for bidirectional in (False, True):
                for proj in (0, 3):
                    options = {
                        "num_layers": layers,
                        "bias": bias,
                        "bidirectional": bidirectional,
                        "proj_size": proj,
                        "batch_first": layers == 2,
                    }
                    name = f"L{layers}" + "-bi" * bidirectional + f"-proj{proj}" * (proj > 0) + "-nobias" * (not bias)
                    for form in ("dense", "unsorted"):
                        yield Case(f"{name}-{form}", options=options, form=form)


def _dtypes() -> Iterator[Case]:
    for dtype in DTYPES:
        for form in ("dense", "packed"):
            if dtype.is_complex and form == "packed":
                continue
            # Complex gates have poles: wide sums come close to them, where every computation is inexact.
            sizes: dict[str, Any] = {"steps": 20, "batch": 4, "input_size": 17, "hidden_size": 33}
            sizes = {} if dtype.is_complex else sizes
            yield Case(f"{_short(dtype)}-{form}", dtype=dtype, form=form, **sizes)
            yield Case(f"{_short(dtype)}-everything-{form}", dtype=dtype, form=form, options=_EVERYTHING, **sizes)
    shapes = ((1, 1, 1, 1), (2, 17, 3, 8), (33, 1, 64, 64), (63, 5, 31, 100), (9, 40, 16, 15))
    for steps, batch, features, hidden in shapes:
        for dtype in (torch.float64, torch.float32):
            yield Case(
                f"{_short(dtype)}-T{steps}-B{batch}-I{features}-H{hidden}",
                dtype=dtype, steps=steps, batch=batch, input_size=features, hidden_size=hidden,
                options={"bidirectional": True},
            )  # fmt: skip


def _forms() -> Iterator[Case]:
    for form in ("unbatched", "packed", "unsorted", "equal", "zeros"):
        for hx in ("none", "given"):
            yield Case(f"{form}-hx-{hx}", form=form, hx=hx, options=_EVERYTHING)
    for hx in ("none", "list", "expanded", "strided"):
        yield Case(f"hx-{hx}", hx=hx, options={"num_layers": 2})
    yield Case("hx-aliased", hx="aliased", options={"num_layers": 2, "bidirectional": True})
    yield Case("one-step", steps=1, options=_EVERYTHING)
    yield Case("batch-0", batch=0, options={"num_layers": 2, "bidirectional": True})
    yield Case("unbatched-batch-first", form="unbatched", options={"batch_first": True})
    yield Case("four-layers", options={"num_layers": 4, "dropout": 0.1})


def _segments() -> Iterator[Case]:
    """Against nn.LSTM between packing and unpacking, and split at the resets."""
    one_way = {"num_layers": 2, "proj_size": 3, "batch_first": True}
    for form, options in (("lengths", _EVERYTHING | {"dropout": 1.0}), ("resets", one_way)):
        for hx in ("none", "given"):
            yield Case(f"{form}-hx-{hx}", form=form, hx=hx, options=options)
        for dtype in (torch.float32, torch.bfloat16):
            sizes: dict[str, Any] = {"steps": 20, "batch": 4, "input_size": 17, "hidden_size": 33}
            yield Case(f"{form}-{_short(dtype)}", form=form, dtype=dtype, **sizes)
    yield Case("lengths-dropout", form="lengths", options={"num_layers": 3, "dropout": 0.4})


def _dropouts() -> Iterator[Case]:
    for p in (0.0, 0.3, 1.0):
        for form in ("dense", "unsorted"):
            options = {"num_layers": 3, "dropout": p, "bidirectional": True}
            yield Case(f"dropout-{p}-{form}", options=options, form=form)
    yield Case("dropout-batch-first", options=_EVERYTHING | {"dropout": 0.5}, dtype=torch.float32)
    yield Case("dropout-eval", options=_EVERYTHING | {"dropout": 0.5}, training=False)


def _losses() -> Iterator[Case]:
    for name in ("output", "h_n", "c_n"):
        yield Case(f"loss-{name}", loss=(name,), options=_EVERYTHING)
        yield Case(f"loss-{name}-packed", loss=(name,), form="unsorted", options=_EVERYTHING)
    yield Case("frozen-weights", frozen=("weight_hh_l0", "bias_ih_l0", "weight_ih_l0_reverse"), options=_EVERYTHING)
    yield Case("frozen-input", frozen=("input",), options={"num_layers": 2})
    yield Case("frozen-states", frozen=("hx",))
    yield Case("eval-mode", training=False)


def _values() -> Iterator[Case]:
    for dtype in (torch.float64, torch.float32):
        # A size at which no gate of the draw happens to be near 0: there, products of 1e4 would leave their rounding
        # errors to be compared, which are another machine's luck.
        yield Case(f"saturated-{_short(dtype)}", batch=2, hidden_size=4, scale=1e4, dtype=dtype)
    for value in (float("nan"), float("inf"), float("-inf")):
        yield Case(f"{value}-in-one-row", poison=value, dtype=torch.float32, loss=("output",), frozen=("input", "hx"))
    yield Case("nan-in-one-row-packed", poison=float("nan"), form="unsorted", dtype=torch.float32)
    yield Case("denormal-input", scale=1e-39, dtype=torch.float32)


def _cells() -> Iterator[Case]:
    for dtype in DTYPES:
        sizes: dict[str, Any] = {} if dtype.is_complex else {"batch": 4, "input_size": 17, "hidden_size": 33}
        yield Case(f"cell-{_short(dtype)}", cell=True, dtype=dtype, **sizes)
    for hx in ("none", "list", "aliased", "strided", "expanded"):
        yield Case(f"cell-hx-{hx}", cell=True, hx=hx)
    yield Case("cell-nobias", cell=True, options={"bias": False})
    yield Case("cell-unbatched", cell=True, form="unbatched")
    yield Case("cell-unbatched-hx-none", cell=True, form="unbatched", hx="none")
    yield Case("cell-batch-0", cell=True, batch=0)
    yield Case("cell-loss-c", cell=True, loss=("c_n",))


def _autocasts() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float16):
        base = Case("", dtype=torch.float32, autocast=dtype, input_size=17, hidden_size=33)
        name = f"autocast-{_short(dtype)}"
        yield replace(base, name=f"{name}-dense")
        yield replace(base, name=f"{name}-proj", options={"proj_size": 8, "num_layers": 2})
        yield replace(base, name=f"{name}-packed", form="unsorted", options={"bidirectional": True})
        yield replace(base, name=f"{name}-cell", cell=True)


def _traces() -> Iterator[Case]:
    """What `LSTM.trace` returns besides, against a loop over the equations."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        yield Case(f"trace-{_short(dtype)}", trace=True, dtype=dtype, options={"num_layers": 2, "bidirectional": True})
    yield Case("trace-proj", trace=True, options={"proj_size": 3})


def _tf32() -> Iterator[Case]:
    """Products that round to TF32 where nn.LSTM's or nn.LSTMCell's do, and there alone; all other cases forbid it."""
    sizes: dict[str, Any] = {"dtype": torch.float32, "steps": 20, "batch": 4, "input_size": 17, "hidden_size": 33}
    yield Case("tf32-dense", tf32=("rnn",), **sizes)
    yield Case("tf32-everything-packed", form="packed", tf32=("rnn", "matmul"), options=_EVERYTHING, **sizes)
    yield Case("tf32-cell", cell=True, tf32=("matmul",), **sizes)
    yield Case("tf32-of-nn.LSTM-only-cell", cell=True, tf32=("rnn",), **sizes)


# T, B, I, H, form and options of sizes at which a GPU works in another way: hidden units in slices, several tiles of
# sequences a slice, long sequences.
_LARGE: tuple[tuple[int, int, int, int, str, dict[str, Any]], ...] = (
    (12, 5, 20, 136, "dense", {}),
    (9, 70, 33, 256, "unsorted", {}),
    (10, 17, 64, 512, "dense", {"bidirectional": True}),
    (8, 33, 48, 640, "unsorted", {"bidirectional": True}),
    (8, 100, 64, 1024, "dense", {}),
    (10, 16, 65, 511, "unsorted", {"proj_size": 96, "num_layers": 2}),
    (600, 3, 16, 200, "dense", {}),
)


def _larges() -> Iterator[Case]:
    """What only a GPU has the patience for."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for steps, batch, features, hidden, form, options in _LARGE:
            sizes: dict[str, Any] = {"steps": steps, "batch": batch, "input_size": features, "hidden_size": hidden}
            kind = form + "-bi" * ("bidirectional" in options) + "-proj" * ("proj_size" in options)
            name = f"T{steps}-B{batch}-H{hidden}-{kind}"
            case = Case(f"large-{_short(dtype)}-{name}", form=form, dtype=dtype, options=options, large=True, **sizes)
            yield case
            if dtype == torch.float32:
                yield replace(case, name=f"large-tf32-{name}", tf32=("rnn",))
        sizes = {"steps": 8, "batch": 18, "input_size": 30, "hidden_size": 264}
        options = {"bidirectional": True}
        yield Case(f"large-{_short(dtype)}-trace", trace=True, dtype=dtype, options=options, large=True, **sizes)


def _table() -> dict[str, Case]:
    table: dict[str, Case] = {}
    for group in (
        _options,
        _dtypes,
        _forms,
        _segments,
        _dropouts,
        _losses,
        _values,
        _cells,
        _autocasts,
        _traces,
        _tf32,
        _larges,
    ):
        for case in group():
            if case.name in table:
                raise ValueError(f"two parity cases are called {case.name!r}")
            table[case.name] = case
    return table


CASES = _table()
