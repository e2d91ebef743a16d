"""The networks a stage trains in three sizes: miniature, Stable Diffusion 1.5, and a narrow copy.

All sizes are one architecture, that of ``musev_referencenet``; only numbers differ, and whether the
reference is also read by self attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from musev.config import ScheduleConfig
from musev.errors import ConfigError
from musev.models.bundle import ModelBundle
from musev.models.control import ControlNet
from musev.models.image_prompt import ImageProjection
from musev.models.reference import ReferenceNet2D
from musev.models.unet import UNet3DConditionModel, released_config
from musev.weight_parts import CONTROLNETS, controlnet_part

CONTROL = "openpose"
"""Name under which a bundle keeps the ControlNet that is trained here."""
LAYER_NORM_EPS = 1e-5
"""What is trained here divides by something in every norm; 0 is upstream's accident."""


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """Numbers that make one size."""

    widths: tuple[int, ...]
    layers_per_block: int
    heads: int
    token_width: int
    image_embedding: int
    norm_groups: int = 32
    """Groups of the norms in spatial layers. With one channel a group, a channel's mean is lost and
    with it what the timestep adds; a narrow level needs fewer groups."""
    plain_last_level: bool = True
    """Whether the lowest level has no transformers, as in Stable Diffusion 1.5."""
    control_widths: tuple[int, ...] = (16, 32, 96, 256)
    reference_self_attention: bool = False
    """Whether every spatial self attention reads the reference, and not the fuse attentions alone.
    Off as released; from nothing, the fuse attentions alone learn to read it far more slowly."""
    text_layers: int
    text_heads: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_patch: int
    vision_size_px: int
    latent_size: int = 64


SIZES: dict[str, NetworkSizes] = {
    "mini": NetworkSizes(
        widths=(64, 64),
        norm_groups=8,
        layers_per_block=1,
        heads=4,
        token_width=96,
        image_embedding=96,
        plain_last_level=False,
        control_widths=(8, 16, 32, 64),
        reference_self_attention=True,
        text_layers=2,
        text_heads=4,
        vision_width=64,
        vision_layers=2,
        vision_heads=4,
        vision_patch=16,
        vision_size_px=64,
        latent_size=16,
    ),
    "sd15": NetworkSizes(
        widths=(320, 640, 1280, 1280),
        layers_per_block=2,
        heads=8,
        token_width=768,
        image_embedding=1024,
        text_layers=12,
        text_heads=12,
        vision_width=1280,
        vision_layers=32,
        vision_heads=16,
        vision_patch=14,
        vision_size_px=224,
    ),
    # The same depth, blocks and names as sd15, small enough to train two steps of on a laptop.
    "narrow": NetworkSizes(
        widths=(32, 32, 64, 64),
        layers_per_block=2,
        heads=4,
        token_width=32,
        image_embedding=32,
        control_widths=(8, 8, 16, 16),
        text_layers=1,
        text_heads=4,
        vision_width=32,
        vision_layers=1,
        vision_heads=4,
        vision_patch=16,
        vision_size_px=32,
        latent_size=16,
    ),
}


class Networks(nn.ModuleDict):
    """The networks of a stage by name: the names of ``ModelBundle``, and ``controlnet``."""

    def get(self, name: str) -> Any:
        """The network, or None."""
        return self[name] if name in self else None


def get_sizes(name: str) -> NetworkSizes:
    """Look a size up.

    Args:
        name: Key of :data:`SIZES`.

    Returns:
        The sizes.

    Raises:
        ConfigError: If there is none.
    """
    if name not in SIZES:
        raise ConfigError(f"no network size {name!r}; sizes: {', '.join(SIZES)}")
    return SIZES[name]


def build_networks(sizes: NetworkSizes, parts: tuple[str, ...], *, vocab_size: int) -> Networks:
    """Build untrained networks, ready to learn.

    What would start dead is brought to life: temporal layers start as the identity through their
    zero last layer, with weight 1 and not 1e-5, because a gradient times 1e-5 drowns in the
    optimizer's epsilon.

    Args:
        sizes: Numbers.
        parts: Names among ``unet``, ``text_encoder``, ``referencenet``, ``image_encoder``,
            ``image_projection`` and ``controlnet``.
        vocab_size: Tokens of the text encoder.

    Returns:
        The networks on the default device, in training mode.
    """
    makers = {
        "unet": lambda: _make_unet(sizes),
        "text_encoder": lambda: _make_text_encoder(sizes, vocab_size),
        "referencenet": lambda: _make_referencenet(sizes),
        "image_encoder": lambda: _make_image_encoder(sizes),
        "image_projection": lambda: ImageProjection(
            cross_attention_dim=sizes.token_width, clip_embeddings_dim=sizes.image_embedding
        ),
        "controlnet": lambda: _make_controlnet(sizes),
    }
    return Networks({name: makers[name]() for name in parts})


def _common(sizes: NetworkSizes, *, kind: str) -> dict[str, Any]:
    attends = [True] * (len(sizes.widths) - 1) + [not sizes.plain_last_level]

    def names(way: str) -> tuple[str, ...]:
        order = attends if way == "Down" else attends[::-1]
        return tuple(f"{'CrossAttn' if cross else ''}{way}Block{kind}" for cross in order)

    return {
        "block_out_channels": sizes.widths,
        "layers_per_block": sizes.layers_per_block,
        "norm_num_groups": sizes.norm_groups,
        "attention_head_dim": sizes.heads,
        "cross_attention_dim": sizes.token_width,
        "down_block_types": names("Down"),
        "up_block_types": names("Up"),
    }


def _make_unet(sizes: NetworkSizes) -> UNet3DConditionModel:
    own = {"sample_size": sizes.latent_size, "layer_norm_eps": LAYER_NORM_EPS}
    unet = UNet3DConditionModel.from_config(
        released_config("musev_referencenet") | _common(sizes, kind="3D") | own
    )
    wake_temporal(unet)
    return unet


def wake_temporal(unet: nn.Module) -> None:
    """Set the weight of temporal layers that are still the identity to 1; see the module above."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("temporal_weight"):
                parameter.fill_(1.0)


def _make_referencenet(sizes: NetworkSizes) -> ReferenceNet2D:
    own = {
        "sample_size": sizes.latent_size,
        "layer_norm_eps": LAYER_NORM_EPS,
        "need_self_attn_block_embs": sizes.reference_self_attention,
    }
    return ReferenceNet2D.from_config(_common(sizes, kind="2D") | own)


def _make_controlnet(sizes: NetworkSizes) -> ControlNet:
    common = _common(sizes, kind="2D")
    del common["up_block_types"]
    net = ControlNet(**common, conditioning_embedding_out_channels=sizes.control_widths)
    # Its outputs start at zero, so it adds nothing at first whatever it reads. With the embedding
    # at zero as well no gradient reaches the control frames: the mini had learnt nothing after 500
    # steps, and learns from step 150 on with this.
    nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.05)
    return net


def _make_text_encoder(sizes: NetworkSizes, vocab_size: int) -> CLIPTextModel:
    width = sizes.token_width
    is_mini = sizes.text_layers < 12
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=(3 if is_mini else 4) * width,
            projection_dim=width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=32 if is_mini else 77,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )


def _make_image_encoder(sizes: NetworkSizes) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=(2 if sizes.vision_layers < 12 else 4) * sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            image_size=sizes.vision_size_px,
            patch_size=sizes.vision_patch,
            projection_dim=sizes.image_embedding,
        )
    )


def networks_of(bundle: ModelBundle) -> Networks:
    """All networks of a bundle but the VAE; the ControlNet of :data:`CONTROL` is ``controlnet``."""
    found = {name: net for name, net in bundle.networks.items() if name != "vae"}
    if CONTROL in bundle.controlnets:
        found["controlnet"] = found.pop(controlnet_part(CONTROL))
    return Networks(found)


def bundle_of(
    networks: Networks, *, vae: AutoencoderKL, tokenizer: CLIPTokenizer, schedule: ScheduleConfig
) -> ModelBundle:
    """Join trained networks with the VAE and tokenizer they were trained with.

    Args:
        networks: ``unet`` and ``text_encoder`` at least; an image encoder only with its projection.
            Others than those of a stage are kept: see :func:`networks_of`.
        vae: Trained before.
        tokenizer: Of the text encoder.
        schedule: The diffusion they learnt.

    Returns:
        The bundle; it shares the networks.
    """
    controlnets = {
        name.removeprefix(CONTROLNETS): net
        for name, net in networks.items()
        if name.startswith(CONTROLNETS)
    }
    if "controlnet" in networks:
        controlnets[CONTROL] = networks["controlnet"]
    names = ("unet", "text_encoder", "referencenet", "image_encoder", "image_projection")
    return ModelBundle(
        vae=vae,
        tokenizer=tokenizer,
        schedule=schedule,
        controlnets=controlnets,
        **{name: networks[name] for name in names if name in networks},
    )
