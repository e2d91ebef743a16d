"""One LoRA of a row: which file, how strongly, and how strongly in each part of the network."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from musev.errors import ConfigError

LoraMerge = Literal["exact", "upstream", "upstream_plain"]
NUM_BLOCKS = 17

# Factors of the text encoder and of the 16 attention blocks of Stable Diffusion 1.5: down blocks
# 0.0 0.1 1.0 1.1 2.0 2.1, middle, up blocks 1.0-1.2 2.0-2.2 3.0-3.2. Upstream, model_util.py.
_PRESET_DIGITS = {
    "FACE": "10000000111000000",
    "DEFACE": "11111111000111111",
    "ALL": "11111111111111111",
    "MIDD": "10001111111100000",
    "OUTALL": "10000000111111111",
}
BLOCK_PRESETS: dict[str, tuple[float, ...]] = {
    name: tuple(map(float, digits)) for name, digits in _PRESET_DIGITS.items()
}
LORA_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SPELLING = re.compile(
    rf"(?P<file>.+?)(?::(?P<strength>{_NUMBER})"
    rf"(?::(?P<blocks>[A-Za-z]+|{_NUMBER}(?:[, ]+{_NUMBER})*))?)?"
)


@dataclass(frozen=True, kw_only=True)
class LoraChoice:
    """A LoRA file and how it is merged."""

    file: str
    """Absolute fsspec URI or path."""
    strength: float = 1.0
    blocks: tuple[float, ...] = BLOCK_PRESETS["ALL"]
    """Factors of the text encoder and of the 16 attention blocks; the rest always counts fully."""
    merge: LoraMerge = "exact"
    """``exact``: changes are added up in float32, times what the file's alpha says. ``upstream``:
    one file after the other, each change rounded to half precision first. ``upstream_plain``: as
    the original's older function does it, without reading the file's alpha."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(map(float, self.blocks)))  # lists, from JSON
        object.__setattr__(self, "strength", float(self.strength))
        if len(self.blocks) != NUM_BLOCKS or not all(map(math.isfinite, self.blocks)):
            raise ConfigError(
                f"a LoRA's block weights are {NUM_BLOCKS} numbers (text encoder, then 16 attention "
                f"blocks), got {len(self.blocks)}"
            )
        if not math.isfinite(self.strength) or abs(self.strength) > 100:
            raise ConfigError(f"a LoRA's strength must be in -100..100, got {self.strength}")
        if self.merge not in get_args(LoraMerge):
            raise ConfigError(
                f"a LoRA's merge must be one of {', '.join(get_args(LoraMerge))}; got "
                f"{self.merge!r}"
            )


@dataclass(frozen=True)
class LoraFile:
    """A LoRA of a row with its file on this machine."""

    choice: LoraChoice
    path: Path
    digest: str = ""
    """Of the file's content, where it is known."""


def parse_lora(
    text: str, named: Mapping[str, str] | None = None, *, merge: LoraMerge = "exact"
) -> LoraChoice:
    """Read one LoRA as a manifest spells it: ``FILE``, ``FILE:STRENGTH``, ``FILE:STRENGTH:BLOCKS``.

    Args:
        text: ``FILE`` is a path, a URI or a name of ``named``; ``BLOCKS`` a preset of
            :data:`BLOCK_PRESETS` in any case, or 17 numbers separated by commas or blanks.
        named: Files by name, of a profile's ``weights.loras``.
        merge: How it is merged.

    Returns:
        The choice; a path is left as it is written.

    Raises:
        ConfigError: If the text cannot be read or names an unknown LoRA or preset.
    """
    named = named or {}
    found = _SPELLING.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no LoRA. {_HOW}")
    return LoraChoice(
        file=_find_file(found["file"], named),
        strength=float(found["strength"] or 1.0),
        blocks=_read_blocks(found["blocks"] or "ALL"),
        merge=merge,
    )


_HOW = (
    "Write FILE:STRENGTH or FILE:STRENGTH:BLOCKS, for example "
    "s3://bucket/style.safetensors:0.8:OUTALL."
)


def _find_file(file: str, named: Mapping[str, str]) -> str:
    if file in named:
        return named[file]
    last = file.rpartition(":")[2].upper()
    if last in BLOCK_PRESETS:
        raise ConfigError(f"{file!r}: the strength must stand before the preset. {_HOW}")
    if file.lower().endswith(LORA_SUFFIXES):
        return file
    near = difflib.get_close_matches(file, named, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"{file!r} is neither a LoRA file ({', '.join(LORA_SUFFIXES)}) nor a name of this "
        f"profile's weights.loras ({', '.join(named) or 'none'}).{hint} {_HOW}"
    )


def _read_blocks(text: str) -> tuple[float, ...]:
    if text[0].isalpha():
        if text.upper() not in BLOCK_PRESETS:
            raise ConfigError(
                f"no LoRA block preset {text!r}; presets: {', '.join(BLOCK_PRESETS)}, or "
                f"{NUM_BLOCKS} numbers"
            )
        return BLOCK_PRESETS[text.upper()]
    return tuple(float(part) for part in re.split("[, ]+", text))
