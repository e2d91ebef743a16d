"""What goes over the wire comes out with the same bits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from pipelines.wire import pack, pack_value, unpack, unpack_value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_keep_their_bits(dtype: torch.dtype) -> None:
    tensor = torch.randn(2, 3, 4).transpose(0, 1).to(dtype)
    packed = pickle.loads(pickle.dumps(pack(tensor)))
    packed.bits.setflags(write=False)  # as out of Ray's object store
    found = unpack(packed)
    assert found.dtype == dtype
    assert torch.equal(found, tensor)
    found += 1  # a copy: nobody else's memory
    assert packed.bits.nbytes == tensor.numel() * tensor.element_size()


def test_values_pass_as_bytes() -> None:
    value = {"a": torch.arange(3), "b": (1, "two")}
    packed = pack_value(value)
    assert packed.dtype == np.uint8
    found = unpack_value(packed)
    assert torch.equal(found["a"], value["a"])
    assert found["b"] == value["b"]
