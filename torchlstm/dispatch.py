"""The names for choosing an engine, where 0.1.0 had them: `torchlstm` exports them, `call.dispatch` defines them."""

from .call.dispatch import EngineRefusal, engines, forced_engine, use_engine

__all__ = ["EngineRefusal", "engines", "forced_engine", "use_engine"]
