"""Which launchers serve which ops: each launcher's file says so itself, under the name ``BINDERS``."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def binders_of(*packages: ModuleType) -> Mapping[str, Callable[..., Any]]:
    """From the name of an op to the function that binds it: what the modules of some packages declare."""
    found: dict[str, Callable[..., Any]] = {}
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__):
            declared = import_module(f"{package.__name__}.{module.name}")
            found.update(getattr(declared, "BINDERS", {}))
    return found
