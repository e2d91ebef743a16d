"""A long clip through the real pool and the real conductor, with a formula for networks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from musev.clip_front import open_front
from musev.config import ClipRequest, EncoderConfig, Profile, SamplingConfig, WindowConfig
from musev.denoise.loop import drive_front
from musev.media import join_segments
from pipelines.engines import Engine
from pipelines.outcomes import Row
from pipelines.pool import PoolPlan, start_broker
from pipelines.progress import Board
from pipelines.rows import request_to_json
from pipelines.stages.conduct import ConductClip
from pipelines.text_to_video import Graph, _make_worker
from tests.pipelines.stand_ins import MINI, ColourEngine, graph, request

SAMPLING = SamplingConfig(
    num_steps=4, solver="dpmpp", windows=WindowConfig(num_frames=6, overlap=2)
)
ENCODER = EncoderConfig(segment_frames=7)
PROFILE = Profile(
    name="mini", weights=MINI.weights, width=32, height=32, sampling=SAMPLING, encoder=ENCODER
)


def long_request(name: str = "long", **changes: Any) -> ClipRequest:
    """A clip of 40 frames: ten windows a step, six segments."""
    return request(name, **{"num_frames": 40, "sampling": SAMPLING, **changes})


@dataclass(frozen=True)
class NotedEngine:
    """Loads a :class:`ColourEngine` that notes its process and every window it has computed.

    ``hang_once``: the first worker that computes this frame in the middle of a clip hangs.
    ``hang_first``: the first worker that computes the conditions hangs.
    ``seconds``: every window takes so long.
    """

    notes: Path
    hang_once: int | None = None
    hang_first: bool = False
    seconds: float = 0.0

    def __call__(self, profile: Profile, device: str, parts: Any = None) -> Engine:
        (self.notes / f"{os.getpid()}.pid").touch()
        return _NotedColours(profile, self)

    def pids(self) -> list[int]:
        """Processes that have loaded the engine and live."""
        found = [int(path.stem) for path in self.notes.glob("*.pid")]
        return [pid for pid in found if Path(f"/proc/{pid}").exists()]

    def windows(self) -> list[str]:
        """A name for every window that was computed to its end."""
        return [line.split()[0] for line in self._lines()]

    def workers(self) -> set[str]:
        """Processes that have computed a window."""
        return {line.split()[1] for line in self._lines()}

    def _lines(self) -> list[str]:
        path = self.notes / "windows"
        return path.read_text().splitlines() if path.exists() else []


class _NotedColours(ColourEngine):
    def __init__(self, profile: Profile, notes: NotedEngine) -> None:
        super().__init__(profile)
        self._notes = notes

    def condition(self, request: ClipRequest, media: Any) -> Any:
        if self._notes.hang_first:
            self._hang_once()
        return super().condition(request, media)

    def _hang_once(self) -> None:
        hung = self._notes.notes / "hung"
        if not hung.exists():
            hung.touch()
            time.sleep(3600)

    @contextmanager
    def open_clip(
        self, request: ClipRequest, conditions: float, video: Path | None
    ) -> Iterator[Callable[..., Any]]:
        notes = self._notes
        with super().open_clip(request, conditions, video) as denoise:

            def noted(noisy: Any, timestep: float, frames: tuple[int, ...]) -> Any:
                if notes.hang_once in frames:
                    self._hang_once()
                time.sleep(notes.seconds)
                estimate = denoise(noisy, timestep, frames)
                with (notes.notes / "windows").open("a") as lines:
                    lines.write(f"{timestep:.3f}/{frames[0]} {os.getpid()}\n")
                return estimate

            yield noted


@dataclass
class Conducted:
    """A run of one clip."""

    wired: Graph
    broker: Any
    row: Row
    settings: dict[str, Any] = field(default_factory=dict)

    def run(
        self, on_progress: Callable[[str, int, int], None] = lambda *_: None
    ) -> tuple[Row, bytes]:
        """Drive the clip; the row that comes back, and the bytes of its video."""
        stage = ConductClip(
            broker=self.broker,
            ledger=self.wired.ledger,
            encoder=ENCODER,
            num_workers=4,
            device="cpu",
            tell=lambda _, *event: on_progress(*event),
            settings=self.settings,
        )
        row = stage(self.row)
        path = row.get("video_path")
        return row, Path(path).read_bytes() if path else b""


def conducted(
    folder: Path,
    clip: ClipRequest,
    engine: Any,
    *,
    workers: tuple[int, int],
    **settings: Any,
) -> Conducted:
    """Start a pool for a clip in a real Ray; it ends with the last reference to the broker."""
    import ray

    wired = graph(folder, profile=PROFILE, load_engine=engine)
    setup = wired.worker_setup()
    board = ray.remote(Board).options(num_cpus=0).remote()
    make = partial(_make_worker, setup=setup, board=board, resources={"num_cpus": 0.01})
    broker = start_broker(PoolPlan(least=workers[0], most=workers[1]), make)
    row = {
        "row": 0,
        "order": 0,
        "sample_id": "ab" * 32,
        "status": "ready",
        "request": request_to_json(clip),
        "media_digests": "{}",
    }
    return Conducted(wired, broker, row, settings)


def rendered_here(folder: Path, clip: ClipRequest) -> bytes:
    """The bytes of a clip from one loop in this process."""
    engine = ColourEngine(PROFILE)
    conditions, facts = engine.condition(clip, {})
    with engine.open_clip(clip, conditions, None) as denoise:
        latents = drive_front(open_front(clip, facts), denoise)
    paths = []
    for first in range(0, clip.num_frames, ENCODER.segment_frames):
        paths.append(folder / f"here-{first:05d}.mp4")
        part = latents[:, :, first : first + ENCODER.segment_frames]
        engine.write_segment(part, fps=clip.fps, target=paths[-1])
    join_segments(paths, folder / "here.mp4")
    return (folder / "here.mp4").read_bytes()


def kill(pid: int) -> None:
    """End a process without a word."""
    os.kill(pid, signal.SIGKILL)


torch.set_num_threads(1)
