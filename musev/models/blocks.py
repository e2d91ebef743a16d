"""Residual, down, middle and up blocks, and the embeddings of numbers that feed them.

Axes here: B clip, T frame, C channel, H W latent rows and columns, D embedding width, R clip and
frame folded into one axis (clip-major).

A layer of a block is up to five parts in a row: residual, temporal convolution, spatial
transformer, temporal transformer, reference fuse attention. Parts a network does not have are empty
lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from musev.errors import ConfigError
from musev.models.attachments import UNetConditioning
from musev.models.attention import ReferenceFuse, SpatialTransformer, to_maps
from musev.models.temporal import TemporalConv, TemporalTransformer

BLOCK_TYPES = ("CrossAttnDownBlock", "DownBlock", "CrossAttnUpBlock", "UpBlock")


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """What all blocks of one network have in common."""

    time_channels: int
    text_channels: int
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    layer_norm_eps: float = 0.0
    """Epsilon of norm1 and norm3 of every transformer block (MODELS.md 0)."""
    skip_time_act: bool = False
    """Whether the time embedding has passed SiLU before it reaches the residual layers."""
    downsample_padding: int = 1
    temporal: bool = True
    reference_fuse: bool = False
    image_prompt: bool = False
    face_prompt: bool = False
    spatial_position_emb: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the blocks are told in one call of the network."""

    conditioning: UNetConditioning
    num_frames: int
    time_RD: Tensor
    """Time embedding of every frame."""
    frames_BTD: Tensor | None = None
    """Embedding of the frame numbers; None: temporal layers return their input."""
    condition_index: Tensor | None = None
    record: dict[str, Tensor] | None = None
    """If given: filled with spatial transformer name -> input of its self attention, ``_RCHW``."""


def sinusoid(positions: Tensor, num_channels: int) -> Tensor:
    """Embed numbers as cosines, then sines, of ``num_channels / 2`` falling frequencies.

    Args:
        positions: Numbers of any shape; any dtype.
        num_channels: Width of the embedding; even.

    Returns:
        float32 ``positions.shape + (num_channels,)``: large positions need that precision.
    """
    half = num_channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device)
    frequencies = torch.exp(-math.log(10000) * exponents / half)
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class NumberEmbedding(nn.Module):
    """Two linear layers that turn a sinusoid into the embedding of a timestep or frame number."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, sinusoid_D: Tensor) -> Tensor:
        """Embed along the last axis."""
        return self.linear_2(F.silu(self.linear_1(sinusoid_D)))


class ResidualLayer(nn.Module):
    """Two 3x3 convolutions with the time embedding added in between.

    Source:
        MODELS.md 0 (ResnetBlock2D of Stable Diffusion).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        settings: BlockSettings,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        groups, eps = settings.norm_num_groups, settings.norm_eps
        self.skip_time_act = settings.skip_time_act
        self.output_scale = output_scale
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(settings.time_channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = None
        if in_channels != channels:
            self.conv_shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_RCHW: Tensor, time_RD: Tensor) -> Tensor:
        """Transform each frame; the channels may change."""
        time_RD = time_RD if self.skip_time_act else F.silu(time_RD)
        y_RCHW = self.conv1(F.silu(self.norm1(x_RCHW)))
        y_RCHW = y_RCHW + self.time_emb_proj(time_RD)[:, :, None, None]
        y_RCHW = self.conv2(F.silu(self.norm2(y_RCHW)))
        if self.conv_shortcut is not None:
            x_RCHW = self.conv_shortcut(x_RCHW)
        return (x_RCHW + y_RCHW) / self.output_scale if self.output_scale != 1 else x_RCHW + y_RCHW


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2."""

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x_RCHW: Tensor) -> Tensor:
        """Halve height and width, rounding up."""
        return self.conv(x_RCHW)


class Upsample(nn.Module):
    """Nearest-neighbour resize to the size of the next skip connection, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_RCHW: Tensor, size: torch.Size) -> Tensor:
        """Resize to ``size`` (height, width)."""
        return self.conv(F.interpolate(x_RCHW, size=size, mode="nearest"))


class Block(nn.Module):
    """A row of layers at one resolution; the common part of down, middle and up blocks.

    Args:
        widths: Input and output channels of each residual layer.
        settings: What the network's blocks have in common.
        num_heads: Attention heads.
        transformers: Whether the layers have transformers.
        output_scale: Divisor of every residual layer's output.
    """

    def __init__(
        self,
        widths: list[tuple[int, int]],
        *,
        settings: BlockSettings,
        num_heads: int,
        transformers: bool,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(
            ResidualLayer(width_in, width, settings=settings, output_scale=output_scale)
            for width_in, width in widths
        )
        channels = [width for _, width in widths]
        self.temp_convs = nn.ModuleList(
            TemporalConv(width) for width in channels if settings.temporal
        )
        self.attentions = nn.ModuleList()
        self.temp_attentions = nn.ModuleList()
        if transformers:
            for width in channels[: self.num_attentions(len(channels))]:
                self.attentions.append(make_spatial(width, num_heads, settings))
                if settings.temporal:
                    self.temp_attentions.append(
                        make_temporal(width, num_heads, settings, settings.norm_num_groups)
                    )

    @staticmethod
    def num_attentions(num_layers: int) -> int:
        """How many of the layers have transformers."""
        return num_layers

    def run_layer(self, index: int, x_RCHW: Tensor, step: Step) -> Tensor:
        """Run one layer; with gradient checkpointing its activations are computed twice."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run_layer, index, x_RCHW, step, use_reentrant=False)
        return self._run_layer(index, x_RCHW, step)

    def _run_layer(self, index: int, x_RCHW: Tensor, step: Step) -> Tensor:
        x_RCHW = self.resnets[index](x_RCHW, step.time_RD)
        if index < len(self.temp_convs) and step.frames_BTD is not None:
            x_RCHW = self.temp_convs[index](x_RCHW, num_frames=step.num_frames)
        if index < len(self.attentions):
            x_RCHW = attend_within_frames(self.attentions[index], x_RCHW, step)
        if index < len(self.temp_attentions) and step.frames_BTD is not None:
            x_RCHW = self.temp_attentions[index](x_RCHW, step.frames_BTD)
        return x_RCHW


class DownBlock(Block):
    """Layers, then a downsampler; everything it produces becomes a skip connection."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        num_layers: int,
        settings: BlockSettings,
        num_heads: int,
        transformers: bool,
        downsample: bool,
    ) -> None:
        widths = [(in_channels, channels)] + [(channels, channels)] * (num_layers - 1)
        super().__init__(widths, settings=settings, num_heads=num_heads, transformers=transformers)
        self.downsamplers = nn.ModuleList()
        if downsample:
            self.downsamplers.append(Downsample(channels, padding=settings.downsample_padding))
        self.refer_emb_attns = nn.ModuleList()
        if settings.reference_fuse:
            for _ in range(num_layers + len(self.downsamplers)):
                self.refer_emb_attns.append(ReferenceFuse(channels, num_heads=num_heads))

    def forward(self, x_RCHW: Tensor, step: Step) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the block's output and its skip connections, first to last."""
        skips = []
        for index in range(len(self.resnets)):
            x_RCHW = self.run_layer(index, x_RCHW, step)
            x_RCHW = self._fuse(index, x_RCHW, step)
            skips.append(x_RCHW)
        for downsample in self.downsamplers:
            x_RCHW = downsample(x_RCHW)
            x_RCHW = self._fuse(len(self.resnets), x_RCHW, step)
            skips.append(x_RCHW)
        return x_RCHW, tuple(skips)

    def _fuse(self, index: int, x_RCHW: Tensor, step: Step) -> Tensor:
        if not self.refer_emb_attns:
            return x_RCHW
        fuse = self.refer_emb_attns[index]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(fuse_reference, fuse, x_RCHW, step, use_reentrant=False)
        return fuse_reference(fuse, x_RCHW, step)


class MidBlock(Block):
    """Two layers at the lowest resolution, the second without transformers."""

    def __init__(
        self, channels: int, *, settings: BlockSettings, num_heads: int, output_scale: float
    ) -> None:
        super().__init__(
            [(channels, channels)] * 2,
            settings=settings,
            num_heads=num_heads,
            transformers=True,
            output_scale=output_scale,
        )

    @staticmethod
    def num_attentions(num_layers: int) -> int:
        """All layers but the last."""
        return num_layers - 1

    def forward(self, x_RCHW: Tensor, step: Step) -> Tensor:
        """Transform each frame; same shape."""
        for index in range(len(self.resnets)):
            x_RCHW = self.run_layer(index, x_RCHW, step)
        return x_RCHW


class UpBlock(Block):
    """Layers that each take in a skip connection, then an upsampler.

    Args:
        in_channels: Channels of the block below.
        channels: Output channels.
        skip_channels: Channels of the skip connections, in the order in which they are used.
        settings: What the network's blocks have in common.
        num_heads: Attention heads.
        transformers: Whether the layers have transformers.
        upsample: Whether the block ends in an upsampler.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        skip_channels: list[int],
        settings: BlockSettings,
        num_heads: int,
        transformers: bool,
        upsample: bool,
    ) -> None:
        inputs = [in_channels] + [channels] * (len(skip_channels) - 1)
        widths = [(x + skip, channels) for x, skip in zip(inputs, skip_channels, strict=True)]
        super().__init__(widths, settings=settings, num_heads=num_heads, transformers=transformers)
        self.upsamplers = nn.ModuleList([Upsample(channels)] if upsample else [])

    def forward(self, x_RCHW: Tensor, skips: list[Tensor], step: Step) -> Tensor:
        """Use up the last skip connections of ``skips`` (they are removed) and go up a level."""
        for index in range(len(self.resnets)):
            x_RCHW = self.run_layer(index, torch.cat([x_RCHW, skips.pop()], dim=1), step)
        for upsample in self.upsamplers:
            x_RCHW = upsample(x_RCHW, skips[-1].shape[-2:])
        return x_RCHW


def make_down_blocks(
    types: Sequence[str],
    channels: Sequence[int],
    num_layers: int,
    heads: Sequence[int],
    settings: BlockSettings,
) -> nn.ModuleList:
    """Build the way down; every block but the last ends in a downsampler."""
    return nn.ModuleList(
        DownBlock(
            channels[max(level - 1, 0)],
            channels[level],
            num_layers=num_layers,
            settings=settings,
            num_heads=heads[level],
            transformers=has_transformers(kind),
            downsample=level < len(channels) - 1,
        )
        for level, kind in enumerate(types)
    )


def make_up_blocks(
    types: Sequence[str],
    channels: Sequence[int],
    num_layers: int,
    heads: Sequence[int],
    settings: BlockSettings,
) -> nn.ModuleList:
    """Build the way up; every block takes in one skip connection a layer, last made first used."""
    made = [channels[0]]  # channels of the skip connections in the order in which they are made
    for level, width in enumerate(channels):
        made += [width] * (num_layers + (level < len(channels) - 1))
    blocks = nn.ModuleList()
    below = channels[-1]
    for index, kind in enumerate(types):
        level = len(channels) - 1 - index
        used = [made.pop() for _ in range(num_layers + 1)]
        blocks.append(
            UpBlock(
                below,
                channels[level],
                skip_channels=used,
                settings=settings,
                num_heads=heads[level],
                transformers=has_transformers(kind),
                upsample=level > 0,
            )
        )
        below = channels[level]
    return blocks


def has_transformers(block_type: str) -> bool:
    """Whether a block of this type has transformers; 2D and 3D names mean the same here.

    Args:
        block_type: A block type of the config, for example ``CrossAttnDownBlock2D``.

    Returns:
        True for the cross-attention blocks.

    Raises:
        ConfigError: If the type is unknown.
    """
    kind = block_type.removesuffix("2D").removesuffix("3D")
    if kind not in BLOCK_TYPES:
        raise ConfigError(
            f"unknown block type {block_type!r}; known, each with 2D or 3D behind: "
            f"{', '.join(BLOCK_TYPES)}"
        )
    return kind.startswith("CrossAttn")


def spread(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Repeat a number for every level, or take the list of one number a level."""
    return (value,) * count if isinstance(value, int) else tuple(value)


def make_spatial(channels: int, num_heads: int, settings: BlockSettings) -> SpatialTransformer:
    """Build a spatial transformer of a network."""
    return SpatialTransformer(
        channels,
        num_heads=num_heads,
        text_channels=settings.text_channels,
        norm_num_groups=settings.norm_num_groups,
        image_prompt=settings.image_prompt,
        face_prompt=settings.face_prompt,
        layer_norm_eps=settings.layer_norm_eps,
    )


def make_temporal(
    channels: int, num_heads: int, settings: BlockSettings, norm_num_groups: int
) -> TemporalTransformer:
    """Build a temporal transformer of a network."""
    return TemporalTransformer(
        channels,
        num_heads=num_heads,
        frame_channels=settings.time_channels,
        norm_num_groups=norm_num_groups,
        spatial_position_emb=settings.spatial_position_emb,
        layer_norm_eps=settings.layer_norm_eps,
    )


def attend_within_frames(transformer: SpatialTransformer, x_RCHW: Tensor, step: Step) -> Tensor:
    """Run a spatial transformer with its own part of the conditioning."""

    def keep(normed_RPC: Tensor) -> None:
        if step.record is not None:
            step.record[transformer.layer_name] = to_maps(normed_RPC, x_RCHW.shape)

    return transformer(
        x_RCHW,
        step.conditioning.layers[transformer.layer_name],
        num_frames=step.num_frames,
        condition_index=step.condition_index,
        observe=keep,
    )


def fuse_reference(fuse: ReferenceFuse, x_RCHW: Tensor, step: Step) -> Tensor:
    """Fuse reference features if there are any for this place."""
    reference = step.conditioning.references.get(fuse.layer_name)
    if reference is None:
        return x_RCHW
    return fuse(x_RCHW, reference, num_frames=step.num_frames)
