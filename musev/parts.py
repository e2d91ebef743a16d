"""Parts of a clip's conditions that other clips share: found by what decides them, paid once.

The same portrait in a thousand rows goes through the VAE, the image encoder and the ReferenceNet
once. A part's key is a digest of its inputs, so equal pictures under two names are one part.

Nothing here imports torch at the top: a worker counts parts before it has loaded anything.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

PartT = TypeVar("PartT")
PartUses = dict[str, dict[str, int]]
"""Kind of part to how many were ``computed`` and ``reused``; plain, for records."""

RECENT_BYTES = 512 * 2**20
"""Bound on the parts one process keeps; a reference at 512x512 in half precision takes 40 MB."""


class PartStore(Protocol):
    """Where parts are looked up before they are computed."""

    def find(self, key: str, make: Callable[[], PartT], *, shared: bool = True) -> PartT:
        """Return the part of a key, from the store or from ``make``.

        Args:
            key: From :func:`part_key`.
            make: Computes the part.
            shared: Whether anybody else can ask for it; else it is computed and not kept.

        Returns:
            The part.
        """
        ...


class NoStore:
    """Computes every part."""

    def find(self, key: str, make: Callable[[], PartT], *, shared: bool = True) -> PartT:
        """Compute the part."""
        return make()


class OwnParts:
    """Parts of which some are a clip's own: nobody else can ask for them.

    Args:
        beyond: Computes all, and keeps the others.
        kinds: What is the clip's own.
    """

    def __init__(self, beyond: PartStore, kinds: Collection[str]) -> None:
        self._beyond = beyond
        self._kinds = frozenset(kinds)

    def find(self, key: str, make: Callable[[], PartT], *, shared: bool = True) -> PartT:
        """Return the part of a key; one of the clip's own is computed and not kept."""
        return self._beyond.find(key, make, shared=shared and kind_of(key) not in self._kinds)


@dataclass
class PartCounts:
    """How often parts of each kind were computed, and how often they were there already."""

    made: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    def copy(self) -> PartCounts:
        """Keep the counts as they are now."""
        return PartCounts(Counter(self.made), Counter(self.found))

    def since(self, earlier: PartCounts) -> PartUses:
        """Tell what has been counted since a :meth:`copy` was made."""
        made, found = self.made - earlier.made, self.found - earlier.found
        return {
            kind: {"computed": made[kind], "reused": found[kind]} for kind in sorted(made | found)
        }


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
        """``made`` counts what this process computed, ``found`` what it found here or beyond."""

    def find(self, key: str, make: Callable[[], PartT], *, shared: bool = True) -> PartT:
        """Return the part of a key, from here, from beyond, or from ``make``."""
        if key in self._kept:
            self.counts.found[kind_of(key)] += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]  # pyright: ignore[reportReturnType]
        made = False

        def make_and_note() -> PartT:
            nonlocal made
            part = make()
            made = True
            return part

        part = self._beyond.find(key, make_and_note) if shared else make_and_note()
        (self.counts.made if made else self.counts.found)[kind_of(key)] += 1
        if shared:
            self._keep(key, part)
        return part

    def _keep(self, key: str, part: object) -> None:
        from musev.models.trees import count_bytes

        num_bytes = count_bytes(part)
        self._kept[key] = (part, num_bytes)
        self._num_bytes += num_bytes
        while self._num_bytes > self._limit_bytes and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._num_bytes -= freed


def kind_of(key: str) -> str:
    """Tell what a key of :func:`part_key` is the key of."""
    return key.rpartition("-")[0]


def part_key(kind: str, *inputs: object) -> str:
    """Name a part by everything that decides it.

    Args:
        kind: What is computed.
        *inputs: Arrays and tensors by content, everything else by its ``repr``.

    Returns:
        The kind and 64 hex digits.
    """
    from torch import Tensor

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
