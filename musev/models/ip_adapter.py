"""Published IP-Adapter files: plain, plus, plus-face, FaceID and MuseV's own projection.

Which one a file holds is read off its keys; sizes are read off its weights, since no such file has
a config. The attention weights of a file go into the U-Net; see :mod:`musev.models.published`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musev.errors import WeightsError
from musev.models.image_prompt import FaceIdProjection, ImageProjection, Resampler
from musev.models.loading import State, build_empty, fill
from musev.weights import check_keys, load_groups

logger = logging.getLogger(__name__)

_GROUPS = ("image_proj", "ip_adapter")
# FaceID files also hold a LoRA of the whole network, which its authors publish as a file of its own
# as well; the original does not read it from here, nor do we.
_OWN_LORA = re.compile(r"\d+\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_HEAD_WIDTH = 64


def read_adapter(path: Path, where: str) -> dict[str, State]:
    """Read an IP-Adapter file.

    Args:
        path: The file.
        where: ``image_prompt`` or ``face``, for errors.

    Returns:
        ``image_proj``, and ``ip_adapter`` where the file has it.

    Raises:
        WeightsError: If it has no ``image_proj`` or unknown groups.
    """
    groups = load_groups(path)
    if "image_proj" not in groups:
        raise WeightsError(f"{where}: {path} has no part image_proj; it has {[*groups]}")
    unknown = [group for group in groups if group not in _GROUPS]
    if unknown:
        raise WeightsError(f"{where}: {path} has unknown parts {unknown}")
    attention = groups.get("ip_adapter", {})
    kept = {key: value for key, value in attention.items() if not _OWN_LORA.fullmatch(key)}
    if len(kept) < len(attention):
        logger.warning(
            "%s: the LoRA inside %s is not used; name its own file in loras to have it", where, path
        )
    return groups | ({"ip_adapter": kept} if kept else {})


def load_image_projection(
    path: Path, groups: Mapping[str, State], *, dtype: torch.dtype
) -> ImageProjection | Resampler:
    """Build the projection of an image-prompt file.

    Args:
        path: The file, for errors.
        groups: From :func:`read_adapter`.
        dtype: Of the network.

    Returns:
        The plain projection, or the resampler of the "plus" variants.

    Raises:
        WeightsError: If the file belongs to another kind of adapter.
    """
    state, where = groups["image_proj"], f"image_prompt at {path}"
    if "latents" in state:
        return _build(Resampler, _resampler_config(state), state, where, dtype)
    if "proj.0.weight" in state:
        raise WeightsError(
            f"{where} reads faces, not pictures. Name it in weights.face, and another file in "
            "weights.image_prompt."
        )
    _refuse_others(state, ("proj.weight", "proj.bias", "norm.weight", "norm.bias"), where)
    width, (num_out, num_in) = state["norm.weight"].shape[0], state["proj.weight"].shape
    config = {
        "cross_attention_dim": width,
        "clip_embeddings_dim": num_in,
        "clip_extra_context_tokens": num_out // width,
    }
    return _build(ImageProjection, config, state, where, dtype)


def load_face_projection(
    path: Path, groups: Mapping[str, State], *, dtype: torch.dtype
) -> FaceIdProjection:
    """Build the projection of a FaceID file.

    Args:
        path: The file, for errors.
        groups: From :func:`read_adapter`.
        dtype: Of the network.

    Returns:
        The projection.

    Raises:
        WeightsError: If the file is of another kind, or lacks the attention weights.
    """
    state, where = groups["image_proj"], f"face at {path}"
    if any(key.startswith("perceiver_resampler.") for key in state):
        raise WeightsError(
            f"{where} is of the FaceID-plus kind, which the original never builds. Give "
            "ip-adapter-faceid_sd15.bin."
        )
    keys = ("proj.0.weight", "proj.0.bias", "proj.2.weight", "proj.2.bias")
    _refuse_others(state, (*keys, "norm.weight", "norm.bias"), where)
    if not groups.get("ip_adapter"):
        raise WeightsError(f"{where} has no part ip_adapter, so the U-Net could not read faces")
    width, num_out = state["norm.weight"].shape[0], state["proj.2.weight"].shape[0]
    config = {
        "cross_attention_dim": width,
        "id_embeddings_dim": state["proj.0.weight"].shape[1],
        "num_tokens": num_out // width,
    }
    return _build(FaceIdProjection, config, state, where, dtype)


def _resampler_config(state: State) -> dict[str, Any]:
    num_queries, dim = state["latents"].shape[1:]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    inner = state["layers.0.0.to_q.weight"].shape[0]
    return {
        "dim": dim,
        "depth": depth,
        "dim_head": min(_HEAD_WIDTH, inner),
        "heads": max(inner // _HEAD_WIDTH, 1),
        "num_queries": num_queries,
        "embedding_dim": state["proj_in.weight"].shape[1],
        "output_dim": state["proj_out.weight"].shape[0],
        "ff_mult": state["layers.0.1.1.weight"].shape[0] // dim,
    }


def _refuse_others(state: State, keys: tuple[str, ...], where: str) -> None:
    if set(state) & set(keys):
        check_keys(dict.fromkeys(keys, ()), dict.fromkeys(state, ()), where)
    else:
        raise WeightsError(
            f"{where}: its image_proj is of an unknown kind; it holds "
            f"{', '.join(sorted(state)[:10])}. Plain, plus, plus-face, FaceID and MuseV's own "
            "projection can be read; FaceIn was never released."
        )


def _build(
    kind: type[Any], config: dict[str, Any], state: State, where: str, dtype: torch.dtype
) -> Any:
    net: nn.Module = build_empty(kind, config, where=where)
    return fill(net, state, dtype=dtype, where=where)
