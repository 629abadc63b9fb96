"""The engines, in order of preference."""

from .contract import Engine
from .cpu import engine as cpu
from .cuda import engine as cuda
from .cuda.launch import INTERPRETED
from .reference import engine as reference

# In Triton's interpreter the CUDA engine runs on CPU tensors, so it comes first there, as it does on a GPU.
_ORDER = (cuda.ENGINE, cpu.ENGINE) if INTERPRETED else (cpu.ENGINE, cuda.ENGINE)
ENGINES: dict[str, Engine] = {engine.name: engine for engine in (*_ORDER, reference.ENGINE)}
