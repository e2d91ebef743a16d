"""Parts of a clip's conditions that other clips share: found by what decides them, paid once.

The same portrait in a thousand rows goes through the VAE, the image encoder and the ReferenceNet
once. A part's key is a digest of its inputs, so equal pictures under two names are one part.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor

from musev.models.trees import count_bytes

PartT = TypeVar("PartT")

RECENT_BYTES = 512 * 2**20
"""Bound on the parts one process keeps; a reference at 512x512 in half precision takes 40 MB."""


class PartStore(Protocol):
    """Where parts are looked up before they are computed."""

    def find(self, key: str, make: Callable[[], PartT]) -> PartT:
        """Return the part of a key, from the store or from ``make``."""
        ...


class NoStore:
    """Computes every part."""

    def find(self, key: str, make: Callable[[], PartT]) -> PartT:
        """Compute the part."""
        return make()


@dataclass
class PartCounts:
    """How often parts were computed and how often they were there already."""

    made: int = 0
    found: int = 0


class RecentParts:
    """Keeps the parts used last, up to a number of bytes.

    Args:
        beyond: Asked for what is not here; computes it unless told otherwise.
        limit_bytes: How much is kept; one part is kept whatever its size.
    """

    def __init__(self, beyond: PartStore | None = None, *, limit_bytes: int = RECENT_BYTES) -> None:
        self._beyond = beyond or NoStore()
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, tuple[object, int]] = OrderedDict()
        self._num_bytes = 0
        self.counts = PartCounts()
        """``made`` counts what was asked for beyond."""

    def find(self, key: str, make: Callable[[], PartT]) -> PartT:
        """Return the part of a key, from here, from beyond, or from ``make``."""
        if key in self._kept:
            self.counts.found += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]  # pyright: ignore[reportReturnType]
        part = self._beyond.find(key, make)
        self.counts.made += 1
        num_bytes = count_bytes(part)
        self._kept[key] = (part, num_bytes)
        self._num_bytes += num_bytes
        while self._num_bytes > self._limit_bytes and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._num_bytes -= freed
        return part


def part_key(kind: str, *inputs: object) -> str:
    """Name a part by everything that decides it.

    Args:
        kind: What is computed.
        *inputs: Arrays and tensors by content, everything else by its ``repr``.

    Returns:
        The kind and 64 hex digits.
    """
    digest = hashlib.sha256()
    for value in inputs:
        if isinstance(value, Tensor):
            value = value.detach().float().cpu().numpy()
        if isinstance(value, np.ndarray):
            digest.update(f"array {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(f"{value!r}\n".encode())
    return f"{kind}-{digest.hexdigest()}"
