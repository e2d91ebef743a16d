"""A Stable Diffusion 1.5 model that is one file, read by the names its first authors gave the keys.

Names are worked out from the network's own, key by key, so that a key which is missing in the file
is missed here, and one that is left over is noticed.

Source:
    CompVis/latent-diffusion, ldm/modules/diffusionmodules: openaimodel.py, model.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from musev.errors import WeightsError
from musev.weights import load_values

State = dict[str, Tensor]
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
# Counters, a second set of weights for training, and what belongs to no network we build.
_LEFT_OUT = re.compile(
    r"model_ema\.|betas$|alphas_cumprod|sqrt_|log_one_minus|posterior_|logvar$|lvlb_weights"
    r"|.*position_ids$|first_stage_model\.loss\."
)

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def read_single_file(path: Path) -> State:
    """Read the tensors of a model file; what only training needs is left out.

    Args:
        path: ``.safetensors`` or ``.ckpt``.

    Returns:
        Tensors by the file's keys.

    Raises:
        WeightsError: If it is no Stable Diffusion 1.5 model.
    """
    values = load_values(path)
    values = values.get("state_dict", values)
    state = {
        key: value
        for key, value in values.items()
        if isinstance(value, Tensor) and not _LEFT_OUT.match(key)
    }
    for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX):
        if not any(key.startswith(prefix) for key in state):
            raise WeightsError(
                f"t2i_file: {path} holds nothing below {prefix}. A model of Stable Diffusion 1.5 "
                "with VAE and text encoder is needed (not a LoRA, not a newer model)."
            )
    return state


def take_part(
    state: Mapping[str, Tensor],
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    rename: Callable[[str], str],
    *,
    where: str,
) -> State:
    """Take one network's weights out of a file.

    Args:
        state: From :func:`read_single_file`.
        prefix: Of the network's keys in the file.
        shapes: Shape of every key the network has in the file's place.
        rename: Network key to the file's, without the prefix.
        where: What is being loaded, for errors.

    Returns:
        Weights by the network's keys.

    Raises:
        WeightsError: If keys are missing or left over.
    """
    names = {key: prefix + rename(key) for key in shapes}
    held = {key for key in state if key.startswith(prefix)}
    missing, extra = sorted(set(names.values()) - held), sorted(held - set(names.values()))
    if missing or extra:
        raise WeightsError(
            f"{where}: the file does not fit the network. {len(missing)} missing: "
            f"{', '.join(missing[:10])}; {len(extra)} extra: {', '.join(extra[:10])}. Is it a "
            "Stable Diffusion 1.5 model?"
        )
    found = {key: state[name] for key, name in names.items()}
    # Attention of the VAE is stored as 1x1 convolutions.
    return {
        key: value[..., 0, 0] if value.ndim == 4 and len(shapes[key]) == 2 else value
        for key, value in found.items()
    }


def unet_name(key: str, *, layers_per_block: int, plain_up_blocks: tuple[int, ...] = (0,)) -> str:
    """The file's name of a U-Net key.

    Args:
        key: As diffusers calls it.
        layers_per_block: Of the network.
        plain_up_blocks: Up blocks without attention.

    Returns:
        The name without its prefix.
    """
    per_level = layers_per_block + 1
    for own, name in _UNET_ENDS.items():
        if key.startswith(f"{own}."):
            return name + key[len(own) :]
    place, kind, number, rest = _split(key)
    if place == "mid_block":
        block = f"middle_block.{2 * number if kind == 'resnets' else 1}"
    elif kind == "downsamplers":
        return f"input_blocks.{(_level(place) + 1) * per_level}.0.op.{rest.removeprefix('conv.')}"
    elif kind == "upsamplers":
        level = _level(place)
        last = 1 if level in plain_up_blocks else 2
        return f"output_blocks.{level * per_level + layers_per_block}.{last}.{rest}"
    else:
        side = "input_blocks" if place.startswith("down") else "output_blocks"
        first = 1 if side == "input_blocks" else 0
        which = 0 if kind == "resnets" else 1
        block = f"{side}.{first + _level(place) * per_level + number}.{which}"
    return f"{block}.{_resnet_name(rest, _UNET_RESNET) if kind == 'resnets' else rest}"


def vae_name(key: str, *, num_levels: int) -> str:
    """The file's name of a VAE key, without its prefix; arguments as :func:`unet_name`.

    Args:
        key: As diffusers calls it.
        num_levels: Down blocks of the encoder.

    Returns:
        The name.
    """
    half, _, inner = key.partition(".")
    if half not in ("encoder", "decoder"):
        return key
    if inner.startswith("conv_norm_out."):
        return f"{half}.norm_out.{inner.rpartition('.')[2]}"
    if inner.startswith("conv_"):
        return key
    place, kind, number, rest = _split(inner)
    shortcut = {"conv_shortcut": "nin_shortcut"}
    if place == "mid_block":
        if kind == "attentions":
            return f"{half}.mid.attn_1.{_resnet_name(rest, _VAE_ATTENTION)}"
        return f"{half}.mid.block_{number + 1}.{_resnet_name(rest, shortcut)}"
    level = _level(place)
    side, sampler = ("down", "downsample") if half == "encoder" else ("up", "upsample")
    level = level if half == "encoder" else num_levels - 1 - level
    if kind == "resnets":
        return f"{half}.{side}.{level}.block.{number}.{_resnet_name(rest, shortcut)}"
    return f"{half}.{side}.{level}.{sampler}.{rest}"


def _split(key: str) -> tuple[str, str, int, str]:
    """Block, list within it, place in the list, and the rest of a key."""
    found = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d+)\.(\w+)\.(\d+)\.(.+)", key)
    if found is None:
        raise WeightsError(f"no key {key!r} in files of Stable Diffusion 1.5")
    return found[1], found[2], int(found[3]), found[4]


def _level(place: str) -> int:
    return int(place.rpartition(".")[2])


def _resnet_name(rest: str, names: Mapping[str, str]) -> str:
    layer, _, leaf = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{leaf}"
