"""Every public name, from the package itself: what the docstrings and the API pages are compared with."""

import importlib
import inspect
import sys
from typing import Any

import torchlstm

# Modules that have a list of their names, and those whose own public names count.
LISTED = ("torchlstm", "torchlstm.cells", "torchlstm.dispatch", "torchlstm.parity")
OPEN = ("convert", "explain", "export", "freeze", "init", "swap", "testing", "trace", "viz")
# Each works when it is imported, for a library of that name.
INTEGRATIONS = ("backpack", "deepspeed", "fvcore", "opacus", "ptflops", "thop")
# Functions that other files of the package call.
INTERNAL = {"torchlstm.trace.states_of"}


def module(name: str) -> Any:
    """A module by its name: `torchlstm.swap`, for one, is a function too."""
    importlib.import_module(name)
    return sys.modules[name]


def public_names() -> dict[str, Any]:
    """The objects by one public name each, the shortest; constants that are lists or tables too."""
    found: dict[str, Any] = {}
    for name in LISTED:
        found |= {f"{name}.{each}": getattr(module(name), each) for each in module(name).__all__}
    for short in OPEN:
        name = f"torchlstm.{short}"
        for each, value in vars(module(name)).items():
            if not each.startswith("_") and getattr(value, "__module__", None) == name and callable(value):
                found[f"{name}.{each}"] = value
    names: dict[str, Any] = {}
    for name in sorted(found, key=lambda each: (each.count("."), each)):
        value = found[name]
        if not inspect.ismodule(value) and name not in INTERNAL and not any(value is other for other in names.values()):
            names[name] = value
    return names


def canonical(name: str) -> str:
    """Where the object of a dotted name is defined: several names of one object have one answer."""
    path, _, last = name.rpartition(".")
    names = public_names()
    value = names.get(name)
    if value is None:
        owner = module(path) if path in sys.modules or path.startswith("torchlstm") else torchlstm
        value = getattr(owner, last)
    where = getattr(value, "__module__", None)
    return f"{where}.{value.__qualname__}" if isinstance(where, str) and hasattr(value, "__qualname__") else name
