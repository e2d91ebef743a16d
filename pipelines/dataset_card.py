"""What readers of a dataset look at: index, card (for programs and for people) and failures.

All are built from commit records alone, so they can be written again at any time, and the same
shards give the same bytes. They appear last: a folder with an index is a whole dataset.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from musev import __version__
from musev.errors import StorageError
from musev.training.shard_files import (
    FORMAT,
    INDEX_FIELDS,
    INDEX_SCHEMA,
    MEMBERS,
    describe_tar,
)
from pipelines.clip_table import SHARD_STAGE, ClipFailure, ClipRow
from pipelines.dataset_plan import DRAWN_LICENCE, UNKNOWN_LICENCE, DatasetConfig, Shard, Source
from pipelines.ledger import Ledger, Record

INDEX, CARD, PAGE, FAILED = "index.parquet", "dataset.json", "README.md", "failures.jsonl"
_SHOWN_VALUES = 20
_SHOWN_FAILURES = 50
_SIDE_BY_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class DatasetState:
    """What became of a dataset's shards."""

    clips: pa.Table
    """The index."""
    failures: Sequence[ClipFailure]
    lost: Sequence[str]
    """Names of shards that took their worker down too often."""
    num_bytes: int
    paths: Sequence[str]
    vae_mark: str | None

    @property
    def whole(self) -> bool:
        """Whether every clip asked for is there."""
        return not self.failures and not self.lost


def describe_shard(path: str, local: Path) -> list[dict[str, Any]]:
    """Make index rows from a tar file.

    Args:
        path: Of the shard in the dataset.
        local: The tar file.

    Returns:
        Index rows in the order of the file.
    """
    with local.open("rb") as source:
        return [{**row, "shard": path} for _, row in describe_tar(source)]


def read_state(ledger: Ledger, shards: Sequence[Shard], source: Source) -> DatasetState:
    """Gather what is committed of the planned shards, and what failed.

    Args:
        ledger: Of the output.
        shards: The plan, each shard at its newest round.
        source: Knows the rows that never got into a shard.

    Returns:
        The state; shards that nobody has made yet are not in it.
    """
    committed, failed = ledger.committed_ids(), ledger.failures()
    parts: list[pa.Table] = []
    failures = list(source.table.failures) if source.table else []
    num_bytes, paths, marks = 0, [], set()
    for shard, record in read_records(ledger, [s for s in shards if s.name in committed]):
        clips, lacking = holdings(ledger, shard, record)
        parts.append(pa.Table.from_pylist(clips, schema=INDEX_SCHEMA))
        failures += lacking
        num_bytes += record["bytes"]
        paths.append(record["video"])
        marks.add(record["vae_mark"])
    lost = [shard.name for shard in shards if shard.name in failed]
    for name in lost:
        failures += [_lost_row(failed[name], row, clip) for row, clip in failed[name]["rows"]]
    return DatasetState(
        clips=pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table(),
        failures=sorted(failures, key=lambda failure: failure.row),
        lost=lost,
        num_bytes=num_bytes,
        paths=paths,
        vae_mark=marks.pop() if len(marks) == 1 else None,
    )


def read_records(ledger: Ledger, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Record]]:
    """Read commit records side by side, a few at a time: a record holds a shard's index.

    Args:
        ledger: Of the output.
        shards: Committed ones.

    Yields:
        Shards in their order, each with its record.
    """
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for start in range(0, len(shards), _SIDE_BY_SIDE):
            some = shards[start : start + _SIDE_BY_SIDE]
            records = pool.map(ledger.find_commit, [shard.name for shard in some])
            for shard, record in zip(some, records, strict=True):
                if record is not None:
                    yield shard, record


def holdings(
    ledger: Ledger, shard: Shard, record: Record
) -> tuple[list[dict[str, Any]], list[ClipFailure]]:
    """What a committed shard holds, and what it lacks.

    An attempt can leave its tar file without a record. The next one then describes its own, and
    what is stored decides: other bytes, perhaps other clips.

    Args:
        ledger: Of the output.
        shard: With its rows, if it is of a table.
        record: Its commit record.

    Returns:
        Index rows, and failures of the rows that have none.
    """
    failures = [ClipFailure(**failure) for failure in record["failed"]]
    if record["sha256"] == record["clips_of"]:
        return record["clips"], failures
    with tempfile.TemporaryDirectory(prefix="musev-shard-") as folder:
        local = Path(folder) / "shard.tar"
        ledger.store.fetch(record["video"], local)
        clips = describe_shard(record["video"], local)
    there = {clip["clip_id"] for clip in clips}
    known = {failure.clip_id: failure for failure in failures}
    lacking = [row for row in shard.rows or () if row.clip_id not in there]
    return clips, [known.get(row.clip_id) or _left_out(row) for row in lacking]


def _left_out(row: ClipRow) -> ClipFailure:
    return ClipFailure(
        row=row.row,
        clip_id=row.clip_id,
        column="",
        value="",
        error_class=StorageError.__name__,
        stage=SHARD_STAGE,
        message=(
            "the attempt that wrote this shard left the clip out and ended before it said why. "
            "Run again with --retry-failed."
        ),
    )


def _lost_row(record: Record, row: int, clip_id: str) -> ClipFailure:
    return ClipFailure(
        row=row,
        clip_id=clip_id,
        column="",
        value="",
        error_class=record["error_class"],
        stage=record["error_stage"],
        message=record["error_message"],
    )


def write_card(
    ledger: Ledger,
    state: DatasetState,
    *,
    config: DatasetConfig,
    source: Source,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write index, failures and card.

    Args:
        ledger: Of the output.
        state: From :func:`read_state`.
        config: Of the dataset.
        source: Of the clips.
        settings: What decides the bytes.

    Returns:
        The card.
    """
    sink = io.BytesIO()
    pq.write_table(state.clips, sink)
    lines = [json.dumps(vars(failure), ensure_ascii=False) for failure in state.failures]
    card = make_card(state, config=config, source=source, settings=settings)
    store = ledger.store
    store.put(INDEX, sink.getvalue())
    store.put(FAILED, "".join(line + "\n" for line in lines).encode())
    store.put(PAGE, card_page(card, state.failures).encode())
    store.put(CARD, (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode())
    return card


def make_card(
    state: DatasetState, *, config: DatasetConfig, source: Source, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe a dataset for programs; holds no date, so that equal datasets have equal cards.

    Args:
        state: What there is.
        config: Of the dataset.
        source: Of the clips.
        settings: What decides the bytes.

    Returns:
        Plain values.
    """
    frames = int(pc.sum(state.clips["num_frames"]).as_py() or 0)
    names = pc.struct_field(pc.list_flatten(state.clips["members"]), "name")
    files = Counter({pair["values"]: pair["counts"] for pair in names.value_counts().to_pylist()})
    drawn = source.table is None
    origin: dict[str, Any] = {"kind": source.kind}
    origin |= {"seed": source.seed, "held_out": config.held_out} if drawn else {}
    origin |= {} if source.table is None else {"table": source.table.uri}
    return {
        "format": FORMAT,
        "made_by": f"musev {__version__}, jobs/make_dataset.py",
        "source": origin,
        "licence": config.licence or (DRAWN_LICENCE if drawn else UNKNOWN_LICENCE),
        "seeds": [source.seed] if drawn else [],
        "counts": {
            "asked_for": source.num_clips,
            "clips": state.clips.num_rows,
            "failed": source.num_clips - state.clips.num_rows,
            "frames": frames,
            "seconds": round(frames / config.fps, 3),
            "shards": len(state.paths),
            "bytes": state.num_bytes,
        },
        "files": {
            suffix: {"clips": files[suffix], "about": about}
            for suffix, about in MEMBERS.items()
            if files[suffix]
        },
        "index": {name: about for name, (_, about) in INDEX_FIELDS.items()},
        "attributes": _count_values(state.clips["attributes"]),
        "settings": dict(settings),
        "vae_mark": state.vae_mark,
        "shards": list(state.paths),
    }


def _count_values(attributes: Iterable[pa.StringScalar]) -> dict[str, dict[str, int]]:
    """How often each value occurs, the most frequent of every attribute that holds words."""
    counts: dict[str, Counter[str]] = {}
    for text in attributes:
        for name, value in json.loads(text.as_py()).items():
            if isinstance(value, (str, bool, int)):
                counts.setdefault(name, Counter())[str(value)] += 1
    return {
        name: dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_VALUES])
        for name, count in sorted(counts.items())
    }


def card_page(card: Mapping[str, Any], failures: Sequence[ClipFailure]) -> str:
    """Describe a dataset for people, in Markdown.

    Args:
        card: From :func:`make_card`.
        failures: The clips that could not be made.

    Returns:
        The page.
    """
    counts, settings, source = card["counts"], card["settings"], card["source"]
    if source["kind"] == "drawn":
        kind = "held-out combinations only" if source["held_out"] else "no held-out combination"
        origin = f"Drawn people, seed {source['seed']}, {kind}."
    else:
        origin = f"Clips cut from the videos of the table `{source['table']}`."
    lines = [
        "# Dataset of captioned clips",
        "",
        f"{origin} Licence: {card['licence']}.",
        "",
        f"- {counts['clips']} clips of {settings['num_frames']} frames, {settings['width']} x "
        f"{settings['height']} pixels, {settings['fps']:g} frames a second: {counts['frames']} "
        f"frames, {counts['seconds']:g} s",
        f"- {counts['shards']} shards, {counts['bytes']} bytes",
        f"- {counts['failed']} of {counts['asked_for']} clips failed"
        + (f"; see `{FAILED}`" if counts["failed"] else ""),
        "",
        "## Files of a clip",
        "",
        "Shards are WebDataset tar files; a clip's files share a key and follow one another.",
        "",
        *_table(
            ("suffix", "clips", "what it holds"),
            [
                (f"`{name}`", facts["clips"], facts["about"])
                for name, facts in card["files"].items()
            ],
        ),
        "",
        f"## Columns of `{INDEX}`",
        "",
        *_table(
            ("column", "meaning"), [(f"`{name}`", about) for name, about in card["index"].items()]
        ),
    ]
    if card["attributes"]:
        rows = [
            (f"`{name}`", ", ".join(f"{value} {count}" for value, count in values.items()))
            for name, values in card["attributes"].items()
        ]
        lines += ["", "## Attributes", "", *_table(("attribute", "clips with each value"), rows)]
    if failures:
        shown = [f"- {failure.line()}" for failure in failures[:_SHOWN_FAILURES]]
        rest = len(failures) - len(shown)
        lines += ["", "## Failed", "", *shown, *([f"- ... and {rest} more"] if rest else [])]
    lines += ["", "## Settings", "", "```json", json.dumps(settings, indent=1), "```", ""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
