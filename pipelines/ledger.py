"""Commits, failures and attempts in storage: the one memory of a run that outlives every process.

Layout below the output URL (DESIGN.md section 6):

    videos/<id[:2]>/<id>.mp4     the video: created whole, then never changed, committed or not
    commits/<id>.json            the commit point; readers trust these objects only
    failures/<id>.json           a row that will not succeed as it stands
    work/<id>/attempts/<n>.json  every start of work on a row
    work/<id>/<attempt>/...      segments and checkpoints; removed once the row is settled
    work/runs/<run>.json         runs that ended in order
    metrics/<id>.json            scores of a committed video, if somebody judged it
    results.parquet, run.json, report.html

Decisions, and why:

* **The video is created under its final name, only if absent, before the commit record.** A worker
  that dies between the two leaves a whole video without a record. The next attempt finds it and
  *adopts* it: the record then describes the bytes that lie there (read back and hashed). So a video
  never changes after anybody could have recorded it; an overwrite, even with equal bytes, could not
  promise that on the day two machines disagree in a bit.
* **A damaged commit record is an error with a name** (:class:`StorageError`), found when a run
  starts. We never write one (objects appear whole), and counting it as absent would render the row
  again only to find that it cannot be committed. The remedy is in the message: delete that object;
  the video is adopted by the next run.
* **Which deaths count.** An attempt is recorded before work begins. A further attempt in the *same
  run* proves that the worker died (or was lost) in this row, so the number returned by
  :meth:`Ledger.begin_attempt` counts this run's attempts. Attempts of other runs say nothing of
  the row if that run was interrupted: a driver that stops in order says so with
  :meth:`Ledger.end_run`. Runs that vanished without a word (kill -9, power) are forgiven
  :data:`FORGIVEN_ATTEMPTS` times a row and counted from then on, so a row that takes the whole
  machine down cannot do so for ever.
* **Commit beats failure.** A failure of an earlier run is replaced by a newer one; within a run the
  first stands.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow.parquet as pq

from musev.errors import StorageError
from pipelines.rows import MANIFEST_COLUMNS, canonical_json, results_table
from pipelines.scores import read_scores, with_metrics
from pipelines.storage import TEMPORARY, Store, digest_stream

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every sample id; raised when the same request would give other bytes by our own doing."""

FORGIVEN_ATTEMPTS = 9
"""Attempts of runs that ended without a word that are not held against a row."""

RESULTS, COMMITS, FAILURES = "results.parquet", "commits", "failures"
_RUNS = "work/runs"
_FAILED_STATUSES = ("failed", "quarantined")

Record = dict[str, Any]


class Attempt(NamedTuple):
    """One start of work on a row: its name, and which one it is of those that count."""

    id: str
    number: int


@dataclass(frozen=True)
class CommitOutcome:
    """How a commit ended; either way the row is done and ``record`` is the one readers see."""

    status: Literal["committed", "already_committed"]
    record: Record


def _asks_nothing(value: Any) -> bool:
    return value is None or value is False or value in ((), [])


def _without_files(loras: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in lora.items() if name != "file"} for lora in loras]


def sample_id(
    request: Mapping[str, Any],
    media_digests: Mapping[str, str],
    model_digests: Mapping[str, str],
    encoder: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    format_version: int = FORMAT_VERSION,
) -> str:
    """Name a video by everything that decides its bytes, and by nothing else.

    The request counts without ``request_id`` (two rows may ask for the same video), without
    ``extra`` and without the addresses of its media, whose digests count instead; and without what
    it does not ask for, so that a column which is new renames no video. Worker count, retries and
    machine are not part of it. ``4`` and ``4.0`` are the same number here: CSV and
    Parquet manifests must give the same name.

    Args:
        request: ``to_plain`` of a resolved request.
        media_digests: Manifest column to digest of the media's content.
        model_digests: Part name to digest of its weights.
        encoder: ``to_plain`` of the encoder's settings.
        settings: What else decides the bytes, for example precision and ``layer_norm_eps``.
        format_version: Version of our own arithmetic.

    Returns:
        64 hex digits.
    """
    media = {name for name, column in MANIFEST_COLUMNS.items() if column.is_media}
    given = {name for name in media if request.get(name) is not None}
    assert given <= set(media_digests), f"media without a digest: {given - set(media_digests)}"
    left_out = media | {"request_id", "extra"}
    decides = {
        "request": {
            name: _without_files(value) if name == "loras" else value
            for name, value in request.items()
            if name not in left_out and not _asks_nothing(value)
        },
        "media": dict(media_digests),
        "models": dict(model_digests),
        "encoder": dict(encoder),
        "settings": dict(settings or {}),
        "format": format_version,
    }
    return hashlib.sha256(canonical_json(_one_spelling(decides)).encode()).hexdigest()


def video_path(sample_id: str) -> str:
    """Path of a sample's video below the output URL."""
    return f"videos/{sample_id[:2]}/{sample_id}.mp4"


class Ledger:
    """What is done, what failed and what was tried, below one output URL.

    Picklable and cheap to copy: workers get the driver's ledger, so they share its ``run_id``.

    Attributes:
        run_id: Name of this run; attempts carry it.
        store: The objects below the output URL.
    """

    def __init__(
        self,
        out_uri: str,
        storage_options: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> None:
        """Name the place; nothing is contacted before the first call.

        Args:
            out_uri: Any URL that :class:`Store` takes.
            storage_options: Options of the fsspec filesystem.
            run_id: Name of the run; a new one by default.
        """
        self.store = Store(out_uri, storage_options)
        self.run_id = run_id or f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{_token()}"

    @property
    def out_uri(self) -> str:
        """The output URL, without a slash at the end."""
        return self.store.uri

    def check(self) -> None:
        """Prove that the output can be written and keeps the commit promise; else StorageError."""
        self.store.check()

    # What is settled

    def committed_ids(self) -> set[str]:
        """Ids of all committed samples, from one listing; StorageError names empty records."""
        sizes = {path: size for path, size in self.store.list(COMMITS).items() if _is_record(path)}
        if empty := [self.store.uri_of(path) for path, size in sizes.items() if not size]:
            raise StorageError(_damage(empty))
        return {Path(path).stem for path in sizes}

    def committed(self) -> dict[str, Record]:
        """All commit records by sample id; StorageError names any that are damaged."""
        return self._read_records(COMMITS)

    def failures(self) -> dict[str, Record]:
        """All failure records by sample id; those of samples that are committed are left out."""
        done = self.committed_ids()
        found = self._read_records(FAILURES)
        return {name: record for name, record in found.items() if name not in done}

    def find_commit(self, sample_id: str) -> Record | None:
        """The commit record of one sample, or None."""
        return self._read_record(_record_path(COMMITS, sample_id))

    def find_failure(self, sample_id: str) -> Record | None:
        """The failure record of one sample, or None; a committed sample has none."""
        record = self._read_record(_record_path(FAILURES, sample_id))
        return None if record is None or self.find_commit(sample_id) is not None else record

    # One row's life

    def begin_attempt(self, sample_id: str) -> Attempt:
        """Record that work on a row begins, before any is done.

        Args:
            sample_id: The row's sample.

        Returns:
            The attempt's id, and how many attempts count against the row, this one included. The
            caller gives up (and quarantines the row) above its limit.
        """
        folder = f"work/{sample_id}/attempts"
        earlier = self.store.read_many(self.store.list(folder))
        runs = [_parse(path, data).get("run_id") for path, data in earlier.items()]
        numbers = [int(Path(path).stem) for path in earlier]
        place = max(numbers, default=0)
        while True:
            place += 1
            attempt_id = f"{place}-{_token()}"
            started = {"attempt_id": attempt_id, "run_id": self.run_id, "started_at": _now()}
            data = _dump(started)
            existing = self.store.create(f"{folder}/{place}.json", data)
            if existing == data:
                break
            runs.append(_parse(f"{folder}/{place}.json", existing).get("run_id"))
        ended = {Path(path).stem for path in self.store.list(_RUNS)} if runs else set()
        here = sum(run == self.run_id for run in runs)
        vanished = sum(run != self.run_id and run not in ended for run in runs)
        return Attempt(attempt_id, 1 + here + max(0, vanished - FORGIVEN_ATTEMPTS))

    def release_attempt(self, sample_id: str, attempt_id: str) -> None:
        """Take back an attempt that ended in order without an outcome: it does not count."""
        self.store.delete([f"work/{sample_id}/attempts/{attempt_id.partition('-')[0]}.json"])

    def end_run(self, reason: str) -> None:
        """Note that this run ends in order (``finished``, ``interrupted``).

        Attempts it leaves behind are then held against no row. Call it on Ctrl-C and on SIGTERM.
        Best effort: a store that is silent at the very end must not hide why the run ended.

        Args:
            reason: For people who look.
        """
        try:
            self.store.put(f"{_RUNS}/{self.run_id}.json", _dump({"reason": reason, "at": _now()}))
        except StorageError as error:
            logger.warning("the end of run %s is not on record: %s", self.run_id, error)

    def commit(
        self,
        sample_id: str,
        attempt_id: str,
        local_file: str | Path,
        record: Mapping[str, Any],
        *,
        target: str | None = None,
    ) -> CommitOutcome:
        """Upload a finished file and create its commit record; safe to repeat at any point.

        Args:
            sample_id: The row's sample.
            attempt_id: From :meth:`begin_attempt`.
            local_file: The finished file; left where it is.
            record: What readers should know, under the results table's column names. ``sha256``,
                ``bytes``, ``video`` (the path) and ``status`` are set here.
            target: Path of the file below the output URL; :func:`video_path` unless given.

        Returns:
            Whether this attempt won, and the record that counts.

        Raises:
            StorageError: If the file is empty, or storage refuses or stays silent.
        """
        if (existing := self.find_commit(sample_id)) is not None:
            return self._settled(sample_id, attempt_id, existing)
        video = Path(local_file)
        with video.open("rb") as stream:
            facts = digest_stream(stream)
        if facts[1] == 0:
            raise StorageError(f"{video} is empty: refusing to commit it as sample {sample_id}.")
        target = target or video_path(sample_id)
        if not self.store.create_from_file(target, video):
            stored = self.store.digest(target)
            if stored != facts:
                logger.warning(
                    "sample %s: this attempt's bytes (sha256 %s) differ from those an earlier one "
                    "left in storage (%s), which are kept. Do the workers differ in hardware?",
                    *(sample_id, facts[0], stored[0]),
                )
            facts = stored
        data = _dump(
            {
                **record,
                "format": FORMAT_VERSION,
                "status": "committed",
                "sample_id": sample_id,
                "attempt_id": attempt_id,
                "run_id": self.run_id,
                "committed_at": _now(),
                "video": target,
                "sha256": facts[0],
                "bytes": facts[1],
            }
        )
        path = _record_path(COMMITS, sample_id)
        return self._settled(sample_id, attempt_id, _parse(path, self.store.create(path, data)))

    def fail(self, sample_id: str, record: Mapping[str, Any]) -> Record:
        """Record that a row will not succeed as it stands; a commit beats it.

        Args:
            sample_id: The row's sample, or the stable name of a row that has none.
            record: ``status`` (``failed`` or ``quarantined``), ``error_class``, ``error_stage``,
                ``error_message``, ``attempts`` and whatever else of the results columns is known.

        Returns:
            The record that counts: the commit record if the sample is committed.
        """
        assert record.get("status") in _FAILED_STATUSES, f"bad status {record.get('status')!r}"
        if (done := self.find_commit(sample_id)) is not None:
            return done
        path = _record_path(FAILURES, sample_id)
        mine = {**record, "sample_id": sample_id, "run_id": self.run_id, "failed_at": _now()}
        data = _dump({**mine, "token": _token()})
        existing = self.store.create(path, data)
        if existing != data and _run_of(existing) != self.run_id:
            self.store.put(path, data)
            existing = data
        self._clear_quietly(sample_id)
        return _parse(path, existing)

    def clear_failure(self, sample_id: str) -> bool:
        """Forget a failure and the attempts that led to it, so that the next run tries again.

        Args:
            sample_id: The row's sample.

        Returns:
            Whether there was one.
        """
        path = _record_path(FAILURES, sample_id)
        found = self.store.read_if_present(path) is not None
        self.store.delete_folder(f"work/{sample_id}/attempts")
        self.store.delete([path])
        return found

    # Unfinished work

    def put_work(self, sample_id: str, attempt_id: str, name: str, content: bytes | Path) -> None:
        """Keep a segment or checkpoint of an attempt; replaces one of the same name."""
        self.store.put(f"work/{sample_id}/{attempt_id}/{name}", content)

    def get_work(self, sample_id: str, attempt_id: str, name: str) -> bytes:
        """Read a kept piece; FileNotFoundError if it is gone (somebody may have committed)."""
        return self.store.read(f"work/{sample_id}/{attempt_id}/{name}")

    def fetch_work(self, sample_id: str, attempt_id: str, name: str, target: Path) -> None:
        """Copy a kept piece to a local file; FileNotFoundError if it is gone."""
        self.store.fetch(f"work/{sample_id}/{attempt_id}/{name}", target)

    def list_work(self, sample_id: str) -> list[tuple[str, str]]:
        """Kept pieces of all attempts at a sample, as (attempt id, name), sorted."""
        prefix = f"work/{sample_id}/"
        paths = [path.removeprefix(prefix) for path in self.store.list(prefix.rstrip("/"))]
        pieces = [path.partition("/") for path in paths if not path.startswith("attempts/")]
        return [(attempt, name) for attempt, _, name in pieces]

    def clear_work(self, sample_id: str) -> int:
        """Delete everything kept of a sample, its attempts included; returns how many objects."""
        return self.store.delete_folder(f"work/{sample_id}")

    def clear_settled_work(self) -> int:
        """Delete what dead attempts left of samples that are committed or failed.

        For the start of a run: a worker that was slow may have written after its row was settled.

        Returns:
            How many objects were deleted.
        """
        settled = self.committed_ids() | set(self._list_records(FAILURES))
        left = [path for path in self.store.list("work") if path.split("/")[1] in settled]
        self.store.delete(left)
        self.store.remove_old_files(TEMPORARY)
        return len(left)

    # For readers

    def write_results(
        self,
        requests: Iterable[tuple[str, str, Mapping[str, Any]]],
        extra_rows: Iterable[Mapping[str, Any]] = (),
    ) -> list[Record]:
        """Build ``results.parquet`` from commits, failures and scores, and put it in one piece.

        Args:
            requests: Request id, sample id and columns of its own, of every request; several may
                share a sample. Requests that are not settled yet get no row.
            extra_rows: Records of rows that failed before they had a sample.

        Returns:
            The rows written, in the order given, as records with absolute ``video_uri``.
        """
        commits, failures = self.committed(), self.failures()
        rows: list[Record] = []
        for request_id, name, own in requests:
            record = commits.get(name) or failures.get(name)
            if record is None:
                continue
            row = {**record, **own, "request_id": request_id, "sample_id": name}
            if name in commits:
                row["video_uri"] = self.store.uri_of(record["video"])
            rows.append(row)
        rows += [dict(row) for row in extra_rows]
        sink = io.BytesIO()
        pq.write_table(with_metrics(results_table(rows), read_scores(self.store)), sink)
        self.store.put(RESULTS, sink.getvalue())
        return rows

    # Below this line: records and their damage

    def _settled(self, sample_id: str, attempt_id: str, record: Record) -> CommitOutcome:
        self._clear_quietly(sample_id)
        won = record["attempt_id"] == attempt_id
        return CommitOutcome("committed" if won else "already_committed", record)

    def _clear_quietly(self, sample_id: str) -> None:
        try:
            self.clear_work(sample_id)
        except StorageError as error:  # the row is settled; the next run's start clears it
            logger.warning("work of sample %s stays for now: %s", sample_id, error)

    def _list_records(self, folder: str) -> list[str]:
        return [Path(path).stem for path in self.store.list(folder) if _is_record(path)]

    def _read_records(self, folder: str) -> dict[str, Record]:
        paths = [path for path in self.store.list(folder) if _is_record(path)]
        records, damaged = {}, []
        for path, data in self.store.read_many(paths).items():
            try:
                records[Path(path).stem] = _parse(path, data)
            except StorageError:
                damaged.append(self.store.uri_of(path))
        if damaged:
            raise StorageError(_damage(damaged))
        return records

    def _read_record(self, path: str) -> Record | None:
        data = self.store.read_if_present(path)
        return None if data is None else _parse(path, data)


def _parse(path: str, data: bytes) -> Record:
    try:
        record = json.loads(data)
    except ValueError:
        record = None
    wanted = {"attempt_id", "sha256", "bytes", "video"} if path.startswith(COMMITS) else set()
    if not isinstance(record, dict) or not wanted <= set(record):
        raise StorageError(_damage([path]))
    return record


def _damage(paths: list[str]) -> str:
    return (
        f"damaged: {', '.join(paths[:10])}{' ...' if len(paths) > 10 else ''} "
        f"({len(paths)} in all). Records are created whole, so something else touched them. Delete "
        "them and run the same command again: a video that is already there is kept and recorded."
    )


def _run_of(data: bytes) -> str | None:
    """Run that wrote a failure record; None if it is damaged (and so may be replaced)."""
    try:
        return _parse(FAILURES, data).get("run_id")
    except StorageError:
        return None


def _is_record(path: str) -> bool:
    return path.endswith(".json")


def _record_path(folder: str, sample_id: str) -> str:
    return f"{folder}/{sample_id}.json"


def _dump(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, indent=1, default=str).encode()


def _one_spelling(value: Any) -> Any:
    """Whole floats as integers, tuples as lists, so that equal values have one JSON form."""
    if isinstance(value, Mapping):
        return {key: _one_spelling(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_one_spelling(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _token() -> str:
    return uuid.uuid4().hex[:12]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
