"""Which shards a dataset consists of and how they are named: pure functions of what was asked for.

A shard's name holds its range of clips and a digest of everything that decides its bytes, never who
made it or when. A shard of a table is cut by the table's rows, good or bad, so that a row that is
put right changes its own shard only. Making the failed rows of a shard again gives a new round of
the whole shard under a new name; nothing that has been committed is ever changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from musev.config import EncoderConfig, to_plain
from musev.errors import ConfigError
from musev.training.shard_files import FORMAT
from pipelines.clip_table import ClipRow, ClipTable, parse_names
from pipelines.rows import canonical_json

DRAWN_LICENCE = "MIT"
UNKNOWN_LICENCE = "unknown: that of the source videos"
MAX_SIDE_PX = 4096


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Settings of a dataset; all clips share them."""

    width: int = 128
    height: int = 128
    num_frames: int = 13
    """12 to be denoised and one that is given, as the motion stage trains."""
    fps: float = 8.0
    clips_per_shard: int = 128
    held_out: bool = False
    """Draw only combinations of clothes, scene and action that training data never shows."""
    licence: str = ""
    """Of the whole; empty: MIT for drawn clips, as this code, unknown for real ones."""
    columns: str = ""
    """Names of a table's columns, ``video=contentUrl,caption=name``."""
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(preset="veryfast"))
    """Very fast: with frames this small and few, better presets save 1 % of the bytes."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if value % 2 or not 2 <= value <= MAX_SIDE_PX:
                raise ConfigError(f"{name} must be even, 2 to {MAX_SIDE_PX}, got {value}")
        for name in ("num_frames", "clips_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.fps <= 240:
            raise ConfigError(f"fps must be above 0 and at most 240, got {self.fps}")
        parse_names(self.columns)

    @property
    def names(self) -> dict[str, str]:
        """Our column names to the table's."""
        return parse_names(self.columns)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the clips come from: drawn from a seed, or a table."""

    num_clips: int
    """Drawn clips, or rows of the table, bad ones included."""
    seed: int | None = None
    table: ClipTable | None = None

    def __post_init__(self) -> None:
        assert (self.seed is None) != (self.table is None)

    @property
    def kind(self) -> str:
        """``drawn`` or ``table``."""
        return "drawn" if self.table is None else "table"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file to be: its clips and its name."""

    first: int
    end: int
    """One past the last clip."""
    digest: str
    round: int = 0
    """Times that its failed rows were tried again."""
    rows: tuple[ClipRow, ...] | None = None
    """Of a table; None: drawn."""

    @property
    def name(self) -> str:
        """Sorts by clips."""
        again = f"-r{self.round}" if self.round else ""
        return f"{self.first:08d}-{self.end - 1:08d}-{self.digest[:12]}{again}"

    @property
    def path(self) -> str:
        """Of the tar file below the output URL."""
        return f"shards/{self.name}.tar"

    @property
    def num_clips(self) -> int:
        """Clips it should hold."""
        return self.end - self.first if self.rows is None else len(self.rows)

    def to_json(self) -> str:
        """As text, for a row of a Ray dataset."""
        return json.dumps(asdict(self), ensure_ascii=False)


def shard_from_json(text: str) -> Shard:
    """Read :meth:`Shard.to_json` back."""
    values = json.loads(text)
    rows = values.pop("rows")
    return Shard(**values, rows=None if rows is None else tuple(ClipRow(**row) for row in rows))


def dataset_settings(
    config: DatasetConfig, source: Source, models: Mapping[str, str]
) -> dict[str, Any]:
    """Everything but the clips themselves that decides the bytes; one output has one of these.

    Args:
        config: The settings.
        source: Drawn with which seed, or a table.
        models: Part name to digest of the networks that precompute; empty: none do.

    Returns:
        Plain values.
    """
    return {
        "format": FORMAT,
        "source": source.kind,
        "seed": source.seed,
        "held_out": config.held_out if source.table is None else None,
        "width": config.width,
        "height": config.height,
        "num_frames": config.num_frames,
        "fps": config.fps,
        "clips_per_shard": config.clips_per_shard,
        "encoder": to_plain(config.encoder),
        "models": dict(models),
    }


def plan_shards(settings: Mapping[str, Any], source: Source) -> list[Shard]:
    """Cut the clips into shards.

    Args:
        settings: From :func:`dataset_settings`.
        source: The clips.

    Returns:
        Shards in order; those of a table without a good row are left out.
    """
    size = settings["clips_per_shard"]
    good = {row.row: row for row in source.table.rows} if source.table else {}
    shards = []
    for first in range(0, source.num_clips, size):
        end = min(first + size, source.num_clips)
        rows = None
        if source.table is not None:
            rows = tuple(good[number] for number in range(first, end) if number in good)
            if not rows:
                continue
        decides = {
            "settings": dict(settings),
            "range": [first, end],
            "rows": None if rows is None else [asdict(row) for row in rows],
        }
        digest = hashlib.sha256(canonical_json(decides).encode()).hexdigest()
        shards.append(Shard(first=first, end=end, digest=digest, rows=rows))
    return shards


def newest_rounds(shards: Sequence[Shard], committed: Collection[str]) -> list[Shard]:
    """Move every shard to the highest round that is committed.

    Args:
        shards: From :func:`plan_shards`.
        committed: Names of committed shards.

    Returns:
        The shards, those without a commit at round 0.
    """
    rounds: dict[str, int] = {}
    for name in committed:
        base, _, again = name.partition("-r")
        rounds[base] = max(rounds.get(base, 0), int(again or 0))
    return [in_round(shard, rounds.get(shard.name, 0)) for shard in shards]


def newest_committed(shards: Sequence[Shard], committed: Collection[str]) -> list[Shard]:
    """Move shards whose own round is not committed back to the highest one that is.

    A round that was given up costs no clip of the round before.

    Args:
        shards: At the rounds that were tried.
        committed: Names of committed shards.

    Returns:
        The shards; those without any commit stay as they are.
    """
    older = [earlier_rounds(shard, committed) for shard in shards]
    return [
        old[-1] if old and shard.name not in committed else shard
        for shard, old in zip(shards, older, strict=True)
    ]


def in_round(shard: Shard, number: int) -> Shard:
    """The same clips in another round."""
    values = {name: getattr(shard, name) for name in ("first", "end", "digest", "rows")}
    return Shard(**values, round=number)


def earlier_rounds(shard: Shard, committed: Collection[str]) -> list[Shard]:
    """Committed rounds before a shard's own: nobody needs them once the index names the new one."""
    rounds = [in_round(shard, number) for number in range(shard.round)]
    return [old for old in rounds if old.name in committed]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say how the settings of an output differ from those asked for.

    Args:
        old: As they stand in the output.
        new: As asked for.

    Returns:
        One text a setting, ``seed: 3 there, 4 asked for``; none if equal.
    """
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} asked for"
        for name in names
        if old.get(name) != new.get(name)
    ]
