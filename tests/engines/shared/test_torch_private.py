"""Names of torch's that are not public stand in one file; without one there is a right result or a clear error."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from missing_names import PREAMBLE, PROGRAMS

import torchlstm
from torchlstm.engines.shared import torch_private
from torchlstm.engines.shared.torch_private import NAMES

PACKAGE = Path(torchlstm.__file__).parent

# What torch itself reads by name, in Python: it is given another name in the whole of torch.
_ENDS = ("._current_level", "._ragged_idx", "._dynamo_marked_constant")
RENAMED = [name for name in NAMES if name.startswith("torch.nn.") or name.endswith(_ENDS)]

# Imports torch and forks for every name: a fork has what an `import torch` leaves, and nothing of the others.  What is
# C's is missing while `torch_private` looks for it, and then there again, since torch itself cannot do without.
RUNNER = r"""
import importlib.util, json, os, re, sys, traceback, warnings
from importlib.machinery import SourceFileLoader

words = [name.rpartition(".")[2] for name in json.loads(sys.argv[1])]
pattern, get_code = re.compile(rf"\b({'|'.join(words)})\b"), SourceFileLoader.get_code

def renaming(self, fullname):
    if words and fullname.startswith("torch."):
        source = self.get_source(fullname)
        if (changed := pattern.sub(r"\1_as_it_is_called_now", source)) != source:
            return compile(changed, self.path, "exec", dont_inherit=True)
    return get_code(self, fullname)

SourceFileLoader.get_code = renaming
# The other one is what takes longest to import of what the programs use.
import torch, torch._dynamo

class Aten:
    def __getattr__(self, asked):
        if asked == "_unsafe_view":
            raise AttributeError(asked)
        return getattr(aten, asked)

def load_private():
    name = "torchlstm.engines.shared.torch_private"
    spec = importlib.util.spec_from_file_location(name, sys.argv[2])
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spec.loader.exec_module(module)
    return module, " ".join(str(each.message) for each in told)

def run(name, program):
    global aten
    *path, last = name.split(".")[1:]
    owner = torch
    for part in path:
        owner = getattr(owner, part, None)
    if words or name.startswith("torch.nested."):  # its program takes it away
        private, told = load_private()
    elif name.startswith("torch.Tensor._") and not name.endswith("__"):  # the base class has it
        setattr(torch.Tensor, last, property())
        private, told = load_private()
        delattr(torch.Tensor, last)
    elif name == "torch.ops.aten._unsafe_view":
        aten, torch.ops.aten = owner, Aten()
        private, told = load_private()
        torch.ops.aten = aten
    else:
        kept = getattr(owner, last)
        delattr(owner, last)
        private, told = load_private()
        if name == "torch.Tensor.__dlpack_c_exchange_api__":
            import torchlstm
        setattr(owner, last, kept)
    assert (name in told) == (name in private.MISSING), told
    warnings.simplefilter("ignore")
    import torchlstm
    assert torchlstm.call.native.torch_private is private
    exec(compile(program, name, "exec"), {"torch": torch, "torchlstm": torchlstm, "NAME": re.escape(name)})

for line in sys.stdin:
    name, program = json.loads(line)
    read, write = os.pipe()
    if not (child := os.fork()):
        said = "passed"
        try:
            run(name, program)
        except BaseException:
            said = traceback.format_exc()
        os.write(write, said.encode()[-3000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    print(json.dumps(said or "it died"), flush=True)
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[bool, Any]]:
    """A process whose torch is as it is, and one in which `RENAMED` have other names: it answers (name, program)."""
    started = {
        renamed: subprocess.Popen(
            [sys.executable, "-c", RUNNER, json.dumps(RENAMED if renamed else []), torch_private.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for renamed in (False, True)
    }  # fmt: skip
    yield started
    for process in started.values():
        process.communicate(timeout=60)


def test_every_name_has_a_program() -> None:
    assert PROGRAMS.keys() == NAMES.keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every program is a fork")
@pytest.mark.parametrize("name", NAMES)
def test_without(name: str, processes: dict[bool, Any]) -> None:
    process = processes[name in RENAMED]
    process.stdin.write(json.dumps([name, PREAMBLE + PROGRAMS[name]]) + "\n")
    process.stdin.flush()
    assert (said := json.loads(process.stdout.readline())) == "passed", said


def test_this_torch_has_them_all() -> None:
    assert torch_private.MISSING == []


# --- and no other file has any ---

# Private names of others than torch, and of ours that a class of torch's sees.
NOT_TORCHS = {
    "_replace", "_asdict", "_fields",  # of a NamedTuple
    "_exit",  # of os
    "_current_grad_sample",  # of opacus
    "_torchlstm_backward",
}  # fmt: skip

# Where an attribute of an instance is read in place, since a function of ours would take as long as the look-up saves;
# and what is overridden, since torch calls it.
IN_PLACE = {
    ("call/dispatch.py", "profiler._is_profiler_enabled"),
    ("call/frozen.py", "self._parameters"),  # for `plan.py`, in the place of a module
    ("call/plan.py", "module._parameters"),
    ("call/weights.py", "module._parameters"),
    ("engines/reference/engine.py", "forward_ad._current_level"),
    ("engines/shared/access.py", "forward_ad._current_level"),
    ("frozen.py", "super()._apply"),
    ("lazy.py", "super()._apply"),
}

# The CUDA engine has its own, since its text is part of what a record of `torchlstm qualify` was measured with.
OF_CUDA = {
    "torch._C",
    "torch._C._cuda_clearCublasWorkspaces",
    "torch._C._cuda_endAllocateToPool",
    "torch._C._functorch.peek_interpreter_stack",
    "torch._foreach_copy_",
    "torch.distributed.distributed_c10d._get_default_store",
    "torch_c._cuda_getDriverVersion",
}


def is_private(word: str) -> bool:
    return word.startswith("_") and not word.endswith("__") and word != "_"


def names_of_ours(trees: list[ast.AST]) -> set[str]:
    """What the package itself defines: functions, classes, variables, attributes of self."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def private_names(tree: ast.AST, ours: set[str]) -> Iterator[str]:
    """What a file reads, or imports from torch, by a name that is private and not ours."""
    torchs = {name.rpartition(".")[2] for name in NAMES}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            yield from (n for n in names if n.split(".")[0] == "torch" and any(map(is_private, n.split("."))))
        elif isinstance(node, ast.Attribute) and (
            node.attr in torchs or (is_private(node.attr) and node.attr not in ours | NOT_TORCHS)
        ):
            text = ast.unparse(node)
            if not text.startswith("torch_private."):
                yield text


def test_no_other_file_has_one() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    ours = names_of_ours(list(trees.values()))
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        names = set(private_names(tree, ours))
        # Of a longer name its beginnings are seen too.
        names = {name for name in names if not any(whole.startswith(f"{name}.") for whole in names)}
        if names:
            found[path.relative_to(PACKAGE).as_posix()] = names
    assert found.pop("engines/shared/torch_private.py")
    assert set().union(*(found.pop(file) for file in list(found) if file.startswith("engines/cuda/"))) == OF_CUDA
    assert {(file, name) for file, names in found.items() for name in names} == IN_PLACE


def test_the_extension_has_no_other() -> None:
    """What C reads by name stands in the lists of `moment.h`."""
    text = (PACKAGE / "engines/cpu/kernel/moment.h").read_text(encoding="utf-8")
    words = set(re.findall(r"X\((_\w+)\)", text)) - {"_isa"}
    assert words == {"_parameters", "_current_level", "_is_profiler_enabled"}
    assert words <= {name.rpartition(".")[2] for name in NAMES}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("torch._C._has_storage(x)", {"torch._C._has_storage", "torch._C"}),
        ("torch.overrides.has_torch_function_unary", {"torch.overrides.has_torch_function_unary"}),
        ("import torch._dynamo", {"torch._dynamo"}),
        ("from torch._subclasses.fake_tensor import FakeTensor", {"torch._subclasses.fake_tensor.FakeTensor"}),
        ("from torch.utils import _pytree as pytree", {"torch.utils._pytree"}),
        ("tensor._base", {"tensor._base"}),
        ("self._flat_weights", {"self._flat_weights"}),
        ("self._ours, step._replace(x=1), torch.__version__, torch.nn.LSTM", set()),
    ],
)
def test_the_search_finds(text: str, seen: set[str]) -> None:
    assert set(private_names(ast.parse(text), {"_ours"})) == seen
