"""One module a subject of the page: a new one is found by being here."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

from souvenirs_metrics.readers.base import Reader


def load_readers() -> list[Reader]:
    """A new instance of each reader in this package's modules, in the order of reading."""
    modules = [
        import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    readers = [
        value()
        for module in modules
        for value in vars(module).values()
        # First, for on Python 3.10 what is imported may be list[int], a class to inspect only
        if getattr(value, "__module__", None) == module.__name__
        and inspect.isclass(value)
        and issubclass(value, Reader)
        and not inspect.isabstract(value)
    ]
    return sorted(readers, key=lambda reader: reader.order)
