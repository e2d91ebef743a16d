"""Draw who computes which window when: windows over frames and steps, and workers over time.

Plain drawing with Pillow from what a simulation did; plans nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from musev.denoise.simulate import Timeline

_MARGIN, _GAP, _LEFT = 28, 44, 62
_TITLE, _TEXT, _SMALL = 21, 15, 13
_PAPER, _INK, _SOFT, _RULE, _IDLE = "#ffffff", "#1d1d1b", "#6d6b66", "#e3e1dc", "#efeeea"
_FRONT = "#d1204f"
_MOMENTS = (0.25, 0.5, 0.75)
_MAX_CHART_PX = 1200
# Early to late.
_COURSE = ((49, 54, 149), (69, 117, 180), (116, 173, 209), (171, 217, 190), (254, 224, 124))
_BRIGHT = 390  # sum of red, green and blue from which dark text is readable
_STEPS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#e1b12c")


@dataclass(frozen=True)
class Panel:
    """One way of doing a clip: a heading, a sentence below it, and what was done."""

    title: str
    about: str
    timeline: Timeline
    clip: int = 0


@dataclass(frozen=True)
class _Bar:
    """A window at one step, as one worker computed it."""

    step: int
    number: int
    frames: tuple[int, ...]
    worker: int
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class _Scale:
    """Sizes that all panels share."""

    num_frames: int
    num_steps: int
    num_lanes: int
    num_workers: int
    total_s: float
    denoised_s: float
    """When the last window of any panel was finished."""
    chart_px: int
    lane_px: int

    @property
    def row_px(self) -> int:
        """Height of one step."""
        return self.num_lanes * self.lane_px + max(self.lane_px // 3, 3)

    @property
    def worker_px(self) -> int:
        """Height of one worker's row."""
        return 24 if self.num_workers <= 16 else 12

    def x_of_frame(self, frame: float) -> float:
        """Where a frame begins."""
        return frame * self.chart_px / self.num_frames

    def x_of_time(self, at_s: float) -> float:
        """Where a moment lies."""
        return at_s * self.chart_px / self.total_s


def draw_timelines(panels: Sequence[Panel], *, heading: str) -> Image.Image:
    """Draw one clip's windows and the workers' time, one way of doing it beside another.

    Above, a bar is a window at a step, and its colour says when it was finished; red lines show how
    far every frame is at a quarter, half and three quarters of the time. Below, a bar is a task
    on a worker; its colour and number say the step, grey is idle time.

    Args:
        panels: One or more of the same clip; all have the same scale of time.
        heading: Line above everything.

    Returns:
        An RGB picture.
    """
    bars = [list(_bars(panel)) for panel in panels]
    scale = _measure(panels, bars)
    width = 2 * _MARGIN + len(panels) * (_LEFT + scale.chart_px) + (len(panels) - 1) * _GAP
    chart_px = scale.num_steps * scale.row_px
    workers_px = scale.num_workers * scale.worker_px
    height = 2 * _MARGIN + 100 + chart_px + 78 + workers_px + 118
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    _write(draw, (_MARGIN, _MARGIN), heading, _TEXT, _SOFT)
    for index, (panel, found) in enumerate(zip(panels, bars, strict=True)):
        left = _MARGIN + _LEFT + index * (_LEFT + scale.chart_px + _GAP)
        top = _MARGIN + 34
        _write(draw, (left, top), panel.title, _TITLE, _INK)
        _write(draw, (left, top + 28), panel.about, _TEXT, _SOFT)
        top += 66
        _draw_windows(draw, scale, found, left, top)
        top += chart_px + 78
        _draw_workers(draw, scale, panel, left, top)
    _draw_legend(draw, _MARGIN + _LEFT, height - _MARGIN - 38)
    return picture


def finishing_steps(panel: Panel, at_s: float) -> list[int]:
    """Tell the step that every frame has reached at a moment.

    Args:
        panel: What was done.
        at_s: Seconds from the start.

    Returns:
        One number a frame.
    """
    bars = list(_bars(panel))
    return _reached(bars, 1 + max(max(bar.frames) for bar in bars), at_s)


def _bars(panel: Panel) -> Iterator[_Bar]:
    for run in panel.timeline.runs:
        task = run.job.task
        if run.clip != panel.clip or run.job.kind != "denoise" or task is None:
            continue
        # A task that runs all steps is drawn as its steps, one after the other.
        each_s = (run.stop_s - run.start_s) / run.job.num_steps
        for part in range(run.job.num_steps):
            start_s = run.start_s + part * each_s
            yield _Bar(
                task.step + part,
                task.number,
                tuple(sorted(set(task.frames))),
                run.worker,
                start_s,
                start_s + each_s,
            )


def _measure(panels: Sequence[Panel], bars: Sequence[Sequence[_Bar]]) -> _Scale:
    every = [bar for found in bars for bar in found]
    num_frames = 1 + max(bar.frames[-1] for bar in every)
    num_steps = 1 + max(bar.step for bar in every)
    num_lanes = max(1, *(lane + 1 for found in bars for lane in _lanes(found).values()))
    most_px = _MAX_CHART_PX if len(panels) == 1 else _MAX_CHART_PX * 5 // 9
    least_px = most_px * 2 // 3
    return _Scale(
        num_frames=num_frames,
        num_steps=num_steps,
        num_lanes=num_lanes,
        num_workers=max(panel.timeline.pool.num_workers for panel in panels),
        total_s=max(panel.timeline.total_s for panel in panels),
        denoised_s=max(bar.stop_s for bar in every),
        chart_px=max(least_px, min(most_px, num_frames * 8)),
        lane_px=max(3, min(15, 700 // (num_steps * num_lanes))),
    )


def _lanes(bars: Sequence[_Bar]) -> dict[tuple[int, int], int]:
    """Place windows of a step that overlap below one another; others share a lane."""
    lanes: dict[tuple[int, int], int] = {}
    ends: dict[int, list[int]] = {}  # last frame in each lane of a step
    for bar in sorted(bars, key=lambda bar: (bar.step, bar.frames[0], bar.number)):
        step = ends.setdefault(bar.step, [])
        free = [lane for lane, last in enumerate(step) if last < bar.frames[0]]
        lane = free[0] if free else len(step)
        if lane == len(step):
            step.append(0)
        step[lane] = bar.frames[-1]
        lanes[bar.step, bar.number] = lane
    return lanes


def _draw_windows(
    draw: ImageDraw.ImageDraw, scale: _Scale, bars: Sequence[_Bar], left: int, top: int
) -> None:
    bottom = top + scale.num_steps * scale.row_px
    _write(draw, (left - 10, top - 20), "step", _SMALL, _SOFT, anchor="ra")
    for step in range(scale.num_steps):
        y = top + step * scale.row_px
        draw.line((left, y, left + scale.chart_px, y), fill=_RULE)
        if _is_labelled(step, scale.num_steps, scale.row_px):
            middle = y + scale.row_px // 2
            _write(draw, (left - 10, middle), str(step + 1), _SMALL, _INK, anchor="rm")
    lanes = _lanes(bars)
    for bar in bars:
        y = top + bar.step * scale.row_px + lanes[bar.step, bar.number] * scale.lane_px + 2
        for first, stop in _pieces(bar.frames):
            box = (
                left + scale.x_of_frame(first),
                y,
                left + scale.x_of_frame(stop) - 1,
                y + scale.lane_px - 2,
            )
            colour = _colour_of(bar.stop_s / scale.denoised_s, bar.number)
            draw.rectangle(box, fill=colour)
            if box[2] - box[0] > 24 and scale.lane_px >= 13:
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                ink = _INK if sum(colour) > _BRIGHT else "#ffffff"
                _write(draw, middle, _letter(bar.worker), 11, ink, anchor="mm")
    for moment in _MOMENTS:
        _draw_front(draw, scale, bars, moment, left, top)
    for frame in _ticks(scale.num_frames):
        x = left + scale.x_of_frame(frame)
        draw.line((x, bottom, x, bottom + 5), fill=_SOFT)
        _write(draw, (x, bottom + 8), str(frame), _SMALL, _INK, anchor="ma")
    _write(draw, (left + scale.chart_px, bottom + 26), "frame", _SMALL, _SOFT, anchor="ra")


def _draw_front(
    draw: ImageDraw.ImageDraw,
    scale: _Scale,
    bars: Sequence[_Bar],
    moment: float,
    left: int,
    top: int,
) -> None:
    """Trace how far every frame is at a share of the time."""
    line: list[tuple[float, float]] = []
    last = max(bar.stop_s for bar in bars)
    for frame, step in enumerate(_reached(bars, scale.num_frames, moment * last)):
        y = top + step * scale.row_px
        line += [(left + scale.x_of_frame(frame), y), (left + scale.x_of_frame(frame + 1), y)]
    draw.line(line, fill=_FRONT, width=3, joint="curve")


def _reached(bars: Sequence[_Bar], num_frames: int, at_s: float) -> list[int]:
    """Count the steps that each frame has behind it."""
    last = 1 + max(bar.step for bar in bars)
    open_at = [last] * num_frames  # lowest step with a window that is not finished
    for bar in bars:
        if bar.stop_s > at_s:
            for frame in bar.frames:
                open_at[frame] = min(open_at[frame], bar.step)
    return open_at


def _draw_workers(
    draw: ImageDraw.ImageDraw, scale: _Scale, panel: Panel, left: int, top: int
) -> None:
    bottom = top + scale.num_workers * scale.worker_px
    _write(draw, (left - 10, top - 20), "worker", _SMALL, _SOFT, anchor="ra")
    for worker in range(panel.timeline.pool.num_workers):
        y = top + worker * scale.worker_px
        end = left + scale.x_of_time(panel.timeline.total_s)
        draw.rectangle((left, y + 2, end, y + scale.worker_px - 2), fill=_IDLE)
        if scale.worker_px >= 16:
            middle = y + scale.worker_px // 2
            _write(draw, (left - 10, middle), _letter(worker), _SMALL, _INK, anchor="rm")
    for run in panel.timeline.runs:
        _draw_run(draw, scale, run, left, top)
    for at_s in _ticks(scale.total_s):
        x = left + scale.x_of_time(at_s)
        draw.line((x, bottom, x, bottom + 5), fill=_SOFT)
        _write(draw, (x, bottom + 8), f"{at_s:g}", _SMALL, _INK, anchor="ma")
    _write(draw, (left + scale.chart_px, bottom + 26), "seconds", _SMALL, _SOFT, anchor="ra")


def _draw_run(draw: ImageDraw.ImageDraw, scale: _Scale, run: Any, left: int, top: int) -> None:
    y = top + run.worker * scale.worker_px
    each_s = (run.stop_s - run.start_s) / run.job.num_steps
    for part in range(run.job.num_steps):
        start = left + scale.x_of_time(run.start_s + part * each_s)
        stop = left + scale.x_of_time(run.start_s + (part + 1) * each_s)
        stop -= 2 if stop - start > 6 else 1
        step = run.job.task.step + part if run.job.kind == "denoise" else None
        colour = _SOFT if step is None else _STEPS[step % len(_STEPS)]
        box = (start, y + 2, max(stop, start), y + scale.worker_px - 2)
        draw.rectangle(box, fill=colour)
        if stop - start > 14 and scale.worker_px >= 16:
            middle = ((start + stop) / 2, y + scale.worker_px / 2)
            text = run.job.kind[0] if step is None else str(step + 1)
            _write(draw, middle, text, 12, "#ffffff", anchor="mm")


def _draw_legend(draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    width = 120
    text = "Above: a window, its worker; finished early"
    _write(draw, (left, top + 6), text, _SMALL, _SOFT, anchor="lm")
    x = left + _width(text, _SMALL) + 8
    for offset in range(width):
        draw.line((x + offset, top, x + offset, top + 12), fill=_colour_of(offset / width, 0))
    x += width + 8
    _write(draw, (x, top + 6), "late", _SMALL, _SOFT, anchor="lm")
    x += 50
    draw.line((x, top + 6, x + 30, top + 6), fill=_FRONT, width=3)
    text = "how far frames are at 1/4, 1/2, 3/4 of the time"
    _write(draw, (x + 38, top + 6), text, _SMALL, _SOFT, anchor="lm")
    text = "Below: a task, its step; c: conditions, d: decoding; grey: a worker that waits"
    _write(draw, (left, top + 30), text, _SMALL, _SOFT, anchor="lm")


def _colour_of(share: float, number: int) -> tuple[int, int, int]:
    """Colour of a share of the time; every other window is a shade darker."""
    place = min(max(share, 0.0), 1.0) * (len(_COURSE) - 1)
    index = min(int(place), len(_COURSE) - 2)
    part = place - index
    shade = 1.0 if number % 2 == 0 else 0.86
    low, high = _COURSE[index], _COURSE[index + 1]
    red, green, blue = (round(shade * (a + part * (b - a))) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _pieces(frames: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring frames, as (first, stop)."""
    first = previous = frames[0]
    for frame in frames[1:]:
        if frame != previous + 1:
            yield first, previous + 1
            first = frame
        previous = frame
    yield first, previous + 1


def _ticks(stop: float) -> Iterator[float]:
    """About six round numbers from 0 to ``stop``."""
    size = next(
        base * 10**power
        for power in range(-6, 12)
        for base in (1, 2, 5)
        if stop / (base * 10**power) <= 7
    )
    for index in range(int(stop / size) + 1):
        yield round(index * size, 9)


def _is_labelled(step: int, num_steps: int, row_px: int) -> bool:
    every = max(1, -(-15 // row_px))
    return step % every == 0 or step + 1 == num_steps


def _letter(worker: int) -> str:
    return chr(ord("A") + worker) if worker < 26 else str(worker + 1)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    *,
    anchor: str = "la",
) -> None:
    draw.text(at, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)


def _width(text: str, size: int) -> int:
    return round(ImageFont.load_default(size).getlength(text))
