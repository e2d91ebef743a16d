"""Control frames (pose, depth, edges) to residuals: ControlNet, several, and the pose guider.

All are 2-D networks: every frame is computed by itself. The part that sees only the control frames
(``embed_condition``) is separate, so that it is computed once a clip and not once a step, a window
and a guidance half.
"""

# Axes here: R clip and frame folded into one axis (clip-major), B clip, T frame, C channel,
# H W latent rows and columns, Y X pixel rows and columns, L token, D embedding.
from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from diffusers import ControlNetModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from musev.errors import ConfigError, ShapeError
from musev.models.attachments import ControlResiduals


class ControlNet(ControlNetModel):
    """A diffusers ControlNet whose control frames are embedded apart from the denoising call.

    Construction, parameter names and files are those of diffusers. Attention runs in diffusers'
    blocks, through torch's scaled dot product attention.
    """

    def embed_condition(self, images_RCYX: Tensor) -> Tensor:
        """Embed control frames; the result serves every step and both guidance halves.

        Args:
            images_RCYX: Control frames, RGB, 0..1, at eight times the latent size.

        Returns:
            ``embedded_RCHW``.
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            images_RCYX = images_RCYX.flip(1)
        return self.controlnet_cond_embedding(images_RCYX)

    def forward(
        self,
        noisy_RCHW: Tensor,
        timestep: Tensor | float,
        text_RLD: Tensor,
        embedded_RCHW: Tensor,
        *,
        scale: float = 1.0,
        guess_mode: bool = False,
    ) -> ControlResiduals:
        """Compute the residuals of one step.

        Args:
            noisy_RCHW: Noisy latents.
            timestep: One timestep for all rows, or one a row.
            text_RLD: Text embeddings, one a row, or one a clip (repeated for its frames).
            embedded_RCHW: From :meth:`embed_condition`, or computed elsewhere; fewer rows than
                ``noisy_RCHW`` are repeated as a whole, once a guidance half.
            scale: Multiplies every residual.
            guess_mode: Weaken the early residuals, from a tenth of ``scale`` up to ``scale``.

        Returns:
            Residuals for the skip connections and the middle block.

        Raises:
            ConfigError: If the network is of a kind that needs more inputs (SDXL).
        """
        if self.class_embedding is not None or self.config.addition_embed_type is not None:
            raise ConfigError("this ControlNet needs class or size labels; only SD1.5 kinds work")
        num_rows = noisy_RCHW.shape[0]
        text_RLD = _repeat_rows(text_RLD, num_rows, "text", interleave=True)
        embedded_RCHW = _repeat_rows(embedded_RCHW, num_rows, "embedded control", interleave=False)
        times_R = torch.as_tensor(timestep, device=noisy_RCHW.device).reshape(-1).expand(num_rows)
        time_RD = self.time_embedding(self.time_proj(times_R).to(noisy_RCHW.dtype))

        hidden_RCHW = self.conv_in(noisy_RCHW) + embedded_RCHW
        skips = [hidden_RCHW]
        for block in self.down_blocks:
            text = {"encoder_hidden_states": text_RLD} if _attends(block) else {}
            hidden_RCHW, outputs = block(hidden_states=hidden_RCHW, temb=time_RD, **text)
            skips.extend(outputs)
        if self.mid_block is not None:
            text = {"encoder_hidden_states": text_RLD} if _attends(self.mid_block) else {}
            hidden_RCHW = self.mid_block(hidden_RCHW, time_RD, **text)

        residuals = [
            conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        ]
        residuals.append(self.controlnet_mid_block(hidden_RCHW))
        pooled = self.config.global_pool_conditions
        factors = _guess_factors(len(residuals)) if guess_mode and not pooled else 1.0
        residuals = [
            residual * (scale * factor)
            for residual, factor in zip(residuals, _each(factors, len(residuals)), strict=True)
        ]
        if pooled:
            residuals = [residual.mean(dim=(2, 3), keepdim=True) for residual in residuals]
        return ControlResiduals(down=tuple(residuals[:-1]), mid=residuals[-1])


def _attends(block: nn.Module) -> bool:
    return getattr(block, "has_cross_attention", False)


def _guess_factors(count: int) -> list[float]:
    return torch.logspace(-1, 0, count).tolist()


def _each(factors: list[float] | float, count: int) -> list[float]:
    return factors if isinstance(factors, list) else [factors] * count


def _repeat_rows(rows: Tensor, num_rows: int, what: str, *, interleave: bool) -> Tensor:
    if rows.shape[0] == num_rows:
        return rows
    times, rest = divmod(num_rows, rows.shape[0])
    if rest or not times:
        raise ShapeError(f"{what} has {rows.shape[0]} rows, which do not divide {num_rows} frames")
    if interleave:
        return rows.repeat_interleave(times, dim=0)
    return rows.repeat(times, *[1] * (rows.ndim - 1))


class MultiControlNet(nn.Module):
    """Several ControlNets whose residuals are added."""

    def __init__(self, nets: Sequence[ControlNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def embed_condition(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Embed each network's control frames; as :meth:`ControlNet.embed_condition`."""
        return [net.embed_condition(each) for net, each in zip(self.nets, images, strict=True)]

    def forward(
        self,
        noisy_RCHW: Tensor,
        timestep: Tensor | float,
        text_RLD: Tensor,
        embedded: Sequence[Tensor],
        *,
        scales: Sequence[float],
        guess_mode: bool = False,
    ) -> ControlResiduals | None:
        """Add up the residuals; a network with scale 0 is not run.

        Args:
            noisy_RCHW: Noisy latents.
            timestep: One timestep for all rows, or one a row.
            text_RLD: Text embeddings, one a row or one a clip.
            embedded: ``embedded_RCHW`` of each network.
            scales: Scale of each network.
            guess_mode: As :meth:`ControlNet.forward`.

        Returns:
            The sums, or None if all scales are 0: then there is nothing to attach.

        Raises:
            ShapeError: If there is not one embedding and one scale for each network.
        """
        if not len(self.nets) == len(embedded) == len(scales):
            raise ShapeError(
                f"{len(self.nets)} ControlNets, but {len(embedded)} control inputs and "
                f"{len(scales)} scales"
            )
        total: ControlResiduals | None = None
        for net, condition, scale in zip(self.nets, embedded, scales, strict=True):
            if scale == 0:
                continue
            found = net(
                noisy_RCHW, timestep, text_RLD, condition, scale=scale, guess_mode=guess_mode
            )
            total = found if total is None else _add(total, found)
        return total


def _add(first: ControlResiduals, second: ControlResiduals) -> ControlResiduals:
    down = tuple(a + b for a, b in zip(first.down, second.down, strict=True))
    return ControlResiduals(down=down, mid=first.mid + second.mid)


class PoseGuider(ModelMixin, ConfigMixin):
    """Pose frames to features that are added after the video network's first convolution."""

    @register_to_config
    def __init__(
        self,
        conditioning_embedding_channels: int = 320,
        conditioning_channels: int = 3,
        block_out_channels: tuple[int, ...] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(conditioning_channels, block_out_channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in itertools.pairwise(block_out_channels):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(
            block_out_channels[-1], conditioning_embedding_channels, 3, padding=1
        )
        # Untrained, the guider adds nothing.
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def embed_condition(self, images_RCYX: Tensor) -> Tensor:
        """Compute the features of single pose frames, as :meth:`ControlNet.embed_condition`."""
        return self(images_RCYX[:, :, None])[:, :, 0]

    def forward(self, poses_BCTYX: Tensor) -> Tensor:
        """Compute pose features.

        Args:
            poses_BCTYX: Pose frames, RGB, 0..1.

        Returns:
            ``features_BCTHW``, at an eighth of the size with the default widths.
        """
        hidden_RCHW = rearrange(poses_BCTYX, "b c t y x -> (b t) c y x")
        hidden_RCHW = functional.silu(self.conv_in(hidden_RCHW))
        for conv in self.blocks:
            hidden_RCHW = functional.silu(conv(hidden_RCHW))
        features_RCHW = self.conv_out(hidden_RCHW)
        return rearrange(features_RCHW, "(b t) c h w -> b c t h w", b=poses_BCTYX.shape[0])
