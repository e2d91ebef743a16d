"""The one place that imports controlnet_aux, whose import is slow, loud and easily broken.

It takes 8 s or more, warns some twenty times, and fails beside a mediapipe without its former
``solutions``. So it happens at first use, with warnings off and mediapipe out of sight.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_LOCK = threading.Lock()


def import_controlnet_aux(module: str = "controlnet_aux") -> ModuleType:
    """Import controlnet_aux or a module of it.

    Args:
        module: Dotted name, ``controlnet_aux`` or below.

    Returns:
        The module. A later call finds it in place.
    """
    with _LOCK:
        if module not in sys.modules:
            with _hidden("mediapipe"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        return sys.modules[module]


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let ``import name`` fail for a while, without forgetting what is imported already."""
    absent = object()
    before = sys.modules.get(name, absent)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[name]
        else:
            sys.modules[name] = before  # type: ignore[assignment]
