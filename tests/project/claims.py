"""What the pages say of torch.nn.LSTM in "What differs", and a program for every claim.  No tests."""

from typing import NamedTuple

# What became of a program: it ran to its end, raised an exception, or took the process with it.
RAN, RAISED, DIED = "ran", "raised", "died"


class Probe(NamedTuple):
    """A program that shows what torch.nn does, and what becomes of it by version of torch.

    program  runs with `torch` and `nn` imported, in a process that has done nothing else
    outcome  before all of `later`
    later    the first version (major, minor) from which on there is another outcome
    needs    a package without which the program cannot run
    """

    program: str
    outcome: str = RAISED
    later: tuple[tuple[tuple[int, int], str], ...] = ()
    needs: str | None = None

    def expected(self, version: tuple[int, int]) -> str:
        """The outcome with a version of torch; with one that is newer than all that were tried, the latest known."""
        outcome = self.outcome
        for first, then in self.later:
            outcome = then if version >= first else outcome
        return outcome


_ONNX = """
import onnxruntime
lstm = nn.LSTM(3, 4, {options}).eval()
shapes = ({{0: torch.export.Dim("first", min=2), 1: torch.export.Dim("second", min=2)}},)
program = torch.onnx.export(lstm, (torch.randn(5, 2, 3),), dynamo=True, dynamic_shapes=shapes, verbose=False)
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
x = torch.randn(7, 6, 3)
output = session.run(None, {{session.get_inputs()[0].name: x.numpy()}})[0]
torch.testing.assert_close(torch.from_numpy(output), lstm(x)[0])
"""
_IN_PLACE = """
output, _ = nn.LSTM(3, 4)(torch.randn(5, 2, 3))
{change}.sum().backward()
"""
_CELL = "nn.LSTMCell(3, {hidden})(torch.randn({x}), (torch.randn({h}),) * 2)"

# Of each row of the table by its first cell: what the second says, and the programs that show it.
CLAIMS: dict[str, tuple[str, list[Probe]]] = {
    "vmap over inputs or over an ensemble, jvp, `jacfwd`, `hessian`": (
        "refused",
        [
            Probe("torch.func.vmap(lambda x: nn.LSTM(3, 4)(x)[0], in_dims=1)(torch.randn(5, 2, 1, 3))"),
            Probe(
                """
lstms = [nn.LSTM(3, 4) for _ in range(2)]
weights, _ = torch.func.stack_module_state(lstms)
call = lambda weights, x: torch.func.functional_call(lstms[0], weights, (x,))[0]
torch.func.vmap(call, in_dims=(0, None))(weights, torch.randn(5, 2, 3))
"""
            ),
            Probe("x = torch.randn(5, 2, 3); torch.func.jvp(lambda x: nn.LSTM(3, 4)(x)[0], (x,), (x,))"),
            Probe("torch.func.jacfwd(lambda x: nn.LSTM(3, 4)(x)[0])(torch.randn(5, 2, 3))"),
            Probe("torch.func.hessian(lambda x: nn.LSTM(3, 4)(x)[0].sum())(torch.randn(5, 2, 3))"),
        ],
    ),
    "A nested tensor of `torch.jagged` layout": (
        "refused",
        [
            Probe(
                """
x = torch.nested.nested_tensor([torch.randn(5, 3), torch.randn(2, 3)], layout=torch.jagged)
nn.LSTM(3, 4, batch_first=True)(x)
"""
            )
        ],
    ),
    "`torch.onnx.export(dynamo=True)` with dynamic axes": (
        "one LSTM node from torch 2.15 on, with 2.13 and 2.14 only for `batch_first`; no working file with `proj_size`",
        [
            Probe(_ONNX.format(options=""), later=(((2, 15), RAN),), needs="onnxruntime"),
            Probe(_ONNX.format(options="batch_first=True"), later=(((2, 13), RAN),), needs="onnxruntime"),
            Probe(_ONNX.format(options="proj_size=2"), needs="onnxruntime"),
            Probe(_ONNX.format(options="proj_size=2, batch_first=True"), needs="onnxruntime"),
        ],
    ),
    "`relu_` or `nn.Dropout(inplace=True)` on the output, before the backward": (
        "refused for dense input in one direction",
        [
            Probe(_IN_PLACE.format(change="output.relu_()")),
            Probe(_IN_PLACE.format(change="nn.Dropout(0.5, inplace=True)(output)")),
        ],
    ),
    "`torch.compile(fullgraph=True)`": (
        "refused",
        [Probe("torch.compile(nn.LSTM(3, 4), fullgraph=True, backend='eager')(torch.randn(5, 2, 3))")],
    ),
    "`torch.export` with dynamic time, saved and loaded": (
        "refused",
        [
            Probe(
                """
shapes = ({0: torch.export.Dim("T", min=2, max=1000)},)
torch.export.export(nn.LSTM(3, 4), (torch.randn(5, 2, 3),), dynamic_shapes=shapes)
"""
            )
        ],
    ),
    "Autocast to float16 on CPU": (
        "oneDNN refuses training, and inference too on many processors",
        [
            Probe(
                """
with torch.autocast("cpu", torch.float16):
    nn.LSTM(3, 4)(torch.randn(5, 2, 3))
"""
            )
        ],
    ),
    "`LSTMCell` with unbatched input and batched state": (
        "an error about internal shapes, and a crash of the process with one unit; a clear error from torch 2.15 on",
        [
            Probe(_CELL.format(hidden=4, x="3", h="2, 4")),
            Probe(_CELL.format(hidden=1, x="3", h="1, 1"), DIED, later=(((2, 15), RAISED),)),
        ],
    ),
    "A `PackedSequence` with rows beyond its `batch_sizes`; an `hx` too large for an unsorted one": (
        "computes a result without an error",
        [
            Probe("nn.LSTM(3, 4)(nn.utils.rnn.PackedSequence(torch.randn(9, 3), torch.tensor([3, 2])))", RAN),
            Probe(
                """
packed = nn.utils.rnn.pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
nn.LSTM(3, 4)(packed, (torch.randn(1, 5, 4), torch.randn(1, 5, 4)))
""",
                RAN,
            ),
        ],
    ),
    "Strides of a `batch_first` output": (
        "a transpose",
        [Probe("assert not nn.LSTM(3, 4, batch_first=True)(torch.randn(2, 5, 3))[0].is_contiguous()", RAN)],
    ),
    "`resize_` of a result or gradient beyond its size": (
        "its storage grows",
        [Probe("with torch.no_grad(): nn.LSTM(3, 4)(torch.randn(5, 2, 3))[0].resize_(500)", RAN)],
    ),
    "A negated view that `as_strided`, `resize_` or the private `torch._neg_view` made contiguous": (
        "its values",
        [
            Probe(
                """
lstm, view = nn.LSTM(3, 4), torch.randn(5, 2, 3, dtype=torch.complex64).conj().imag.as_strided((5, 2, 3), (6, 3, 1))
assert view.is_neg() and view.is_contiguous()
torch.testing.assert_close(lstm(view)[0], lstm(view.resolve_neg())[0])
""",
                RAN,
            )
        ],
    ),
    "Fewer OpenMP threads than asked for (`OMP_DYNAMIC=true`)": (
        "wrong numbers in training",
        [
            Probe(
                """
torch.set_num_threads(8)
lstm, x = nn.LSTM(128, 256), torch.randn(50, 64, 128)
output, true = lstm(x)[0], lstm.double()(x.double())[0]
torch.testing.assert_close(output, true.float())
"""
            )
        ],
    ),
}

# Rows that say nothing of torch.nn that a program could show here, and why.
UNPROBED = {
    "Parameters, initial draws, `state_dict`, repr": "it is what is compared with",
    "Numbers and gradients": "it is what is compared with",
    "Per-sample gradients by `vmap(grad)`; by [opacus](privacy.md)": "tests/third_party/test_comparison.py",
    "Double backward on CUDA, backward in eval mode on CUDA": "it wants a GPU",
    "States of another dtype, one stacked tensor as `hx`, packed input with a wrong `hx`": "a matter of words",
    "A small call without gradients on the CPU, beside a thread that computes in Python": "a matter of time",
    "Inputs or states that have decayed to denormals": "a matter of time",
    "Speed on CPU": "benchmarks",
    "Speed on CUDA": "it wants a GPU",
}

# The environment that a row's programs want.
ENVIRONMENT = {"Fewer OpenMP threads than asked for (`OMP_DYNAMIC=true`)": {"OMP_THREAD_LIMIT": "1"}}
