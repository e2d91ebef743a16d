"""Every error this package raises on purpose; each one survives pickling across processes.

No class here has an ``__init__`` of its own: an exception with its own arguments fails to unpickle
on the driver (STYLE: principle 7). The message says what, where, got, and what to do.
"""

from __future__ import annotations


class MusevError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(MusevError):
    """A setting is outside its range, or two settings contradict each other."""


class ManifestError(MusevError):
    """A manifest as a whole cannot be read."""


class RequestError(MusevError):
    """One manifest row is wrong; the other rows are not affected."""


class MediaError(MusevError):
    """A picture or video cannot be read, decoded or encoded."""


class WeightsError(MusevError):
    """A weights file is missing, damaged, or has other keys or shapes than the network."""


class ShapeError(MusevError):
    """Tensors that must agree in shape do not."""


class StorageError(MusevError):
    """Object storage did not keep its contract."""
