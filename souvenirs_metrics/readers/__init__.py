"""Readers, one module for each subject of the page. New modules are discovered automatically."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType

from souvenirs_metrics.readers.base import Reader


def load_readers() -> list[Reader]:
    """New instances of the readers in this package's modules, in the order in which they read."""
    modules = [
        import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    readers = [reader for module in modules for reader in make_readers(module)]
    return sorted(readers, key=lambda reader: reader.order)


def make_readers(module: ModuleType) -> list[Reader]:
    return [
        value()
        for value in vars(module).values()
        # Checked first: on Python 3.10, inspect.isclass is true for an imported alias of list[int]
        if getattr(value, "__module__", None) == module.__name__
        and inspect.isclass(value)
        and issubclass(value, Reader)
        and not inspect.isabstract(value)
    ]
