"""Values that hold tensors somewhere inside: move them, count them.

For conditions on their way between processes: dataclasses, named tuples, mappings and sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

TreeT = TypeVar("TreeT")


def map_tensors(change: Callable[[Tensor], Tensor], tree: TreeT) -> TreeT:
    """Rebuild a value with every tensor in it changed.

    Args:
        change: What becomes of a tensor.
        tree: A tensor, or dataclasses, mappings, tuples and lists of such; anything else is kept.

    Returns:
        A value of the same type.
    """
    return _map(change, tree)


def count_bytes(tree: object) -> int:
    """Add up the bytes of all tensors in a value."""
    return sum(tensor.nbytes for tensor in tensors_of(tree))


def tensors_of(tree: object) -> Iterator[Tensor]:
    """Go through the tensors in a value, in the order in which :func:`map_tensors` does."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(note, tree)
    yield from found


def _map(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = dataclasses.fields(tree)
        changed = {field.name: _map(change, getattr(tree, field.name)) for field in fields}
        return dataclasses.replace(tree, **changed)
    if isinstance(tree, Mapping):
        return {key: _map(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(change, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(change, value) for value in tree)
    return tree
