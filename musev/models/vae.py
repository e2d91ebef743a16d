"""Pixels to latents and back, one frame at a time.

One frame at a time because the last bits of a convolution depend on how many frames share a call
(1e-5 on the CPU, measured); a video must not depend on where its segments were cut. It is also what
the original does (VAE slicing).
"""

# Axes here: B clip, C channel, T frame, H W latent rows and columns, Y X pixel rows and columns.
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor

from musev.errors import ShapeError


def scale_factor(vae: AutoencoderKL) -> int:
    """Pixels a latent row or column stands for."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode_frames(vae: AutoencoderKL, frames_TYXC: np.ndarray | Tensor) -> Tensor:
    """Encode pixel frames: the mean of the VAE's distribution, scaled.

    Args:
        vae: Moved to its device; computes in its own dtype.
        frames_TYXC: RGB, uint8, or float32 in 0..1; rows and columns must be multiples of
            :func:`scale_factor`.

    Returns:
        ``latents_1CTHW``: on the VAE's device, in its dtype.

    Raises:
        ShapeError: If the frames are not RGB of such a type, of a size the VAE can halve.
    """
    frames_TYXC = torch.as_tensor(frames_TYXC)
    shape, factor = tuple(frames_TYXC.shape), scale_factor(vae)
    full = {torch.uint8: 255, torch.float32: 1}.get(frames_TYXC.dtype)
    if len(shape) != 4 or shape[-1] != 3 or full is None:
        raise ShapeError(
            f"frames must be uint8 or float32 [T, Y, X, 3], got {frames_TYXC.dtype} {list(shape)}"
        )
    if shape[1] % factor or shape[2] % factor:
        raise ShapeError(
            f"frames are {shape[2]}x{shape[1]}; width and height must be multiples of {factor}"
        )
    latents = []
    for frame_YXC in frames_TYXC:
        pixels_YXC = frame_YXC.to(vae.device).float() / full
        frame_1CYX = (2 * pixels_YXC - 1).permute(2, 0, 1)[None].to(vae.dtype)
        latents.append(vae.encode(frame_1CYX).latent_dist.mean * vae.config.scaling_factor)
    return rearrange(torch.stack(latents), "t 1 c h w -> 1 c t h w")


@torch.no_grad()
def decode_to_float(vae: AutoencoderKL, latents_BCTHW: Tensor) -> Tensor:
    """Decode scaled latents to pixels in 0..1.

    Args:
        vae: Moved to its device; computes in its own dtype.
        latents_BCTHW: Scaled latents, any float dtype and device.

    Returns:
        ``frames_BTCYX``: float32, on the VAE's device.
    """
    frames = torch.stack(list(_decode_each(vae, latents_BCTHW)))
    return rearrange(frames, "(b t) c y x -> b t c y x", b=latents_BCTHW.shape[0])


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents_BCTHW: Tensor, chunk_frames: int = 8) -> np.ndarray:
    """Decode scaled latents to 8-bit frames in host memory.

    Args:
        vae: Moved to its device; computes in its own dtype.
        latents_BCTHW: Scaled latents, any float dtype and device.
        chunk_frames: Frames that are copied to the host together. It changes how often the device
            is waited for, never a bit of the result.

    Returns:
        ``frames_BTYXC``: RGB, uint8; values are cut off, not rounded, as in the original.

    Raises:
        ShapeError: If ``chunk_frames`` is below 1.
    """
    if chunk_frames < 1:
        raise ShapeError(f"chunk_frames must be at least 1, got {chunk_frames}")
    chunk, chunks = [], []
    for frame_CYX in _decode_each(vae, latents_BCTHW):
        chunk.append((frame_CYX * 255).to(torch.uint8))
        if len(chunk) == chunk_frames:
            chunks.append(torch.stack(chunk).cpu())
            chunk = []
    if chunk:
        chunks.append(torch.stack(chunk).cpu())
    frames = rearrange(torch.cat(chunks), "(b t) c y x -> b t y x c", b=latents_BCTHW.shape[0])
    return np.ascontiguousarray(frames.numpy())


def _decode_each(vae: AutoencoderKL, latents_BCTHW: Tensor) -> Iterator[Tensor]:
    for latents_CHW in rearrange(latents_BCTHW, "b c t h w -> (b t) c h w"):
        unscaled_1CHW = (latents_CHW[None].to(vae.device).float() / vae.config.scaling_factor).to(
            vae.dtype
        )
        frame_CYX = vae.decode(unscaled_1CHW, return_dict=False)[0][0].float()
        yield (frame_CYX / 2 + 0.5).clamp(0, 1)
