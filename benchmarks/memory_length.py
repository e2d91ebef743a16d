"""Memory of a worker and of the process that drives a clip, over the clip's length.

    python benchmarks/memory_length.py
    python benchmarks/memory_length.py --frames 100 1000 --steps 4 --json memory.json
    python benchmarks/memory_length.py --job --frames 100 10000 --steps 4 --output out/long

Each length has processes of its own. All is real but the networks: pool, worker, conductor,
checkpoints, segments and their joining; latents are those of 512x512, frames are small. With
``--job`` the networks are real too: the job text_to_video runs as a user would start it, with the
small weights at 96x96, and its processes are watched from outside. Peak RSS is
the kernel's; it counts pages of Ray's object store that a process has touched, which all processes
share and which stop growing with the store's size; "without store" leaves them out. Private memory
leaves out libraries too that others use; like PSS it is the largest of samples. Ratios are against
the shortest clip, and no latents are taken off: the conductor lets frames go when their segment is
stored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from musev.config import (
    ClipRequest,
    EncoderConfig,
    FirstFrameConfig,
    Profile,
    SamplingConfig,
    ScheduleConfig,
    WeightsConfig,
)
from musev.media import encode_png, write_segment
from musev.synthetic.portraits import draw_portrait
from pipelines.clip_worker import ClipWorker, WorkerSetup
from pipelines.ledger import Ledger
from pipelines.manifest import write_manifest
from pipelines.media_cache import MediaCache
from pipelines.outcomes import READY
from pipelines.pool import PoolPlan, start_broker
from pipelines.progress import Board
from pipelines.resources import connect
from pipelines.rows import request_to_json
from pipelines.stages.conduct import ConductClip

SIDE = 64
"""Latent rows and columns: a picture of 512x512."""
JOB_SIDE = 96
"""Picture rows and columns of a run with real networks."""
KINDS = ("peak_rss", "rss_store", "rss_own", "pss", "private")
Found = Iterable[tuple[str, int]]
"""Processes to watch: what each is, and its id."""


class LightEngine:
    """A formula in the networks' place; arrays have the real sizes, segments are small.

    Args:
        encoder: Of segments.
    """

    def __init__(self, encoder: EncoderConfig) -> None:
        self._encoder = encoder

    def condition(self, request: ClipRequest, media: Any) -> tuple[Any, Any]:
        """Compute nothing."""
        from musev.clip_front import ClipFacts

        facts = ClipFacts(
            schedule=ScheduleConfig(), latent_height=SIDE, latent_width=SIDE, given_BCTHW=None
        )
        return None, facts

    @contextmanager
    def open_clip(self, request: ClipRequest, conditions: Any, video: Any) -> Iterator[Any]:
        """Open a clip; both guidance halves come back in half precision."""
        import torch

        def denoise(noisy_BCFHW: Any, timestep: float, frames: tuple[int, ...]) -> Any:
            half_BCFHW = (noisy_BCFHW * 0.5).half()
            return torch.cat([half_BCFHW, half_BCFHW * 0.9])

        yield denoise

    def write_segment(self, latents_BCTHW: Any, *, fps: float, target: Path) -> int:
        """Encode one latent channel as small grey frames."""
        tones_TYX = (latents_BCTHW[0, 0].clamp(-3, 3).numpy() * 40 + 128).astype(np.uint8)
        frames_TYXC = np.repeat(tones_TYX[..., None], 3, axis=3)
        return write_segment(target, frames_TYXC, fps=fps, encoder=self._encoder)


@dataclass(frozen=True)
class LoadLightly:
    """Loads the engine and notes the worker's process."""

    notes: Path

    def __call__(self, profile: Profile, device: str, parts: Any = None) -> Any:
        """Load it."""
        import torch

        torch.set_num_threads(1)
        (self.notes / str(os.getpid())).touch()
        return LightEngine(profile.encoder)


def read_memory(pid: int) -> dict[str, int]:
    """Bytes of a process now, and its peak; empty if it is gone."""
    try:
        status = _read_table(Path(f"/proc/{pid}/status"))
        pages = _read_table(Path(f"/proc/{pid}/smaps_rollup"))
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {
        "peak_rss": status["VmHWM"],
        "rss_store": status["RssShmem"],
        "pss": pages["Pss"],
        "private": pages["Private_Clean"] + pages["Private_Dirty"],
    }


def _read_table(path: Path) -> dict[str, int]:
    fields = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in fields if words[-1:] == ["kB"]}


def add_own(memory: dict[str, int]) -> dict[str, int]:
    """Add the peak without pages of the object store."""
    return {**memory, "rss_own": memory["peak_rss"] - memory["rss_store"]}


def add_own_to_all(most: Mapping[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Do :func:`add_own` for every kind of process."""
    return {who: add_own(memory) for who, memory in most.items()}


class Watcher:
    """Samples the memory of some processes, in a thread.

    Args:
        find: Lists the processes that there are at the moment.
    """

    def __init__(self, find: Callable[[], Found]) -> None:
        self._find = find
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.most: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            last = self._over.wait(0.5)
            for who, pid in self._find():
                self._note(who, pid)
            if last:
                return

    def _note(self, who: str, pid: int) -> None:
        most = self.most.setdefault(who, {})
        for kind, value in read_memory(pid).items():
            most[kind] = max(most.get(kind, 0), value)


def find_below(root: int) -> list[tuple[str, int]]:
    """List the workers and the driving process of a job, by what they call themselves.

    Args:
        root: Process of the job; Ray's are below it.

    Returns:
        ``worker`` and ``driver`` processes, and the job's own as ``job``.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                status = dict(line.split(":", 1) for line in (entry / "status").open())
                children.setdefault(int(status["PPid"]), []).append(int(entry.name))
    found, below = [("job", root)], [root]
    while below:
        pid = below.pop()
        below += children.get(pid, [])
        with suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if title.startswith("ray::ClipWorker"):
                found.append(("worker", pid))
            elif title.startswith("ray::") and "DriveRows" in title:
                found.append(("driver", pid))
    return found


def run_clip(num_frames: int, *, workers: int, steps: int) -> dict[str, Any]:
    """Drive one clip in this process and measure."""
    with tempfile.TemporaryDirectory(prefix="musev-bench-") as name:
        folder = Path(name)
        (folder / "workers").mkdir()
        profile = Profile(name="bench", weights=WeightsConfig(random_seed=0))
        ledger = Ledger(str(folder / "out"))
        setup = WorkerSetup(
            profile=profile,
            device="cpu",
            ledger=ledger,
            cache=MediaCache(run_id="bench", folder=str(folder / "cache")),
            model_digests={},
            load_engine=LoadLightly(folder / "workers"),
        )
        board = ray.remote(Board).options(num_cpus=0).remote()
        broker = start_broker(PoolPlan(least=workers, most=workers), _maker(setup, board))
        conduct = ConductClip(
            broker=broker,
            ledger=ledger,
            encoder=profile.encoder,
            num_workers=workers,
            device="cpu",
            tell=lambda name, stage, done, total: None,
        )
        started = time.monotonic()
        notes = folder / "workers"

        def find() -> Found:
            yield "driver", os.getpid()
            yield from (("worker", int(note.name)) for note in notes.iterdir())

        with Watcher(find) as watcher:
            outcome = conduct(_row(num_frames, steps))
        if outcome["status"] != READY:
            raise RuntimeError(f"{outcome['error_class']}: {outcome['error_message']}")
        return {
            "frames": num_frames,
            "tasks": outcome["tasks"]["tasks"],
            "checkpoints": outcome["tasks"]["checkpoints"],
            "frames_in_video": outcome["measured"].num_frames,
            "seconds": time.monotonic() - started,
            **add_own_to_all(watcher.most),
        }


def run_job(num_frames: int, *, workers: int, steps: int, output: Path) -> dict[str, Any]:
    """Render one video with the job of that name, in processes of its own, and measure."""
    output.mkdir(parents=True, exist_ok=True)
    portrait = output / "portrait.png"
    portrait.write_bytes(encode_png(draw_portrait(3, width=JOB_SIDE, height=JOB_SIDE)))
    request = {"request_id": "long", "prompt": "a person nods", "num_frames": num_frames, "seed": 1}
    manifest = str(output / "manifest.parquet")
    write_manifest([{**request, "condition_image": portrait.name}], manifest)
    command = [sys.executable, "-m", "jobs.text_to_video", "--manifest", manifest]
    command += ["--output", str(output), "--workers", str(workers)]
    for name, value in (("width", JOB_SIDE), ("height", JOB_SIDE), ("sampling.num_steps", steps)):
        command += ["--set", f"{name}={value}"]
    started = time.monotonic()
    with subprocess.Popen(command, cwd=Path(__file__).resolve().parents[1]) as job:
        with Watcher(lambda: find_below(job.pid)) as watcher:
            status = job.wait()
    if status:
        raise RuntimeError(f"the job ended with status {status}")
    (record,) = Ledger(str(output)).committed().values()
    return {
        "frames": num_frames,
        "tasks": record["tasks"]["tasks"],
        "checkpoints": record["tasks"]["checkpoints"],
        "frames_in_video": record["num_frames"],
        "video": str(output / record["video"]),
        "worker_seconds": record["stage_seconds"],
        "seconds": time.monotonic() - started,
        **add_own_to_all(watcher.most),
    }


def _maker(setup: WorkerSetup, board: Any) -> Callable[[Any], Any]:
    def make(broker: Any) -> Any:
        return ray.remote(ClipWorker).options(num_cpus=0).remote(setup, board, broker)

    return make


def _row(num_frames: int, steps: int) -> dict[str, Any]:
    request = ClipRequest(
        request_id="clip",
        prompt="",
        num_frames=num_frames,
        fps=8.0,
        width=8 * SIDE,
        height=8 * SIDE,
        seed=0,
        profile="bench",
        sampling=SamplingConfig(num_steps=steps, first_frame=FirstFrameConfig(origin="noise")),
    )
    return {
        "row": 0,
        "order": 0,
        "sample_id": f"{num_frames:064x}",
        "status": READY,
        "request": request_to_json(request),
        "media_digests": "{}",
    }


def measure_apart(num_frames: int, options: argparse.Namespace) -> dict[str, Any]:
    """Drive one clip in a new process, which starts a Ray of its own."""
    with tempfile.TemporaryDirectory(prefix="musev-bench-") as folder:
        target = Path(folder) / "one.json"
        command = [sys.executable, __file__, "--alone", "--frames", str(num_frames)]
        command += ["--workers", str(options.workers), "--steps", str(options.steps)]
        subprocess.run([*command, "--json", str(target)], check=True)
        (clip,) = json.loads(target.read_text())["clips"]
    return clip


def run_jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Render a video of every length; each goes to a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="musev-bench-") as scratch:
        folder = (options.output or Path(scratch)).resolve()
        return [
            run_job(
                frames,
                workers=options.workers,
                steps=options.steps,
                output=folder / f"{frames}-frames",
            )
            for frames in options.frames
        ]


def compare(clips: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Memory of the longest clip over that of the shortest, by process and kind."""
    first, last = clips[0], clips[-1]
    return {
        who: {kind: last[who][kind] / max(1, first[who][kind]) for kind in KINDS}
        for who in ("driver", "worker", "job")
        if who in first
    }


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    names = ("peak RSS", "of the store", "without store", "PSS", "private")
    table = Table("process", "frames", "tasks", *(f"{name}, MB" for name in names), "seconds")
    for who, ratios in report["ratios"].items():
        for clip in report["clips"]:
            sizes = (f"{clip[who][kind] / 1e6:.0f}" for kind in KINDS)
            counts = (str(clip["frames"]), str(clip["tasks"]))
            table.add_row(who, *counts, *sizes, f"{clip['seconds']:.0f}")
        cells = (f"{ratios[kind]:.2f}" for kind in KINDS)
        table.add_row("", "last / first", "", *cells, "", end_section=True)
    Console(width=110).print(table)
    Console(width=110).print(f"load average {report['load_average']}")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Memory over the length of a clip.")
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help="one length, in this process")
    parser.add_argument("--job", action="store_true", help="real networks: the job itself")
    parser.add_argument("--output", type=Path, help="where --job keeps its videos")
    options = parser.parse_args(arguments)
    load = [round(os.getloadavg()[0], 1)]
    if options.alone:
        os.environ.setdefault("RAY_worker_niceness", "0")
        connect()
        try:
            (frames,) = options.frames
            clips = [run_clip(frames, workers=options.workers, steps=options.steps)]
        finally:
            ray.shutdown()
    elif options.job:
        clips = run_jobs(options)
    else:
        clips = [measure_apart(frames, options) for frames in options.frames]
    load.append(round(os.getloadavg()[0], 1))
    report = {"clips": clips, "ratios": compare(clips), "load_average": load}
    if not options.alone:
        show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
