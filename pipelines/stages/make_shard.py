"""Stage: make one shard of a dataset and commit it (one row a shard; networks held for life)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from musev.config import Profile
from musev.errors import ConfigError, MusevError, StorageError
from musev.training.shard_files import (
    LATENTS,
    DatasetClip,
    clip_files,
    write_tar,
)
from pipelines.clip_sources import drawn_clip, real_clip
from pipelines.clip_table import SHARD_STAGE as STAGE
from pipelines.clip_table import ClipFailure, ClipRow
from pipelines.dataset_card import describe_shard
from pipelines.dataset_plan import DatasetConfig, Shard, shard_from_json
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import COMMITTED, QUARANTINED, Row
from pipelines.progress import Pulse
from pipelines.resources import MAX_ATTEMPTS
from pipelines.scratch import scratch_folder
from pipelines.storage import digest_stream

MAX_DEADLY_ROWS = 5
"""A shard with more rows that kill their worker is given up: then it is not the rows' fault."""
_IN_HAND = "in-hand.json"

logger = logging.getLogger(__name__)

Encode = Callable[[DatasetClip], bytes]
LoadEncoder = Callable[[Profile, str], tuple[Encode, str]]
"""Loads a profile's networks; returns what precomputes a clip's file, and the encoder's mark."""


def load_encoder(profile: Profile, device: str) -> tuple[Encode, str]:
    """Load the networks that precompute latents and text embeddings.

    One thread on the CPU, so that sums come out in one order on every machine.

    Args:
        profile: Names the weights.
        device: ``cpu`` or ``cuda``.

    Returns:
        Clip to the bytes of its latents file, and the mark of the VAE's encoder.
    """
    import torch  # on the worker, never on the driver

    from musev.models.bundle import load_bundle
    from musev.models.vae import scale_factor
    from musev.training.latents import mark_of
    from musev.training.shard_clips import latents_file

    if device == "cpu":
        torch.set_num_threads(1)
    bundle = load_bundle(profile.weights, device=device, precision=profile.precision)
    factor = scale_factor(bundle.vae)

    def encode(clip: DatasetClip) -> bytes:
        height, width = clip.frames_TYXC.shape[1:3]
        if height % factor or width % factor:
            raise ConfigError(
                f"the VAE needs width and height in multiples of {factor}, got {width} x {height}"
            )
        return latents_file(bundle, clip)

    return encode, mark_of(bundle.vae)


class MakeShard:
    """Make shards and commit them.

    Reads ``shard`` (JSON of a :class:`Shard`); leaves ``name``, ``status``, ``num_clips`` and
    ``num_failed``. A clip that cannot be made is a failure in the shard's record and costs no other
    clip. An attempt is counted in storage before work begins. From the second on it also notes each
    row of a table it takes in hand: a row at which the worker died is left out by the next attempt,
    as a failure of its own. A shard that goes on killing workers is given up; the others go on.

    Args:
        config: Of the dataset.
        seed: Of drawn clips; None for rows of a table.
        ledger: Where shards go and attempts are counted.
        cache: Fetches media.
        pulse: Told that work goes on.
        profile: Networks that precompute; None: nothing is.
        device: Where they run.
        load_networks: Loads them; called once.
    """

    def __init__(
        self,
        *,
        config: DatasetConfig,
        seed: int | None,
        ledger: Ledger,
        cache: MediaCache,
        pulse: Pulse,
        profile: Profile | None = None,
        device: str = "cpu",
        load_networks: LoadEncoder = load_encoder,
    ) -> None:
        self._config, self._seed = config, seed
        self._ledger, self._cache, self._pulse = ledger, cache, pulse
        self._folder = scratch_folder()
        self._encode: Encode | None = None
        self._mark: str | None = None
        if profile is not None:
            self._encode, self._mark = load_networks(profile, device)

    def __call__(self, row: Row) -> Row:
        """Bring one shard to its end."""
        shard = shard_from_json(row["shard"])
        attempt_id, number = self._ledger.begin_attempt(shard.name)
        deadly = self._deadly_rows(shard) if number > 1 else set()
        if number > MAX_ATTEMPTS + min(len(deadly), MAX_DEADLY_ROWS):
            self._ledger.fail(shard.name, _quarantined(shard, number - 1))
            return _outcome(shard, QUARANTINED, 0, shard.num_clips)
        target = self._folder / f"{shard.name}.tar"
        try:
            watched = attempt_id if number > 1 else None
            failed = self._make(shard, target, deadly=deadly, watched=watched)
            with target.open("rb") as made:
                digest, _ = digest_stream(made)
            record = {
                "shard": asdict(shard) | {"rows": None},
                "clips": describe_shard(shard.path, target),
                "clips_of": digest,
                "failed": [asdict(failure) for failure in failed],
                "vae_mark": self._mark,
            }
            done = self._ledger.commit(shard.name, attempt_id, target, record, target=shard.path)
        except StorageError:
            self._ledger.store.delete([f"work/{shard.name}/{attempt_id}/{_IN_HAND}"])
            self._ledger.release_attempt(shard.name, attempt_id)
            raise
        finally:
            target.unlink(missing_ok=True)
        return _outcome(shard, COMMITTED, len(done.record["clips"]), len(done.record["failed"]))

    def _make(
        self, shard: Shard, target: Path, *, deadly: Collection[int], watched: str | None
    ) -> list[ClipFailure]:
        """Write the tar file; returns the clips that could not be made."""
        failed: list[ClipFailure] = []

        def samples() -> Iterator[tuple[str, Mapping[str, bytes]]]:
            for done, (row, make) in enumerate(self._clips(shard)):
                self._pulse.row(shard.name, STAGE, done, shard.num_clips)
                if row is not None and row.row in deadly:
                    failed.append(_failure(row, _worker_lost()))
                    continue
                if row is not None and watched is not None:
                    self._note_in_hand(shard, watched, row.row)
                try:
                    clip = make()
                    extra = {} if self._encode is None else {LATENTS: self._encode(clip)}
                    files = clip_files(clip, self._config.encoder, extra)
                except ConfigError:
                    raise  # would fail every clip
                except Exception as error:
                    if row is None:
                        raise  # a drawn clip has no input that could be bad
                    failed.append(_failure(row, error))
                    continue
                yield clip.key, files

        with target.open("wb") as sink:
            write_tar(sink, samples())
        if watched is not None:
            self._note_in_hand(shard, watched, None)
        return failed

    def _note_in_hand(self, shard: Shard, attempt_id: str, row: int | None) -> None:
        note = json.dumps({"run_id": self._ledger.run_id, "row": row})
        self._ledger.put_work(shard.name, attempt_id, _IN_HAND, note.encode())

    def _deadly_rows(self, shard: Shard) -> set[int]:
        """Rows that earlier attempts of this run had in hand when they ended without a word."""
        notes = [
            json.loads(self._ledger.get_work(shard.name, attempt, name))
            for attempt, name in self._ledger.list_work(shard.name)
            if name == _IN_HAND
        ]
        return {
            note["row"]
            for note in notes
            if note["run_id"] == self._ledger.run_id and note["row"] is not None
        }

    def _clips(self, shard: Shard) -> Iterator[tuple[ClipRow | None, Callable[[], DatasetClip]]]:
        if shard.rows is None:
            assert self._seed is not None
            for index in range(shard.first, shard.end):
                yield None, lambda index=index: drawn_clip(self._seed, index, self._config)
            return
        for row in shard.rows:
            yield row, lambda row=row: real_clip(row, self._config, self._cache)


def _failure(row: ClipRow, error: Exception) -> ClipFailure:
    expected = isinstance(error, MusevError)
    if not expected:
        logger.error("row %d (%s): unexpected error", row.row + 1, row.clip_id, exc_info=error)
    more = "" if expected else " Look at this file in a player, and report it if it plays."
    return ClipFailure(
        row=row.row,
        clip_id=row.clip_id,
        column=getattr(error, "column", ""),
        value=getattr(error, "value", ""),
        error_class=type(error).__name__,
        stage=STAGE,
        message=f"{error}{more}",
    )


class WorkerLostError(MusevError):
    """A row took its worker down."""


def _worker_lost() -> WorkerLostError:
    return WorkerLostError(
        "the worker died while it made this clip (out of memory, or a crash of a library). Give a "
        "smaller or shorter video, or encode it again."
    )


def _quarantined(shard: Shard, attempts: int) -> dict[str, Any]:
    return {
        "status": QUARANTINED,
        "error_class": WorkerLostError.__name__,
        "error_stage": STAGE,
        "error_message": (
            f"the worker died {attempts} times while it made clips {shard.first} to "
            f"{shard.end - 1} (out of memory, a crash of a library, or its machine). Look at the "
            "worker's log, take the row out that it stopped at or use smaller shards, then run "
            "again with --retry-failed."
        ),
        "attempts": attempts,
        "shard": asdict(shard) | {"rows": None},
        "rows": (
            [[index, ""] for index in range(shard.first, shard.end)]
            if shard.rows is None
            else [[row.row, row.clip_id] for row in shard.rows]
        ),
    }


def _outcome(shard: Shard, status: str, num_clips: int, num_failed: int) -> Row:
    return {
        "name": shard.name,
        "status": status,
        "num_clips": num_clips,
        "num_failed": num_failed,
    }
