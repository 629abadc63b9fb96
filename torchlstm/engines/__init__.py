"""The engines, in order of preference."""

from . import cpu, reference
from .contract import Engine

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (cpu.ENGINE, reference.ENGINE)}
