"""Reference image to extra attention tokens: the image encoder's heads and projections.

Parameter names are those of the published files (reference: MODELS.md section 4), so that they load
without renaming. Detecting faces is not done here; face embeddings come from the caller.
"""

# Axes here: B clip, T frame, L token, D embedding, N head, Y X pixel rows and columns, C channel.
from __future__ import annotations

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from musev.errors import ShapeError


class ImageProjection(ModelMixin, ConfigMixin):
    """One image embedding to a few tokens: linear, split, layer norm."""

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 1024,
        clip_embeddings_dim: int = 1024,
        clip_extra_context_tokens: int = 4,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Project; axes of length one before the last are dropped.

        Args:
            embedding_BD: Image embeddings, ``[rows, D]`` or ``[rows, 1, D]``.

        Returns:
            ``tokens_BLD``.
        """
        tokens = self.proj(embedding_BD)
        shape = (-1, self.config.clip_extra_context_tokens, self.config.cross_attention_dim)
        return self.norm(tokens.reshape(shape))


class FaceIdProjection(ModelMixin, ConfigMixin):
    """One face embedding to a few tokens: two linear layers, split, layer norm."""

    @register_to_config
    def __init__(
        self, cross_attention_dim: int = 768, id_embeddings_dim: int = 512, num_tokens: int = 4
    ) -> None:
        super().__init__()
        self.proj = _face_mlp(id_embeddings_dim, num_tokens * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, face_BD: Tensor) -> Tensor:
        """Project face embeddings to ``tokens_BLD``."""
        shape = (-1, self.config.num_tokens, self.config.cross_attention_dim)
        return self.norm(self.proj(face_BD).reshape(shape))


def _face_mlp(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_in, num_in * 2), nn.GELU(), nn.Linear(num_in * 2, num_out))


class PerceiverAttention(nn.Module):
    """Cross attention of latents to the image tokens and to themselves."""

    def __init__(self, *, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, dim_head * heads * 2, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, tokens_BLD: Tensor, latents_BLD: Tensor) -> Tensor:
        """Update for the latents, to be added to them."""
        latents = self.norm2(latents_BLD)
        source = torch.cat([self.norm1(tokens_BLD), latents], dim=1)
        key, value = self.to_kv(source).chunk(2, dim=-1)
        query, key, value = (
            rearrange(item, "b l (n d) -> b n l d", n=self.heads)
            for item in (self.to_q(latents), key, value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(rearrange(mixed, "b n l d -> b l (n d)"))


def _perceiver_layers(
    depth: int, *, dim: int, dim_head: int, heads: int, ff_mult: int
) -> nn.ModuleList:
    def feed_forward() -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim * ff_mult, bias=False),
            nn.GELU(),
            nn.Linear(dim * ff_mult, dim, bias=False),
        )

    return nn.ModuleList(
        nn.ModuleList([PerceiverAttention(dim=dim, dim_head=dim_head, heads=heads), feed_forward()])
        for _ in range(depth)
    )


def _run_perceiver(layers: nn.ModuleList, tokens_BLD: Tensor, latents_BLD: Tensor) -> Tensor:
    for attention, feed_forward in layers:  # pyright: ignore[reportGeneralTypeIssues]
        latents_BLD = latents_BLD + attention(tokens_BLD, latents_BLD)
        latents_BLD = latents_BLD + feed_forward(latents_BLD)
    return latents_BLD


class Resampler(ModelMixin, ConfigMixin):
    """Image tokens to a fixed number of tokens, through learned queries (IP-Adapter Plus).

    Source:
        IP-Adapter, arXiv 2308.06721, the "plus" variant; Flamingo's perceiver, arXiv 2204.14198.
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 1024,
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 8,
        embedding_dim: int = 768,
        output_dim: int = 1024,
        ff_mult: int = 4,
        max_seq_len: int = 257,
        apply_pos_emb: bool = False,
        num_latents_mean_pooled: int = 0,
    ) -> None:
        super().__init__()
        self.pos_emb = nn.Embedding(max_seq_len, embedding_dim) if apply_pos_emb else None
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.to_latents_from_mean_pooled_seq = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * num_latents_mean_pooled))
            if num_latents_mean_pooled
            else None
        )
        self.layers = _perceiver_layers(
            depth, dim=dim, dim_head=dim_head, heads=heads, ff_mult=ff_mult
        )

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Resample image tokens; with mean-pooled latents those come first in the result."""
        if self.pos_emb is not None:
            tokens_BLD = tokens_BLD + self.pos_emb.weight[: tokens_BLD.shape[1]]
        latents_BLD = self.latents.expand(tokens_BLD.shape[0], -1, -1)
        tokens_BLD = self.proj_in(tokens_BLD)
        if self.to_latents_from_mean_pooled_seq is not None:
            pooled = self.to_latents_from_mean_pooled_seq(tokens_BLD.mean(dim=1))
            pooled = rearrange(pooled, "b (l d) -> b l d", d=latents_BLD.shape[-1])
            latents_BLD = torch.cat([pooled, latents_BLD], dim=1)
        latents_BLD = _run_perceiver(self.layers, tokens_BLD, latents_BLD)
        return self.norm_out(self.proj_out(latents_BLD))


class FacePerceiver(nn.Module):
    """Refine face tokens by attending to the image encoder's hidden states."""

    def __init__(self, *, dim: int, embedding_dim: int, depth: int = 4, dim_head: int = 64) -> None:
        super().__init__()
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = _perceiver_layers(
            depth, dim=dim, dim_head=dim_head, heads=dim // dim_head, ff_mult=4
        )

    def forward(self, latents_BLD: Tensor, hidden_BLD: Tensor) -> Tensor:
        """Face tokens in, face tokens out."""
        latents_BLD = _run_perceiver(self.layers, self.proj_in(hidden_BLD), latents_BLD)
        return self.norm_out(self.proj_out(latents_BLD))


class ProjPlusModel(ModelMixin, ConfigMixin):
    """Face embedding and image hidden states to tokens (FaceID-plus)."""

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 768,
        id_embeddings_dim: int = 512,
        clip_embeddings_dim: int = 1280,
        num_tokens: int = 4,
    ) -> None:
        super().__init__()
        self.proj = _face_mlp(id_embeddings_dim, num_tokens * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)
        self.perceiver_resampler = FacePerceiver(
            dim=cross_attention_dim, embedding_dim=clip_embeddings_dim
        )

    def forward(
        self, face_BD: Tensor, hidden_BLD: Tensor, *, shortcut: bool = False, scale: float = 1.0
    ) -> Tensor:
        """Tokens from face and image.

        Args:
            face_BD: Face embeddings.
            hidden_BLD: Hidden states of the image encoder.
            shortcut: Add the refined tokens to the plain face tokens instead of replacing them.
            scale: Weight of the refined tokens with ``shortcut``.

        Returns:
            ``tokens_BLD``.
        """
        shape = (-1, self.config.num_tokens, self.config.cross_attention_dim)
        face_BLD = self.norm(self.proj(face_BD).reshape(shape))
        refined_BLD = self.perceiver_resampler(face_BLD, hidden_BLD)
        return face_BLD + scale * refined_BLD if shortcut else refined_BLD


class _HiddenStateHead(ModelMixin, ConfigMixin):
    """Last hidden state of an image encoder to an embedding; the children differ in the end."""

    @register_to_config
    def __init__(
        self, hidden_size: int = 1280, projection_dim: int = 1024, layer_norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.visual_projection = nn.Linear(hidden_size, projection_dim, bias=False)


class NormalizedTokensHead(_HiddenStateHead):
    """All tokens projected, divided by the length of the first (upstream's V4)."""

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states to ``tokens_BLD``."""
        tokens_BLD = self.visual_projection(self.post_layernorm(hidden_BLD))
        return tokens_BLD / tokens_BLD[:, :1].norm(dim=-1, keepdim=True)


class ImageEmbeddingHead(_HiddenStateHead):
    """The first token, normed and projected: the encoder's own image embedding."""

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states to ``embedding_BD``."""
        return self.visual_projection(self.post_layernorm(hidden_BLD[:, 0]))


class PooledHead(_HiddenStateHead):
    """The first token, normed; the projection exists in the files but is not applied."""

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states to ``pooled_BD``."""
        return self.post_layernorm(hidden_BLD[:, 0])


@torch.no_grad()
def encode_image_prompt(
    image_encoder: CLIPVisionModelWithProjection,
    projection: ImageProjection | Resampler,
    frames_TYXC: np.ndarray,
    with_unconditional: bool,
) -> Tensor:
    """Turn one or more images into the extra attention tokens of one clip.

    Args:
        image_encoder: CLIP image encoder.
        projection: Its projection to tokens; a resampler sees all tokens of the last but one layer,
            the plain one the encoder's single embedding.
        frames_TYXC: Images, RGB, uint8, any size; the tokens of all of them are joined.
        with_unconditional: Put the unconditional tokens first: the projection of a zero embedding.

    Returns:
        ``tokens_BLD``: ``[uncond, cond]`` or ``[cond]`` along B, in the projection's dtype.

    Raises:
        ShapeError: If the images are not uint8 RGB.

    Source:
        ALGORITHM.md 5.5, variant V1: resize of the short edge, centre crop, CLIP's mean and
        deviation. Resized by PIL, as the original did, and so the same on every device.
    """
    if frames_TYXC.ndim != 4 or frames_TYXC.shape[-1] != 3 or frames_TYXC.dtype != np.uint8:
        raise ShapeError(
            f"image prompts must be uint8 [T, Y, X, 3], got {frames_TYXC.dtype} "
            f"{list(frames_TYXC.shape)}"
        )
    size = image_encoder.config.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    pixels = processor(images=list(frames_TYXC), return_tensors="pt").pixel_values
    pixels = pixels.to(image_encoder.device, image_encoder.dtype)
    if isinstance(projection, Resampler):
        seen = image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    else:
        seen = image_encoder(pixel_values=pixels).image_embeds
    seen = seen.to(projection.dtype)
    rows = [0 * seen, seen] if with_unconditional else [seen]
    tokens = [rearrange(projection(row), "t l d -> 1 (t l) d") for row in rows]
    return torch.cat(tokens, dim=0)


@torch.no_grad()
def encode_faces(
    projection: FaceIdProjection, faces_KD: Tensor, with_unconditional: bool
) -> Tensor:
    """Turn embeddings of faces into the face tokens of one clip.

    Args:
        projection: To tokens.
        faces_KD: One embedding a face; the tokens of all of them are joined.
        with_unconditional: Put the unconditional tokens first: the projection of zeros.

    Returns:
        ``tokens_BLD``: ``[uncond, cond]`` or ``[cond]`` along B, in the projection's dtype.

    Raises:
        ShapeError: If the embeddings are of another width.
    """
    width = projection.config.id_embeddings_dim
    if faces_KD.ndim != 2 or faces_KD.shape[1] != width or not len(faces_KD):
        raise ShapeError(f"face embeddings must be [faces, {width}], got {list(faces_KD.shape)}")
    faces_KD = faces_KD.to(projection.device, projection.dtype)
    rows = [0 * faces_KD, faces_KD] if with_unconditional else [faces_KD]
    tokens = [rearrange(projection(row), "k l d -> 1 (k l) d") for row in rows]
    return torch.cat(tokens, dim=0)
