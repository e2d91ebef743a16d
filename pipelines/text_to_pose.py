"""Graph: a manifest of prompts in, the same manifest with poses to follow out.

    rows -> [driver: which rows get poses, and which files are there] -> write poses (actors)
         -> [driver: manifest with column keypoints]

Poses lie in files of their own, named by everything that decides them. So the ordinary job renders
the new manifest like any other that brings keypoints, and a file is made once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from musev.config import ClipRequest
from musev.text_to_pose_config import (
    GUIDANCE,
    NUM_STEPS,
    TextToPoseConfig,
    read_text_to_pose_config,
)
from musev.weight_parts import digest_text_to_pose, text_to_pose_folder
from pipelines.manifest import rebase_media
from pipelines.outcomes import READY, Row
from pipelines.resources import ClusterShape, apply_stage, one_row_a_block, shard_args
from pipelines.rounds import stream_patiently
from pipelines.rows import TEXT_TO_POSE, RowFailure, canonical_json
from pipelines.stages.write_poses import WritePoses
from pipelines.storage import Store

SHIPPED = "package:drawn-poses"
FOLDER = "keypoints"
CONTROL = "dwpose_body"
"""How they are drawn: bodies alone, for the pose ControlNet."""
FORMAT_VERSION = 2
"""Part of every name; raised when the same task would give other poses."""
SILENCE_S = 300.0
_OWN = ("video", "keypoints", "control", "condition_image", "align")


@dataclass(frozen=True, kw_only=True)
class PoseSettings:
    """With what poses are made."""

    weights: str
    """Folder of the network, or ``package:NAME``."""
    digest: str
    """Of its weights."""
    config: TextToPoseConfig
    """Knows which prompts tell what is done."""
    num_steps: int
    guidance: float


def read_pose_settings(
    weights: str = SHIPPED, *, num_steps: int = NUM_STEPS, guidance: float = GUIDANCE
) -> PoseSettings:
    """Look up a network of text to pose.

    Args:
        weights: A folder or URL, or ``package:NAME``.
        num_steps: Of its diffusion.
        guidance: How much more than the prompt says.

    Returns:
        With what poses are made.

    Raises:
        WeightsError: If there is no such network.
    """
    folder = text_to_pose_folder(weights)
    return PoseSettings(
        weights=weights,
        config=read_text_to_pose_config(folder),
        digest=digest_text_to_pose(folder),
        num_steps=num_steps,
        guidance=guidance,
    )


@dataclass(frozen=True, kw_only=True)
class PoseTask:
    """One file of poses."""

    request_id: str
    """Of a row that asks for it."""
    prompt: str
    num_frames: int
    fps: float
    width: int
    height: int
    seed: int
    num_steps: int
    guidance: float
    path: str
    """Below the output."""


@dataclass(frozen=True, kw_only=True)
class PosePlan:
    """What becomes of every row."""

    tasks: Mapping[str, PoseTask]
    """Request id to its task."""
    left: Mapping[str, str]
    """Request id to the reason why a row stays as it is."""


def plan_poses(
    rows: Iterable[Mapping[str, Any]], requests: Sequence[ClipRequest], settings: PoseSettings
) -> PosePlan:
    """Decide which rows get poses.

    Args:
        rows: As they were read.
        requests: Of the good ones among them.
        settings: With what.

    Returns:
        The plan; bad rows have no part in it.
    """
    raw: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        raw.setdefault(row.get("request_id"), row)  # of equal names the first is the good row
    tasks, left = {}, {}
    for request in requests:
        reason = _reason_to_stay(raw[request.request_id], request, settings)
        if reason:
            left[request.request_id] = reason
        else:
            tasks[request.request_id] = _task(request, settings)
    return PosePlan(tasks=tasks, left=left)


def _reason_to_stay(
    raw: Mapping[str, Any], request: ClipRequest, settings: PoseSettings
) -> str | None:
    own = [name for name in _OWN if raw.get(name) not in (None, [], ())]
    if own:
        return f"has {' and '.join(own)} of its own"
    if not settings.config.tells(request.prompt):
        return "has a prompt that names no action the network has learnt"
    return None


def _task(request: ClipRequest, settings: PoseSettings) -> PoseTask:
    decides = {
        "prompt": request.prompt,
        "num_frames": request.num_frames,
        "fps": float(request.fps),
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
    }
    told = canonical_json({**decides, "digest": settings.digest, "version": FORMAT_VERSION})
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    path = f"{FOLDER}/{key[:2]}/{key}.parquet"
    return PoseTask(request_id=request.request_id, path=path, **decides)


def make_poses(
    store: Store,
    plan: PosePlan,
    settings: PoseSettings,
    *,
    shape: ClusterShape,
    num_workers: int,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    stage: type[WritePoses] = WritePoses,
) -> dict[str, str]:
    """Make the files of a plan that are not there.

    Args:
        store: Below the output.
        plan: From :func:`plan_poses`.
        settings: The same.
        shape: Of the cluster.
        num_workers: Most workers.
        on_row: Told how many of how many are done.
        stage: What makes a file.

    Returns:
        Path to reason, of files that could not be made.
    """
    there = store.list(FOLDER)
    wanted = {task.path: asdict(task) for task in plan.tasks.values() if task.path not in there}
    total, failed = len(wanted), {}
    if not wanted:
        return failed
    build = functools.partial(
        _dataset,
        stage=stage,
        store=store,
        weights=settings.weights,
        shape=shape,
        num_workers=num_workers,
    )
    doing = "their poses were made"
    for outcome in stream_patiently(build, wanted, key="path", silence_s=SILENCE_S, doing=doing):
        if outcome["status"] != READY:
            failed[outcome["path"]] = outcome["reason"]
        on_row(total - len(wanted), total)
    lost = "the process that makes these poses died or stood still again and again"
    return failed | dict.fromkeys(wanted, lost)


def _dataset(
    rows: list[Row],
    *,
    stage: type[WritePoses],
    store: Store,
    weights: str,
    shape: ClusterShape,
    num_workers: int,
) -> Any:
    args = shard_args(shape, num_workers, networks=False)
    return apply_stage(one_row_a_block(rows), stage, args, store=store, weights=weights)


def posed_rows(
    rows: Iterable[Mapping[str, Any]],
    plan: PosePlan,
    failed: Mapping[str, str],
    *,
    store: Store,
    old_base: str,
    new_base: str,
) -> list[dict[str, Any]]:
    """Write down the new manifest's rows.

    Args:
        rows: As they were read, bad ones among them: they stay as they are.
        plan: Which have poses.
        failed: Files that could not be made; their rows stay as they are.
        store: Where the files lie.
        old_base: Where relative media paths of the rows start.
        new_base: Where those of the new manifest do.

    Returns:
        All rows, in their order.
    """
    found = []
    for row in rows:
        moved = rebase_media(row, old_base, new_base)
        task = plan.tasks.get(row.get("request_id"))
        if task is not None and task.path not in failed:
            moved["keypoints"] = store.uri_of(task.path)
            moved["control"] = [CONTROL]
            moved["num_frames"] = task.num_frames
        found.append(moved)
    return found


def pose_failures(
    rows: Iterable[Mapping[str, Any]], plan: PosePlan, failed: Mapping[str, str]
) -> list[RowFailure]:
    """Refuse rows whose poses could not be made: without, they would be other videos.

    Args:
        rows: As they were read.
        plan: Which have poses.
        failed: Path to reason, of files that could not be made.

    Returns:
        One failure a row.
    """
    found: dict[str, RowFailure] = {}
    for number, row in enumerate(rows, start=1):
        task = plan.tasks.get(name := row.get("request_id", ""))
        if task is not None and task.path in failed and name not in found:
            found[name] = RowFailure(
                request_id=name,
                row=number,
                column="prompt",
                value=task.prompt,
                error_class="RequestError",
                message=f"row {number} ({name!r}), column 'prompt': no poses could be made of it: "
                f"{failed[task.path]}. Run the job again, or without --text-to-pose.",
                stage=TEXT_TO_POSE,
            )
    return list(found.values())
