"""The layout in which MuseV's authors published their weights, read strictly.

A Stable Diffusion 1.5 folder gives text encoder, VAE and the image half of the U-Net; the motion
folder gives the U-Net's other half; the rest is optional (reference: ALGORITHM.md section 4).
"""

from __future__ import annotations

import functools
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

from musev.config import ScheduleConfig, WeightsConfig
from musev.errors import WeightsError
from musev.models.image_prompt import FaceIdProjection, ImageProjection
from musev.models.ip_adapter import (
    load_face_projection,
    load_image_projection,
    read_adapter,
)
from musev.models.loading import (
    State,
    build_empty,
    fill,
    load_net,
    load_tokenizer,
    read_schedule,
)
from musev.models.reference import ReferenceNet2D
from musev.models.single_file import (
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    read_single_file,
    take_part,
    unet_name,
    vae_name,
)
from musev.models.unet import UNet3DConditionModel, released_config
from musev.weight_parts import image_prompt_wins, published_paths
from musev.weights import (
    check_keys,
    find_weights,
    load_state_dict,
    local_path,
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
        "unet": UNet3DConditionModel.from_config(
            released_config(config.motion_name) | {"need_t2i_ip_adapter_face": bool(config.face)}
        ),
        "vae": AutoencoderKL(**_VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**_TEXT_ENCODER)),
    }
    if config.referencenet:
        nets["referencenet"] = ReferenceNet2D(cross_attention_dim=_WIDTH)
    if config.image_prompt and config.image_encoder:
        nets["image_encoder"] = CLIPVisionModelWithProjection(CLIPVisionConfig(**_IMAGE_ENCODER))
        nets["image_projection"] = ImageProjection(cross_attention_dim=_WIDTH)
    if config.face:
        nets["face_projection"] = FaceIdProjection(cross_attention_dim=_WIDTH)
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
    prompt = read_adapter(paths["image_prompt"], "image_prompt") if "image_prompt" in paths else {}
    face = read_adapter(paths["face"], "face") if "face" in paths else {}
    shared: dict[str, Any] = {"layer_norm_eps": config.layer_norm_eps or 0.0}
    width = _text_width(paths, config)
    if width is not None:
        # The original sets it on both networks; ReferenceNet's file is known to tell it wrongly.
        shared["cross_attention_dim"] = width
    single = read_single_file(paths["t2i_file"]) if "t2i_file" in paths else None
    parts: dict[str, Any] = {
        "schedule": read_schedule(paths["scheduler"]) if "scheduler" in paths else ScheduleConfig(),
        "tokenizer": load_tokenizer(paths["tokenizer"]),
        "unet": _load_unet(config, paths, shared, (prompt, face), single, dtype=dtype),
    }
    if single is not None:
        parts |= _load_single(single, paths, config, dtype=dtype)
    else:
        parts["text_encoder"] = load_net(
            CLIPTextModel, paths["text_encoder"], dtype=dtype, where="text_encoder"
        )
    if "vae" in paths:
        parts["vae"] = load_net(
            AutoencoderKL, paths["vae"], dtype=torch.float32, where="vae", rename=rename_vae
        )
    if "referencenet" in paths:
        parts["referencenet"] = _load_referencenet(
            paths["referencenet"], shared, attention=config.reference_attention, dtype=dtype
        )
    if prompt:
        parts["image_projection"] = load_image_projection(
            paths["image_prompt"], prompt, dtype=dtype
        )
        parts["image_encoder"] = load_net(
            CLIPVisionModelWithProjection,
            paths["image_encoder"],
            dtype=dtype,
            where="image_encoder",
        )
    if face:
        parts["face_projection"] = load_face_projection(paths["face"], face, dtype=dtype)
    return parts


def _load_referencenet(
    folder: Path, shared: dict[str, Any], *, attention: bool, dtype: torch.dtype
) -> ReferenceNet2D:
    """A ReferenceNet, or a base model's U-Net as one: what lies behind its last layer is left."""
    overrides = shared | {"need_block_embs": True, "need_self_attn_block_embs": attention}
    where = "referencenet"
    if not attention:
        return load_net(ReferenceNet2D, folder, dtype=dtype, where=where, overrides=overrides)
    config = read_config(folder, where=where) | overrides
    net = build_empty(ReferenceNet2D, config, where=f"{where} at {folder}")
    file = find_weights(folder, where=where)
    wanted = net.state_dict().keys()
    state = {key: value for key, value in load_state_dict(file).items() if key in wanted}
    return fill(net, state, dtype=dtype, where=f"{where} at {file}")


def _load_unet(
    config: WeightsConfig,
    paths: dict[str, Path],
    shared: dict[str, Any],
    adapters: tuple[dict[str, State], dict[str, State]],
    single: State | None,
    *,
    dtype: torch.dtype,
) -> UNet3DConditionModel:
    released = released_config(config.motion_name)
    named = {key: released.get(key, value) for key, value in _NAMED_SETTINGS.items()}
    prompt, face = (adapter.get("ip_adapter", {}) for adapter in adapters)
    named["need_t2i_ip_adapter_face"] = bool(face)
    on_disk = read_config(paths["unet"], where="unet")
    net = build_empty(UNet3DConditionModel, on_disk | named | shared, where="unet")

    file = find_weights(paths["unet"], where="unet")
    state = load_state_dict(file)
    own = any(key.endswith(".to_k_ip.weight") for key in state)
    if prompt and (not own or image_prompt_wins(config)):
        renamed = rename_ip_adapter(prompt, net.state_dict())
        state |= {renamed[key]: value for key, value in prompt.items()}
    if face:
        renamed = rename_ip_adapter(face, net.state_dict(), face=True)
        state |= {renamed[key]: value for key, value in face.items()}
    check_keys(shapes_of(net.state_dict()), shapes_of(state), f"unet at {file}")
    if single is None:
        state |= read_t2i_unet(paths["t2i_unet"], net)
    else:
        state |= _take_unet(single, net, where=f"t2i_file at {paths['t2i_file']}")
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
    check_keys(_image_half(net), shapes_of(state), f"t2i_unet at {file}")
    return state


def _image_half(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        key: shape
        for key, shape in shapes_of(net.state_dict()).items()
        if not any(mark in key for mark in MOTION_MARKS)
    }


def _take_unet(single: State, net: UNet3DConditionModel, *, where: str) -> State:
    blocks = net.config.up_block_types
    rename = functools.partial(
        unet_name,
        layers_per_block=net.config.layers_per_block,
        plain_up_blocks=tuple(
            number for number, kind in enumerate(blocks) if not kind.startswith("CrossAttn")
        ),
    )
    return take_part(single, UNET_PREFIX, _image_half(net), rename, where=where)


def _load_single(
    single: State, paths: dict[str, Path], config: WeightsConfig, *, dtype: torch.dtype
) -> dict[str, Any]:
    """Text encoder and, unless another is named, VAE of a single file."""
    where = f"t2i_file at {paths['t2i_file']}"
    text = build_empty(
        CLIPTextModel, _config_of(config, "text_encoder", _TEXT_ENCODER), where=where
    )
    state = take_part(
        single,
        TEXT_PREFIX,
        shapes_of(text.state_dict()),
        lambda key: key.removeprefix("text_model."),
        where=where,
    )
    parts: dict[str, Any] = {"text_encoder": fill(text, state, dtype=dtype, where=where)}
    if "vae" not in paths:
        vae = build_empty(AutoencoderKL, _config_of(config, "vae", _VAE), where=where)
        rename = functools.partial(vae_name, num_levels=len(vae.config.block_out_channels))
        state = take_part(single, VAE_PREFIX, shapes_of(vae.state_dict()), rename, where=where)
        parts["vae"] = fill(vae, state, dtype=torch.float32, where=where)
    return parts


def _config_of(config: WeightsConfig, part: str, published: dict[str, Any]) -> dict[str, Any]:
    """Config of a part from the folder that stands by a single file, else the published sizes."""
    assert config.t2i_config is not None
    try:
        return read_config(local_path(config.t2i_config, part), where=part)
    except WeightsError:
        return dict(published)


def _text_width(paths: dict[str, Path], config: WeightsConfig) -> int | None:
    if "t2i_unet" in paths:
        return read_config(paths["t2i_unet"], where="t2i_unet").get("cross_attention_dim")
    return _config_of(config, "text_encoder", _TEXT_ENCODER)["hidden_size"]
