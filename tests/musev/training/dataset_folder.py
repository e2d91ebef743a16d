"""Datasets for tests, written without the job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from musev.training.shard_files import FORMAT, INDEX_SCHEMA, index_row, write_tar


def plain_files(number: int) -> dict[str, bytes]:
    """Files of a clip that hold no media, only marks by which they are known."""
    facts = {
        "key": f"{number:08d}",
        "clip_id": f"clip {number}",
        "caption": f"caption {number}",
        "attributes": {},
        "num_frames": 1,
        "width": 2,
        "height": 2,
        "fps": 8.0,
    }
    return {"json": json.dumps(facts).encode(), "mp4": b"video %d" % number}


def write_dataset(
    folder: Path, shards: Sequence[Sequence[Mapping[str, bytes]]], **card: object
) -> str:
    """Write files of clips as shards, index and card; returns the folder as text."""
    (folder / "shards").mkdir(parents=True)
    rows, number = [], 0
    for place, clips in enumerate(shards):
        path = f"shards/{place:04d}.tar"
        keyed = [(f"{number + n:08d}", files) for n, files in enumerate(clips)]
        number += len(clips)
        with (folder / path).open("wb") as target:
            entries = write_tar(target, keyed)
        rows += [
            {**index_row(entry, files), "shard": path}
            for entry, (_, files) in zip(entries, keyed, strict=True)
        ]
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / "index.parquet")
    (folder / "dataset.json").write_text(json.dumps({"format": FORMAT, **card}))
    return str(folder)
