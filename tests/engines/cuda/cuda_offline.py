"""Compiles the CUDA engine's launches without a GPU, and inspects the code.  No tests."""

import importlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchlstm.engines.contract import Problem, Ragged
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda import loops as cuda_loops
from torchlstm.engines.cuda import plan as cuda_plan
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.work import Work

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


class Compiled(NamedTuple):
    """A kernel's code for one GPU.

    registers, spilled  of a thread: 32-bit registers, bytes on the stack
    shared              bytes of shared memory of a program
    exchanged           how words are exchanged, in PTX: `ld.volatile` and `st.relaxed` with their widths
    roundings           conversions of float32 to TF32, in PTX
    instructions, barriers, operands, functions, roundings_in_loop
                        in the longest loop: instructions, barriers of a program, loads from shared memory of a
                        product's operand, functions of the unit that has tanh, exp and 1/x, and roundings to TF32
    """

    name: str
    registers: int
    spilled: int
    shared: int
    exchanged: frozenset[str]
    roundings: int
    instructions: int
    barriers: int
    operands: int
    functions: int
    roundings_in_loop: int


def launches(problem: Problem, gpu: GPU, direction: str, plan: Any = None, precise: bool = False) -> list[Any]:
    """The launches of the engine for a problem, with tensors on the meta device."""
    steps, batch, hidden, directions = problem.rows.steps, problem.batch, problem.hidden_size, problem.directions
    rows = steps * batch
    plan = plan or cuda_plan.plan(problem, direction, precise, gpu)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=problem.dtype, device="meta")

    found: list[Any] = []
    places = None
    if isinstance(problem.rows, Ragged):
        places = torch.empty(steps + 1 + batch, dtype=torch.int64, device="meta")
    work = Work(problem, rows, [batch] * steps, range(0, rows + 1, batch), places, precise)
    original = launching.launch
    launching.launch = lambda *args, **kwargs: found.append((args, kwargs))
    try:
        state = empty(directions, batch, hidden)
        gates, cells = empty(directions, rows, 4 * hidden), empty(directions, rows, hidden)
        w_hh, y = empty(directions, 4 * hidden, hidden), empty(rows, directions * hidden)
        if direction == "forward":
            cuda_loops.forward(plan, work, gates, state, state, w_hh, True)
        else:
            cuda_loops.backward(plan, work, gates, cells, state, w_hh, y, state, state, None, None)
    finally:
        launching.launch = original
    return found


def compile_launch(launch: Any, capability: int = 90) -> Compiled:
    """Compile one launch for a GPU of a compute capability."""
    (file, name, _, warps, tensors, numbers), constants = launch[0], dict(launch[1])
    constants.pop("together", None)
    kernel = getattr(importlib.import_module(f"torchlstm.engines.cuda.kernels.{file}"), name)
    values = dict(zip(kernel.arg_names, [*tensors, *numbers], strict=False)) | constants
    signature, constexprs, attributes = {}, {}, {}
    for position, argument in enumerate(kernel.arg_names):
        value = values[argument]
        if isinstance(value, torch.Tensor):
            signature[argument] = _TYPES[value.dtype]
            if not kernel.params[position].do_not_specialize_on_alignment:
                attributes[(position,)] = [["tt.divisibility", 16]]
        elif argument in constants or value is None:
            signature[argument] = "constexpr"
            constexprs[(position,)] = value
        else:
            signature[argument] = "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    options = {"num_warps": warps, **launching.OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _read(f"{file}.{name}", compiled)


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _read(name: str, compiled: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = _tool("cuobjdump", "-res-usage", file.name), _tool("cuobjdump", "-sass", file.name)
    body = _longest_loop(code)
    return Compiled(
        name,
        int(re.search(r"REG:(\d+)", usage)[1]),
        int(re.search(r"STACK:(\d+)", usage)[1]),
        compiled.metadata.shared,
        frozenset(re.findall(r"(?:ld\.volatile|st\.relaxed)\.[\w.]+", compiled.asm["ptx"])),
        compiled.asm["ptx"].count("cvt.rna.tf32.f32"),
        len(body),
        sum("BAR.SYNC" in line for line in body),
        sum("LDSM" in line for line in body),
        sum("MUFU" in line for line in body),
        sum("0xffffe000" in line for line in body),
    )


def _longest_loop(code: str) -> list[str]:
    """The instructions between the backward branch that spans most and its target."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    loops = []
    for at, text in lines:
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            loops.append((at - int(target[1], 16), int(target[1], 16), at))
    if not loops:
        return []
    _, first, last = max(loops)
    return [text for at, text in lines if first <= at <= last]
