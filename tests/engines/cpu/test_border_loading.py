"""What the CPU engine's extension is loaded with: the fields of its calls, and what torch offers it."""

import copy
import ctypes
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import torchlstm
from torchlstm.engines.cpu import calls as cpu_calls
from torchlstm.engines.cpu import engine as cpu

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

kernel: Any = cpu._kernel


def test_both_sides_declare_the_same() -> None:
    assert cpu_calls.declared() == kernel.CALLS
    assert list(kernel.CALLS["forward"].items())[:2] == [("sizes", "Sizes"), ("y", "Tensor")]


def without(calls: dict[str, Any], call: str, field: str) -> None:
    del calls[call][field]


def rename(calls: dict[str, Any], call: str, field: str) -> None:
    calls[call][field + "_"] = calls[call].pop(field)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda calls: without(calls, "forward", "c_n"), "forward differs in c_n: Tensor"),
        (lambda calls: calls["backward"].update(more="int"), "backward differs in more: int"),
        (
            lambda calls: calls["gemm"].update(scratch="Tensor"),
            "gemm differs in scratch: Tensor, scratch: Tensor | None",
        ),
        (
            lambda calls: calls["sizes"].update(step=calls["sizes"].pop("steps")),
            "sizes differs in step: int, steps: int",
        ),
        (lambda calls: calls.pop("huge"), "huge differs in tensor: Tensor"),
        (lambda calls: calls.update(new={"way": "int"}), "new differs in way: int"),
    ],
)
def test_an_extension_of_other_sources_is_not_used(change: Any, differs: str, monkeypatch: Any) -> None:
    calls = copy.deepcopy(kernel.CALLS)
    cpu_calls.check(SimpleNamespace(CALLS=calls))
    change(calls)
    with pytest.raises(ImportError, match=re.escape(differs)):
        cpu_calls.check(SimpleNamespace(CALLS=calls))
    monkeypatch.setattr("importlib.import_module", lambda *_: SimpleNamespace(CALLS=calls))
    assert cpu_calls.load() == (
        None,
        f"its extension does not load: it was compiled from other sources, whose {differs}",
    )


def test_an_extension_without_a_list_is_not_used() -> None:
    with pytest.raises(ImportError, match="compiled from other sources, whose sizes differs in batch: int"):
        cpu_calls.check(SimpleNamespace())


class Exchange(ctypes.Structure):
    """The table of DLPack 1.3, its functions aside."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 5),
    )


def capsule(table: Exchange) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(ctypes.addressof(table), b"dlpack_exchange_api", None)


def address_of_torchs() -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(get(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api"))


NEWER, WITHOUT_VIEWS = Exchange(2, 1), Exchange(1, 3)
WITHOUT_TENSORS = Exchange.from_buffer_copy(Exchange.from_address(address_of_torchs()))
WITHOUT_TENSORS.functions[2] = None
NEWER_WITH_TORCHS = Exchange(2, 1, address_of_torchs())
MISSING = "torch.Tensor.__dlpack_c_exchange_api__ is no capsule dlpack_exchange_api; that of torch 2.11 and newer is"
VERSION = "torch's tensors speak DLPack {}; functions of DLPack 1 are needed"


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        pytest.param(None, MISSING, id="missing"),
        pytest.param(torch.zeros(1).__dlpack__(), MISSING, id="another capsule"),
        pytest.param(capsule(NEWER), VERSION.format("2.1"), id="newer"),
        pytest.param(capsule(WITHOUT_VIEWS), VERSION.format("1.3"), id="without views"),
        pytest.param(capsule(WITHOUT_TENSORS), VERSION.format("1.3"), id="without new tensors"),
        pytest.param(capsule(NEWER_WITH_TORCHS), None, id="newer, and the older one too"),
    ],
)
def test_what_torch_must_offer(offered: Any, why: str | None, monkeypatch: Any) -> None:
    name = "torchlstm.engines.cpu._kernel"
    monkeypatch.delitem(sys.modules, name)
    if offered is None:
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    else:
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", offered)
    extension, reason = cpu_calls.load()
    assert reason == (None if why is None else f"its extension does not load: {why}")
    for loaded in (extension, kernel):  # the one that was there works on
        if loaded is not None:
            assert loaded.readable(matrix=torch.zeros(2, 3), turned=False)


def test_memory_of_another_device_is_not_touched(monkeypatch: Any) -> None:
    """Torch's table, but every tensor says that it is on a GPU."""
    name, table = "torchlstm.engines.cpu._kernel", Exchange.from_buffer_copy(Exchange.from_address(address_of_torchs()))
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_int32))
    torchs = function(table.functions[3])

    def view(tensor: Tensor, out: Any) -> int:
        failed = torchs(tensor, out)
        out[2] = 2  # after the address, eight bytes
        return int(failed)

    moved = function(view)
    table.functions[3] = ctypes.cast(moved, ctypes.c_void_p).value
    try:
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, name)
            patch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", capsule(table))
            extension = cpu_calls.load()[0]
        out = torch.full((2, 2), 777.0)
        with pytest.raises(ValueError, match=r"gemm\(out\): expected .*, got float32 \(2, 2\), .*, not on the CPU"):
            extension.gemm(isa=3, threads=1, out=out, left=out, right=out, add=False, scratch=None)
        assert (out == 777).all()
    finally:
        with monkeypatch.context() as patch:  # what is loaded last counts for all
            patch.delitem(sys.modules, name)
            assert cpu_calls.load()[1] is None
    assert kernel.readable(matrix=out, turned=False)
