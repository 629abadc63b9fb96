"""The engines, in order of preference."""

from .contract import Engine
from .cpu import engine as cpu
from .cuda import engine as cuda
from .reference import engine as reference

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (cpu.ENGINE, cuda.ENGINE, reference.ENGINE)}
