"""Render one clip in one process: the place where networks and denoising meet.

Axes here: B clip, C channel, T frame, F frame within a window, H W latent rows and columns, Y X
pixel rows and columns, L token, D embedding.

Read :func:`render_clip` first; the rest are its verbs, in order. The cluster calls the same verbs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from musev.clip_front import ClipFacts, count_generated, open_front, solver_of
from musev.conditions import ClipMedia, ReadFrame, encode_conditions, fit_media
from musev.config import ClipRequest, EncoderConfig
from musev.control.clip_control import ClipControl, open_control, open_control_frames
from musev.denoise.loop import drive_front
from musev.media import VideoInfo, join_segments, probe_video, write_segment
from musev.media.colors import match_histograms
from musev.models.attachments import FramePositions
from musev.models.bundle import ModelBundle
from musev.models.vae import decode_latents
from musev.parts import PartStore
from musev.shots import denoise_shots
from musev.window_denoiser import CarefulDenoiser, ClipConditions, join_frames

OnProgress = Callable[[str, int, int], None]


def render_clip(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    *,
    encoder: EncoderConfig,
    target: Path,
    on_progress: OnProgress | None = None,
    parts: PartStore | None = None,
) -> VideoInfo:
    """Render one request to an mp4 file.

    Pixels in memory do not grow with the clip's length: frames are decoded and encoded a segment at
    a time, and control frames are read a window at a time. Latents do (32 KB a frame at 512x512).

    Args:
        bundle: The loaded networks.
        request: What to render.
        media: Its pictures, already read, and its control video.
        encoder: H.264 settings.
        target: The mp4 file to write; segment files lie beside it for a while.
        on_progress: Called with (stage, done, total); stages ``denoise`` and ``decode``.
        parts: Where conditions that clips share are kept; None computes all of them.

    Returns:
        What the finished file measures.

    Raises:
        RequestError: If the request asks for something these networks cannot do.
        MediaError: If the video cannot be encoded.
    """
    with (
        torch.inference_mode(),
        open_control(bundle, request, media.control) as control,
        open_source(request, media.video) as source,
    ):
        bundle.loras.use(media.loras)
        fitted = fit_media(request, media)
        if request.sampling.shots.num_frames is not None:
            latents_BCTHW = denoise_shots(
                bundle, request, fitted, control, source=source, parts=parts
            )
        else:
            conditions = encode_conditions(
                bundle, request, fitted, control, source=source, parts=parts
            )
            latents_BCTHW = denoise_request(
                bundle, request, conditions, control, on_progress=on_progress
            )
        match = first_picture(bundle, request, latents_BCTHW)
        segments = decode_segments(bundle, latents_BCTHW, encoder.segment_frames, match_YXC=match)
        return write_video(
            segments,
            target,
            num_frames=request.num_frames,
            fps=request.fps,
            encoder=encoder,
            on_progress=on_progress,
        )


def denoise_request(
    bundle: ModelBundle,
    request: ClipRequest,
    conditions: ClipConditions,
    control: ClipControl | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Denoise the clip from its seed.

    Args:
        bundle: The loaded networks.
        request: Sizes, seed and sampling.
        conditions: From :func:`encode_conditions`.
        control: From :func:`open_control`; None for a clip without.
        on_progress: Called with (``"denoise"``, steps done, steps).

    Returns:
        ``latents_BCTHW``: float32 on the CPU, conditioning frames in front.

    Raises:
        RequestError: If no frame is left to generate.
    """
    facts = facts_of(bundle, request, conditions)
    if count_generated(request, facts) == 0:
        assert facts.given_BCTHW is not None
        return facts.given_BCTHW
    front = open_front(request, facts)
    generated_BCTHW = drive_front(
        front,
        make_denoiser(bundle, request, conditions, control),
        on_step=_report_steps(on_progress, front.num_steps),
    )
    return join_frames(conditions, generated_BCTHW)


def make_denoiser(
    bundle: ModelBundle,
    request: ClipRequest,
    conditions: ClipConditions,
    control: ClipControl | None,
) -> CarefulDenoiser:
    """Make what estimates the windows of a clip; ``conditions`` lie on the bundle's device."""
    always = (FramePositions(motion_speed=request.sampling.motion_speed),)
    late = conditions.source_BCTHW is not None
    solver = solver_of(request.sampling, bundle.schedule, late=late)
    control = None if control is None else control.during(solver.timesteps)
    return CarefulDenoiser(bundle.unet, conditions, always=always, control=control)


def facts_of(bundle: ModelBundle, request: ClipRequest, conditions: ClipConditions) -> ClipFacts:
    """Collect what drives the windows of a clip has to know; see :class:`ClipFacts`."""
    given_BCTHW = conditions.frames_BCTHW
    scale = bundle.vae_scale_factor
    return ClipFacts(
        schedule=bundle.schedule,
        latent_height=request.height // scale,
        latent_width=request.width // scale,
        given_BCTHW=None if given_BCTHW is None else given_BCTHW.cpu(),
        first_frame_drawn=conditions.first_frame_drawn,
        source_BCTHW=conditions.source_BCTHW,
        noise_state=conditions.noise_state,
        wire_dtype=bundle.dtype,
    )


@contextmanager
def open_source(request: ClipRequest, video: Path | None) -> Iterator[ReadFrame | None]:
    """Open the video that a clip starts from, and keep it open for the ``with`` block.

    Args:
        request: Gives size and frame rate, and says whether it starts from the video at all.
        video: The file.

    Yields:
        Frame number of the finished video to its picture; None for a clip that starts from noise.

    Raises:
        MediaError: If the file cannot be read.
    """
    if not request.start_from_video or video is None:
        yield None
        return
    with open_control_frames(request, video) as store:
        # Frame 0 is the condition image's own, where that is no frame of the video.
        own = int(request.condition_has_own_map)
        yield lambda frame: store.read(max(frame - own, 0))


def decode_segments(
    bundle: ModelBundle,
    latents_BCTHW: Tensor,
    segment_frames: int,
    *,
    match_YXC: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Decode a clip segment by segment, so that pixels never pile up.

    Args:
        bundle: Holds the VAE.
        latents_BCTHW: One clip (B is 1).
        segment_frames: Frames decoded at a time.
        match_YXC: Picture whose colours all frames are given, from :func:`first_picture`.

    Yields:
        ``frames_TYXC``: uint8 RGB of one segment.
    """
    for first in range(0, latents_BCTHW.shape[2], segment_frames):
        segment_BCTHW = latents_BCTHW[:, :, first : first + segment_frames]
        frames_TYXC = np.asarray(decode_latents(bundle.vae, segment_BCTHW)[0])
        yield frames_TYXC if match_YXC is None else match_histograms(frames_TYXC, match_YXC)


def first_picture(
    bundle: ModelBundle, request: ClipRequest, latents_BCTHW: Tensor | None
) -> np.ndarray | None:
    """Decode the picture that a clip's colours are matched to.

    Args:
        bundle: Holds the VAE.
        request: Says whether they are matched at all.
        latents_BCTHW: Clean latents that begin with frame 0.

    Returns:
        ``image_YXC``: uint8; None where nothing is matched.
    """
    if not request.sampling.histogram_match or latents_BCTHW is None:
        return None
    return np.asarray(decode_latents(bundle.vae, latents_BCTHW[:, :, :1])[0, 0])


def write_video(
    segments: Iterator[np.ndarray],
    target: Path,
    *,
    num_frames: int,
    fps: float,
    encoder: EncoderConfig,
    on_progress: OnProgress | None = None,
) -> VideoInfo:
    """Encode segments as they come and join them into one file by packet copy.

    Args:
        segments: Frames ``TYXC`` uint8, in order.
        target: The mp4 file to write.
        num_frames: Total, for progress only.
        fps: Frames per second.
        encoder: H.264 settings.
        on_progress: Called with (``"decode"``, frames done, frames).

    Returns:
        What the finished file measures.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}.") as folder:
        paths: list[Path] = []
        done = 0
        for frames_TYXC in segments:
            path = Path(folder) / f"{len(paths):06d}.mp4"
            write_segment(path, frames_TYXC, fps=fps, encoder=encoder)
            paths.append(path)
            done += len(frames_TYXC)
            if on_progress is not None:
                on_progress("decode", done, num_frames)
        join_segments(paths, target)
    return probe_video(target)


def _report_steps(
    on_progress: OnProgress | None, num_steps: int
) -> Callable[[int, Tensor], None] | None:
    if on_progress is None:
        return None
    return lambda step, _latents: on_progress("denoise", step + 1, num_steps)
