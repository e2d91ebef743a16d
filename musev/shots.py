"""A video made shot after shot: each goes on from the last frames of the one before.

Axes here: B clip, C channel, T frame, H W latent rows and columns.

The original's ``n_batch`` (ALGORITHM.md 10 and 11). Every shot is denoised from its own noise, so
what a shot carries over is all it knows of the video before: a few conditioning frames and, if
asked for, a new reference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.conditions import ClipMedia, ReadFrame, decode_floats, encode_given, open_conditions
from musev.config import ClipRequest
from musev.control.clip_control import ClipControl
from musev.denoise.places import FramePlaces
from musev.denoise.smoothing import ShotSmoother
from musev.errors import RequestError
from musev.models.attachments import FramePositions
from musev.models.bundle import ModelBundle
from musev.parts import NoStore, PartStore
from musev.whole_clip import denoise_frames
from musev.window_denoiser import ClipConditions


@dataclass(frozen=True)
class Shot:
    """Frames [first, stop) of the video that are generated together."""

    number: int
    first: int
    stop: int


OnShotStep = Callable[[Shot, int, Tensor], None]
"""Shot, step just done and the latents after it."""


def plan_shots(request: ClipRequest, num_given: int, *, drawn: bool) -> tuple[Shot, ...]:
    """Cut a video into shots.

    Args:
        request: Its length and ``sampling.shots``.
        num_given: Conditioning frames of the first shot.
        drawn: Whether the conditioning frame was generated. It is then the first frame of the first
            shot, and so is a given one that belongs to the driving video; other given frames stand
            in front of it.

    Returns:
        The shots, in order; the last one may be short.

    Raises:
        RequestError: If nothing is left to generate.
    """
    size = request.sampling.shots.num_frames or request.num_frames
    driven = request.is_driven and not request.condition_has_own_map
    belongs = drawn or (driven and num_given > 0)
    starts = [num_given, num_given + size - belongs]
    while starts[-1] < request.num_frames:
        starts.append(starts[-1] + size)
    stops = [min(start, request.num_frames) for start in starts[1:]]
    shots = [
        Shot(number, first, stop)
        for number, (first, stop) in enumerate(zip(starts, stops, strict=False))
        if stop > first
    ]
    if not shots and not drawn:
        raise RequestError(
            f"request {request.request_id!r}: num_frames is {request.num_frames}, of which "
            f"{num_given} are given. Ask for {num_given + 1} frames or more."
        )
    return tuple(shots)


def denoise_shots(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
    *,
    source: ReadFrame | None = None,
    parts: PartStore | None = None,
    on_step: OnShotStep | None = None,
) -> Tensor:
    """Denoise a video shot after shot.

    Args:
        bundle: The loaded networks.
        request: What to render, with ``sampling.shots``.
        media: Its pictures, from :func:`~musev.conditions.fit_media`.
        control: Of the whole video.
        source: Frames that the video starts from, if it starts from a video.
        parts: Where conditions that clips share are kept.
        on_step: Told of every step.

    Returns:
        ``latents_BCTHW``: float32 on the CPU, conditioning frames included.

    Raises:
        RequestError: If conditioning frames are to stand anywhere but in front.
    """
    if request.condition_index:
        raise RequestError(
            f"request {request.request_id!r}: condition_index and shots do not go together: a "
            "shot goes on from its first frames. Leave one of them out."
        )
    conditions, media = open_conditions(bundle, request, media, control, source=source, parts=parts)
    given_BCTHW = conditions.frames_BCTHW
    num_given = len(conditions.frame_places.given)
    shots = plan_shots(request, num_given, drawn=conditions.first_frame_drawn)
    found = [] if given_BCTHW is None else [given_BCTHW.cpu()]
    state = conditions.noise_state
    smoother = ShotSmoother(request.sampling.shots)
    for shot in shots:
        if shot.number:
            done_BCTHW = torch.cat(found, dim=2)
            conditions = _carry_on(bundle, request, media, conditions, shot, done_BCTHW)
        conditions = dataclasses.replace(conditions, noise_state=state)
        latents_BCTHW, state = _denoise_shot(
            bundle, request, conditions, control, shot, smoother, on_step
        )
        found.append(latents_BCTHW)
    return torch.cat(found, dim=2)


def _carry_on(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    conditions: ClipConditions,
    shot: Shot,
    done_BCTHW: Tensor,
) -> ClipConditions:
    """Conditions of a later shot: the end of the one before stands in front of it."""
    how = request.sampling.shots
    if conditions.frames_BCTHW is None:  # nothing is carried over, but control goes on
        return dataclasses.replace(conditions, places=FramePlaces((), shot.first))
    count = how.carried_frames or conditions.frames_BCTHW.shape[2]
    last_BCTHW = done_BCTHW[:, :, -count:].to(bundle.device)
    frames_BCTHW, places = last_BCTHW, FramePlaces(tuple(range(shot.first))[-count:], shot.first)
    if how.fixed_condition:
        frames_BCTHW = conditions.frames_BCTHW
        places = FramePlaces(tuple(range(frames_BCTHW.shape[2])), shot.first)
    moving = {
        column: decode_floats(bundle, last_BCTHW)
        for column, fixed in (
            ("reference_image", how.fixed_reference),
            ("ip_adapter_image", how.fixed_image_prompt),
            ("face_image", how.fixed_face or media.face_image is None),
        )
        if not fixed
    }
    if moving:
        media = dataclasses.replace(media, **moving)
        source_BCTHW = conditions.source_BCTHW
        conditions = encode_given(bundle, request, media, parts=NoStore())
        conditions = dataclasses.replace(conditions, source_BCTHW=source_BCTHW)
    return dataclasses.replace(conditions, frames_BCTHW=frames_BCTHW, places=places)


def _denoise_shot(
    bundle: ModelBundle,
    request: ClipRequest,
    conditions: ClipConditions,
    control: ClipControl | None,
    shot: Shot,
    smoother: ShotSmoother,
    on_step: OnShotStep | None,
) -> tuple[Tensor, Tensor | None]:
    """Denoise one shot; its latents, and the state of the original's generator after it."""
    source_BCTHW = conditions.source_BCTHW
    if source_BCTHW is not None:
        # The source's frames end where the video does.
        behind = request.num_frames - shot.first
        first = source_BCTHW.shape[2] - behind
        source_BCTHW = source_BCTHW[:, :, first : first + shot.stop - shot.first]
    return denoise_frames(
        bundle,
        request,
        dataclasses.replace(conditions, source_BCTHW=source_BCTHW),
        control,
        num_frames=shot.stop - shot.first,
        attached=FramePositions(motion_speed=request.sampling.motion_speed),
        smoother=smoother if smoother.active else None,
        on_step=None if on_step is None else functools.partial(on_step, shot),
    )
