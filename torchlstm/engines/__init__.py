"""The engines, in order of preference."""

from . import reference
from .contract import Engine

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (reference.ENGINE,)}
