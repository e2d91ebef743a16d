"""The original's model tables: which names there are, and where their weights lie.

The tables of the original's repository are built in, with paths relative to its folder; a file of
the user's is read in their place (:mod:`pipelines.python_tables`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from musev.errors import ConfigError
from musev.negative_prompts import NEGATIVE_PROMPTS

Table = Mapping[str, Any]

TABLE_VARIABLES = {"negative_prompt": "Negative_Prompt_CFG"}
"""Variable of a table file, where it is not ``MODEL_CFG``."""

_CHECKPOINTS = "checkpoints"
_ENCODER = f"{_CHECKPOINTS}/IP-Adapter/image_encoder"


def _image_prompt(
    file: str, *, tokens: int = 4, width: int = 1024, encoder: str = _ENCODER
) -> dict[str, Any]:
    return {
        "ip_image_encoder": encoder,
        "ip_ckpt": f"{_CHECKPOINTS}/{file}",
        "ip_scale": 1.0,
        "clip_extra_context_tokens": tokens,
        "clip_embeddings_dim": width,
    }


BUILT_IN: dict[str, Table] = {
    "t2i": {
        name: {"sd": f"{_CHECKPOINTS}/t2i/sd1.5/{name}"}
        for name in ("majicmixRealv6Fp16", "fantasticmix_v10")
    },
    "motion": {
        name: {"unet": f"{_CHECKPOINTS}/motion/{name}"}
        for name in ("musev", "musev_referencenet", "musev_referencenet_pose")
    },
    "referencenet": {"musev_referencenet": {"net": f"{_CHECKPOINTS}/motion/musev_referencenet"}},
    "ip_adapter": {
        "IPAdapter": _image_prompt(
            "IP-Adapter/ip-adapter_sd15.bin",
            encoder=f"{_CHECKPOINTS}/IP-Adapter/models/image_encoder",
        ),
        "IPAdapterPlus": _image_prompt("IP-Adapter/ip-adapter-plus_sd15.bin", tokens=16),
        "IPAdapterPlus-face": _image_prompt("IP-Adapter/ip-adapter-plus-face_sd15.bin", tokens=16),
        "IPAdapterFaceID": _image_prompt("IP-Adapter/ip-adapter-faceid_sd15.bin", width=512),
        **{
            name: _image_prompt(f"motion/{name}/ip_adapter_image_proj.bin")
            for name in ("musev_referencenet", "musev_referencenet_pose")
        },
    },
    "lcm": {
        "lcm": {
            f"{_CHECKPOINTS}/lcm/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": {
                "strength": 1.0,
                "lora_block_weight": "ALL",
                "strength_offset": 0,
            }
        }
    },
    "facein": {},
    "negative_prompt": {name: {"prompt": text} for name, text in NEGATIVE_PROMPTS.items()},
}
"""Upstream configs/model/*.py (goldens functions/configs.json); FaceIn was never released."""


def choose_names(asked: str, names: Iterable[str], *, flag: str, where: str) -> list[str]:
    """Choose entries of a table, or tasks of a file, by name.

    Args:
        asked: ``all``, or names separated by commas.
        names: The names there are.
        flag: What asked for them, for the error.
        where: Where the names are, for the error.

    Returns:
        The chosen names, each once, in the table's order.

    Raises:
        ConfigError: If a name is unknown or none is asked for; the nearest are told.
    """
    held = list(dict.fromkeys(names))
    if asked == "all":
        return held
    wanted = [name.strip() for name in asked.split(",") if name.strip()]
    if not wanted:
        raise ConfigError(f"{flag} names nothing. Give names from {where}, or all.")
    for name in wanted:
        if name not in held:
            raise ConfigError(f"{flag}: no {name!r} in {where}.{_hint(name, held)}")
    return [name for name in held if name in wanted]


def _hint(name: str, held: list[str]) -> str:
    by_small_letters = {other.lower(): other for other in held}
    near = difflib.get_close_matches(name.lower(), by_small_letters, n=3)
    if near:
        return f" Did you mean {' or '.join(repr(by_small_letters[small]) for small in near)}?"
    return f" There are: {', '.join(held) or 'none'}."
