"""Find control maps in one video or one picture, to look at before a run.

    python -m jobs.control --video dance.mp4 --name dwpose_body_hand --output out/control
    python -m jobs.control --image face.png --name canny --name dwpose --output out/control

Writes the maps (exact, as a run would make them), for poses also the people found as Parquet and a
report on them as JSON, and previews side by side: an mp4 and a PNG. What is written can go into a
manifest: the maps as `video` with `video_is_control`, the people as `keypoints`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ProfileOption,
    SetOption,
    errors_as_status,
    load_settings,
    run_app,
)
from musev.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

BATCH_FRAMES = 8
PREVIEW_PX = 512
"""Longest side of a frame in a preview."""
_SHOWN = 6

Frames = Callable[[], Iterator["np.ndarray"]]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def control(
    names: Annotated[
        list[str], typer.Option("--name", help="Control name; repeatable. See docs/control.md.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write to.")],
    video: Annotated[Path | None, typer.Option("--video", help="A driving video.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="One picture instead.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Default: as the source.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Default: as the source.")] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames a second; default: as the video.")
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option("--sample-rate", min=1, help="Take every N-th frame.", metavar="N")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, help="Stop after so many frames.")
    ] = None,
    may_be_cut: Annotated[
        bool, typer.Option("--may-be-cut", help="Read a damaged video as far as it goes.")
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
) -> None:
    """Find control maps in one video or one picture, to look at before a run."""
    with errors_as_status():
        config = load_settings(profile, changes or ()).profile.control
        if (video is None) == (image is None):
            raise ConfigError("give either --video or --image")
        size = (width, height)
        if video is None:
            assert image is not None
            source = _open_image(image, size)
        else:
            choice = {"fps": fps, "sample_rate": sample_rate, "max_frames": max_frames}
            source = _open_video(video, size, may_be_cut=may_be_cut, **choice)
        output.mkdir(parents=True, exist_ok=True)
        for name in names:
            for line in _find(source, name, config, output):
                typer.echo(line)
    raise typer.Exit(OK)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 done, 2 wrong command, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.control")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Frames to look at, as often as wanted."""

    stem: str
    frames: Frames
    num_frames: int
    fps: float
    """0 for a picture."""


def _open_image(path: Path, size: tuple[int | None, int | None]) -> _Source:
    from musev.media import read_image

    picture_YXC = _fit(read_image(path), size)
    return _Source(stem=path.stem, frames=lambda: iter([picture_YXC]), num_frames=1, fps=0.0)


def _open_video(
    path: Path,
    size: tuple[int | None, int | None],
    *,
    fps: float | None,
    sample_rate: int | None,
    max_frames: int | None,
    may_be_cut: bool,
) -> _Source:
    from musev.media import pick_frames, read_frames, time_frames

    times = time_frames(path, may_be_cut=may_be_cut)
    rate = fps or times.fps or 1.0
    numbers = pick_frames(times, fps=rate, sample_rate=sample_rate)[:max_frames]

    def frames() -> Iterator[np.ndarray]:
        with closing(read_frames(path, times, numbers)) as found:
            for frame_YXC in found:
                yield _fit(frame_YXC, size)

    shown = fps or (times.fps or 1.0) / (sample_rate or 1)
    return _Source(stem=path.stem, frames=frames, num_frames=len(numbers), fps=shown)


def _fit(frame_YXC: np.ndarray, size: tuple[int | None, int | None]) -> np.ndarray:
    from musev.media import fit_image

    if size == (None, None):
        return frame_YXC
    return fit_image(
        frame_YXC, width=size[0] or frame_YXC.shape[1], height=size[1] or frame_YXC.shape[0]
    )


def _find(source: _Source, name: str, config: Any, output: Path) -> Iterator[str]:
    """Write everything for one control name; yields what there is to say."""
    from musev.control.detectors import open_detector
    from musev.media import encode_png, read_image, read_video, write_lossless

    started = time.monotonic()
    detector = open_detector(name, config, device=_device())
    opened_s, started = time.monotonic() - started, time.monotonic()
    stem = output / f"{source.stem}-{name}"
    people = stem.with_name(f"{stem.name}.parquet")
    counts = {"frames": 0, "nobody": 0}
    if hasattr(detector, "detect"):
        found = _pose_maps(source, detector, config, people, counts)
    else:
        found = _maps(source, detector, counts)
    if source.fps:
        target = stem.with_name(f"{stem.name}.mkv")
        write_lossless(target, found, fps=source.fps)
    else:
        target = stem.with_name(f"{stem.name}.png")
        (map_YXC,) = found
        target.write_bytes(encode_png(map_YXC))
    seconds = time.monotonic() - started
    yield (
        f"{name}: {counts['frames']} frames in {seconds:.1f} s "
        f"({counts['frames'] / seconds:.2f} frames/s), after {opened_s:.1f} s to load"
    )
    yield f"  maps      {target} ({target.stat().st_size / counts['frames']:.0f} bytes a frame)"
    if people.exists():
        yield f"  people    {people} (nobody in {counts['nobody']} frames)"
        yield f"  report    {_write_report(people)}"

    def maps() -> Iterator[np.ndarray]:
        return read_video(target) if source.fps else iter([read_image(target)])

    for path in _preview(source, maps, stem):
        yield f"  preview   {path}"


def _maps(source: _Source, detector: Any, counts: dict[str, int]) -> Iterator[np.ndarray]:
    import numpy as np

    for batch in _batches(source.frames()):
        counts["frames"] += len(batch)
        yield from detector.maps(np.stack(batch))


def _pose_maps(
    source: _Source, detector: Any, config: Any, people: Path, counts: dict[str, int]
) -> Iterator[np.ndarray]:
    """Maps of poses, and the people in a file; one person followed and steadied if wanted."""
    import numpy as np

    from musev.control.person import FramePoses, PoseVideo, PoseWriter
    from musev.control.tracking import steady_people

    frames = source.frames()
    first_YXC = next(frames)
    height, width = first_YXC.shape[:2]

    def found() -> Iterator[FramePoses]:
        for batch in _batches(itertools.chain([first_YXC], frames)):
            yield from detector.detect(np.stack(batch))[1]

    poses = found()
    if config.steadies:
        poses = steady_people(
            poses, max_gap_frames=config.max_gap_frames, smoothing=config.smoothing
        )
    video = PoseVideo(width=width, height=height, fps=source.fps)
    with PoseWriter(people, video) as sink:
        for persons in poses:
            sink.write(persons)
            counts["nobody"] += not any(person.body_K3.any() for person in persons)
            counts["frames"] += 1
            yield detector.draw([persons], height, width)[0]


def _batches(frames: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    while batch := list(itertools.islice(frames, BATCH_FRAMES)):
        yield batch


def _write_report(people: Path) -> Path:
    """What was found of the followed person, as JSON beside the keypoints."""
    from musev.control.person import iter_poses
    from musev.control.tracking import follow_person, report_poses

    path = people.with_name(f"{people.stem}-people.json")
    report = report_poses(follow_person(iter_poses(people)))
    path.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    return path


def _preview(source: _Source, maps: Frames, stem: Path) -> Iterator[Path]:
    """Source and map side by side: a video of all frames, a picture of a few."""
    import numpy as np

    from musev.media import encode_png, write_segment

    chosen = np.linspace(0, source.num_frames - 1, min(_SHOWN, source.num_frames)).round()
    kept: list[np.ndarray] = []

    def pairs() -> Iterator[np.ndarray]:
        for number, pair in enumerate(zip(source.frames(), maps(), strict=True)):
            small_YXC = np.concatenate([_smaller(frame_YXC) for frame_YXC in pair], axis=1)
            if number in chosen:
                kept.append(small_YXC)
            yield small_YXC

    if source.fps:
        film = stem.with_name(f"{stem.name}-preview.mp4")
        write_segment(film, pairs(), fps=source.fps)
        yield film
    else:
        list(pairs())
    half = kept[0].shape[1] // 2
    columns = [np.concatenate([pair[:, :half], pair[:, half:]]) for pair in kept]
    picture = stem.with_name(f"{stem.name}-preview.png")
    picture.write_bytes(encode_png(np.concatenate(columns, axis=1)))
    yield picture


def _smaller(frame_YXC: np.ndarray) -> np.ndarray:
    """At most :data:`PREVIEW_PX` on the longest side, and even."""
    from musev.media import fit_image

    height, width = frame_YXC.shape[:2]
    scale = min(1.0, PREVIEW_PX / max(height, width))
    rows, columns = (max(2, round(side * scale / 2) * 2) for side in (height, width))
    return fit_image(frame_YXC, width=columns, height=rows)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
