"""The layout in which MuseV's authors published their weights, read strictly.

A Stable Diffusion 1.5 folder gives text encoder, VAE and the image half of the U-Net; the motion
folder gives the U-Net's other half; the rest is optional (reference: ALGORITHM.md section 4).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from musev.config import WeightsConfig
from musev.errors import WeightsError
from musev.models.image_prompt import ImageProjection
from musev.models.loading import (
    State,
    build_empty,
    fill,
    load_net,
    load_tokenizer,
    read_schedule,
)
from musev.models.reference import ReferenceNet2D
from musev.models.unet import UNet3DConditionModel, released_config
from musev.weights import (
    check_keys,
    find_weights,
    load_groups,
    load_state_dict,
    published_paths,
    read_config,
    rename_ip_adapter,
    rename_vae,
    shapes_of,
)

logger = logging.getLogger(__name__)

# What the name of a released network decides, whatever its config.json says (MODELS.md 1.1), and
# the value where the name says nothing.
_NAMED_SETTINGS = {
    "need_transformer_in": True,
    "use_anivv1_cfg": False,
    "resnet_2d_skip_time_act": False,
    "keep_vision_condtion": False,
    "need_refer_emb": False,
    "ip_adapter_cross_attn": False,
}
# Parts of a key that no image U-Net has.
MOTION_MARKS = (
    "temp_convs.",
    "temp_attentions.",
    "transformer_in.",
    "frame_embedding.",
    "refer_emb_attns.",
    "spatial_position_emb",
    "_ip.weight",
)
_IMAGE_PROMPT_GROUPS = ("image_proj", "ip_adapter")
_WIDTH = 768  # of a text token, Stable Diffusion 1.5
# Source: config.json of stabilityai's sd-vae-ft-mse, openai's CLIP ViT-L/14 and, for pictures, the
# ViT-H/14 that IP-Adapter ships.
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_TEXT_ENCODER = {
    "hidden_size": _WIDTH,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_IMAGE_ENCODER = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1024,
}


def build_released(config: WeightsConfig) -> dict[str, nn.Module]:
    """Build the networks that the settings name in their published sizes; no file is read.

    Args:
        config: Settings with ``t2i`` and ``motion``; the files need not be there.

    Returns:
        Networks without weights, by part.
    """
    nets: dict[str, Any] = {
        "unet": UNet3DConditionModel.from_config(released_config(config.motion_name)),
        "vae": AutoencoderKL(**_VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**_TEXT_ENCODER)),
    }
    if config.referencenet:
        nets["referencenet"] = ReferenceNet2D(cross_attention_dim=_WIDTH)
    if config.image_prompt and config.image_encoder:
        nets["image_encoder"] = CLIPVisionModelWithProjection(CLIPVisionConfig(**_IMAGE_ENCODER))
        nets["image_projection"] = ImageProjection(cross_attention_dim=_WIDTH)
    return nets


def load_published(config: WeightsConfig, *, dtype: torch.dtype) -> dict[str, Any]:
    """Load all parts that the settings name.

    Args:
        config: Settings with ``t2i`` and ``motion``.
        dtype: Of all networks but the VAE, which stays in float32: the original casts it up for
            every call.

    Returns:
        Fields of a ``ModelBundle`` by name, networks on the CPU.
    """
    paths = published_paths(config)
    prompt = _read_image_prompt(paths["image_prompt"]) if "image_prompt" in paths else {}
    width = read_config(paths["t2i_unet"], where="t2i_unet").get("cross_attention_dim")
    shared = {"layer_norm_eps": config.layer_norm_eps or 0.0}
    if width is not None:
        # The original sets it on both networks; ReferenceNet's file is known to tell it wrongly.
        shared["cross_attention_dim"] = width
    parts: dict[str, Any] = {
        "schedule": read_schedule(paths["scheduler"]),
        "tokenizer": load_tokenizer(paths["tokenizer"]),
        "text_encoder": load_net(
            CLIPTextModel, paths["text_encoder"], dtype=dtype, where="text_encoder"
        ),
        "vae": load_net(
            AutoencoderKL, paths["vae"], dtype=torch.float32, where="vae", rename=rename_vae
        ),
        "unet": _load_unet(config, paths, shared, prompt.get("ip_adapter", {}), dtype=dtype),
    }
    if "referencenet" in paths:
        parts["referencenet"] = load_net(
            ReferenceNet2D,
            paths["referencenet"],
            dtype=dtype,
            where="referencenet",
            overrides=shared | {"need_block_embs": True, "need_self_attn_block_embs": False},
        )
    if prompt:
        parts["image_projection"] = _load_projection(paths["image_prompt"], prompt, dtype=dtype)
        parts["image_encoder"] = load_net(
            CLIPVisionModelWithProjection,
            paths["image_encoder"],
            dtype=dtype,
            where="image_encoder",
        )
    return parts


def _load_unet(
    config: WeightsConfig,
    paths: dict[str, Path],
    shared: dict[str, Any],
    ip_adapter: State,
    *,
    dtype: torch.dtype,
) -> UNet3DConditionModel:
    released = released_config(config.motion_name)
    named = {key: released.get(key, value) for key, value in _NAMED_SETTINGS.items()}
    on_disk = read_config(paths["unet"], where="unet")
    net = build_empty(UNet3DConditionModel, on_disk | named | shared, where="unet")

    file = find_weights(paths["unet"], where="unet")
    state = load_state_dict(file)
    if ip_adapter and not any(key.endswith("_ip.weight") for key in state):
        # Networks trained with image tokens hold these weights themselves, and then they win.
        renamed = rename_ip_adapter(ip_adapter, net.state_dict())
        state |= {renamed[key]: value for key, value in ip_adapter.items()}
    check_keys(shapes_of(net.state_dict()), shapes_of(state), f"unet at {file}")
    state |= read_t2i_unet(paths["t2i_unet"], net)
    return fill(net, state, dtype=dtype, where=f"unet at {file}")


def read_t2i_unet(folder: Path, net: nn.Module) -> State:
    """Read the image half of a U-Net: all its keys that an image U-Net has, and no others.

    Args:
        folder: The ``unet`` folder of a Stable Diffusion 1.5 model.
        net: The U-Net, for its keys and shapes.

    Returns:
        Weights by key, as stored; a key that is missing, extra or of another shape is an error.
    """
    file = find_weights(folder, where="t2i_unet")
    state = load_state_dict(file)
    expected = {
        key: shape
        for key, shape in shapes_of(net.state_dict()).items()
        if not any(mark in key for mark in MOTION_MARKS)
    }
    check_keys(expected, shapes_of(state), f"t2i_unet at {file}")
    return state


def _read_image_prompt(path: Path) -> dict[str, State]:
    groups = load_groups(path)
    if "image_proj" not in groups:
        raise WeightsError(f"image_prompt: {path} has no part image_proj; it has {[*groups]}")
    unknown = [group for group in groups if group not in _IMAGE_PROMPT_GROUPS]
    if unknown:
        raise WeightsError(f"image_prompt: {path} has unknown parts {unknown}")
    return groups


def _load_projection(
    path: Path, groups: dict[str, State], *, dtype: torch.dtype
) -> ImageProjection:
    """The file has no config: sizes are read off the weights."""
    state, where = groups["image_proj"], f"image_prompt at {path}"
    check_keys(
        {"proj.weight": (), "proj.bias": (), "norm.weight": (), "norm.bias": ()},
        dict.fromkeys(state, ()),
        where,
    )
    width, (num_out, num_in) = state["norm.weight"].shape[0], state["proj.weight"].shape
    config = {
        "cross_attention_dim": width,
        "clip_embeddings_dim": num_in,
        "clip_extra_context_tokens": num_out // width,
    }
    return fill(build_empty(ImageProjection, config, where=where), state, dtype=dtype, where=where)
