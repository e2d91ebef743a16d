"""Pictures that show how far a training run has come."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from musev.models.bundle import ModelBundle
    from musev.synthetic.clips import Clip
    from musev.training.runs import PreparedRun

SHOWN_FRAMES = 7
SEED = 7
NUM_STEPS = 10


def draw_samples(prepared: PreparedRun, num_samples: int, size_px: int) -> bytes:
    """Draw what the networks make of held-out clips, truth above.

    Args:
        prepared: A run with the average applied.
        num_samples: Pictures; a third as many videos.
        size_px: Side of a frame.

    Returns:
        A PNG file: reconstructions of a VAE; else generated frames.
    """
    if prepared.bundle is None:
        rows = _reconstructions(prepared, num_samples)
    elif prepared.stage.batch.num_frames == 1:
        rows = _generated_frames(prepared.bundle, num_samples, size_px)
    else:
        num_frames = prepared.stage.batch.num_frames
        rows = _generated_clips(prepared.bundle, -(-num_samples // 3), num_frames, size_px)
    image = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _reconstructions(prepared: PreparedRun, count: int) -> list[np.ndarray]:
    from musev.training.frames import frame_batch, to_frames
    from musev.training.vae import reconstruct

    device = next(prepared.module.parameters()).device
    size_px = prepared.stage.size_px
    batch = frame_batch(SEED, 0, num_images=count, size_px=size_px, held_out=True)
    pixels = batch["pixels"].to(device)
    return [to_frames(pixels.cpu()), to_frames(reconstruct(prepared.vae, pixels).cpu())]


def _generated_frames(bundle: ModelBundle, count: int, size_px: int) -> list[np.ndarray]:
    clips = [_held_out(number, 1, size_px) for number in range(count)]
    made = [
        generate(bundle, clip.caption, seed=number, num_frames=1, size_px=size_px)
        for number, clip in enumerate(clips)
    ]
    return [np.concatenate([clip.frames_TYXC for clip in clips]), np.concatenate(made)]


def _generated_clips(
    bundle: ModelBundle, count: int, num_frames: int, size_px: int
) -> list[np.ndarray]:
    """Three rows a clip: the truth, generated from its first frame, generated from text alone."""
    rows = []
    for number in range(count):
        clip = _held_out(number, num_frames, size_px)
        told = {"seed": number, "num_frames": num_frames, "size_px": size_px}
        shown = generate(bundle, clip.caption, first_YXC=clip.frames_TYXC[0], **told)
        alone = generate(bundle, clip.caption, **told)
        every = -(-num_frames // SHOWN_FRAMES)
        rows += [frames[::every] for frames in (clip.frames_TYXC, shown, alone)]
    return rows


def _held_out(number: int, num_frames: int, size_px: int) -> Clip:
    from musev.synthetic.clips import draw_clip

    size = {"height": size_px, "width": size_px}
    return draw_clip(SEED, number, held_out=True, num_frames=num_frames, **size)


def generate(
    bundle: ModelBundle,
    prompt: str,
    *,
    seed: int,
    num_frames: int,
    size_px: int,
    first_YXC: np.ndarray | None = None,
    guidance: float = 2.0,
) -> np.ndarray:
    """Render one request with networks in training.

    Args:
        bundle: The networks.
        prompt: Text.
        seed: Of the noise.
        num_frames: In all.
        size_px: Side of the frames.
        first_YXC: A given first frame.
        guidance: Guidance scale.

    Returns:
        ``frames_TYXC``, uint8.
    """
    import torch

    from musev.conditions import ClipMedia, encode_conditions
    from musev.config import ClipRequest, GuidanceConfig, SamplingConfig
    from musev.models.vae import decode_latents
    from musev.render import denoise_request

    solver = "ddim" if bundle.schedule.rescale_betas_zero_snr else "euler"
    request = ClipRequest(
        request_id="sample",
        prompt=prompt,
        num_frames=num_frames,
        fps=8.0,
        width=size_px,
        height=size_px,
        seed=seed,
        profile="training",
        sampling=SamplingConfig(
            solver=solver, num_steps=NUM_STEPS, guidance=GuidanceConfig(scale=guidance)
        ),
    )
    media = ClipMedia(condition_image=None if first_YXC is None else first_YXC[None])
    with torch.no_grad():
        conditions = encode_conditions(bundle, request, media)
        return decode_latents(bundle.vae, denoise_request(bundle, request, conditions))[0]
