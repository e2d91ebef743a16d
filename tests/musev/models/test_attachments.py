from __future__ import annotations

import pytest
import torch

from musev.errors import ShapeError
from musev.models.attachments import (
    ConditionFrames,
    KeyValue,
    LayerConditioning,
    ScaledKeyValue,
    TemporalOff,
    UNetConditioning,
    check_kinds,
    find_attachment,
)


def pair() -> KeyValue:
    return KeyValue(torch.ones(1, 2, 4), torch.ones(1, 2, 4))


def test_find_attachment_returns_the_only_one_of_a_kind() -> None:
    frames = ConditionFrames((0,))
    assert find_attachment((TemporalOff(), frames), ConditionFrames) is frames
    assert find_attachment((frames,), TemporalOff) is None
    with pytest.raises(ShapeError, match="ConditionFrames is attached 2 times"):
        find_attachment((frames, frames), ConditionFrames)


def test_check_kinds_names_what_is_read() -> None:
    check_kinds((TemporalOff(),), (TemporalOff, ConditionFrames), "the network")
    with pytest.raises(ShapeError, match="the network cannot use str; it reads: TemporalOff"):
        check_kinds(("text",), (TemporalOff,), "the network")


def test_to_converts_every_tensor_of_the_conditioning() -> None:
    layer = LayerConditioning(pair(), (ScaledKeyValue(pair(), 0.5),), pair())
    made = UNetConditioning(batch=1, layers={"a": layer}, references={"b": pair()})
    half = made.to(torch.float16)
    moved = half.layers["a"]
    tensors = [*moved.text, *moved.extra[0].key_value, *moved.reference, *half.references["b"]]
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert (half.batch, moved.extra[0].scale) == (1, 0.5)
    assert made.layers["a"].text.key_BLC.dtype == torch.float32
