"""Render one clip in one process: the place where networks and denoising meet.

Axes here: B clip, C channel, T frame, F frame within a window, H W latent rows and columns, Y X
pixel rows and columns, L token, D embedding.

Read :func:`render_clip` first; the rest are its verbs, in order. The cluster calls the same verbs.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from musev.clip_front import (
    LATENT_CHANNELS,
    ClipFacts,
    count_generated,
    open_front,
    start_latents,
)
from musev.config import ClipRequest, EncoderConfig
from musev.control.clip_control import ClipControl, open_control
from musev.denoise.loop import denoise_clip, drive_front
from musev.denoise.solvers import make_solver
from musev.denoise.sources import make_noise_source
from musev.errors import RequestError
from musev.media import VideoInfo, fit_image, join_segments, probe_video, write_segment
from musev.models.attachments import (
    FramePositions,
    ImagePrompt,
    ReferenceFeatures,
    TemporalOff,
)
from musev.models.bundle import ModelBundle
from musev.models.image_prompt import encode_image_prompt
from musev.models.text import encode_prompts
from musev.models.vae import decode_latents, encode_frames
from musev.parts import NoStore, PartStore, part_key
from musev.window_denoiser import CarefulDenoiser, ClipConditions

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ClipMedia:
    """The media of one request.

    Pictures are uint8 RGB ``YXC``, or ``TYXC`` for several of one kind. A video stays a file: it
    may be long.
    """

    condition_image: np.ndarray | None = None
    reference_image: np.ndarray | None = None
    ip_adapter_image: np.ndarray | None = None
    video: Path | None = None


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
    with torch.inference_mode(), open_control(bundle, request, media.video) as control:
        conditions = encode_conditions(
            bundle, request, fit_media(request, media), control, parts=parts
        )
        latents_BCTHW = denoise_request(
            bundle, request, conditions, control, on_progress=on_progress
        )
        segments = decode_segments(bundle, latents_BCTHW, encoder.segment_frames)
        return write_video(
            segments,
            target,
            num_frames=request.num_frames,
            fps=request.fps,
            encoder=encoder,
            on_progress=on_progress,
        )


def fit_media(request: ClipRequest, media: ClipMedia) -> ClipMedia:
    """Crop and resize every picture to the clip's size.

    Args:
        request: Gives the size and how to crop.
        media: Pictures of any size.

    Returns:
        The pictures as ``TYXC`` of the clip's size; the video as it was.
    """
    fit = functools.partial(
        fit_image,
        width=request.width,
        height=request.height,
        exact_upstream=request.sampling.image_fit == "upstream",
    )
    given = {name: getattr(media, name) for name in ClipMedia.__dataclass_fields__}
    pictures = {
        name: np.stack([fit(item) for item in (picture if picture.ndim == 4 else [picture])])
        for name, picture in given.items()
        if isinstance(picture, np.ndarray)
    }
    return dataclasses.replace(media, **pictures)


def encode_conditions(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
    *,
    parts: PartStore | None = None,
) -> ClipConditions:
    """Compute everything the clip is conditioned on, once.

    Without a condition image the first frame is generated here (see ``FirstFrameConfig``), and then
    serves as one. A reference or image-prompt picture that is not given falls back to the condition
    image, as in the original, where the bundle has the network for it.

    Args:
        bundle: The loaded networks.
        request: Prompts, sizes and guidance.
        media: Its pictures at the clip's size, from :func:`fit_media`.
        control: Controls the first frame too, where that is generated.
        parts: Where what other clips share is kept; None computes all of it.

    Returns:
        Keys and values of every layer, and the conditioning frames' latents.

    Raises:
        RequestError: If a picture is given that the bundle has no network for.
    """
    _refuse_unusable_media(bundle, request)
    parts = parts or NoStore()
    if media.condition_image is None and request.sampling.first_frame.origin == "drawn":
        latents_BCTHW = draw_first_frame(bundle, request, media, control, parts=parts)
        drawn_TYXC = next(decode_segments(bundle, latents_BCTHW, segment_frames=1))
        # Nobody shares a picture that this row's seed drew.
        conditions = _encode(
            bundle, request, dataclasses.replace(media, condition_image=drawn_TYXC), NoStore()
        )
        return dataclasses.replace(conditions, frames_BCTHW=latents_BCTHW, first_frame_drawn=True)
    return _encode(bundle, request, media, parts)


def draw_first_frame(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
    *,
    parts: PartStore | None = None,
) -> Tensor:
    """Generate one picture from the text, with the temporal layers off.

    Args:
        bundle: The loaded networks.
        request: Prompts, size, seed and ``sampling.first_frame``.
        media: Reference and image prompt, where given.
        control: Its frame 0 is used.
        parts: As of :func:`encode_conditions`.

    Returns:
        ``latents_BCTHW`` of one frame, float32: frame 0 of the clip.

    Source:
        Upstream's first-frame call (ALGORITHM.md 10). Its noise is drawn from the clip's seed, not
        from a generator that the rest of the clip goes on with.
    """
    how = request.sampling.first_frame
    sampling = dataclasses.replace(
        request.sampling,
        num_steps=how.num_steps,
        guidance=how.guidance,
        noise="counter" if request.sampling.noise == "counter" else "upstream_random",
    )
    still = dataclasses.replace(request, num_frames=1, sampling=sampling)
    conditions = _encode(bundle, still, media, parts or NoStore())
    solver = make_solver(sampling, bundle.schedule)
    source = make_noise_source(sampling, request.seed)
    scale = bundle.vae_scale_factor
    shape_BCTHW = (1, LATENT_CHANNELS, 1, request.height // scale, request.width // scale)
    return denoise_clip(
        CarefulDenoiser(bundle.unet, conditions, always=(TemporalOff(),), control=control),
        start_latents(source, shape_BCTHW, None, solver, sampling),
        solver=solver,
        sampling=sampling,
        noise=source,
    ).to(bundle.device)


def _encode(
    bundle: ModelBundle, request: ClipRequest, media: ClipMedia, parts: PartStore
) -> ClipConditions:
    guided = request.sampling.guidance.active
    negatives = [request.negative_prompt] if guided else None
    text_BLD = parts.find(
        part_key("text", request.prompt, negatives),
        lambda: encode_prompts(bundle.tokenizer, bundle.text_encoder, [request.prompt], negatives),
    )
    condition_TYXC = media.condition_image
    reference_TYXC = _first_given(media.reference_image, condition_TYXC)
    image_prompt_TYXC = _first_given(media.ip_adapter_image, condition_TYXC)

    attachments: list[ImagePrompt | ReferenceFeatures] = []
    tokens_BLD = None
    if bundle.takes_image_prompts and image_prompt_TYXC is not None:
        prepared_TYXC = _as_image_prompt(request, image_prompt_TYXC)
        tokens_BLD = parts.find(
            part_key("image prompt", prepared_TYXC, guided),
            lambda: encode_image_prompt(
                bundle.image_encoder,
                bundle.image_projection,
                prepared_TYXC,
                with_unconditional=guided,
            ),
        )
        attachments.append(ImagePrompt(tokens_BLD, scale=request.sampling.ip_adapter_scale))
    if bundle.takes_references and reference_TYXC is not None:
        told_BLD = text_BLD if tokens_BLD is None else tokens_BLD
        attachments.append(
            parts.find(
                part_key("reference", reference_TYXC, told_BLD),
                lambda: encode_reference(bundle, reference_TYXC, told_BLD),
            )
        )
    frames_BCTHW = None
    if condition_TYXC is not None:
        frames_BCTHW = parts.find(
            part_key("condition frames", condition_TYXC),
            lambda: encode_frames(bundle.vae, condition_TYXC).float(),
        )
    text_BLD = text_BLD.to(bundle.dtype)
    network = bundle.unet.prepare(text_BLD, tuple(attachments))
    return ClipConditions(network, text_BLD, frames_BCTHW, guided)


def encode_reference(
    bundle: ModelBundle, reference_TYXC: np.ndarray, told_BLD: Tensor
) -> ReferenceFeatures:
    """Run the ReferenceNet once, on clean latents at timestep 0.

    Args:
        bundle: Holds the ReferenceNet and the VAE.
        reference_TYXC: Reference pictures at the clip's size.
        told_BLD: Image-prompt tokens if there are any, else the text; both guidance halves.

    Returns:
        Features of every layer; both halves see the same latents, as in the original.
    """
    assert bundle.referencenet is not None
    latents_BCTHW = encode_frames(bundle.vae, reference_TYXC).to(bundle.dtype)
    latents_BCTHW = latents_BCTHW.expand(told_BLD.shape[0], -1, -1, -1, -1)
    return bundle.referencenet(latents_BCTHW, told_BLD.to(bundle.dtype), timestep=0)


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
    if facts.given_BCTHW is None:
        return generated_BCTHW
    return torch.cat([facts.given_BCTHW, generated_BCTHW], dim=2)


def make_denoiser(
    bundle: ModelBundle,
    request: ClipRequest,
    conditions: ClipConditions,
    control: ClipControl | None,
) -> CarefulDenoiser:
    """Make what estimates the windows of a clip; ``conditions`` lie on the bundle's device."""
    always = (FramePositions(motion_speed=request.sampling.motion_speed),)
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
    )


def decode_segments(
    bundle: ModelBundle, latents_BCTHW: Tensor, segment_frames: int
) -> Iterator[np.ndarray]:
    """Decode a clip segment by segment, so that pixels never pile up.

    Args:
        bundle: Holds the VAE.
        latents_BCTHW: One clip (B is 1).
        segment_frames: Frames decoded at a time.

    Yields:
        ``frames_TYXC``: uint8 RGB of one segment.
    """
    for first in range(0, latents_BCTHW.shape[2], segment_frames):
        segment_BCTHW = latents_BCTHW[:, :, first : first + segment_frames]
        yield np.asarray(decode_latents(bundle.vae, segment_BCTHW)[0])


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


def _refuse_unusable_media(bundle: ModelBundle, request: ClipRequest) -> None:
    for column, usable, name in (
        ("reference_image", bundle.takes_references, "ReferenceNet"),
        ("ip_adapter_image", bundle.takes_image_prompts, "image-prompt projection"),
    ):
        if getattr(request, column) is not None and not usable:
            raise RequestError(
                f"request {request.request_id!r}: {column} is given, but the weights of profile "
                f"{request.profile!r} hold no {name} that its U-Net reads. Leave {column} empty or "
                "choose other weights."
            )


def _as_image_prompt(request: ClipRequest, picture_TYXC: np.ndarray) -> np.ndarray:
    """Upstream crops and resizes once more, by another filter, on the way to CLIP."""
    if request.sampling.image_fit != "upstream":
        return picture_TYXC
    size = {"width": request.width, "height": request.height}
    return np.stack(
        [
            fit_image(item, **size, exact_upstream=True, resampling="bicubic")
            for item in picture_TYXC
        ]
    )


def _first_given(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return second if first is None else first


def _report_steps(
    on_progress: OnProgress | None, num_steps: int
) -> Callable[[int, Tensor], None] | None:
    if on_progress is None:
        return None
    return lambda step, _latents: on_progress("denoise", step + 1, num_steps)
