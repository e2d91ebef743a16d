"""Small untrained networks of the whole architecture, from a seed: for tests and the demo.

Every parameter is drawn from its own name, so that neither the order of construction nor a new
layer changes the others. Nothing is downloaded and nothing is read from disk.

Pure chance would draw saturated noise. So that a person can see what the system does with frames,
two networks are bent afterwards: the VAE carries blurred colours through, and the U-Net, which
estimates clean latents, listens little to the noise in its skip connections. The result is soft
coloured shapes behind a blurred condition image.
"""

from __future__ import annotations

import math
import zlib
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from musev.config import ScheduleConfig
from musev.models.bundle import ModelBundle
from musev.models.control import ControlNet
from musev.models.image_prompt import ImageProjection
from musev.models.reference import ReferenceNet2D
from musev.models.unet import UNet3DConditionModel, released_config
from musev.weight_parts import TINY_CONTROLNETS

TOKEN_WIDTH = 32
EMBEDDING_WIDTH = 32
LEVELS = (32, 64, 64)
HEADS = 4
VAE_LEVELS = (16, 16, 32, 32)
CONTROL_LEVELS = (8, 8, 16, 16)
VAE_GROUPS = 8

# Chosen by eye.
NUM_COLOURS = 3
SKIP_SHARE = 0.1
TEXTURE = 0.05
CONTRAST = 0.3

_EDGE = torch.tensor([1.0, 2.0, 1.0]) / 4
_BLUR = _EDGE[:, None] * _EDGE
_HALVE = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4
_CENTRE = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

NetT = TypeVar("NetT", bound=nn.Module)


def make_tiny_bundle(seed: int, *, layer_norm_eps: float = 0.0) -> ModelBundle:
    """Build all networks at a small size with random weights.

    Args:
        seed: Decides every weight; recorded in ``digest_weights``.
        layer_norm_eps: As ``WeightsConfig.layer_norm_eps``.

    Returns:
        A bundle of a few megabytes on the CPU, float32, in evaluation mode.
    """
    tokenizer = make_byte_tokenizer()
    sizes = {
        "block_out_channels": LEVELS,
        "layers_per_block": 1,
        "attention_head_dim": HEADS,
        "cross_attention_dim": TOKEN_WIDTH,
        "sample_size": 16,
        "layer_norm_eps": layer_norm_eps,
    }
    unet = UNet3DConditionModel.from_config(
        released_config("musev_referencenet")
        | sizes
        | {
            "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        }
    )
    referencenet = ReferenceNet2D.from_config(
        sizes
        | {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        }
    )
    projection = ImageProjection(
        cross_attention_dim=TOKEN_WIDTH, clip_embeddings_dim=EMBEDDING_WIDTH
    )
    return ModelBundle(
        unet=_soften_unet(randomize(unet, seed=seed, prefix="unet")),
        vae=_carry_colours(randomize(_make_vae(), seed=seed, prefix="vae")),
        tokenizer=tokenizer,
        text_encoder=randomize(_make_text_encoder(tokenizer), seed=seed, prefix="text_encoder"),
        referencenet=randomize(referencenet, seed=seed, prefix="referencenet"),
        image_encoder=randomize(_make_image_encoder(), seed=seed, prefix="image_encoder"),
        image_projection=randomize(projection, seed=seed, prefix="image_projection"),
        controlnets={
            name: randomize(_make_controlnet(), seed=seed, prefix=f"controlnets/{name}")
            for name in TINY_CONTROLNETS
        },
        schedule=ScheduleConfig(prediction_type="sample"),
    )


def make_byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with one token a byte, at a word's end or within, and no merges."""
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    vocab = {word: number for number, word in enumerate([*words, "<|startoftext|>"])}
    vocab["<|endoftext|>"] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TOKEN_WIDTH,
            intermediate_size=2 * TOKEN_WIDTH,
            projection_dim=TOKEN_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _make_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            image_size=224,
            patch_size=32,
            projection_dim=EMBEDDING_WIDTH,
        )
    )


def _make_controlnet() -> ControlNet:
    return ControlNet(
        block_out_channels=LEVELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        attention_head_dim=HEADS,
        cross_attention_dim=TOKEN_WIDTH,
        conditioning_embedding_out_channels=CONTROL_LEVELS,
    )


def _make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=VAE_LEVELS,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_LEVELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_LEVELS),
        layers_per_block=1,
        norm_num_groups=VAE_GROUPS,
        latent_channels=4,
        sample_size=128,
    )


@torch.no_grad()
def _soften_unet(unet: UNet3DConditionModel) -> UNet3DConditionModel:
    """Turn down the skip connections, which carry the noise of single latents."""
    below = LEVELS[-1]
    for width, block in zip(reversed(LEVELS), unet.up_blocks, strict=True):
        for resnet in block.resnets:
            for conv in (resnet.conv1, resnet.conv_shortcut):
                conv.weight[:, below:] *= SKIP_SHARE
            below = width
    return unet


@torch.no_grad()
def _carry_colours(vae: AutoencoderKL) -> AutoencoderKL:
    """Let the VAE's main path carry blurred red, green and blue, each beside its negative.

    Beside its negative, because ``silu(x) - silu(-x) = x``: so they pass the last activation. The
    last group norm sets the contrast, whatever the latents' size. The residual branches stay
    random and add a little texture.
    """
    pairs = torch.zeros(2 * NUM_COLOURS, NUM_COLOURS)
    for colour in range(NUM_COLOURS):
        pairs[2 * colour : 2 * colour + 2, colour] = torch.tensor([1.0, -1.0])
    luma = torch.full((1, NUM_COLOURS), 1 / NUM_COLOURS)
    to_latents = torch.cat([torch.eye(NUM_COLOURS), luma]) / (2 * vae.config.scaling_factor)
    to_colours = torch.eye(NUM_COLOURS, NUM_COLOURS + 1) * 2 * vae.config.scaling_factor

    for name, parameter in vae.named_parameters():
        if name.endswith(("conv2.weight", "to_out.0.weight")):
            parameter *= TEXTURE
        elif name.endswith("samplers.0.conv.weight"):
            blur = _HALVE if "downsamplers" in name else _BLUR
            _set_conv(parameter, torch.eye(len(parameter)), blur)
        elif name.endswith(("conv_shortcut.weight", "quant_conv.weight")):
            _set_conv(parameter, torch.eye(*parameter.shape[:2]), torch.ones(1, 1))
    _set_conv(vae.encoder.conv_in.weight, pairs, _BLUR)
    _set_conv(vae.encoder.conv_out.weight, to_latents @ pairs.T, _CENTRE)
    _set_conv(vae.decoder.conv_in.weight, pairs @ to_colours, _BLUR)
    _set_conv(vae.decoder.conv_out.weight, CONTRAST * pairs.T, _BLUR)
    for conv in (vae.encoder.conv_in, vae.encoder.conv_out, vae.quant_conv, vae.post_quant_conv):
        conv.bias.zero_()
    return vae


def _set_conv(weight: Tensor, mix: Tensor, kernel: Tensor) -> None:
    """Mix channels by ``mix`` and space by ``kernel``; channels beyond ``mix`` get zeros."""
    weight.zero_()
    weight[: mix.shape[0], : mix.shape[1]] = mix[:, :, None, None] * kernel


def randomize(net: NetT, *, seed: int, prefix: str) -> NetT:
    """Draw every parameter of a network from seed and name, and freeze it.

    Args:
        net: Any network.
        seed: Of the bundle.
        prefix: Name of the part, so that equal names in two parts differ.

    Returns:
        The same network in evaluation mode, without gradients.

    Source:
        FULLSIZE.md, rule fullsize-1, with the seed and the part before the name.
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(_draw(f"{seed}:{prefix}.", name, tuple(parameter.shape)))
    return net.eval().requires_grad_(False)


def _draw(prefix: str, name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32((prefix + name).encode()))
    normal = torch.randn(shape, generator=generator)
    leaf = name.rpartition(".")[2]
    if leaf == "temporal_weight":
        return 0.5 + 0.1 * normal
    if len(shape) >= 2:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        # Inputs of the fuse attention are not normalized: keep its softmax from saturating.
        queries = "refer_emb_attns" in name and (".to_q." in name or ".to_k." in name)
        return normal * (scale / 8 if queries else scale)
    return 1 + 0.1 * normal if leaf == "weight" else 0.1 * normal
