"""What a clip of a dataset costs: drawing, encoding, writing; and reading it back.

    python benchmarks/dataset_speed.py
    python benchmarks/dataset_speed.py --size 256x256 --frames 25 --clips 16 --json speed.json

Milliseconds are processor time of this process and of the ffmpeg processes it starts, so that other
work on the machine counts little; the load average stands beside them. ``clips_a_second_a_core`` is
their inverse for drawing and writing together: workers share nothing but storage.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musev.training.shards import ShardDataset, ShardStream
from pipelines.clip_sources import drawn_clip
from pipelines.dataset_card import read_state, write_card
from pipelines.dataset_plan import DatasetConfig, Source, dataset_settings, plan_shards
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.stages.make_shard import MakeShard


class Silent:
    """A pulse that tells nobody."""

    def row(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Note progress."""


def cpu_ms(work: Callable[[], Any]) -> tuple[float, float]:
    """Processor time of a piece of work: of this process, and of those it starts."""

    def now() -> tuple[float, float]:
        both = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        own, started = (usage.ru_utime + usage.ru_stime for usage in both)
        return own, started

    before = now()
    work()
    own, started = (1000 * (b - a) for a, b in zip(before, now(), strict=True))
    return own, started


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Processor time of a dataset's clips.")
    parser.add_argument("--size", default="128x128", help="width x height")
    parser.add_argument("--frames", type=int, default=13, help="frames a clip")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    config = DatasetConfig(
        width=width, height=height, num_frames=options.frames, clips_per_shard=options.clips
    )
    source = Source(num_clips=options.clips, seed=0)
    settings = dataset_settings(config, source, {})
    (shard,) = plan_shards(settings, source)
    drawn_clip(0, 0, config)  # warms every cache
    with tempfile.TemporaryDirectory(prefix="musev-bench-") as folder:
        ledger = Ledger(f"{folder}/out")
        cache = MediaCache(run_id="bench", folder=f"{folder}/cache")
        stage = MakeShard(config=config, seed=0, ledger=ledger, cache=cache, pulse=Silent())
        draw, _ = cpu_ms(lambda: [drawn_clip(0, n, config) for n in range(options.clips)])
        own, ffmpeg = cpu_ms(lambda: stage({"shard": shard.to_json()}))
        state = read_state(ledger, [shard], source)
        write_card(ledger, state, config=config, source=source, settings=settings)
        dataset = ShardDataset(f"{folder}/out")
        stream = iter(ShardStream(dataset, seed=0))
        streamed, _ = cpu_ms(lambda: [next(stream) for _ in range(options.clips)])
        single, _ = cpu_ms(lambda: [dataset.read([n], ["mp4"]) for n in range(options.clips)])
    clips = options.clips
    report = {
        "size": options.size,
        "frames": options.frames,
        "clips": clips,
        "draw_ms": round(draw / clips, 2),
        "write_ms": round((own - draw) / clips, 2),
        "ffmpeg_ms": round(ffmpeg / clips, 2),
        "clips_a_second_a_core": round(1000 * clips / (own + ffmpeg), 1),
        "stream_ms": round(streamed / clips, 3),
        "read_by_number_ms": round(single / clips, 3),
        "bytes_a_clip": state.num_bytes // clips,
        "load_average": round(os.getloadavg()[0], 2),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
