"""Memory and speed of making control maps, over the driving video's length.

    python benchmarks/control_memory.py
    python benchmarks/control_memory.py --name dwpose_body_hand --frames 100 300 --side 256

Each length has a process of its own that makes every piece of a video's maps, one after another, as
one worker of a run would: reading from the middle of the file, detector, exact map video, storage.
Peak memory is the kernel's, of that process and of the largest ffmpeg it started.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musev.config import ClipRequest, ControlConfig, SamplingConfig
from musev.media import write_segment

FPS = 12.0


def dance(num_frames: int, side: int) -> Iterator[np.ndarray]:
    """Frames with enough in them to be a video: noise that stands, a box that moves."""
    frame_YXC = np.random.default_rng(0).integers(0, 90, (side, side, 3), dtype=np.uint8)
    for number in range(num_frames):
        now_YXC = frame_YXC.copy()
        left = number * 3 % (side - side // 4)
        now_YXC[side // 4 : side // 2, left : left + side // 4] = (number % 160) + 90
        yield now_YXC


def make_all(folder: Path, name: str, num_frames: int, side: int) -> dict[str, float]:
    """Make every piece of a video's maps in this process; what it took."""
    from musev.control.detectors import describe_detector
    from pipelines.control_units import units_of
    from pipelines.ledger import Ledger
    from pipelines.media_cache import MediaCache
    from pipelines.progress import Board, Pulse
    from pipelines.stages.control import MakeMaps, MapSetup

    config, video = ControlConfig(), str(folder / "dance.mp4")
    cache = MediaCache(run_id="benchmark", folder=str(folder / "cache"))
    setup = MapSetup(config=config, device="cpu", ledger=Ledger(str(folder / "out")), cache=cache)
    make = MakeMaps(setup, Pulse(Board()))
    request = ClipRequest(
        request_id="r",
        video=video,
        control=(name,),
        num_frames=num_frames,
        fps=FPS,
        width=side,
        height=side,
        seed=0,
        profile="benchmark",
        sampling=SamplingConfig(),
    )
    with cache.open_file(video) as (digest, _):
        pass
    detectors = {name: describe_detector(name, config)}
    (row,) = units_of(request, {"video": digest}, num_frames, detectors).values()
    started = time.monotonic()
    records = []
    for unit in row.all:
        outcome = make({"name": unit.key, "unit": unit.to_json()})
        if outcome["status"] != "ready":
            raise SystemExit(outcome["error_message"])
        records.append(json.loads(outcome["record"]))
    frames = sum(record["frames"] for record in records)
    assert frames == num_frames, (frames, num_frames)
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (_SELF, _CHILDREN)]
    return {
        "frames": frames,
        "pieces": len(records),
        "frames_per_s": frames / (time.monotonic() - started),
        "bytes_per_frame": sum(record["map"]["bytes"] for record in records) / frames,
        "peak_mib": peaks[0],
        "peak_ffmpeg_mib": peaks[1],
    }


_SELF, _CHILDREN = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


def main() -> None:
    """Measure every length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="canny", help="control name")
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 5000])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.here is not None:
        print(json.dumps(make_all(told.here, told.name, told.frames[0], told.side)))
        return
    first = None
    print("frames pieces frames/s bytes/frame  peak MiB (ratio)  ffmpeg MiB")
    for num_frames in told.frames:
        with tempfile.TemporaryDirectory(prefix="mvc") as folder:
            write_segment(Path(folder) / "dance.mp4", dance(num_frames, told.side), fps=FPS)
            again = ["--name", told.name, "--frames", str(num_frames), "--side", str(told.side)]
            command = [sys.executable, __file__, *again, "--here", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        first = first or found["peak_mib"]
        print(
            f"{found['frames']:6d} {found['pieces']:6d} {found['frames_per_s']:8.1f} "
            f"{found['bytes_per_frame']:11.0f} {found['peak_mib']:9.0f} "
            f"({found['peak_mib'] / first:.2f}) {found['peak_ffmpeg_mib']:11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
