"""Graph: clips asked for in, shards with commit records on storage out, then index and card.

    shards -> [driver: drop what is settled] -> make + commit (actors) -> [driver: index, card]

A row is a shard, not a clip: one clip is a tenth of a second of work, and Ray Data costs 12 ms a
row. Clips never leave the worker that makes them but as a finished shard. The commit is made inside
the stage, so a killed driver costs the shards in work and no other.

A shard whose worker dies is tried again by Ray, and given up by its own count in storage. A shard
that vanishes with its worker, or a dataset that stands still, costs a new round over those that
wait.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from musev.config import Profile
from musev.errors import ConfigError
from pipelines.dataset_card import DatasetState, holdings, read_records, read_state, write_card
from pipelines.dataset_plan import (
    DatasetConfig,
    Shard,
    Source,
    dataset_settings,
    differences,
    earlier_rounds,
    in_round,
    newest_committed,
    newest_rounds,
    plan_shards,
)
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.progress import Pulse
from pipelines.resources import (
    ClusterShape,
    apply_stage,
    one_row_a_block,
    shard_args,
)
from pipelines.rounds import SILENCE_S, OnRow, RemoteSigns, Rounds, run_rounds
from pipelines.stages.make_shard import LoadEncoder, MakeShard, load_encoder

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
_KEPT_MODELS = ("vae", "text_encoder", "tokenizer", "t2i_file", "random")
"""Parts of :func:`musev.weight_parts.digest_weights` that precompute; a base in one file is all."""


@dataclass(frozen=True, kw_only=True)
class DatasetGraph:
    """What the graph needs to know; picklable, workers get a copy."""

    config: DatasetConfig
    source: Source
    ledger: Ledger
    cache: MediaCache
    profile: Profile | None = None
    """Networks that precompute latents and text embeddings; None: nothing is precomputed."""
    model_digests: Mapping[str, str] = field(default_factory=dict)
    shape: ClusterShape = field(default_factory=lambda: ClusterShape(num_cpus=1, num_gpus=0))
    num_workers: int = 1
    least_workers: int | None = None
    load_networks: LoadEncoder = load_encoder
    silence_s: float = SILENCE_S

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the bytes besides the clips themselves."""
        used = {}
        if self.profile is not None:
            used = {n: d for n, d in self.model_digests.items() if n in _KEPT_MODELS}
            used["precision"] = self.profile.precision
        return dataset_settings(self.config, self.source, used)


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """Shards by what is to be done with them."""

    shards: Sequence[Shard]
    """All, each at the round that counts."""
    to_make: Sequence[Shard]
    failed_before: Sequence[Shard]
    """Given up in an earlier run and left alone."""

    @property
    def num_there(self) -> int:
        """Shards that are committed."""
        return len(self.shards) - len(self.to_make) - len(self.failed_before)

    def lines(self) -> list[str]:
        """Say it for people."""
        lines = [
            f"shards         {len(self.shards)}",
            f"already there  {self.num_there}",
            f"to make        {len(self.to_make)} shards, "
            f"{sum(shard.num_clips for shard in self.to_make)} clips",
        ]
        if self.failed_before:
            lines.append(
                f"given up       {len(self.failed_before)} shards "
                "(left alone; --retry-failed tries them again)"
            )
        return lines


def plan_dataset(graph: DatasetGraph, *, retry_failed: bool = False) -> DatasetPlan:
    """Look at what the output holds and decide what to make; writes nothing.

    Args:
        graph: Where and what.
        retry_failed: Make shards again that were given up or that lack clips.

    Returns:
        The plan.

    Raises:
        ConfigError: If the output holds a dataset of other settings.
    """
    ledger, settings = graph.ledger, graph.settings
    stored = ledger.store.read_if_present(SETTINGS)
    if stored is not None and (others := differences(json.loads(stored), settings)):
        raise ConfigError(
            f"{ledger.out_uri} holds a dataset made with other settings ({'; '.join(others)}). "
            "Give another output, or the settings that are there."
        )
    committed, failed = ledger.committed_ids(), set(ledger.failures())
    shards = newest_rounds(plan_shards(settings, graph.source), committed)
    if retry_failed:
        there = [shard for shard in shards if shard.name in committed]
        records = read_records(ledger, there)
        lacking = {shard.name for shard, record in records if holdings(ledger, shard, record)[1]}
        shards = [
            in_round(shard, shard.round + 1) if shard.name in lacking else shard for shard in shards
        ]
    settled = committed if retry_failed else committed | failed
    return DatasetPlan(
        shards=shards,
        to_make=[shard for shard in shards if shard.name not in settled],
        failed_before=[
            shard for shard in shards if shard.name in settled and shard.name not in committed
        ],
    )


def run_make_dataset(
    graph: DatasetGraph, plan: DatasetPlan, *, on_shard: OnRow
) -> tuple[DatasetState, dict[str, Any]]:
    """Make what is missing, then write index and card.

    Args:
        graph: Where and with what.
        plan: From :func:`plan_dataset`.
        on_shard: Follows the progress.

    Returns:
        What there is now, and the card.

    Raises:
        ConfigError: If another run has begun a dataset of other settings here meanwhile.
    """
    ledger = graph.ledger
    ledger.check()
    wanted = json.dumps(graph.settings, indent=1, sort_keys=True).encode()
    found = ledger.store.create(SETTINGS, wanted)
    if others := differences(json.loads(found), graph.settings):
        raise ConfigError(f"{ledger.out_uri} holds another dataset: {'; '.join(others)}")
    ledger.clear_settled_work()
    for shard in plan.to_make:
        ledger.clear_failure(shard.name)
    make_shards(graph, plan.to_make, on_shard=on_shard)
    shards = newest_committed(plan.shards, ledger.committed_ids())
    state = read_state(ledger, shards, graph.source)
    card = write_card(
        ledger, state, config=graph.config, source=graph.source, settings=graph.settings
    )
    _drop_earlier_rounds(ledger, shards)
    return state, card


def make_shards(graph: DatasetGraph, shards: Sequence[Shard], *, on_shard: OnRow) -> None:
    """Make and commit shards on a pool of workers; every one ends committed or given up.

    Args:
        graph: Where and with what.
        shards: Each once.
        on_shard: Follows the progress.

    Raises:
        WorkersFailError: If workers cannot load their networks, or shards keep vanishing.
    """
    rounds = Rounds(
        build=functools.partial(_shards_dataset, graph=_without_rows(graph)),
        key="name",
        num_workers=graph.num_workers,
        loads="what it needs to make shards",
        silence_s=graph.silence_s,
    )
    waiting = {shard.name: {"shard": shard.to_json()} for shard in shards}
    run_rounds(rounds, waiting, on_shard)


def _without_rows(graph: DatasetGraph) -> DatasetGraph:
    """Spare every worker a copy of the whole table: its rows travel with their shards."""
    if graph.source.table is None:
        return graph
    table = dataclasses.replace(graph.source.table, rows=(), failures=())
    return dataclasses.replace(graph, source=dataclasses.replace(graph.source, table=table))


def _shards_dataset(rows: list[Row], *, graph: DatasetGraph, board: Any) -> Any:
    args = shard_args(
        graph.shape,
        graph.num_workers,
        networks=graph.profile is not None,
        least=graph.least_workers,
    )
    return apply_stage(one_row_a_block(rows), MakeShardHere, args, graph=graph, board=board)


class MakeShardHere:
    """The stage in a process of its own, which says on the board that it lives."""

    def __init__(self, *, graph: DatasetGraph, board: Any) -> None:
        self._board = board
        self._pulse = Pulse(RemoteSigns(board))
        try:
            self._make = MakeShard(
                config=graph.config,
                seed=graph.source.seed,
                ledger=graph.ledger,
                cache=graph.cache,
                pulse=self._pulse,
                profile=graph.profile,
                device=graph.shape.device,
                load_networks=graph.load_networks,
            )
        except Exception as error:
            board.failed_to_load.remote(f"{type(error).__name__}: {error}")
            raise
        self._pulse.ready()

    def __call__(self, row: Row) -> Row:
        """Bring one shard to its end."""
        with self._pulse.working():
            try:
                return self._make(row)
            except ConfigError as error:  # no shard can be made with these settings
                self._board.failed_to_load.remote(f"{type(error).__name__}: {error}")
                raise


def _drop_earlier_rounds(ledger: Ledger, shards: Sequence[Shard]) -> None:
    """Delete shards that a later round replaced, now that the index no longer names them."""
    committed = ledger.committed_ids()
    old = [late for shard in shards for late in earlier_rounds(shard, committed)]
    ledger.store.delete([f"commits/{shard.name}.json" for shard in old])
    ledger.store.delete([shard.path for shard in old])
