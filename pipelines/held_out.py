"""Held-out requests: manifest rows made from clips that no training has seen, and their summary."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from musev.config import EncoderConfig, Profile
from musev.media import encode_png, write_segment
from musev.quality.drawn import DrawnClip, Kind
from musev.quality.estimate import estimate
from pipelines.scores import Scored
from pipelines.storage import Store

NEUTRAL_PROMPT = "a person"
LONG_FRAMES = 96
INPUTS = "inputs"
_TEXT, _POSE, _IDENTITY, _LONG = "text", "pose", "identity", "long"
# Of every twenty requests nine are text, five pose, four identity and two long; all kinds early.
_CYCLE: tuple[Kind, ...] = (
    *(_TEXT, _POSE, _IDENTITY, _LONG, _TEXT, _POSE, _TEXT, _IDENTITY, _TEXT, _POSE),
    *(_TEXT, _TEXT, _IDENTITY, _POSE, _TEXT, _LONG, _TEXT, _POSE, _IDENTITY, _TEXT),
)
_SHARP = EncoderConfig(crf=6)
"""For control videos: lines of one pixel must survive."""

_PROMPTED, _TOLD = (_TEXT, _POSE, _LONG), (_TEXT, _LONG)
REPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "scene_accuracy": ("scene_accuracy", _PROMPTED),
    "shirt_color_accuracy": ("shirt_color_accuracy", _PROMPTED),
    "trousers_color_accuracy": ("trousers_color_accuracy", _PROMPTED),
    "action_accuracy": ("action_accuracy", _TOLD),
    "action_accuracy_with_pose": ("action_accuracy", (_POSE,)),
    "pck_0.1": ("pck_0.1", (_POSE,)),
    "identity_accuracy": ("identity", (_IDENTITY,)),
    "seam_ratio": ("seam_ratio", (_LONG,)),
    "drift_slope": ("drift_slope", (_LONG,)),
    "subject_drift_slope": ("subject_drift_slope", (_LONG,)),
    "sharpness_slope": ("sharpness_slope", (_LONG,)),
    **{
        name: (name, (*_PROMPTED, _IDENTITY))
        for name in (
            "flicker",
            "background_flicker",
            "sharpness",
            "motion",
            "camera_motion",
            "frozen_share",
            "black_share",
            "num_cuts",
            "disorder",
            "loop_distance",
            "static_overlay",
        )
    },
}
"""Name in the report to the judge's score and the kinds of requests over which it is averaged."""


def plan_held_out(num_requests: int, seed: int) -> list[DrawnClip]:
    """Choose held-out clips and what each is asked for; fewer requests are the first of more."""
    return [DrawnClip(_CYCLE[n % len(_CYCLE)], seed, n) for n in range(num_requests)]


def unusable_kinds(model_digests: Collection[str], controlnets: Sequence[str]) -> dict[str, str]:
    """Say which kinds of requests these weights cannot render, and why.

    Args:
        model_digests: Names of the weights' parts, from ``digest_weights``.
        controlnets: Names of their ControlNets.

    Returns:
        Kind to reason.
    """
    reasons = {}
    if "openpose" not in controlnets:
        held = f"only {', '.join(controlnets)}" if controlnets else "none"
        reasons[_POSE] = f"the weights hold no ControlNet named openpose ({held})"
    if not {"referencenet", "random"} & set(model_digests):
        reasons[_IDENTITY] = "the weights hold no ReferenceNet"
    return reasons


def portrait_columns_of(model_digests: Collection[str]) -> tuple[str, ...]:
    """Manifest columns in which these weights can be given a portrait, every one that helps."""
    prompts = {"image_prompt", "image_projection", "random"} & set(model_digests)
    return ("reference_image", "ip_adapter_image") if prompts else ("reference_image",)


def write_inputs(
    store: Store,
    clips: Iterable[DrawnClip],
    profile: Profile,
    *,
    portrait_columns: Sequence[str] = ("reference_image",),
) -> list[dict[str, Any]]:
    """Draw what the requests give and put it on storage; writing twice writes the same bytes.

    Args:
        store: Media go below its :data:`INPUTS`.
        clips: What to ask for.
        profile: Decides sizes, length and frame rate.
        portrait_columns: Where a portrait is given, from :func:`portrait_columns_of`.

    Returns:
        Rows of a manifest that lies in the folder :data:`INPUTS` itself.
    """
    size = {"height": profile.height, "width": profile.width}
    rows = []
    for drawn in clips:
        num_frames = LONG_FRAMES if drawn.kind == _LONG else profile.num_frames
        needed = num_frames if drawn.kind == _POSE else 1
        clip = drawn.draw(num_frames=needed, fps=profile.fps, **size)
        name = f"{drawn.kind}-{drawn.seed}-{drawn.index:05d}"  # one folder may hold several seeds
        row: dict[str, Any] = {
            "request_id": name,
            "prompt": clip.caption,
            "num_frames": num_frames,
            "seed": drawn.index,
            "extra": drawn.to_extra(),
        }
        if drawn.kind == _POSE:
            _put_video(store, f"{INPUTS}/{name}.mp4", clip.control_TYXC, fps=profile.fps)
            row |= {"video": f"{name}.mp4", "video_is_control": True, "control": ["openpose"]}
        if drawn.kind == _IDENTITY:
            store.put(f"{INPUTS}/{name}.png", encode_png(clip.reference_YXC))
            row |= {"prompt": NEUTRAL_PROMPT, **dict.fromkeys(portrait_columns, f"{name}.png")}
        rows.append(row)
    return rows


def _put_video(store: Store, path: str, frames_TYXC: Any, *, fps: float) -> None:
    with tempfile.TemporaryDirectory(prefix="musev-inputs-") as folder:
        local = Path(folder) / "video.mp4"
        write_segment(local, frames_TYXC, fps=fps, encoder=_SHARP)
        store.put(path, local)


def report_of(scores: Iterable[Scored], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Average the scores of a run, each over the kinds of requests that it is about.

    Args:
        scores: Of all judged videos. Those of no held-out request count everywhere.
        skipped: Kinds that were not rendered, with reasons.

    Returns:
        Every name of :data:`REPORTED` to its mean, or None; ``details`` with n and the interval
        that holds the true mean 95 times in 100; ``skipped`` with the reason of every None.
    """
    judged = list(scores)
    report: dict[str, Any] = {}
    details: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, (score, kinds) in REPORTED.items():
        chosen = [one for one in judged if one.kind in kinds or not one.kind]
        found = estimate(one.scores[score] for one in chosen if score in one.scores)
        report[name] = None if found is None else _rounded(found.value)
        if found is None:
            reasons = [skipped[kind] for kind in kinds if kind in skipped]
            reasons += [one.reasons[score] for one in chosen if score in one.reasons]
            missing[name] = reasons[0] if reasons else "no video that this judge applies to"
        else:
            details[name] = {n: _rounded(value) for n, value in asdict(found).items()}
            details[name]["over"] = list(kinds)
    return {**report, "details": details, "skipped": missing}


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
