"""Self and cross attention within a frame, and the points where attachments enter.

Axes here: B clip, T frame, C channel, H W latent rows and columns, P pixel token (H*W, row-major),
L any key token, D embedding width, R clip and frame folded into one axis (clip-major).

Keys and values that all frames of a clip share are never copied per frame where only they are
attended to: the frames are folded into the query length instead (:func:`attend`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musev.errors import ConfigError
from musev.models.attachments import KeyValue, LayerConditioning, ScaledKeyValue


def attend(query_RPC: Tensor, key_value: KeyValue, *, num_heads: int) -> Tensor:
    """Softmax attention with shared or own keys.

    Args:
        query_RPC: Projected queries.
        key_value: Projected keys and values; their first axis divides R, and each entry serves
            that many consecutive rows (R: every frame its own; B: shared by a clip's frames).
        num_heads: Heads; the scale is ``head_width ** -0.5``.

    Returns:
        Mixed values of the shape of ``query_RPC``.
    """
    rows = key_value.key_BLC.shape[0]
    query, key, value = (
        x.reshape(rows, -1, num_heads, x.shape[-1] // num_heads).transpose(1, 2)
        for x in (query_RPC, *key_value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(query_RPC.shape)


class Attention(nn.Module):
    """Multi-head attention: projections without bias in, with bias out.

    Args:
        channels: Width of queries and result.
        num_heads: Heads.
        context_channels: Width of what keys and values are made from; None: ``channels``.

    Raises:
        ConfigError: If the heads do not divide the channels.
    """

    def __init__(
        self, channels: int, *, num_heads: int, context_channels: int | None = None
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ConfigError(f"{num_heads} attention heads do not divide {channels} channels")
        context_channels = channels if context_channels is None else context_channels
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def key_value(self, tokens_RLD: Tensor) -> KeyValue:
        """Project tokens to keys and values."""
        return KeyValue(self.to_k(tokens_RLD), self.to_v(tokens_RLD))

    def forward(self, x_RPC: Tensor, key_value: KeyValue) -> Tensor:
        """Attend from ``x_RPC`` to projected keys and values."""
        mixed_RPC = attend(self.to_q(x_RPC), key_value, num_heads=self.num_heads)
        return self.to_out[0](mixed_RPC)


class SelfAttention(Attention):
    """Self attention of a frame that also sees the conditioning frames and reference features.

    The keys of a frame are its own, then those of all conditioning frames of its clip, then the
    reference features'. The conditioning frames' keys are gathered from their own projection, so
    nothing is projected twice.

    Source:
        MODELS.md 1.5; upstream musev/models/attention_processor.py, NonParamReferenceIP...
    """

    def forward(
        self,
        x_RPC: Tensor,
        *,
        num_frames: int,
        condition_index: Tensor | None = None,
        reference: KeyValue | None = None,
    ) -> Tensor:
        """Attend within each frame and to what is attached.

        Args:
            x_RPC: Normalised features.
            num_frames: Frames in a clip.
            condition_index: Conditioning frames, ``[n]`` or ``[B, n]``; without effect for a
                single frame.
            reference: Projected reference features, shared by the frames of a clip.

        Returns:
            Features of the shape of ``x_RPC``.
        """
        key_value = self.key_value(x_RPC)
        shared = []
        if condition_index is not None and num_frames > 1:
            shared.append(KeyValue(*(_gather(x, condition_index, num_frames) for x in key_value)))
        if reference is not None:
            shared.append(reference)
        if shared:
            key_value = append_shared(key_value, *shared, num_frames=num_frames)
        return super().forward(x_RPC, key_value)


class CrossAttention(Attention):
    """Attention to the text and, each with its own softmax, to image and face tokens.

    Source:
        MODELS.md 1.6; upstream musev/models/attention_processor.py, T2IReferencenetIPAdapter...
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        context_channels: int,
        image_prompt: bool = False,
        face_prompt: bool = False,
    ) -> None:
        super().__init__(channels, num_heads=num_heads, context_channels=context_channels)
        if image_prompt:
            self.to_k_ip = nn.Linear(context_channels, channels, bias=False)
            self.to_v_ip = nn.Linear(context_channels, channels, bias=False)
        if face_prompt:
            self.ip_adapter_face_to_k_ip = nn.Linear(context_channels, channels, bias=False)
            self.ip_adapter_face_to_v_ip = nn.Linear(context_channels, channels, bias=False)

    def image_key_value(self, tokens_BLD: Tensor) -> KeyValue:
        """Project image tokens with the image branch's own weights."""
        return KeyValue(self.to_k_ip(tokens_BLD), self.to_v_ip(tokens_BLD))

    def face_key_value(self, tokens_BLD: Tensor) -> KeyValue:
        """Project face tokens with the face branch's own weights."""
        return KeyValue(
            self.ip_adapter_face_to_k_ip(tokens_BLD), self.ip_adapter_face_to_v_ip(tokens_BLD)
        )

    def forward(
        self, x_RPC: Tensor, text: KeyValue, extra: tuple[ScaledKeyValue, ...] = ()
    ) -> Tensor:
        """Attend to the text and add the scaled extra branches."""
        query_RPC = self.to_q(x_RPC)
        mixed_RPC = attend(query_RPC, text, num_heads=self.num_heads)
        for key_value, scale in extra:
            branch_RPC = attend(query_RPC, key_value, num_heads=self.num_heads)
            mixed_RPC = torch.add(mixed_RPC, branch_RPC, alpha=scale)
        return self.to_out[0](mixed_RPC)


class ReferenceFuse(Attention):
    """Attention of each frame to the reference features and itself, added to the frame.

    No norm before it, and the features may have any spatial size. Starts as the identity.

    Source:
        MODELS.md 1.7; upstream musev/models/attention.py, ReferEmbFuseAttention.
    """

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__(channels, num_heads=num_heads)
        self.layer_name = ""
        for tensor in self.to_out.parameters():
            nn.init.zeros_(tensor)

    def forward(self, x_RCHW: Tensor, reference: KeyValue, *, num_frames: int) -> Tensor:
        """Fuse projected reference features into every frame; same shape."""
        x_RPC = to_tokens(x_RCHW)
        own = self.key_value(x_RPC)
        key_value = append_shared(own, reference, num_frames=num_frames)
        return x_RCHW + to_maps(super().forward(x_RPC, key_value), x_RCHW.shape)


class GatedLinear(nn.Module):
    """A linear layer gated by the exact GELU of its second half."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis and gate it."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated linear layer to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis; same shape."""
        return self.net[2](self.net[0](x))


class SpatialBlock(nn.Module):
    """Self attention, cross attention and feed forward within a frame, each after its layer norm.

    Args:
        channels: Width.
        num_heads: Attention heads.
        text_channels: Width of text, image and face tokens.
        image_prompt: Whether there are weights for image tokens.
        face_prompt: Whether there are weights for face tokens.
        layer_norm_eps: Epsilon of norm1 and norm3; norm2 has 1e-5. The original computes with 0, an
            accident of argument order (MODELS.md 0); 1e-5 is what its weights were most likely
            trained with. With 0 a token whose channels are all equal becomes NaN, as upstream.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        text_channels: int,
        image_prompt: bool = False,
        face_prompt: bool = False,
        layer_norm_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=layer_norm_eps)
        self.attn1 = SelfAttention(channels, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-5)
        self.attn2 = CrossAttention(
            channels,
            num_heads=num_heads,
            context_channels=text_channels,
            image_prompt=image_prompt,
            face_prompt=face_prompt,
        )
        self.norm3 = nn.LayerNorm(channels, eps=layer_norm_eps)
        self.ff = FeedForward(channels)

    def prepare(
        self,
        text_BLD: Tensor,
        *,
        image: tuple[Tensor, float] | None = None,
        face: tuple[Tensor, float] | None = None,
        reference_BCTHW: Tensor | None = None,
    ) -> LayerConditioning:
        """Project everything this block reads that does not depend on step or window.

        Args:
            text_BLD: Text embeddings, one row a clip or one a frame.
            image: Image tokens and scale; dropped where the scale is <= 0.
            face: Face tokens and scale; dropped where the scale is <= 0.
            reference_BCTHW: Layer-normed features of the reference network.

        Returns:
            Keys and values for :meth:`forward`.
        """
        extra = []
        if image is not None and image[1] > 0:
            extra.append(ScaledKeyValue(self.attn2.image_key_value(image[0]), image[1]))
        if face is not None and face[1] > 0:
            extra.append(ScaledKeyValue(self.attn2.face_key_value(face[0]), face[1]))
        reference = None
        if reference_BCTHW is not None:
            reference = self.attn1.key_value(reference_tokens(reference_BCTHW))
        return LayerConditioning(self.attn2.key_value(text_BLD), tuple(extra), reference)

    def forward(
        self,
        x_RPC: Tensor,
        layer: LayerConditioning,
        *,
        num_frames: int,
        condition_index: Tensor | None = None,
        observe: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Transform the tokens of each frame; ``observe`` is shown the input of self attention."""
        normed_RPC = self.norm1(x_RPC)
        if observe is not None:
            observe(normed_RPC)
        x_RPC = x_RPC + self.attn1(
            normed_RPC,
            num_frames=num_frames,
            condition_index=condition_index,
            reference=layer.reference,
        )
        x_RPC = x_RPC + self.attn2(self.norm2(x_RPC), layer.text, layer.extra)
        return x_RPC + self.ff(self.norm3(x_RPC))


class SpatialTransformer(nn.Module):
    """A :class:`SpatialBlock` between 1x1 convolutions, added to its input.

    ``layer_name`` is the module's name in its network; the network sets it, and conditioning is
    looked up by it.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        text_channels: int,
        norm_num_groups: int = 32,
        image_prompt: bool = False,
        face_prompt: bool = False,
        layer_norm_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.layer_name = ""
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        block = SpatialBlock(
            channels,
            num_heads=num_heads,
            text_channels=text_channels,
            image_prompt=image_prompt,
            face_prompt=face_prompt,
            layer_norm_eps=layer_norm_eps,
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    @property
    def block(self) -> SpatialBlock:
        """The only transformer block."""
        return self.transformer_blocks[0]

    def forward(
        self,
        x_RCHW: Tensor,
        layer: LayerConditioning,
        *,
        num_frames: int,
        condition_index: Tensor | None = None,
        observe: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Transform each frame; ``observe`` is shown the input of self attention, ``_RPC``."""
        y_RPC = self.block(
            to_tokens(self.proj_in(self.norm(x_RCHW))),
            layer,
            num_frames=num_frames,
            condition_index=condition_index,
            observe=observe,
        )
        return x_RCHW + self.proj_out(to_maps(y_RPC, x_RCHW.shape))


def append_shared(own: KeyValue, *shared: KeyValue, num_frames: int) -> KeyValue:
    """Join each frame's own keys and values with those its clip's frames share.

    Args:
        own: Keys and values of every frame, ``[R, P, C]``.
        *shared: Keys and values of every clip, ``[B, L, C]``.
        num_frames: Frames in a clip.

    Returns:
        Keys and values ``[R, P + all L, C]``.
    """

    def join(own_RPC: Tensor, *shared_BLC: Tensor) -> Tensor:
        own_BTPC = own_RPC.unflatten(0, (-1, num_frames))
        copies = (x[:, None].expand(-1, num_frames, -1, -1) for x in shared_BLC)
        return torch.cat([own_BTPC, *copies], dim=2).flatten(0, 1)

    return KeyValue(*(join(*tensors) for tensors in zip(own, *shared, strict=True)))


def reference_tokens(reference_BCTHW: Tensor) -> Tensor:
    """Lay out reference features as tokens of a clip, frame-major: ``[B, T*H*W, C]``."""
    return reference_BCTHW.flatten(2).transpose(1, 2)


def to_tokens(x_RCHW: Tensor) -> Tensor:
    """Lay out maps as tokens ``_RPC``."""
    return x_RCHW.flatten(2).transpose(1, 2)


def to_maps(x_RPC: Tensor, shape: torch.Size) -> Tensor:
    """Lay out tokens as maps of the given ``_RCHW`` shape."""
    return x_RPC.transpose(1, 2).reshape(shape)


def _gather(x_RPC: Tensor, index: Tensor, num_frames: int) -> Tensor:
    """Pick frames of each clip and join their tokens, frame-major: ``[B, n*P, C]``."""
    x_BTPC = x_RPC.unflatten(0, (-1, num_frames))
    if index.ndim == 1:
        return x_BTPC.index_select(1, index).flatten(1, 2)
    clips = torch.arange(x_BTPC.shape[0], device=index.device)[:, None]
    return x_BTPC[clips, index].flatten(1, 2)
