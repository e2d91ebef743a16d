"""Tensors inside other values."""

from __future__ import annotations

import torch

from musev.models.attachments import KeyValue, LayerConditioning, UNetConditioning
from musev.models.trees import count_bytes, map_tensors, tensors_of


def conditioning() -> UNetConditioning:
    def kv(value: int) -> KeyValue:
        return KeyValue(torch.full((2, 3, 4), float(value)), torch.full((2, 3, 4), -float(value)))

    layers = {"a": LayerConditioning(text=kv(1)), "b": LayerConditioning(text=kv(2))}
    return UNetConditioning(batch=2, layers=layers, references={"r": kv(3)})


def test_every_tensor_is_reached_and_everything_else_kept() -> None:
    before = conditioning()
    after = map_tensors(lambda tensor: tensor.half(), before)
    assert isinstance(after, UNetConditioning)
    assert after.batch == 2
    assert isinstance(after.references["r"], KeyValue)
    assert after.layers["b"].text.key_BLC.dtype == torch.float16
    assert before.layers["b"].text.key_BLC.dtype == torch.float32
    assert len(list(tensors_of(before))) == 6
    assert count_bytes(before) == 6 * 24 * 4
    assert count_bytes(after) == 6 * 24 * 2


def test_plain_values_pass_through() -> None:
    value = (1, "two", [None, torch.ones(1)], {"x": 3.0})
    again = map_tensors(torch.neg, value)
    assert again[:2] == (1, "two")
    assert float(again[2][1]) == -1  # type: ignore[index]
    assert again[3] == {"x": 3.0}
    assert count_bytes("nothing here") == 0
