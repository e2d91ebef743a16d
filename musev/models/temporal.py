"""Attention and convolution along the frame axis.

Axes here: B clip, T frame, C channel, H W latent rows and columns, P pixels (H*W), L text token,
D embedding width, R clip and frame folded into one axis (clip-major).

Both layers start as the identity: the last projection is zero and ``temporal_weight`` is tiny.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musev.models.attention import Attention, FeedForward

TEMPORAL_WEIGHT_INIT = 1e-5
NUM_GROUPS = 32  # of every temporal convolution, whatever the network's own number is


class FrameConv(nn.Conv3d):
    """A convolution over three neighbouring frames of one pixel.

    The weights are those of a 3x1x1 convolution, as in the published files; it is computed in two
    dimensions, frames by pixels, which is the same sum and a fifth faster on CPUs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x_BCTP: Tensor) -> Tensor:
        """Convolve along T; same shape."""
        return F.conv2d(x_BCTP, self.weight[..., 0], self.bias, padding=(1, 0))


class TemporalConv(nn.Module):
    """Four convolutions over neighbouring frames, added to the input.

    Args:
        channels: Width; a multiple of 32.
        need_temporal_weight: Whether the update is multiplied by ``|temporal_weight|``.
        keep_content_condition: Whether conditioning frames keep their input (no released network).

    Source:
        MODELS.md 1.8; upstream musev/models/resnet.py, TemporalConvLayer.
    """

    def __init__(
        self,
        channels: int,
        *,
        need_temporal_weight: bool = True,
        keep_content_condition: bool = False,
    ) -> None:
        super().__init__()
        self.need_temporal_weight = need_temporal_weight
        self.keep_content_condition = keep_content_condition
        # The position of the convolution in each stage (2, then 3) is part of the published names.
        self.conv1 = nn.Sequential(_norm(channels), nn.SiLU(), FrameConv(channels))
        self.conv2 = nn.Sequential(_norm(channels), nn.SiLU(), nn.Identity(), FrameConv(channels))
        self.conv3 = nn.Sequential(_norm(channels), nn.SiLU(), nn.Identity(), FrameConv(channels))
        self.conv4 = nn.Sequential(_norm(channels), nn.SiLU(), nn.Identity(), FrameConv(channels))
        self.temporal_weight = nn.Parameter(torch.full((1,), TEMPORAL_WEIGHT_INIT))
        for tensor in self.conv4[-1].parameters():
            nn.init.zeros_(tensor)

    def forward(
        self, x_RCHW: Tensor, *, num_frames: int, condition_index: Tensor | None = None
    ) -> Tensor:
        """Mix each frame with its neighbours; same shape."""
        x_BCTP = x_RCHW.flatten(2).unflatten(0, (-1, num_frames)).transpose(1, 2)
        y_BCTP = self.conv4(self.conv3(self.conv2(self.conv1(x_BCTP))))
        y_RCHW = y_BCTP.transpose(1, 2).reshape(x_RCHW.shape)
        if self.need_temporal_weight:
            y_RCHW = y_RCHW * self.temporal_weight.abs()
        if self.keep_content_condition:
            y_RCHW = zero_frames(y_RCHW, condition_index, num_frames=num_frames)
        return x_RCHW + y_RCHW


class TemporalBlock(nn.Module):
    """Two attentions along the frame axis and a feed forward, each after its layer norm.

    Args:
        channels: Width.
        num_heads: Attention heads.
        text_channels: Width of the text if the second attention reads text; None: it is a second
            self attention, as in all released networks.
        layer_norm_eps: Epsilon of norm1 and norm3 (MODELS.md 0).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        text_channels: int | None = None,
        layer_norm_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=layer_norm_eps)
        self.attn1 = Attention(channels, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-5)
        self.attn2 = Attention(channels, num_heads=num_heads, context_channels=text_channels)
        self.norm3 = nn.LayerNorm(channels, eps=layer_norm_eps)
        self.ff = FeedForward(channels)

    def forward(self, x_RTC: Tensor, text_BLD: Tensor | None = None) -> Tensor:
        """Attend along the frames of each pixel; rows are the pixels, clip-major."""
        normed = self.norm1(x_RTC)
        x_RTC = x_RTC + self.attn1(normed, self.attn1.key_value(normed))
        normed = self.norm2(x_RTC)
        source = normed if text_BLD is None else text_BLD
        x_RTC = x_RTC + self.attn2(normed, self.attn2.key_value(source))
        return x_RTC + self.ff(self.norm3(x_RTC))


class TemporalTransformer(nn.Module):
    """Attention of every pixel along the frames, with the frame numbers added.

    Args:
        channels: Width.
        num_heads: Attention heads.
        frame_channels: Width of the frame embedding.
        norm_num_groups: Groups of the entry norm.
        num_layers: Transformer blocks; 1 in the released networks.
        text_channels: Width of the text if the blocks read text (no released network).
        frame_silu: Whether the frame embedding passes SiLU before its projection.
        keep_content_condition: Whether conditioning frames keep their input (no released network).
        spatial_position_emb: Whether to create the projection that some configs ask for; no result
            depends on it (MODELS.md 1.9).
        layer_norm_eps: Epsilon of norm1 and norm3 (MODELS.md 0).

    Source:
        MODELS.md 1.8; upstream musev/models/temporal_transformer.py, TransformerTemporalModel.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        frame_channels: int,
        norm_num_groups: int = 32,
        num_layers: int = 1,
        text_channels: int | None = None,
        frame_silu: bool = True,
        keep_content_condition: bool = False,
        spatial_position_emb: bool = False,
        layer_norm_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.frame_silu = frame_silu
        self.reads_text = text_channels is not None
        self.keep_content_condition = keep_content_condition
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.frame_emb_proj = nn.Linear(frame_channels, channels)
        if spatial_position_emb:
            self.spatial_position_emb_proj = nn.Linear(frame_channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TemporalBlock(
                channels,
                num_heads=num_heads,
                text_channels=text_channels,
                layer_norm_eps=layer_norm_eps,
            )
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(channels, channels)
        self.temporal_weight = nn.Parameter(torch.full((1,), TEMPORAL_WEIGHT_INIT))
        for tensor in self.proj_out.parameters():
            nn.init.zeros_(tensor)

    def forward(
        self,
        x_RCHW: Tensor,
        frames_BTD: Tensor,
        *,
        text_BLD: Tensor | None = None,
        condition_index: Tensor | None = None,
    ) -> Tensor:
        """Attend along the frames.

        Args:
            x_RCHW: Features; R is clip and frame, clip-major.
            frames_BTD: Frame embedding; B may be 1 when all clips number their frames alike.
            text_BLD: Read only by networks built with ``text_channels``.
            condition_index: Conditioning frames; read only with ``keep_content_condition``.

        Returns:
            Features of the shape of ``x_RCHW``.
        """
        num_frames = frames_BTD.shape[1]
        channels, height, width = x_RCHW.shape[1:]
        x_BCTP = x_RCHW.flatten(2).unflatten(0, (-1, num_frames)).transpose(1, 2)
        y_BPTC = self.proj_in(self.norm(x_BCTP).permute(0, 3, 2, 1))
        frames_BTD = F.silu(frames_BTD) if self.frame_silu else frames_BTD
        y_BPTC = y_BPTC + self.frame_emb_proj(frames_BTD)[:, None]
        y_RTC = y_BPTC.flatten(0, 1)
        for block in self.transformer_blocks:
            y_RTC = block(y_RTC, text_BLD if self.reads_text else None)
        y_RTC = self.proj_out(y_RTC) * self.temporal_weight.abs()
        y_BTCP = y_RTC.unflatten(0, (-1, height * width)).permute(0, 2, 3, 1)
        y_RCHW = y_BTCP.reshape(-1, channels, height, width)
        if self.keep_content_condition:
            y_RCHW = zero_frames(y_RCHW, condition_index, num_frames=num_frames)
        return x_RCHW + y_RCHW


def zero_frames(x_R: Tensor, index: Tensor | None, *, num_frames: int) -> Tensor:
    """Return a copy in which some frames of every clip are zero.

    Args:
        x_R: Any tensor whose first axis is clip and frame, clip-major.
        index: Frame numbers ``[n]``, or ``[B, n]``, of which the union is zeroed in every clip (the
            original's behaviour, MODELS.md 1.4); None: nothing is zeroed.
        num_frames: Frames in a clip.

    Returns:
        A tensor of the same shape.
    """
    if index is None:
        return x_R
    return x_R.unflatten(0, (-1, num_frames)).index_fill(1, index.flatten(), 0.0).flatten(0, 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NUM_GROUPS, channels, eps=1e-5)
