"""One module per op, each registering its benchmarks."""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    """Import every module of this package, and what measures no op, so that the registry is complete."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    importlib.import_module("benchmarks.initialization")
