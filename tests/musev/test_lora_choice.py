"""How a manifest spells a LoRA, and what is refused with which words."""

from __future__ import annotations

import pickle

import pytest

from musev.errors import ConfigError
from musev.lora_choice import BLOCK_PRESETS, LoraChoice, parse_lora

ONES = (1.0,) * 17
NAMED = {"lcm": "/weights/lcm.safetensors", "a.b": "/weights/ab.pt"}


@pytest.mark.parametrize(
    ("text", "file", "strength", "blocks"),
    [
        ("style.safetensors", "style.safetensors", 1.0, ONES),
        (" style.safetensors:0.75 ", "style.safetensors", 0.75, ONES),
        ("s3://bucket/a b/style.safetensors:-.5", "s3://bucket/a b/style.safetensors", -0.5, ONES),
        ("file:///x/s.pt:1e-1:face", "file:///x/s.pt", 0.1, BLOCK_PRESETS["FACE"]),
        ("s.pt:1:" + ",".join("1" * 17), "s.pt", 1.0, ONES),
        ("s.pt:1:" + " ".join(["0.5"] * 17), "s.pt", 1.0, (0.5,) * 17),
        ("lcm", "/weights/lcm.safetensors", 1.0, ONES),
        ("lcm:0.5:OUTALL", "/weights/lcm.safetensors", 0.5, BLOCK_PRESETS["OUTALL"]),
        ("a.b:2", "/weights/ab.pt", 2.0, ONES),
    ],
)
def test_spellings(text: str, file: str, strength: float, blocks: tuple[float, ...]) -> None:
    found = parse_lora(text, NAMED)
    assert (found.file, found.strength, found.blocks) == (file, strength, blocks)
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("lmc:1", "Did you mean 'lcm'"),
        ("style.gguf:1", "neither a LoRA file"),
        ("style.pt:FACE", "the strength must stand before the preset"),
        ("style.pt:1:NOSE", "presets: FACE, DEFACE, ALL, MIDD, OUTALL"),
        ("style.pt:1:1,0,1", "17 numbers .*got 3"),
        ("style.pt:1000", "-100..100"),
        ("", "is no LoRA"),
        (":0.5", "neither a LoRA file"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        parse_lora(text, NAMED)


def test_presets_have_a_number_for_every_block() -> None:
    assert {len(factors) for factors in BLOCK_PRESETS.values()} == {17}
    assert BLOCK_PRESETS["ALL"] == ONES


def test_values_are_checked_however_they_are_made() -> None:
    with pytest.raises(ConfigError, match="merge must be one of"):
        LoraChoice(file="a.pt", merge="half")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="strength"):
        LoraChoice(file="a.pt", strength=float("nan"))
    assert LoraChoice(file="a.pt", blocks=[1] * 17).blocks == ONES  # pyright: ignore
