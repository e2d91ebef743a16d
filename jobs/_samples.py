"""Pictures that show how far a training run has come."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from musev.models.bundle import ModelBundle
    from musev.training.runs import PreparedRun

NUM_PICTURES = 8
NUM_VIDEOS, SHOWN_FRAMES = 3, 7
SEED = 7
NUM_STEPS = 10


def draw_samples(prepared: PreparedRun) -> bytes:
    """Draw what the networks make of held-out clips, truth above.

    Args:
        prepared: A run with the average applied.

    Returns:
        A PNG file: reconstructions of a VAE; else generated frames.
    """
    if prepared.bundle is None:
        rows = _reconstructions(prepared)
    elif prepared.stage.batch.num_frames == 1:
        rows = _generated_frames(prepared.bundle)
    else:
        rows = _generated_clips(prepared.bundle)
    image = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _reconstructions(prepared: PreparedRun) -> list[np.ndarray]:
    from musev.training.frames import frame_batch, to_frames
    from musev.training.vae import reconstruct

    device = next(prepared.module.parameters()).device
    pixels = frame_batch(SEED, 0, num_images=NUM_PICTURES, held_out=True)["pixels"].to(device)
    return [to_frames(pixels.cpu()), to_frames(reconstruct(prepared.vae, pixels).cpu())]


def _generated_frames(bundle: ModelBundle) -> list[np.ndarray]:
    from musev.synthetic.clips import draw_clip

    clips = [draw_clip(SEED, n, held_out=True, num_frames=1) for n in range(NUM_PICTURES)]
    made = [generate(bundle, clip.caption, seed=n, num_frames=1) for n, clip in enumerate(clips)]
    return [np.concatenate([c.frames_TYXC for c in clips]), np.concatenate(made)]


def _generated_clips(bundle: ModelBundle) -> list[np.ndarray]:
    from musev.synthetic.clips import draw_clip

    rows = []
    for number in range(NUM_VIDEOS):
        clip = draw_clip(SEED, number, held_out=True, num_frames=13)
        told = generate(bundle, clip.caption, seed=number, num_frames=13)
        shown = generate(
            bundle, clip.caption, seed=number, num_frames=13, first_YXC=clip.frames_TYXC[0]
        )
        rows += [frames[:: 13 // SHOWN_FRAMES + 1] for frames in (clip.frames_TYXC, shown, told)]
    return rows


def generate(
    bundle: ModelBundle,
    prompt: str,
    *,
    seed: int,
    num_frames: int,
    first_YXC: np.ndarray | None = None,
    size_px: int = 128,
    guidance: float = 2.0,
) -> np.ndarray:
    """Render one request with networks in training.

    Args:
        bundle: The networks.
        prompt: Text.
        seed: Of the noise.
        num_frames: In all.
        first_YXC: A given first frame.
        size_px: Side of the frames.
        guidance: Guidance scale.

    Returns:
        ``frames_TYXC``, uint8.
    """
    import torch

    from musev.config import ClipRequest, GuidanceConfig, SamplingConfig
    from musev.models.vae import decode_latents
    from musev.render import ClipMedia, denoise_request, encode_conditions

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
