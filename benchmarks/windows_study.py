"""Which windows to denoise a long clip in: seams, pose and likeness against work, on drawn people.

    python benchmarks/windows_study.py --rows out/windows.jsonl --clips 24 --seeds 3 --minutes 600
    python benchmarks/windows_study.py --rows out/windows.jsonl --table

Every clip is drawn, so the truth is known. A model gets its first frame and its poses and makes 96
frames in each layout; with ``--free`` it gets no poses, and nobody knows what should come.

Measurements are appended to ``--rows`` one by one: run the same command again to go on, with more
clips, seeds or steps. A process computes on one core; several share a file when each is given its
part of the clips (``--part 0/2`` and ``--part 1/2``).

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.windows_table import SCORES, Variant, markdown, read_rows, summarise, variants

SOURCE_SEED = 77
"""Endless source of the clips: held-out combinations that no network was trained on."""
MORE_SCORES = ("ssim", "flicker", "drift_slope", "subject_drift_slope")
"""Written down, but not in the table."""
PROFILE_OFFSETS = range(-2, 7)
"""Frames around the first frame that the next window holds too, for ``profile``."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: what is rendered and how."""

    variant: Variant
    num_steps: int
    clip: int
    seed: int

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells it from the others."""
        return self.variant.name, self.num_steps, self.clip, self.seed


def points(clips: int, seeds: int, steps: Sequence[int], names: Sequence[str]) -> Iterator[Point]:
    """All measurements, so ordered that the first ones already compare all variants.

    Args:
        clips: Number of clips.
        seeds: Number of seeds of the noise.
        steps: Numbers of denoising steps.
        names: Variants to keep; empty for all.

    Yields:
        Points, clip by clip.
    """
    chosen = [v for v in variants() if not names or v.name in names]
    for clip, num_steps, seed in itertools.product(range(clips), steps, range(seeds)):
        for variant in chosen:
            yield Point(variant=variant, num_steps=num_steps, clip=clip, seed=seed)


class Study:
    """Renders points with one bundle.

    Args:
        profile_name: Whose networks, sizes and sampling.
        num_frames: Of a clip; the first is given.
        guidance: Guidance scale of the clip.
        scratch: Folder for control videos.
        free: Whether nothing but caption and first frame is given.
    """

    def __init__(
        self,
        profile_name: str,
        *,
        num_frames: int,
        guidance: float,
        scratch: Path,
        free: bool = False,
    ) -> None:
        from musev.models.bundle import load_bundle
        from musev.registry import get_profile
        from musev.weight_parts import digest_weights

        self._profile = get_profile(profile_name)
        digests = json.dumps(digest_weights(self._profile.weights), sort_keys=True)
        self.weights = hashlib.sha256(digests.encode()).hexdigest()[:12]
        self.kind = (self.weights, free)
        """Measurements that differ in it are not to be mixed."""
        self._bundle = load_bundle(self._profile.weights)
        self._num_frames = num_frames
        self._guidance = guidance
        self._scratch = scratch
        self._free = free
        self._drawn: tuple[int, Any] = (-1, None)
        self._memo = EstimateMemo()

    def measure(self, point: Point) -> dict[str, Any]:
        """Render and judge one point.

        Args:
            point: Which.

        Returns:
            The point's facts, ``weights``, ``work`` (frames that pass the network for each frame
            and step), ``seconds`` (less where windows were known from the point before), ``load``,
            the scores of :data:`SCORES` and :data:`MORE_SCORES`, NaN where a judge cannot say, and
            ``profile``, the :func:`seam_profile`, where the truth is known.
        """
        started = time.perf_counter()
        frames_TYXC = self.render(point)
        seconds = time.perf_counter() - started
        plan, generated = self._plan(point), self._num_frames - 1
        passed = sum(
            len(plan.task(step, number).frames)
            for step in range(point.num_steps)
            for number in range(plan.num_windows(step))
        )
        return {
            "variant": point.variant.name,
            "num_steps": point.num_steps,
            "clip": point.clip,
            "seed": point.seed,
            "weights": self.weights,
            "free": self._free,
            "work": passed / (generated * point.num_steps),
            "seconds": round(seconds, 2),
            "load": round(os.getloadavg()[0], 1),
            **self._judge(frames_TYXC, point),
        }

    def windows_at(self, point: Point, step: int) -> tuple[Any, ...]:
        """Windows of one of the point's steps, over the generated frames: all but frame 0."""
        plan = self._plan(point)
        return tuple(plan.task(step, number).frames for number in range(plan.num_windows(step)))

    def last_windows(self, point: Point) -> tuple[Any, ...]:
        """Windows of the point's last step."""
        return self.windows_at(point, point.num_steps - 1)

    def truth(self, point: Point) -> np.ndarray:
        """``frames_TYXC`` as they were drawn, the given first frame among them."""
        return self._draw(point.clip).frames_TYXC

    def _windows(self, point: Point) -> Any:
        from musev.config import WindowConfig

        return WindowConfig(
            num_frames=self._profile.sampling.windows.num_frames,
            **dataclasses.asdict(point.variant),
        )

    def _plan(self, point: Point) -> Any:
        from musev.denoise.clip_plan import ClipPlan

        windows = self._windows(point)
        return ClipPlan(self._num_frames - 1, windows, num_steps=point.num_steps)

    def _judge(self, frames_TYXC: np.ndarray, point: Point) -> dict[str, Any]:
        """Scores of the generated frames: frame 0 was given and is in no window."""
        from musev.quality.clip import Expected, score_clip
        from musev.quality.seams import seam_curve

        clip, windows = self._draw(point.clip), self.last_windows(point)
        expected = Expected(
            points_TJ2=clip.points_TJ2[1:],
            visible_TJ=clip.visible_TJ[1:],
            truth_TYXC=clip.frames_TYXC[1:],
            windows=windows,
        )
        if self._free:
            expected = Expected(windows=windows)
        scores = score_clip(frames_TYXC[1:], expected, fps=self._profile.fps)
        named = {name: scores.get(name, float("nan")) for name in (*SCORES, *MORE_SCORES)}
        found: dict[str, Any] = {name: round(float(value), 4) for name, value in named.items()}
        if not self._free:
            curve_T = seam_curve(frames_TYXC[1:], windows, clip.frames_TYXC[1:])
            found["profile"] = [round(value, 4) for value in seam_profile(curve_T, windows)]
        return found

    def render(self, point: Point) -> np.ndarray:
        """Render one point.

        Args:
            point: Which.

        Returns:
            ``frames_TYXC``: uint8, the given first frame among them.
        """
        import torch

        from musev.clip_front import open_front
        from musev.conditions import ClipMedia, encode_conditions
        from musev.config import GuidanceConfig
        from musev.control.clip_control import open_control
        from musev.denoise.loop import drive_front
        from musev.models.vae import decode_latents
        from musev.render import facts_of, make_denoiser
        from musev.window_denoiser import join_frames

        clip = self._draw(point.clip)
        sampling = dataclasses.replace(
            self._profile.sampling,
            windows=self._windows(point),
            num_steps=point.num_steps,
            guidance=GuidanceConfig(scale=self._guidance),
        )
        request = self._request(clip.caption, sampling, point.seed)
        video = None if self._free else self._scratch / "control.mp4"
        media = ClipMedia(condition_image=clip.frames_TYXC[:1], video=video)
        with torch.inference_mode(), open_control(self._bundle, request, media.video) as control:
            conditions = encode_conditions(self._bundle, request, media, control)
            denoiser = make_denoiser(self._bundle, request, conditions, control)
            front = open_front(request, facts_of(self._bundle, request, conditions))
            known = self._memo.over(denoiser, (point.clip, point.seed, point.num_steps))
            latents_BCTHW = join_frames(conditions, drive_front(front, known))
            return np.asarray(decode_latents(self._bundle.vae, latents_BCTHW)[0])

    def _request(self, prompt: str, sampling: Any, seed: int) -> Any:
        from musev.config import ClipRequest

        return ClipRequest(
            request_id="study",
            prompt=prompt,
            video=None if self._free else "control.mp4",
            video_is_control=not self._free,
            control=() if self._free else tuple(self._bundle.controlnets),
            num_frames=self._num_frames,
            fps=self._profile.fps,
            width=self._profile.width,
            height=self._profile.height,
            seed=seed,
            profile=self._profile.name,
            sampling=sampling,
        )

    def _draw(self, number: int) -> Any:
        """The clip, and its control video in the scratch folder."""
        from musev.media import write_segment
        from musev.synthetic.clips import draw_clip

        if self._drawn[0] != number:
            clip = draw_clip(
                SOURCE_SEED,
                number,
                held_out=True,
                num_frames=self._num_frames,
                fps=self._profile.fps,
                height=self._profile.height,
                width=self._profile.width,
            )
            video = self._scratch / "control.mp4"
            write_segment(video, clip.control_TYXC, fps=self._profile.fps)
            self._drawn = (number, clip)
        return self._drawn[1]


class EstimateMemo:
    """Estimates of windows, kept while clip, seed and number of steps stay the same.

    What a network says of a window depends on nothing but its frames, the step and the latents that
    come in. Variants of one clip share many: all begin with the same noise, the original's layout
    differs from ``musev`` at the end only, and settling steps go on from the same rotating ones.
    """

    def __init__(self) -> None:
        self._clip: tuple[int, ...] = ()
        self._estimates: dict[tuple[Any, ...], Any] = {}

    def over(self, denoiser: Any, clip: tuple[int, ...]) -> Any:
        """A denoiser that asks ``denoiser`` for what is not known of ``clip``; forgets others."""
        if clip != self._clip:
            self._clip, self._estimates = clip, {}

        def estimate(noisy_BCFHW: Any, timestep: float, window: tuple[int, ...]) -> Any:
            digest = hashlib.sha256(noisy_BCFHW.numpy().tobytes()).digest()
            key = (window, timestep, digest)
            if key not in self._estimates:
                self._estimates[key] = denoiser(noisy_BCFHW, timestep, window)
            return self._estimates[key]

        return estimate


def seam_profile(curve_T: np.ndarray, windows: Sequence[Sequence[int]]) -> list[float]:
    """Where around a join the change is: the seam ratio looks at both ends of an overlap alone.

    Args:
        curve_T: From :func:`musev.quality.seams.seam_curve`.
        windows: Of the last step.

    Returns:
        A value for each of :data:`PROFILE_OFFSETS`: the change into the frame so far after the
        first one that the next window holds too, over the change into frames that one window
        makes and the frame before as well; means are geometric.
    """
    logs = np.log(curve_T)
    covers = [
        {number for number, window in enumerate(windows) if frame in window}
        for frame in range(len(curve_T) + 1)
    ]
    plain = [t for t in range(len(curve_T)) if len(covers[t]) == 1 and covers[t] == covers[t + 1]]
    starts = [window[0] for window in windows[1:]]
    return [
        float(
            np.exp(
                np.mean([logs[s + o - 1] for s in starts if 0 < s + o <= len(logs)])
                - logs[plain].mean()
            )
        )
        for o in PROFILE_OFFSETS
    ]


def run(given: argparse.Namespace) -> None:
    """Measure what is not measured yet, until the time is over.

    Args:
        given: The command line.

    Raises:
        ValueError: The rows there are come from other weights.
    """
    import torch

    torch.set_num_threads(1)
    rows = read_rows(given.rows)
    part, parts = given.part
    wanted = [
        point
        for point in points(given.clips, given.seeds, given.steps, given.variant)
        if point.clip % parts == part
    ]
    given.rows.parent.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + given.minutes * 60
    with tempfile.TemporaryDirectory(prefix="musev-study-") as scratch:
        study = Study(
            given.profile,
            num_frames=given.frames,
            guidance=given.guidance,
            scratch=Path(scratch),
            free=given.free,
        )
        others = {(row["weights"], row.get("free", False)) for row in rows} - {study.kind}
        if others:
            told = [f"{weights}{' free' * free}" for weights, free in sorted(others)]
            raise ValueError(
                f"--rows {given.rows}: measured with the weights {', '.join(told)}, this would be "
                f"{study.weights}{' free' * given.free}; give another file"
            )
        done = {(row["variant"], row["num_steps"], row["clip"], row["seed"]) for row in rows}
        left = [point for point in wanted if point.key not in done]
        for count, point in enumerate(left):
            if time.monotonic() > until_s:
                sys.stderr.write(f"time is over; {len(left) - count} renders are left\n")
                return
            line = json.dumps(study.measure(point))
            with given.rows.open("a", encoding="utf-8") as file:
                file.write("\n" + line)
            sys.stderr.write(f"{count + 1}/{len(left)} {line}\n")


def read_part(text: str) -> tuple[int, int]:
    """Read ``--part``.

    Args:
        text: Like ``0/2``: of the clips whose number leaves 0 when divided by 2.

    Returns:
        ``(part, parts)``.

    Raises:
        argparse.ArgumentTypeError: It is not such a text.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part like 0/2 or 1/2")
    return int(part), int(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the table of what was measured.

    Args:
        arguments: Command line; None for the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=Path, default=Path("out/windows.jsonl"), help="JSON lines; grows"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    parser.add_argument("--frames", type=int, default=97, help="the first is given")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--free", action="store_true", help="no skeletons to follow")
    parser.add_argument("--variant", action="append", default=[], help="only this; repeatable")
    parser.add_argument(
        "--part", type=read_part, default=(0, 1), help="like 0/2: which share of the clips"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="stop after so long")
    given = parser.parse_args(arguments)
    if given.table:
        sys.stdout.write(markdown(summarise(read_rows(given.rows))))
    else:
        run(given)


if __name__ == "__main__":
    main()
