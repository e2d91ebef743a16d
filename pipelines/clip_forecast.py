"""What one video costs, wherever it is rendered: FLOPs, memory, bytes; and how fast a worker is.

Work comes from the real planner and from networks called without weights. torch is imported when a
video is counted, not before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musev.config import ClipRequest, ScheduleConfig
from musev.control.controlnets import controlnet_for
from musev.errors import ConfigError
from pipelines.rows import request_from_json

if TYPE_CHECKING:
    from musev.denoise.simulate import ClipModel
    from musev.models.cost import ClipShape, CostModel

FindCost = Callable[[str], "CostModel"]
"""Profile name to what counts its networks' calls."""

BYTES_PER_PIXEL = 0.11
"""Of a finished mp4: drawn people at 128x128, crf 18, measured over 24 clips (0.110 to 0.116)."""
EMBEDDED_BYTES = 512 * 2**20
"""Most that a worker keeps of embedded control frames; musev/control/clip_control.py."""
TIMED = ("condition", "denoise")
"""Stages whose seconds are network calls, in the results table."""
_FLOAT32 = 4


@dataclass(frozen=True)
class Speed:
    """How fast one worker is."""

    flops_per_s: float
    """In network calls of denoising."""
    decode_flops_per_s: float
    """In decoding and encoding finished frames, counted by the FLOPs of the decoder alone."""
    source: str
    """Where this was learnt, for people."""


@dataclass(frozen=True, kw_only=True)
class ClipForecast:
    """What one video costs, wherever it is rendered."""

    windows: int
    """Most in one step."""
    steps: int
    tasks: int
    """What workers are given to denoise; a clip that fits one window is one task."""
    calls: int
    """Network calls."""
    generated_frames: int
    condition_flops: float
    window_flops: float
    """Of one call on the longest window."""
    denoise_flops: float
    decode_flops: float
    weights_bytes: int
    conditions_bytes: int
    """Kept by every worker that takes part: keys, values and embedded control frames."""
    peak_bytes: int
    """Most that a single call has alive."""
    latents_moved_bytes: int
    conditions_moved_bytes: int
    video_bytes: int

    @property
    def flops(self) -> float:
        """Everything."""
        return self.condition_flops + self.denoise_flops + self.decode_flops

    @property
    def memory_bytes(self) -> int:
        """What a worker needs: weights, conditions, and the largest call."""
        return self.weights_bytes + self.conditions_bytes + self.peak_bytes

    @property
    def moved_bytes(self) -> int:
        """What goes between processes and to storage."""
        return self.latents_moved_bytes + self.conditions_moved_bytes + self.video_bytes


def forecast_clip(
    request: ClipRequest,
    cost: CostModel,
    *,
    num_workers: int,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
) -> ClipForecast:
    """Count what one video costs.

    Args:
        request: Resolved; its length known.
        cost: Of its profile's networks.
        num_workers: So many workers at most are sent the video's conditions.
        bytes_per_pixel: Of the finished video.

    Returns:
        The counts.
    """
    shape = shape_of(request, cost.controlnets)
    condition = cost.condition(shape)
    frame = cost.decode_frame(request.width, request.height)
    control = cost.control_frame(shape)
    pixels = request.width * request.height * request.num_frames
    lengths, windows, peak_bytes, values = {}, 0, 0, 0
    one_task = False
    generated = request.num_frames - shape.given_frames
    steps = request.num_steps if generated > 0 else 0
    window_flops = 0.0
    if generated > 0:
        plan = plan_of(request)
        lengths = plan.count_lengths()
        windows = max(plan.num_windows(step) for step in range(steps))
        one_task = not request.spreads
        longest = cost.window(shape, max(lengths))
        window_flops, peak_bytes = longest.flops, longest.peak_bytes
        values = cost.latent_bytes(shape) // cost.bytes_per_value
    frames_sent = sum(length * count for length, count in lengths.items()) * (not one_task)
    halves = 1 + shape.guided
    kept = condition.kept_bytes + min(control.kept_bytes * request.num_frames, EMBEDDED_BYTES)
    calls = sum(lengths.values())
    return ClipForecast(
        windows=windows,
        steps=steps,
        tasks=1 if one_task else calls,
        calls=calls,
        generated_frames=max(generated, 0),
        condition_flops=condition.flops + control.flops * request.num_frames,
        window_flops=window_flops,
        denoise_flops=sum(
            cost.window(shape, length).flops * count for length, count in lengths.items()
        ),
        decode_flops=frame.flops * request.num_frames,
        weights_bytes=cost.weights_bytes(shape.control),
        conditions_bytes=kept,
        peak_bytes=max(peak_bytes, condition.peak_bytes, frame.peak_bytes),
        # Noisy latents and estimates in the networks' precision, clean ones to the decoder.
        latents_moved_bytes=values
        * (
            frames_sent * (1 + halves) * cost.bytes_per_value
            + request.num_frames * _FLOAT32 * (not one_task)
        ),
        conditions_moved_bytes=0 if one_task else kept * min(num_workers, windows),
        video_bytes=round(pixels * bytes_per_pixel),
    )


def shape_of(request: ClipRequest, held: Collection[str] = ()) -> ClipShape:
    """Say what decides the cost of a request's calls.

    Args:
        request: Resolved.
        held: ControlNets that there are; without, the clip's names stand for its networks.

    Returns:
        The shape.
    """
    from musev.models.cost import ClipShape

    sampling = request.sampling
    drawn = request.condition_image is None and sampling.first_frame.origin == "drawn"
    return ClipShape(
        width=request.width,
        height=request.height,
        guided=sampling.guidance.active,
        given_frames=request.num_given,
        first_frame_steps=sampling.first_frame.num_steps if drawn or request.redraw else 0,
        first_frame_guided=sampling.first_frame.guidance.active,
        has_reference=request.reference_image is not None,
        has_image_prompt=request.ip_adapter_image is not None,
        control=tuple(controlnet_for(name, held) or name for name in request.control),
    )


def plan_of(request: ClipRequest) -> Any:
    """Plan a request's windows: a :class:`~musev.denoise.clip_plan.ClipPlan`."""
    from musev.denoise.clip_plan import ClipPlan

    num_frames = request.num_frames - shape_of(request).given_frames
    return ClipPlan(num_frames, request.sampling.windows, num_steps=request.num_steps)


def model_clip(
    request: ClipRequest, clip: ClipForecast, speed: Speed, *, segment_frames: int
) -> ClipModel:
    """Describe a video to the simulation.

    Args:
        request: Resolved.
        clip: From :func:`forecast_clip`.
        speed: Of a worker.
        segment_frames: Frames decoded together.

    Returns:
        The model. A video that fits one window is one task from its conditions to its last frame.
    """
    from musev.denoise.clip_plan import ClipPlan
    from musev.denoise.simulate import ClipModel
    from musev.denoise.solvers import make_solver
    from musev.denoise.sources import make_noise_source

    condition_s = clip.condition_flops / speed.flops_per_s
    denoise_s = clip.denoise_flops / speed.flops_per_s
    decode_s = clip.decode_flops / speed.decode_flops_per_s
    if clip.tasks <= 1:
        num_steps = max(clip.steps, 1)
        # In the other layouts a clip no longer than a window can have two.
        windows = dataclasses.replace(request.sampling.windows, layout="musev")
        one = ClipPlan(max(clip.generated_frames, 1), windows, num_steps=num_steps)
        return ClipModel(plan=one, task_s=(condition_s + denoise_s + decode_s) / num_steps)
    solver = make_solver(request.sampling, ScheduleConfig())
    source = make_noise_source(request.sampling, request.seed)
    whole = {step for step in range(clip.steps) if source.draws_whole_steps(solver, step)}
    return ClipModel(
        plan=plan_of(request),
        task_s=clip.window_flops / speed.flops_per_s,
        condition_s=condition_s,
        decode_frame_s=decode_s / request.num_frames,
        segment_frames=segment_frames,
        waits_for_all=whole.__contains__,
    )


def speed_of_task(seconds: float, clips: Iterable[ClipForecast]) -> Speed | None:
    """Take the seconds of one call on the costliest window for a worker's speed."""
    flops = max((clip.window_flops for clip in clips), default=0.0)
    if not flops:
        return None
    rate = flops / seconds
    return Speed(rate, rate, f"{seconds:g} s for a call of {describe_flops(flops)}")


def measure_speed(records: Iterable[Mapping[str, Any]], find_cost: FindCost, where: str) -> Speed:
    """Learn the speed of a worker from what an earlier run committed.

    Args:
        records: Commit records: ``request`` and ``stage_seconds`` in seconds of workers.
        find_cost: Of each profile that they name.
        where: The earlier run, for people.

    Returns:
        FLOPs counted today over the seconds measured then.

    Raises:
        ConfigError: If no record tells both.
    """
    flops = decode_flops = seconds = decode_seconds = 0.0
    num_videos = 0
    for record in records:
        stages = dict(record.get("stage_seconds") or {})
        timed = sum(stages.get(name, 0.0) for name in TIMED)
        if not timed or not record.get("request"):
            continue
        request = request_from_json(json.dumps(record["request"]))
        clip = forecast_clip(request, find_cost(request.profile), num_workers=1)
        num_videos += 1
        flops += clip.condition_flops + clip.denoise_flops
        seconds += timed
        decode_flops += clip.decode_flops
        decode_seconds += stages.get("decode", 0.0)
    if not seconds:
        raise ConfigError(
            f"{where} holds no committed video with its seconds. Name the output of a run that "
            "rendered some, or give --seconds-per-task."
        )
    rate = flops / seconds
    decode_rate = decode_flops / decode_seconds if decode_seconds else rate
    return Speed(rate, decode_rate, f"measured over {num_videos} videos of {where}")


def measure_bytes_per_pixel(records: Iterable[Mapping[str, Any]]) -> float:
    """Bytes a pixel of committed videos; :data:`BYTES_PER_PIXEL` if there are none."""
    found = [record for record in records if record.get("bytes") and record.get("num_frames")]
    pixels = sum(row["width"] * row["height"] * row["num_frames"] for row in found)
    return sum(row["bytes"] for row in found) / pixels if pixels else BYTES_PER_PIXEL


def describe_flops(flops: float) -> str:
    """Write FLOPs with a prefix."""
    return _with_prefix(flops, (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)))


def describe_bytes(size: float) -> str:
    """Write bytes with a prefix."""
    return _with_prefix(size, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)))


def _with_prefix(value: float, prefixes: Sequence[tuple[str, float]]) -> str:
    name, scale = next((pair for pair in prefixes if value >= pair[1]), prefixes[-1])
    scaled = value / scale
    return f"{scaled:.3g} {name}" if scaled < 999.5 else f"{scaled:.0f} {name}"
