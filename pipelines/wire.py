"""Tensors between processes: numpy arrays, which Ray hands over without copying.

Nothing here imports torch at the top: who only passes arrays on needs none.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedTensor:
    """A tensor's bits in an array of a type that numpy has."""

    bits: np.ndarray
    is_bfloat16: bool = False


def pack(tensor: Tensor) -> PackedTensor:
    """Turn a tensor into an array with the same bits; it must lie on the CPU."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return PackedTensor(tensor.view(torch.int16).numpy(), is_bfloat16=True)
    return PackedTensor(tensor.numpy())


def unpack(packed: PackedTensor) -> Tensor:
    """Turn it back; the tensor may share the array's memory and must not be written to."""
    import torch

    bits = packed.bits if packed.bits.flags.writeable else packed.bits.copy()
    tensor = torch.from_numpy(bits)
    return tensor.view(torch.bfloat16) if packed.is_bfloat16 else tensor


def pack_value(value: Any) -> np.ndarray:
    """Pickle any value into an array of bytes: processes without torch can pass it on."""
    return np.frombuffer(pickle.dumps(value, protocol=5), dtype=np.uint8)


def unpack_value(packed: np.ndarray) -> Any:
    """Turn it back."""
    return pickle.loads(packed.data)
