"""The reference network: an image U-Net that turns reference images into features per layer.

Axes here: B clip, T reference image, C channel, H W latent rows and columns, P pixel token (H*W),
L text or image token, D embedding width, R clip and image folded into one axis (clip-major).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from musev.errors import ConfigError, ShapeError
from musev.models.attachments import LayerConditioning, ReferenceFeatures, UNetConditioning
from musev.models.attention import SpatialTransformer, to_tokens
from musev.models.blocks import (
    BlockSettings,
    MidBlock,
    NumberEmbedding,
    Step,
    make_down_blocks,
    make_up_blocks,
    sinusoid,
    spread,
)
from musev.models.unet import name_layers, spatial_transformers

DOWN_TYPES = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP_TYPES = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")


class ReferenceNet2D(ModelMixin, ConfigMixin):
    """Stable Diffusion's U-Net without its end, run on clean latents of reference images.

    ``need_self_attn_block_embs`` adds the way up and, as third output, the layer-normed input of
    every spatial self attention; the very last spatial block is then cut after its norm1. The
    released network has it off. ``layer_norm_eps`` is ours (see
    :class:`~musev.models.unet.UNet3DConditionModel`).

    Source:
        MODELS.md 2; upstream musev/models/referencenet.py, ReferenceNet2D.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = DOWN_TYPES,
        up_block_types: Sequence[str] = UP_TYPES,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        attention_head_dim: int | Sequence[int] = 8,
        need_block_embs: bool = True,
        need_self_attn_block_embs: bool = False,
        layer_norm_eps: float = 0.0,
    ) -> None:
        super().__init__()
        _refuse_other_networks(self.config)
        channels = tuple(block_out_channels)
        heads = spread(attention_head_dim, len(channels))
        settings = BlockSettings(
            time_channels=4 * channels[0],
            text_channels=cross_attention_dim,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            layer_norm_eps=layer_norm_eps,
            downsample_padding=downsample_padding,
            temporal=False,
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = NumberEmbedding(channels[0], settings.time_channels)
        self.down_blocks = make_down_blocks(
            down_block_types, channels, layers_per_block, heads, settings
        )
        self.mid_block = MidBlock(
            channels[-1],
            settings=settings,
            num_heads=heads[-1],
            output_scale=mid_block_scale_factor,
        )
        if need_self_attn_block_embs:
            self.up_blocks = make_up_blocks(
                up_block_types, channels, layers_per_block, heads, settings
            )
            last = self.up_blocks[-1].attentions
            if len(last) > 0:
                last[-1] = SelfAttentionInput(last[-1])
        name_layers(self)

    def forward(
        self, latents_BCTHW: Tensor, tokens: Tensor, timestep: Tensor | float = 0
    ) -> ReferenceFeatures:
        """Compute the features of the reference images.

        Args:
            latents_BCTHW: Clean latents; T counts the reference images of a clip.
            tokens: Image tokens of the reference, or the text: ``_BLD``, ``_BTLD`` or
                ``_RLD``.
            timestep: One number, or one a clip or image; the released network is run at 0.

        Returns:
            Features for ``UNet3DConditionModel.prepare``, each ``_BCTHW``.

        Raises:
            ShapeError: If the tokens fit neither the clips nor the images.
        """
        batch, _, num_images = latents_BCTHW.shape[:3]
        tokens_RLD = tokens.flatten(0, 1) if tokens.ndim == 4 else tokens
        if len(tokens_RLD) not in (batch, batch * num_images):
            raise ShapeError(
                f"{len(tokens_RLD)} token rows for {batch} clips of {num_images} reference images"
            )
        step = self._make_step(latents_BCTHW, tokens_RLD, timestep)
        x_RCHW = self.conv_in(latents_BCTHW.transpose(1, 2).flatten(0, 1))
        skips = [x_RCHW]
        for down_block in self.down_blocks:
            x_RCHW, block_skips = down_block(x_RCHW, step)
            skips.extend(block_skips)
        mid_RCHW = self.mid_block(x_RCHW, step)
        if self.config.need_self_attn_block_embs:
            x_RCHW, left = mid_RCHW, list(skips)
            for up_block in self.up_blocks:
                x_RCHW = up_block(x_RCHW, left, step)

        def per_clip(x_RCHW: Tensor) -> Tensor:
            return x_RCHW.unflatten(0, (batch, num_images)).transpose(1, 2)

        own = None
        if step.record is not None:
            own = tuple(per_clip(step.record[name]) for name in sorted(step.record))
        return ReferenceFeatures(
            down=tuple(per_clip(x) for x in skips), mid=per_clip(mid_RCHW), self_attention=own
        )

    def _make_step(
        self, latents_BCTHW: Tensor, tokens_RLD: Tensor, timestep: Tensor | float
    ) -> Step:
        batch, _, num_images = latents_BCTHW.shape[:3]
        timesteps = torch.as_tensor(timestep, device=latents_BCTHW.device).reshape(-1)
        if len(timesteps) != batch * num_images:
            timesteps = timesteps.expand(batch).repeat_interleave(num_images)
        waves = sinusoid(timesteps, self.config.block_out_channels[0])
        layers = {
            name: transformer.block.prepare(tokens_RLD)
            for name, transformer in spatial_transformers(self).items()
        }
        for name, module in self.named_modules():
            if isinstance(module, SelfAttentionInput):
                layers[name] = None  # it reads nothing
        return Step(
            conditioning=UNetConditioning(batch=batch, layers=layers),
            num_frames=num_images,
            time_RD=self.time_embedding(waves.to(latents_BCTHW.dtype)),
            record={} if self.config.need_self_attn_block_embs else None,
        )


class SelfAttentionInput(nn.Module):
    """What is left of the last spatial transformer: everything up to its first layer norm.

    Args:
        transformer: The whole transformer; its parts keep their names.
    """

    def __init__(self, transformer: SpatialTransformer) -> None:
        super().__init__()
        self.layer_name = ""
        self.norm = transformer.norm
        self.proj_in = transformer.proj_in
        block = nn.Module()
        block.norm1 = transformer.block.norm1
        self.transformer_blocks = nn.ModuleList([block])

    def forward(
        self,
        x_RCHW: Tensor,
        layer: LayerConditioning | None,
        *,
        num_frames: int,
        condition_index: Tensor | None = None,
        observe: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Show ``observe`` the input of self attention; return the input unchanged."""
        normed_RPC = self.transformer_blocks[0].norm1(to_tokens(self.proj_in(self.norm(x_RCHW))))
        if observe is not None:
            observe(normed_RPC)
        return x_RCHW


def _refuse_other_networks(config: Any) -> None:
    expected = {
        "act_fn": "silu",
        "need_block_embs": True,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    for name, value in expected.items():
        if config[name] != value:
            raise ConfigError(f"{name}={config[name]!r} is not supported; it must be {value!r}")
