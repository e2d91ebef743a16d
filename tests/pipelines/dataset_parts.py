"""What the tests of datasets share: small settings, small videos, graphs over a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from musev.config import EncoderConfig, Profile, WeightsConfig
from musev.media import write_segment
from musev.training.shard_files import DatasetClip
from pipelines.clip_table import ClipRow, ClipTable, read_clip_table
from pipelines.dataset_plan import DatasetConfig, Source
from pipelines.ledger import Ledger
from pipelines.make_dataset import DatasetGraph
from pipelines.media_cache import MediaCache
from pipelines.resources import ClusterShape

LAPTOP = ClusterShape(num_cpus=2, num_gpus=0)
SMALL = DatasetConfig(
    width=32,
    height=32,
    num_frames=2,
    clips_per_shard=3,
    encoder=EncoderConfig(preset="ultrafast"),
)
MINI = Profile(name="mini", weights=WeightsConfig(random_seed=0))


class Silent:
    """A pulse that tells nobody."""

    def row(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Note progress."""


def video(path: Path, grey: int = 90, num_frames: int = 4) -> str:
    """A grey video of 8 frames a second; returns its name."""
    frames = np.full((num_frames, 32, 48, 3), grey, np.uint8)
    write_segment(path, frames, fps=8, encoder=EncoderConfig(preset="ultrafast"))
    return path.name


def write_table(folder: Path, num_rows: int, *, bad: dict[int, str] | None = None) -> ClipTable:
    """A table of clips of one good video; ``bad`` gives rows another value for ``video``."""
    folder.mkdir(parents=True, exist_ok=True)
    good = video(folder / "good.mp4")
    names = {**dict.fromkeys(range(num_rows), good), **(bad or {})}
    lines = [f"c{number},{names[number]},clip number {number}" for number in range(num_rows)]
    (folder / "clips.csv").write_text("clip_id,video,caption\n" + "\n".join(lines) + "\n")
    return read_clip_table(str(folder / "clips.csv"))


def drawn(num_clips: int, seed: int = 4) -> Source:
    return Source(num_clips=num_clips, seed=seed)


def of_table(table: ClipTable) -> Source:
    return Source(num_clips=table.num_rows, table=table)


def row(number: int, uri: str, **changes: Any) -> ClipRow:
    values = {"clip_id": f"c{number}", "video": uri, "caption": "x", **changes}
    return ClipRow(row=number, **values)


def graph(folder: Path, source: Source, out: str | None = None, **changes: Any) -> DatasetGraph:
    """A graph whose output and cache lie in a folder."""
    values: dict[str, Any] = {
        "config": SMALL,
        "source": source,
        "ledger": Ledger(out or str(folder / "out")),
        "cache": MediaCache(run_id="test", folder=str(folder / "cache")),
        "shape": LAPTOP,
        "num_workers": 2,
        **changes,
    }
    return DatasetGraph(**values)


def fake_networks(profile: Profile, device: str) -> tuple[Any, str]:
    """Networks whose latents are the caption."""

    def encode(clip: DatasetClip) -> bytes:
        return f"{profile.name} on {device}: {clip.caption}".encode()

    return encode, "mark"


def broken_networks(profile: Profile, device: str) -> tuple[Any, str]:
    raise ValueError("the weights are not what they seem")


def deadly_networks(profile: Profile, device: str) -> tuple[Any, str]:
    """Networks that take their process down at the clip captioned ``die``."""

    def encode(clip: DatasetClip) -> bytes:
        if clip.caption == "die":
            os._exit(9)
        return b"latents"

    return encode, "mark"


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything of a dataset that readers see."""
    out = folder / "out"
    found = [path for path in out.rglob("*") if path.is_file() and "work" not in path.parts]
    kept = [path for path in found if "commits" not in path.relative_to(out).parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}
