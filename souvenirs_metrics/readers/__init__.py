"""One module a subject of the page: a new one is found by being here."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType

from souvenirs_metrics.readers.base import Reader


def load_readers() -> list[Reader]:
    """New instances of the readers in this package's modules, in the order of reading."""
    modules = [
        import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    readers = [reader for module in modules for reader in make_each(module)]
    return sorted(readers, key=lambda reader: reader.order)


def make_each(module: ModuleType) -> list[Reader]:
    return [
        value()
        for value in vars(module).values()
        # First, for on Python 3.10 what is imported may be list[int], a class to inspect only
        if getattr(value, "__module__", None) == module.__name__
        and inspect.isclass(value)
        and issubclass(value, Reader)
        and not inspect.isabstract(value)
    ]
