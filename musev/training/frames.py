"""Batches of single pictures for the VAE, drawn from a seed: batch number n is always the same."""

# Axes here: R image, Y X pixel rows and columns, C channel.
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from musev.synthetic.clips import Clip, draw_clip
from musev.training.optimizer import Batch

REFERENCE_SHARE = 0.25
PERSON_CROP_SHARE = 0.7
PLAIN_MASK = 0.35
"""Mask of a reference picture, of which no mask is drawn: somewhere between person and scene."""


def frame_batch(
    seed: int,
    number: int,
    *,
    num_images: int,
    crop_px: int | None = None,
    size_px: int = 128,
    held_out: bool = False,
) -> Batch:
    """Draw one batch of pictures.

    Args:
        seed: Which endless source.
        number: Which batch; batches share no clips.
        num_images: Pictures in it.
        crop_px: Cut squares of this side, most of them on the person; None: whole pictures.
        size_px: Side of a whole picture.
        held_out: Draw the combinations kept from training.

    Returns:
        ``pixels`` (``RCYX``, -1..1) and ``mask`` (``R1YX``, 0..1).
    """
    pictures, masks = [], []
    for clip, rng in picture_clips(
        seed, number, num_images=num_images, size_px=size_px, held_out=held_out
    ):
        if rng.random() < REFERENCE_SHARE and not held_out:
            picture_YXC = clip.reference_YXC
            mask_YX = np.full(picture_YXC.shape[:2], 255 * PLAIN_MASK, np.float32)
        else:
            picture_YXC, mask_YX = clip.frames_TYXC[0], clip.mask_TYX[0].astype(np.float32)
        if crop_px is not None:
            rows, columns = _crop(mask_YX, crop_px, rng)
            picture_YXC, mask_YX = picture_YXC[rows, columns], mask_YX[rows, columns]
        if rng.random() < 0.5 and not held_out:
            picture_YXC, mask_YX = picture_YXC[:, ::-1], mask_YX[:, ::-1]
        pictures.append(picture_YXC)
        masks.append(mask_YX)
    return {
        "pixels": to_pixels(np.stack(pictures)),
        "mask": torch.from_numpy(np.stack(masks)[:, None] / 255).float(),
    }


def picture_clips(
    seed: int, number: int, *, num_images: int, size_px: int, held_out: bool
) -> Iterator[tuple[Clip, np.random.Generator]]:
    """Draw the clips of a batch of single pictures.

    Args:
        seed: Which endless source.
        number: Which batch; batches share no clips.
        num_images: Clips in it.
        size_px: Side of their pictures.
        held_out: Draw the combinations kept from training.

    Yields:
        A clip of one frame, and a generator of its own for whatever is chosen about it.
    """
    size = {"height": size_px, "width": size_px}
    for index in range(number * num_images, (number + 1) * num_images):
        clip = draw_clip(seed, index, held_out=held_out, num_frames=1, **size)
        yield clip, np.random.default_rng([seed, index])


def to_pixels(frames_RYXC: np.ndarray) -> Tensor:
    """uint8 pictures to ``_RCYX`` in -1..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames_RYXC)).permute(0, 3, 1, 2).float()
    return pixels / 127.5 - 1


def to_frames(pixels_RCYX: Tensor) -> np.ndarray:
    """Pictures in -1..1 to uint8 ``_RYXC``, rounded."""
    scaled = ((pixels_RCYX.detach() + 1) * 127.5).clamp(0, 255).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def _crop(mask_YX: np.ndarray, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square, whole latents apart, often centred on a pixel of the person."""
    limits = [side - size for side in mask_YX.shape]
    if rng.random() < PERSON_CROP_SHARE and mask_YX.any():
        places = np.argwhere(mask_YX > 0)
        corner = places[rng.integers(len(places))] - size // 2
    else:
        corner = [rng.integers(limit + 1) for limit in limits]
    starts = [int(np.clip(c, 0, limit)) // 8 * 8 for c, limit in zip(corner, limits, strict=True)]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)
