"""Registers things with modules that are slow to import: when such a module is imported, and not before."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# By the name of a module that is not imported yet: what is called once it is.
_waiting: dict[str, list[Callable[[], object]]] = {}


def once_imported(name: str, then: Callable[[], object]) -> None:
    """Call `then` once a module has been imported: now, if it has been already."""
    _waiting.setdefault(name, []).append(then)
    # Asked after the entry is made, so that an import by another thread is not missed.
    if name in sys.modules:
        _call(name)


def _call(name: str) -> None:
    for then in _waiting.pop(name, ()):
        then()


class _Loader(Loader):
    """Loads a module as its own loader does, then calls what waits for it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module and whoever inspects it see its own loader.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _call(module.__name__)


class _Finder(MetaPathFinder):
    """Finds the modules that something waits for, through the finders behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec: ModuleSpec | None = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


sys.meta_path.insert(0, _Finder())
