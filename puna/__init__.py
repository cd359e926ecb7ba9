"""Puna carries a Llama through its whole life; each verb is a function here, resolved on first use."""

from importlib import import_module
from typing import Any

__all__ = ["__version__", "adapt", "compress", "embed", "evaluate", "explain", "generate", "load", "plan", "train"]

__version__ = "0.1.0"

_VERBS = {
    "adapt": "puna.jobs.adapt",
    "compress": "puna.jobs.compress",
    "embed": "puna.jobs.embed",
    "evaluate": "puna.jobs.evaluate",
    "explain": "puna.topics.explain",
    "generate": "puna.jobs.generate",
    "load": "puna.jobs.load",
    "plan": "puna.jobs.plan",
    "train": "puna.jobs.train",
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'puna' has no attribute '{name}'")
    return getattr(import_module(_VERBS[name]), name)
