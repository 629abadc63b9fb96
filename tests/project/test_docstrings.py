"""Docstrings of public names follow Google's style: a summary, each parameter, what is returned, examples that run."""

import doctest
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from public_names import INTEGRATIONS, module, public_names
from torch import nn

import torchlstm
from torchlstm.call.dispatch import forced_engine

SECTIONS = ("Args", "Attributes", "Examples", "Raises", "Returns")
NAMES = {name: value for name, value in public_names().items() if callable(value)}


def methods_of(name: str, kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class that are its own, not another version of one that torch.nn has."""
    theirs = {each for base in (nn.LSTM, nn.LSTMCell) for each in dir(base)} - {"forward", "__call__"}
    for each, value in vars(kind).items():
        public = not each.startswith("_") or (each == "__call__" and name.endswith("Stream"))
        if public and each not in theirs and (inspect.isfunction(value) or isinstance(value, property)):
            yield f"{name}.{each}", value


METHODS = {
    name: value
    for kind_name, kind in NAMES.items()
    if inspect.isclass(kind) and kind is not torchlstm.use_engine
    for name, value in methods_of(kind_name, kind)
}
EVERYTHING = NAMES | METHODS


def is_record(value: Any) -> bool:
    """A class of named fields, which results are made of."""
    return inspect.isclass(value) and (issubclass(value, tuple) or hasattr(value, "__dataclass_fields__"))


def fields(value: Any) -> set[str]:
    return set(getattr(value, "_fields", None) or value.__dataclass_fields__)


def sections(value: Any) -> dict[str, str]:
    """The parts of a docstring by their titles; what is above the first has the title ""."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):$", inspect.cleandoc(value.__doc__ or ""), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> set[str]:
    """The names that a section explains."""
    return set(re.findall(r"^    (\*{0,2}\w+): \S", section, re.MULTILINE))


def parameters(value: Any) -> set[str]:
    """The names of a signature's parameters, as an Args section has them."""
    called = inspect.signature(value.__init__ if inspect.isclass(value) else value).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {stars.get(each.kind, "") + each.name for each in called if each.name != "self"}


def returns(value: Any) -> bool:
    if isinstance(value, property):
        return True
    return inspect.isfunction(value) and value.__annotations__.get("return") not in (None, "None")


def faults(value: Any) -> list[str]:
    """What is missing in a docstring, or too much."""
    found = sections(value)
    summary = found[""].split("\n\n")[0].strip()
    wrong = [] if summary and summary[-1] in ".?!" and "\n" not in summary else [f"summary {summary!r}"]
    if is_record(value):
        if entries(found.get("Attributes", "")) != fields(value):
            wrong.append(f"attributes {entries(found.get('Attributes', '')) ^ fields(value)}")
        return wrong
    if not isinstance(value, property) and not (inspect.isclass(value) and issubclass(value, Exception)):
        explained = entries(found.get("Args", ""))
        if explained != parameters(value):
            wrong.append(f"parameters {explained ^ parameters(value)}")
    if returns(value) != ("Returns" in found):
        wrong.append("returns")
    return wrong


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_docstring_says_everything(name: str) -> None:
    assert faults(EVERYTHING[name]) == []


@pytest.mark.parametrize("name", [name for name, value in NAMES.items() if not is_record(value)])
def test_a_docstring_has_an_example(name: str) -> None:
    assert ">>> " in sections(NAMES[name]).get("Examples", "")


def test_a_fault_is_seen() -> None:
    def good(x: int, *more: int) -> int:
        """Add.

        Args:
            x: A number.
            *more: Others.

        Returns:
            The sum.
        """
        return x + sum(more)

    def bad(x: int, y: int) -> int:
        """Add

        Args:
            x: A number.
        """
        return x + y

    assert faults(good) == []
    assert faults(bad) == ["summary 'Add'", "parameters {'y'}", "returns"]
    assert len(NAMES) > 50
    assert {"torchlstm.LSTM.trace", "torchlstm.Stream.__call__", "torchlstm.Stream.state"} <= set(METHODS)


# The modules that examples are in.
DEFINED = sorted({value.__module__ for value in NAMES.values() if ">>> " in (value.__doc__ or "")} | {"torchlstm"})


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export's own
@pytest.mark.parametrize("name", [*DEFINED, *(f"torchlstm.integrations.{each}" for each in INTEGRATIONS)])
def test_examples_run(name: str) -> None:
    library = name.rpartition(".")[2]
    if library in INTEGRATIONS:
        # They run where tests/integrations and tests/third_party have put these libraries.
        pytest.importorskip(library, exc_type=ImportError)
    if name == "torchlstm.viz":
        pytest.importorskip("matplotlib")
    torch.set_printoptions(profile="default")
    engine = forced_engine() or "auto"
    try:
        tested = doctest.testmod(module(name))
    finally:
        torchlstm.use_engine(engine)
    assert tested.failed == 0, f"{tested.failed} of {tested.attempted} examples in {name} fail: see above"
    assert tested.attempted > 0
