"""Every workload, written once: its sizes, its inputs, and its operations and bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from torchlstm.parity import Case
from torchlstm.parity.observe import Inputs, draw

MODES = ("inference", "training")


class Named(Protocol):
    """Something that a run measures."""

    @property
    def name(self) -> str:
        """Its own name."""

    @property
    def group(self) -> str:
        """The table, mean or plot that it belongs to."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that it is measured on."""


Row = TypeVar("Row", bound=Named)


@dataclass(frozen=True)
class Workload:
    """One module, one call of it, and where it is worth measuring.

    group    workloads whose ratios may be averaged, or which a plot draws together
    case     the module, the form of its input, and its dtype
    devices  where it is measured
    streamed whether inference goes through a Stream
    """

    name: str
    group: str
    case: Case
    devices: tuple[str, ...] = ("cpu", "cuda")
    streamed: bool = False

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return int(self.case.options.get("num_layers", 1))

    @property
    def directions(self) -> int:
        """D, the number of directions."""
        return 2 if self.case.options.get("bidirectional") else 1

    @property
    def proj_size(self) -> int:
        """The projected size of the state, 0 without a projection."""
        return int(self.case.options.get("proj_size", 0))

    @property
    def lengths(self) -> list[int] | None:
        """The length of each sequence of a ragged batch: uniform in 1..T, the same in every run; None if dense."""
        if self.case.form in ("dense", "resets"):
            return None
        generator = torch.Generator().manual_seed(23)
        lengths: list[int] = torch.randint(1, self.case.steps + 1, (self.case.batch,), generator=generator).tolist()
        return lengths

    @property
    def steps(self) -> int:
        """T: 1 for a cell, the longest sequence's for a ragged batch."""
        return 1 if self.case.cell else max(self.lengths or [self.case.steps])

    @property
    def rows(self) -> int:
        """P: the steps of all sequences together."""
        lengths = self.lengths
        return self.steps * self.case.batch if lengths is None else sum(lengths)

    def _products(self) -> Iterator[tuple[int, int, int]]:
        """Yield the input features, H and R of every layer and direction."""
        hidden = self.case.hidden_size
        state = self.proj_size or hidden
        for layer in range(self.layers):
            features = self.directions * state if layer else self.case.input_size
            yield from [(features, hidden, state)] * self.directions

    def flops(self, mode: str) -> int:
        """Floating-point operations of the matrix products; training counts three times the forward's."""
        forward = 0
        for features, hidden, state in self._products():
            forward += 8 * self.rows * hidden * (features + state)
            forward += 2 * self.rows * hidden * self.proj_size
        return 3 * forward if mode == "training" else forward

    def traffic(self, mode: str) -> int:
        """Bytes that must move if only the state is kept between two steps.

        Inference reads the rows and w_ih once, writes the output once, and reads the recurrent weights at every step;
        training moves three times that, and writes and reads the saved gates and cells of every row.
        """
        elements = 0
        for features, hidden, state in self._products():
            moved = self.rows * (features + state) + 4 * hidden * features + self.steps * 4 * hidden * state
            moved += self.steps * hidden * self.proj_size
            elements += 3 * moved + 2 * self.rows * 5 * hidden if mode == "training" else moved
        return elements * self.case.dtype.itemsize

    @property
    def weighs_memory(self) -> bool:
        """Whether the peak memory of a training step is worth measuring: the gates of all its rows take a megabyte."""
        return self.rows * 4 * self.case.hidden_size * 4 >= 1 << 20 and self.steps > 1

    def inputs(self) -> Inputs:
        """Input, states and cotangents, on the CPU; data (T, B, I) is padded if the batch is ragged."""
        inputs, lengths = draw(self.case), self.lengths
        if self.case.form == "lengths":
            return replace(inputs, keywords={"lengths": torch.tensor(lengths)})
        if self.case.form == "resets":
            return replace(inputs, keywords={"resets": self._resets()})
        if lengths is not None:
            generator = torch.Generator().manual_seed(29)
            size = self.directions * (self.proj_size or self.case.hidden_size)
            cotangent = torch.randn(sum(lengths), size, generator=generator).to(self.case.dtype)
            inputs = replace(inputs, lengths=lengths, cotangents=inputs.cotangents | {"output": cotangent})
        return inputs

    def _resets(self) -> Tensor:
        """Where episodes begin (T, B): at 3 % of the steps, the same in every run, and once in any case."""
        generator = torch.Generator().manual_seed(31)
        resets = torch.rand(self.case.steps, self.case.batch, generator=generator) < 0.03
        resets[self.case.steps // 2, 0] = True
        return resets

    def shrunk(self) -> "Workload":
        """The same kind of call with tiny sizes."""
        case, options = self.case, dict(self.case.options)
        if self.proj_size:
            options["proj_size"] = min(self.proj_size, 8)
        small = replace(
            case,
            steps=min(case.steps, 8),
            batch=min(case.batch, 4),
            input_size=min(case.input_size, 16),
            hidden_size=min(case.hidden_size, 24),
            options=options,
        )
        return replace(self, case=small)

    @property
    def _kind(self) -> str:
        if self.case.cell or self.streamed:
            return "cell" if self.case.cell else "stream"
        return "ragged" if self.case.form == "unsorted" else self.case.form

    def sizes(self) -> dict[str, Any]:
        """The sizes by the letters of the code, for a record."""
        return {
            "kind": self._kind,
            "T": self.steps,
            "B": self.case.batch,
            "I": self.case.input_size,
            "H": self.case.hidden_size,
            "P": self.rows,
            "L": self.layers,
            "D": self.directions,
            "proj_size": self.proj_size,
            "dtype": str(self.case.dtype).removeprefix("torch."),
        }


def _workload(
    name: str,
    group: str,
    sizes: tuple[int, int, int, int],
    devices: tuple[str, ...] = ("cpu", "cuda"),
    dtype: torch.dtype = torch.float32,
    streamed: bool = False,
    **rest: Any,
) -> Workload:
    steps, batch, features, hidden = sizes
    case = Case(name, steps=steps, batch=batch, input_size=features, hidden_size=hidden, dtype=dtype,
                **({"hx": "none"} | rest))  # fmt: skip
    return Workload(name, group, case, devices, streamed)


DENSE = (
    (32, 1, 64, 64),
    (128, 1, 256, 256),
    (1, 1, 256, 256),
    (1000, 1, 128, 512),
    (128, 16, 128, 256),
    (100, 32, 256, 512),
    (512, 8, 128, 128),
    (64, 64, 512, 1024),
    (50, 256, 64, 128),
    (20, 128, 1024, 1024),
    (37, 5, 53, 77),
)


def _everywhere() -> Iterator[Workload]:
    for sizes in DENSE:
        yield _workload("T{}-B{}-I{}-H{}".format(*sizes), "dense", sizes)
    usual = (100, 16, 128, 256)
    two = {"num_layers": 2, "bidirectional": True}
    yield _workload("bi2-T100-B16-I128-H256", "stacked", usual, options=two)
    for sizes in ((500, 16, 32, 32), (200, 64, 128, 256)):
        yield _workload("ragged-T{}-B{}-I{}-H{}".format(*sizes), "ragged", sizes, form="unsorted")
    yield _workload("proj64-T100-B16-I128-H256", "projected", usual, options={"proj_size": 64})
    for size in (64, 256, 1024):
        yield _workload(f"stream-H{size}", "stream", (1, 1, size, size), hx="given")
        yield _workload(f"streamed-H{size}", "stream", (1, 1, size, size), streamed=True, hx="given")
    for sizes in ((500, 16, 32, 32), (200, 64, 128, 256)):
        yield _workload("lengths-T{}-B{}-I{}-H{}".format(*sizes), "lengths", sizes, form="lengths")
    yield _workload("resets-T128-B16-I64-H128", "resets", (128, 16, 64, 128), form="resets")
    yield _workload("bfloat16-T128-B16-I128-H256", "bfloat16", (128, 16, 128, 256), dtype=torch.bfloat16)


def _short() -> Iterator[Workload]:
    """Short calls, from 10 us on: one step of a cell, and few steps of a layer; I = H."""
    for batch in (1, 8, 64):
        for hidden in (16, 64, 128, 256, 512):
            sizes = (1, batch, hidden, hidden)
            yield _workload(f"cell-B{batch}-H{hidden}", "cell", sizes, cell=True, hx="given")
    for steps in (1, 3, 7, 16):
        for batch in (1, 4):
            for hidden in (64, 256, 512):
                yield _workload(f"steps-T{steps}-B{batch}-H{hidden}", "steps", (steps, batch, hidden, hidden))


def _sweeps() -> Iterator[Workload]:
    """Points for the plots against T, B and H: one of them varies, the others stay at a middle value."""
    for steps in (1, 4, 16, 64, 256):
        yield _workload(f"sweep-T{steps}", "sweep-T", (steps, 16, 128, 128))
    for batch in (1, 4, 16, 64, 256):
        yield _workload(f"sweep-B{batch}", "sweep-B", (64, batch, 128, 128))
    for hidden in (32, 64, 128, 256, 512):
        yield _workload(f"sweep-H{hidden}", "sweep-H", (64, 16, hidden, hidden))


def _grid() -> Iterator[Workload]:
    """Sizes where cuDNN is strong and where it is weak: small and large H, few and many rows, three dtypes."""
    device = ("cuda",)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        short = str(dtype).removeprefix("torch.")
        for size in (64, 128, 160, 256, 512, 1024):
            for batch in (1, 16, 64):
                name = f"grid-{short}-B{batch}-H{size}"
                yield _workload(name, f"grid-{short}", (512, batch, size, size), device, dtype)
        for size in (256, 512):
            kinds: dict[str, dict[str, Any]] = {
                "bi": {"options": {"bidirectional": True}},
                "two": {"options": {"num_layers": 2}},
                "ragged": {"form": "unsorted"},
                "proj": {"options": {"proj_size": size // 4}},
            }
            for kind, rest in kinds.items():
                name = f"rest-{short}-{kind}-H{size}"
                yield _workload(name, f"rest-{short}", (512, 16, size, size), device, dtype, **rest)


def _table() -> dict[str, Workload]:
    table: dict[str, Workload] = {}
    for part in (_everywhere, _short, _grid, _sweeps):
        for workload in part():
            if workload.name in table:
                raise ValueError(f"two workloads are called {workload.name!r}")
            table[workload.name] = workload
    return table


WORKLOADS = _table()


def is_sweep(group: str) -> bool:
    """Whether a group is measured for a plot only."""
    return group.startswith("sweep-")


def is_short(group: str) -> bool:
    """Whether a group has short calls, which are drawn in a picture of their own."""
    return group in ("cell", "steps")


def is_averaged(group: str) -> bool:
    """Whether a geometric mean over the group is meaningful."""
    return group == "dense" or is_short(group) or group.startswith(("grid-", "rest-"))


def select(patterns: str | None, device: str) -> list[Workload]:
    """The workloads of a device that `matching` finds; None means all except the sweeps."""
    if patterns is None:
        return [w for w in WORKLOADS.values() if device in w.devices and not is_sweep(w.group)]
    return matching(patterns, device, list(WORKLOADS.values()))


def matching(patterns: str, device: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of a device whose name or group matches one of the shell patterns, separated by commas.

    Raises ValueError for a pattern that matches nothing.
    """
    here = [row for row in rows if device in row.devices]
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = {row.name for row in here if any(fnmatch(of, pattern.strip()) for of in (row.name, row.group))}
        if not found:
            raise ValueError(f"no workload for {device} matches {pattern!r}; `--list` prints them")
        chosen |= found
    return [row for row in here if row.name in chosen]


def sweeps(device: str) -> list[Workload]:
    """The workloads that the plot against T, B and H needs."""
    return [w for w in WORKLOADS.values() if is_sweep(w.group) and device in w.devices]
