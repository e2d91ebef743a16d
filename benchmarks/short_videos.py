"""Many short videos through the whole graph, against a bare loop in one process times workers.

    python benchmarks/short_videos.py
    python benchmarks/short_videos.py --workers 8 --clips 96 --clip-seconds 2 --json short.json

The engine sleeps and puts a finished mp4 file in place: the same call in the loop and in the graph.
The loop does nothing else; the graph also leases workers, counts attempts, commits and reports.
Workers wait for one another while they load, so that starting them is left out: time runs from the
first clip that is begun to the last outcome that comes back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from musev.config import ClipRequest, Profile, SamplingConfig, WeightsConfig
from musev.media import VideoInfo, probe_video, write_segment
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.progress import BoardView
from pipelines.resources import connect, measure_cluster
from pipelines.text_to_video import Graph, Tally, check_inputs_here, render_rows

SIDE_PX, FRAMES = 64, 12
START_S = 300.0


@dataclass(frozen=True, kw_only=True)
class SleepingEngine:
    """Takes its time, then has a video."""

    video: Path
    info: VideoInfo
    clip_s: float
    notes: Path | None = None
    """Folder for a note of each clip's begin and end."""

    def render(
        self,
        request: ClipRequest,
        media: Any,
        target: Path,
        on_progress: Callable[[str, int, int], None],
    ) -> VideoInfo:
        """Render a whole clip to a file."""
        started = time.monotonic()
        time.sleep(self.clip_s)
        if self.notes is not None:
            (self.notes / request.request_id).write_text(f"{started} {time.monotonic()}")
        on_progress("denoise", 1, 1)
        shutil.copyfile(self.video, target)
        on_progress("decode", request.num_frames, request.num_frames)
        return self.info


@dataclass(frozen=True, kw_only=True)
class LoadTogether:
    """Loads the engine in every worker at the same moment: when the last one is there."""

    engine: SleepingEngine
    num_workers: int
    loaded: Path

    def __call__(self, profile: Profile, device: str, parts: Any = None) -> Any:
        """Load it."""
        (self.loaded / str(os.getpid())).touch()
        latest = time.monotonic() + START_S
        while len(list(self.loaded.iterdir())) < self.num_workers:
            if time.monotonic() > latest:
                raise TimeoutError(f"not all of {self.num_workers} workers have started")
            time.sleep(0.01)
        return self.engine


def make_engine(folder: Path, clip_s: float) -> SleepingEngine:
    """Make the video and the engine that hands it out."""
    video = folder / "video.mp4"
    frames_TYXC = np.full((FRAMES, SIDE_PX, SIDE_PX, 3), 100, np.uint8)
    write_segment(video, frames_TYXC, fps=8.0)
    notes = folder / "notes"
    notes.mkdir()
    return SleepingEngine(video=video, info=probe_video(video), clip_s=clip_s, notes=notes)


def make_requests(count: int) -> list[ClipRequest]:
    """Clips of one window that differ in their seeds."""
    return [
        ClipRequest(
            request_id=f"clip{number}",
            prompt="a person",
            num_frames=FRAMES,
            fps=8.0,
            width=SIDE_PX,
            height=SIDE_PX,
            seed=number,
            profile="bench",
            sampling=SamplingConfig(),
        )
        for number in range(count)
    ]


def run_loop(engine: SleepingEngine, requests: list[ClipRequest], folder: Path) -> float:
    """Seconds of a clip in a bare loop."""
    target = folder / "bare.mp4"
    started = time.monotonic()
    for request in requests:
        engine.render(request, {}, target, lambda stage, done, total: None)
    return (time.monotonic() - started) / len(requests)


def run_graph(graph: Graph, requests: list[ClipRequest], notes: Path) -> tuple[float, int]:
    """Seconds from the first clip begun to the last outcome; and most clips at one moment."""
    outcome_times: list[float] = []

    def note(tally: Tally, view: BoardView) -> None:
        while len(outcome_times) < len(tally.outcomes):
            outcome_times.append(time.monotonic())

    rows = check_inputs_here(graph, requests)
    outcomes = render_rows(graph, rows, on_tick=note)
    assert {row["status"] for row in outcomes} == {"committed"}, outcomes
    assert len(graph.ledger.committed_ids()) == len(requests)
    # One clock for all processes of a machine.
    spans = [tuple(map(float, note.read_text().split())) for note in notes.iterdir()]
    most = max(sum(first <= begin < last for first, last in spans) for begin, _ in spans)
    return outcome_times[-1] - min(first for first, _ in spans), most


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both."""
    with tempfile.TemporaryDirectory(prefix="musev-bench-") as name:
        folder = Path(name)
        (folder / "loaded").mkdir()
        engine = make_engine(folder, options.clip_seconds)
        load = [round(os.getloadavg()[0], 1)]
        bare = SleepingEngine(video=engine.video, info=engine.info, clip_s=engine.clip_s)
        bare_s = run_loop(bare, make_requests(options.bare_clips), folder)
        load.append(round(os.getloadavg()[0], 1))
        graph = Graph(
            profile=Profile(name="bench", weights=WeightsConfig(random_seed=0)),
            ledger=Ledger(str(folder / "out")),
            cache=MediaCache(run_id="bench", folder=str(folder / "cache")),
            model_digests={},
            shape=measure_cluster(),
            num_workers=options.workers,
            load_engine=LoadTogether(
                engine=engine, num_workers=options.workers, loaded=folder / "loaded"
            ),
        )
        assert engine.notes is not None
        graph_s, most_at_once = run_graph(graph, make_requests(options.clips), engine.notes)
        load.append(round(os.getloadavg()[0], 1))
    rounds = -(-options.clips // options.workers)
    return {
        "workers": options.workers,
        "clips": options.clips,
        "clip_s": options.clip_seconds,
        "bare_clip_s": bare_s,
        "graph_s": graph_s,
        "ratio": options.clips / options.workers * bare_s / graph_s,
        "most_at_once": most_at_once,
        "overhead_s_a_clip": graph_s / rounds - bare_s,
        "load_average": load,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Short videos: the graph against a bare loop.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=32, help="best a multiple of the workers")
    parser.add_argument("--clip-seconds", type=float, default=1.0)
    parser.add_argument("--bare-clips", type=int, default=5, help="clips of the bare loop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    # Ray's default of 15 would let workers starve on a machine that does other things too.
    os.environ.setdefault("RAY_worker_niceness", "0")
    connect()
    try:
        report = measure(options)
    finally:
        ray.shutdown()
    table = Table("workers", "clips", "bare loop, s a clip", "graph, s", "ratio", "load average")
    table.add_row(
        str(report["workers"]),
        str(report["clips"]),
        f"{report['bare_clip_s']:.3f}",
        f"{report['graph_s']:.2f}",
        f"{report['ratio']:.3f}",
        str(report["load_average"]),
    )
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
