"""Read a dataset of tar shards back: any clip by number, or all of them shuffled, in a stream.

Only the index is held in memory. Both ways are pure functions of a seed and plain numbers, so
a reader that is started again goes on with the very same clips.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from musev.errors import ConfigError, MediaError
from musev.training.shard_files import FORMAT

INDEX, CARD = "index.parquet", "dataset.json"
Files = dict[str, bytes]
"""File suffix to content: one clip as :func:`~musev.training.shard_files.read_clip` takes it."""


class ShardDataset:
    """A dataset below one URL, made by ``jobs/make_dataset.py``.

    Args:
        uri: Local path or fsspec URI.
        **storage_options: For fsspec.

    Raises:
        ConfigError: If there is no dataset, or one of another format.
    """

    def __init__(self, uri: str, **storage_options: Any) -> None:
        self.uri = uri.rstrip("/")
        self._files, root = fsspec.core.url_to_fs(uri, **storage_options)
        self._root = root.rstrip("/")
        try:
            self.card: dict[str, Any] = json.loads(self._files.cat_file(f"{self._root}/{CARD}"))
            index = self._files.cat_file(f"{self._root}/{INDEX}")
        except FileNotFoundError:
            raise ConfigError(
                f"no dataset at {uri}: {CARD} or {INDEX} is missing. Make one with "
                "python -m jobs.make_dataset, or let an interrupted run finish."
            ) from None
        if self.card.get("format") != FORMAT:
            raise ConfigError(
                f"dataset {uri} has format {self.card.get('format')!r}; this version reads {FORMAT}"
            )
        self._index: pa.Table = pq.read_table(io.BytesIO(index)).combine_chunks()

    @property
    def num_clips(self) -> int:
        """Clips in all shards."""
        return self._index.num_rows

    def row(self, number: int) -> dict[str, Any]:
        """Row ``number`` of the index; see ``shard_files.INDEX_FIELDS``."""
        return self._index.slice(number, 1).to_pylist()[0]

    def caption(self, number: int) -> str:
        """What clip ``number`` shows."""
        return self._index.column("caption")[number].as_py()

    @functools.cached_property
    def shards(self) -> list[range]:
        """Clip numbers of every shard, in the order of the index."""
        encoded = self._index.column("shard").combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        return [range(a, b) for a, b in itertools.pairwise(cuts) if b > a]

    def has(self, suffix: str) -> bool:
        """Whether every clip has a file of that suffix."""
        return 0 < self.num_clips == self.count(suffix)

    def count(self, suffix: str) -> int:
        """Clips that have a file of that suffix."""
        names = pc.struct_field(pc.list_flatten(self._index.column("members")), "name")
        return pc.sum(pc.equal(names, suffix)).as_py() or 0

    def read(self, numbers: Sequence[int], suffixes: Sequence[str] | None = None) -> list[Files]:
        """Read clips by number: one range of a tar for each file, side by side on object stores.

        Args:
            numbers: Which clips.
            suffixes: Which of their files, where a clip has them; None for all.

        Returns:
            Files of every clip, in the order asked for.

        Raises:
            MediaError: If a shard is gone or shorter than the index says.
        """
        wanted: list[tuple[int, str, str, int, int]] = []
        for place, number in enumerate(numbers):
            row = self.row(number)
            for suffix, (offset, size) in _places(row).items():
                if suffixes is None or suffix in suffixes:
                    wanted.append((place, suffix, row["shard"], offset, size))
        pieces = self._ranges([(shard, offset, size) for _, _, shard, offset, size in wanted])
        found: list[Files] = [{} for _ in numbers]
        for (place, suffix, *_), data in zip(wanted, pieces, strict=True):
            found[place][suffix] = data
        return found

    def read_shard(self, shard: range, suffixes: Sequence[str] | None = None) -> list[Files]:
        """Read the clips of one shard in one go.

        Args:
            shard: One of :attr:`shards`.
            suffixes: Which of their files; None for all.

        Returns:
            Files of every clip, in the order of the index.
        """
        rows = [self.row(number) for number in shard]
        last = max(rows, key=lambda row: row["offset"])
        (data,) = self._ranges([(rows[0]["shard"], 0, last["offset"] + last["size"])])
        return [
            {
                suffix: data[offset : offset + size]
                for suffix, (offset, size) in _places(row).items()
                if suffixes is None or suffix in suffixes
            }
            for row in rows
        ]

    def _ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        if not ranges:
            return []
        paths = [f"{self._root}/{shard}" for shard, _, _ in ranges]
        starts = [offset for _, offset, _ in ranges]
        ends = [offset + size for _, offset, size in ranges]
        try:
            pieces = self._files.cat_ranges(paths, starts, ends, on_error="raise")
        except FileNotFoundError as error:
            raise MediaError(
                f"a shard of dataset {self.uri} is gone: {error}. Run the command that made the "
                "dataset again."
            ) from error
        for (shard, offset, size), data in zip(ranges, pieces, strict=True):
            if len(data) != size:
                raise MediaError(
                    f"{self.uri}/{shard} is cut short: {len(data)} of {size} bytes at {offset}. "
                    "Delete it and its record in commits/, then run the command that made the "
                    "dataset again."
                )
        return pieces


class ShardStream:
    """All clips of a dataset, again and again, shuffled, in memory of a few shards.

    A round shuffles the shards, deals them to the workers, and shuffles the clips of every
    ``buffer_shards`` neighbours together. The order of a round is a function of (seed, round,
    worker), so the place in it is two whole numbers.

    Args:
        dataset: What to read.
        seed: Of the order.
        suffixes: Files to read; None for all.
        buffer_shards: Shards in memory, whose clips mix. More mix better.
        worker: Which reader this is.
        num_workers: Of how many; no two get the same clip in one round.

    Raises:
        ConfigError: If there are fewer shards than readers.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        seed: int,
        suffixes: Sequence[str] | None = None,
        buffer_shards: int = 4,
        worker: int = 0,
        num_workers: int = 1,
    ) -> None:
        if not 0 <= worker < num_workers or buffer_shards < 1:
            raise ConfigError(
                f"worker must be in 0..{num_workers - 1} and buffer_shards at least 1, "
                f"got {worker} and {buffer_shards}"
            )
        if len(dataset.shards) < num_workers:
            raise ConfigError(
                f"dataset {dataset.uri} has {len(dataset.shards)} shards for {num_workers} "
                "readers. Make it with a smaller clips_per_shard, or use fewer readers."
            )
        self._dataset, self._seed, self._suffixes = dataset, seed, suffixes
        self._buffer_shards = buffer_shards
        self._worker, self._num_workers = worker, num_workers
        self._round = self._position = 0

    def state_dict(self) -> dict[str, int]:
        """The place: the next clip is the one after those given so far."""
        return {"round": self._round, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a place of a stream with the same arguments."""
        self._round, self._position = state["round"], state["position"]

    def order(self, round_number: int) -> list[tuple[list[int], list[int]]]:
        """Plan a round of this reader.

        Args:
            round_number: Which, from 0.

        Returns:
            For every buffer its shards and the order of their clips.
        """
        shards = np.random.default_rng([self._seed, round_number]).permutation(
            len(self._dataset.shards)
        )
        mine = shards[self._worker :: self._num_workers].tolist()
        plan = []
        for start in range(0, len(mine), self._buffer_shards):
            held = mine[start : start + self._buffer_shards]
            clips = [number for shard in held for number in self._dataset.shards[shard]]
            rng = np.random.default_rng([self._seed, round_number, self._worker, start])
            plan.append((held, rng.permutation(clips).tolist()))
        return plan

    def __iter__(self) -> Iterator[tuple[int, Files]]:
        """Yield clip numbers and files for ever, from the place on."""
        while True:
            skipped = 0
            for shards, clips in self.order(self._round):
                done = min(max(self._position - skipped, 0), len(clips))
                skipped += len(clips)
                if done == len(clips):
                    continue
                held = self._load(shards)
                for number in clips[done:]:
                    self._position += 1
                    yield number, held.pop(number)
            self._round, self._position = self._round + 1, 0

    def _load(self, shards: Sequence[int]) -> dict[int, Files]:
        held: dict[int, Files] = {}
        for shard in shards:
            numbers = self._dataset.shards[shard]
            held.update(
                zip(numbers, self._dataset.read_shard(numbers, self._suffixes), strict=True)
            )
        return held


def _places(row: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {member["name"]: (member["offset"], member["size"]) for member in row["members"]}
