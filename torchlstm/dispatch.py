"""Where 0.1.0 had the choice of an engine: `torchlstm` itself has these names, and `call.dispatch` defines them."""

from .call.dispatch import EngineRefusal, engines, forced_engine, use_engine

__all__ = ["EngineRefusal", "engines", "forced_engine", "use_engine"]
