"""The engines, in order of preference."""

from . import cpu, cuda, reference
from .contract import Engine

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (cpu.ENGINE, cuda.ENGINE, reference.ENGINE)}
