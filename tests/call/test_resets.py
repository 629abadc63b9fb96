"""`resets=`: the state restarts before some steps; compared with cutting the sequences there by hand."""

import runpy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import torchlstm

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
T, B, F, H = 8, 4, 3, 5
State = tuple[Tensor, Tensor]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first-no-bias": {"batch_first": True, "bias": False},
    "bidirectional": {"bidirectional": True},
    "deep-dropout-1": {"num_layers": 3, "batch_first": True, "dropout": 1.0},
    "projected": {"num_layers": 2, "proj_size": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True},
}

every_engine = pytest.mark.parametrize("engine", ENGINES)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class Split(nn.LSTM):
    """nn.LSTM on each piece of each sequence alone."""

    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        resets: Tensor,
        reset_state: State | None = None,
        lengths: Any = None,
    ) -> tuple[Tensor, State]:
        """Cut at the resets, run the pieces one by one, put them together again."""
        turned = input.transpose(0, 1) if self.batch_first else input
        mask = resets.t() if self.batch_first else resets
        steps, batch = mask.shape
        directions = 1 + self.bidirectional
        shapes = [
            (self.num_layers * directions, batch, n) for n in (self.proj_size or self.hidden_size, self.hidden_size)
        ]
        hx, reset_state = (
            state or (input.new_zeros(shapes[0]), input.new_zeros(shapes[1])) for state in (hx, reset_state)
        )
        output = input.new_zeros(steps, batch, directions * (self.proj_size or self.hidden_size))
        finals = ([], [])
        for b in range(batch):
            length = steps if lengths is None else int(lengths[b])
            cuts = [0, *(t for t in range(1, length) if mask[t, b]), length]
            final = [state[:, b] for state in hx]
            pieces = list(pairwise(cuts)) if length else []
            for begin, end in pieces:
                state = []
                for given, restart in zip(hx, reset_state, strict=True):
                    start = restart[:, b].clone()
                    if begin == 0 and not mask[0, b]:
                        start[::directions] = given[::directions, b]
                    if directions == 2 and end == length:
                        start[1::2] = given[1::2, b]
                    state.append(start)
                sequence = turned[begin:end, b]
                y, left = super().forward(sequence, (state[0], state[1]))
                output = output.index_put((torch.arange(begin, end), torch.tensor(b)), y)
                if begin == 0:
                    final = list(left)
                else:  # forwards the last piece's, in reverse the first piece's
                    forwards = torch.arange(len(left[0])) % directions == 0
                    final = [torch.where(forwards[:, None], new, old) for new, old in zip(left, final, strict=True)]
            for kind, tensor in zip(finals, final, strict=True):
                kind.append(tensor)
        state = torch.stack(finals[0], 1), torch.stack(finals[1], 1)
        return (output.transpose(0, 1) if self.batch_first else output), state


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Split, torchlstm.LSTM]:
    """nn.LSTM cut by hand, and ours."""
    theirs = Split(F, H, dtype=dtype, **options)
    ours = torchlstm.LSTM(F, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states(module: nn.RNNBase, batch: int = B) -> State:
    """Random h (L*D, B, R) and c (L*D, B, H)."""
    count, dtype = module.num_layers * (1 + module.bidirectional), module.weight_ih_l0.dtype
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    h, c = (torch.randn(count, batch, size, dtype=dtype) for size in sizes)
    return h, c


def draw(module: nn.RNNBase, steps: int = T, batch: int = B, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Input and resets in the module's layout."""
    shape = (batch, steps) if module.batch_first else (steps, batch)
    return torch.randn(*shape, F, dtype=module.weight_ih_l0.dtype), torch.rand(shape) < share


def observe(module: nn.Module, x: Tensor, hx: State | None, reset_state: State | None, **keywords: Any) -> list[Tensor]:
    """Results, and the gradients of input, states and parameters from random cotangents, the same at every call."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *(hx or ()), *(reset_state or ()))]
    given = tuple(leaves[1:3]) if hx else None
    output, (h_n, c_n) = module(leaves[0], given, reset_state=tuple(leaves[-2:]) if reset_state else None, **keywords)
    results = [output, h_n, c_n]
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    asked = [*leaves, *module.parameters()]
    found = torch.autograd.grad(results, asked, cotangents, allow_unused=True)
    # What has no steps has no gradient where it is cut by hand.
    return [*results, *(torch.zeros_like(t) if g is None else g for g, t in zip(found, asked, strict=True))]


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    wide = found[0].dtype == torch.float64
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10 if wide else 1e-4, atol=1e-10 if wide else 4e-6)


@every_engine
@every_option
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("given", ["", "hx", "reset", "hx-reset", "same"])
def test_as_cut_by_hand(engine: str, options: dict[str, Any], dtype: torch.dtype, given: str) -> None:
    torch.manual_seed(1)
    theirs, ours = pair(dtype, **options)
    x, resets = draw(ours)
    hx, reset_state = states(ours) if "hx" in given else None, states(ours) if "reset" in given else None
    if given == "same":
        hx = reset_state = states(ours)
    with torchlstm.use_engine(engine):
        found = observe(ours, x, hx, reset_state, resets=resets)
    close(found, observe(theirs, x, hx, reset_state, resets=resets))


@every_engine
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_with_lengths(engine: str, share: float) -> None:
    """Resets beyond a sequence's end are none, also where it has no steps."""
    torch.manual_seed(2)
    for batch_first in (False, True):
        theirs, ours = pair(num_layers=2, bidirectional=True, batch_first=batch_first)
        x, resets = draw(ours, share=share)
        hx, restart, lengths = states(ours), states(ours), [5, 0, T, 1]
        with torchlstm.use_engine(engine):
            found = observe(ours, x, hx, restart, resets=resets, lengths=lengths)
        close(found, observe(theirs, x, hx, restart, resets=resets, lengths=lengths))


MASKS = {
    "never": [],
    "first-step": [0],
    "second-step": [1],
    "last-step": [T - 1],
    "first-and-last": [0, T - 1],
    "halves": [T // 2],
    "always": list(range(T)),
}


@pytest.mark.parametrize("where", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_edges(where: list[int], batch: int) -> None:
    """In all sequences at once, and in one of them."""
    for rows in (slice(None), slice(0, 1)):
        theirs, ours = pair(bidirectional=True)
        x, resets = draw(ours, batch=batch, share=0)
        resets[where, rows] = True
        found = observe(ours, x, states(ours, batch), None, resets=resets)
        if batch:
            torch.manual_seed(0)
            hx, restart = states(ours, batch), states(ours, batch)
            close(observe(ours, x, hx, restart, resets=resets), observe(theirs, x, hx, restart, resets=resets))
        assert found[0].shape == (T, batch, 2 * H)


def test_one_step() -> None:
    """As a policy that acts calls it."""
    for options in ({}, {"bidirectional": True, "batch_first": True}):
        theirs, ours = pair(**options)
        x, resets = draw(ours, steps=1, share=0.5)
        resets.view(-1)[1] = True
        hx, restart = states(ours), states(ours)
        close(observe(ours, x, hx, restart, resets=resets), observe(theirs, x, hx, restart, resets=resets))


@every_engine
def test_unbatched(engine: str) -> None:
    for batch_first in (False, True):
        theirs, ours = pair(num_layers=2, bidirectional=True, batch_first=batch_first)
        x, resets = draw(ours, batch=1)
        hx, restart = states(ours, 1), states(ours, 1)
        expected = observe(theirs, x, hx, restart, resets=resets)
        alone = [tuple(state.squeeze(1) for state in pair) for pair in (hx, restart)]
        axis = 0 if batch_first else 1
        with torchlstm.use_engine(engine):
            found = observe(ours, x.squeeze(axis), *alone, resets=resets.squeeze(axis))
        assert found[0].shape == (T, 2 * H)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other.view(mine.shape), rtol=1e-10, atol=1e-10)
    output, (h_n, _) = ours(torch.randn(0, F, dtype=torch.float64), alone[0], resets=torch.zeros(0, dtype=torch.bool))
    assert output.shape == (0, 2 * H)
    assert torch.equal(h_n, alone[0][0])


def test_no_gradient_crosses_a_reset() -> None:
    _, ours = pair(num_layers=2, bidirectional=True)
    x, resets = draw(ours, share=0)
    resets[3, 1] = True
    x.requires_grad_()
    output, _ = ours(x, resets=resets)
    for part, inside in ((slice(0, 3), slice(0, 3)), (slice(3, T), slice(3, T))):
        (gradient,) = torch.autograd.grad(output[part, 1].sum(), x, retain_graph=True)
        assert gradient[inside, 1].all()
        gradient[inside, 1] = 0
        assert not gradient.any()


def test_nan_stays_in_its_episode() -> None:
    _, ours = pair()
    x, resets = draw(ours, share=0)
    resets[4, 2] = True
    x[1, 2] = float("nan")
    output, (h_n, _) = ours(x, resets=resets)
    assert output[1:4, 2].isnan().all()
    output[1:4, 2] = 0
    assert output.isfinite().all()
    assert h_n.isfinite().all()


def test_masks_of_other_kinds() -> None:
    _, ours = pair()
    x, resets = draw(ours)
    expected = ours(x, resets=resets)[0]
    strided = torch.stack([resets, ~resets], -1)[..., 0]
    for mask in (resets.numpy(), resets.tolist(), strided, numpy.asfortranarray(resets.numpy())):
        assert torch.equal(ours(x, resets=mask)[0], expected)


def test_no_reset_changes_nothing() -> None:
    _, ours = pair(torch.float32, num_layers=2, dropout=0.5, batch_first=True)
    x, resets = draw(ours, share=0)
    torch.manual_seed(4)
    expected = ours(x)
    torch.manual_seed(4)
    found = ours(x, resets=resets)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def test_a_reset_state_has_a_gradient_without_resets() -> None:
    """A learned one is then zero, not missing: other processes may have had a reset."""
    _, ours = pair(bidirectional=True)
    x, resets = draw(ours, share=0)
    h, c = (state.requires_grad_() for state in states(ours))
    ours(x, resets=resets, reset_state=(h, c))[0].sum().backward()
    assert all(state.grad is not None and not state.grad.any() for state in (h, c))


def test_other_dtypes() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.complex128):
        theirs, ours = pair(dtype, bidirectional=True)
        x, resets = draw(ours)
        found, expected = ours(x, resets=resets)[0], theirs(x, resets=resets)[0]
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_autocast_as_cut_by_hand() -> None:
    torch.manual_seed(6)
    theirs, ours = pair(torch.float32, num_layers=2)
    x, resets = draw(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = observe(ours, x, None, None, resets=resets)
    assert {tensor.dtype for tensor in found[:3]} == {torch.bfloat16}
    for mine, exact in zip(found, observe(theirs, x, None, None, resets=resets), strict=True):
        torch.testing.assert_close(mine.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "transposed": (
        torch.zeros(B, T, dtype=torch.bool),
        RuntimeError,
        r"Expected resets of shape \(8, 4\), .* got \(4, 8\)",
    ),
    "one-sequence": (torch.zeros(T, dtype=torch.bool), RuntimeError, r"got \(8,\)"),
    "float": (torch.zeros(T, B), TypeError, "Expected resets to be a bool mask, got torch.float32"),
    "integers": ([[0] * B] * T, TypeError, "a bool mask, got torch.int64"),
    "a-word": ("no", TypeError, "Expected resets to be a bool mask, got str"),
}


@pytest.mark.parametrize(("resets", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_resets(resets: Any, kind: type[Exception], message: str) -> None:
    _, ours = pair()
    with pytest.raises(kind, match=message):
        ours(draw(ours)[0], resets=resets)


def test_wrong_reset_states() -> None:
    _, ours = pair()
    x, resets = draw(ours)
    h, c = states(ours)
    for state, kind, message in (
        (h, TypeError, "lstm expects reset_state to be a tuple"),
        ((h, None), TypeError, r"lstm expects reset_state\[1\] to be a Tensor"),
        ((h, c[:, :2]), RuntimeError, r"Expected reset_state\[1\] size \(1, 4, 5\), got \[1, 2, 5\]"),
        ((h.float(), c), RuntimeError, r"Expected reset_state\[0\] dtype torch.float64"),
    ):
        with pytest.raises(kind, match=message):
            ours(x, resets=resets, reset_state=state)
    with pytest.raises(TypeError, match="there are no resets"):
        ours(x, reset_state=(h, c))
    packed = nn.utils.rnn.pack_sequence([x[:, 0]])
    with pytest.raises(TypeError, match="input is a PackedSequence"):
        ours(packed, resets=resets)


def test_vmap_over_the_input() -> None:
    _, ours = pair(num_layers=2)
    _, resets = draw(ours)
    x = torch.randn(3, T, B, F, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: ours(x, resets=resets)[0])(x)
    close([mapped], [torch.stack([ours(each, resets=resets)[0] for each in x])])
    with pytest.raises(RuntimeError, match="resets cannot be mapped by vmap"):
        torch.func.vmap(lambda mask: ours(x[0], resets=mask)[0])(torch.stack([resets, resets]))


def test_explain() -> None:
    module, x = torchlstm.LSTM(F, H), torch.randn(T, B, F)
    resets = torch.zeros(T, B, dtype=torch.bool)
    assert "change nothing" in str(torchlstm.explain(module, x, resets=resets))
    resets[0, 1] = True
    assert "at the first step only" in str(torchlstm.explain(module, x, resets=resets))
    resets[3, 1] = True
    shown = str(torchlstm.explain(module, x, resets=resets))
    assert "5 sequences of at most 8 steps, 32 rows out of 32" in shown
    assert "ragged B=5" in shown


def test_the_example_learns() -> None:
    """A policy that has to remember: with the state kept, and with a reset at every step."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "recurrent_policy.py"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    try:
        assert example["train"](memory=True, updates=50) > 0.9
        assert example["train"](memory=False, updates=25) < 0.65
    finally:
        torch.set_num_threads(before)
