"""Make a dataset of captioned clips: WebDataset shards, an index and a card.

    python -m jobs.make_dataset --output s3://bucket/people --clips 10000 --seed 0
    python -m jobs.make_dataset --output s3://bucket/clips --table clips.parquet

Run the same command again after any interruption: finished shards are never made again.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from jobs._cli import (
    OK,
    ROWS_FAILED,
    WORKERS,
    errors_as_status,
    load_settings,
    run_app,
    split_change,
)
from jobs._console import INTERRUPTED, Teller, disconnect, terminate_as_interrupt
from musev.errors import ConfigError
from musev.registry import PROFILES
from musev.settings import replace_settings
from musev.weight_parts import digest_weights
from pipelines.clip_table import ClipTable, read_clip_table
from pipelines.dataset_card import CARD, FAILED, INDEX, PAGE, DatasetState
from pipelines.dataset_plan import DatasetConfig, Source
from pipelines.ledger import Ledger
from pipelines.make_dataset import (
    DatasetGraph,
    DatasetPlan,
    plan_dataset,
    run_make_dataset,
)
from pipelines.media_cache import MediaCache
from pipelines.progress import BoardView, describe_seconds
from pipelines.resources import (
    WorkerRange,
    connect,
    measure_cluster,
    parse_workers,
    plan_shard_workers,
)
from pipelines.rounds import OnRow

_SHOWN_FAILURES = 20
_PROFILE = "profile."

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def make_dataset(
    output: Annotated[
        str, typer.Option("--output", help="Folder or URL for shards, index and card.")
    ],
    clips: Annotated[
        int | None, typer.Option("--clips", min=1, help="Draw so many clips of people.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of drawn clips.")] = 0,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            help="Real clips instead: .parquet (file or folder), .csv or .jsonl with the columns "
            "clip_id, video, caption; path or URL.",
        ),
    ] = None,
    latents: Annotated[
        str | None,
        typer.Option(
            "--latents",
            metavar="PROFILE",
            help=f"Also precompute latents and text embeddings with the networks of a profile: "
            f"{', '.join(PROFILES)}.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting: width, height, num_frames, fps, clips_per_shard, held_out, "
            "licence, columns, encoder.crf and so on; profile.KEY changes the profile of "
            "--latents. Repeatable.",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar=WORKERS,
            help="Default: one a CPU; with --latents and GPUs one a GPU.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made, without starting Ray.")
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Make shards again whose clips failed earlier."),
    ] = False,
) -> None:
    """Make a dataset of captioned clips: WebDataset shards, an index and a card."""
    with errors_as_status():
        asked = parse_workers(workers)
        graph = make_graph(
            output, clips=clips, seed=seed, table=table, latents=latents, changes=changes or ()
        )
        plan = plan_dataset(graph, retry_failed=retry_failed)
        status = _show_plan(graph, plan) if dry_run else _run(graph, plan, asked)
    raise typer.Exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 all clips made, 3 finished with failures, 2 wrong command or table, 130
        interrupted, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.make_dataset")


def make_graph(
    output: str,
    *,
    clips: int | None,
    seed: int = 0,
    table: str | None = None,
    latents: str | None = None,
    changes: Sequence[str] = (),
) -> DatasetGraph:
    """Make the graph of a command line; reads the table, and nothing of the output.

    Args:
        output: Where to.
        clips: Drawn clips; None with a table.
        seed: Of drawn clips.
        table: Table of real clips.
        latents: Profile whose networks precompute.
        changes: ``KEY=VALUE`` texts.

    Returns:
        The graph, without a cluster.

    Raises:
        ConfigError: If the flags contradict each other, or a setting or profile does not exist.
    """
    if (clips is None) == (table is None):
        raise ConfigError("give either --clips N, to draw people, or --table FILE")
    own, of_profile = _split_changes(changes)
    if of_profile and latents is None:
        raise ConfigError(f"--set {_PROFILE}{of_profile[0]} needs --latents PROFILE")
    config = replace_settings(DatasetConfig(), own)
    if table is None:
        source = Source(num_clips=clips or 0, seed=seed)
    else:
        if config.held_out:
            raise ConfigError("held_out is for drawn clips; choose the rows of a table yourself")
        found: ClipTable = read_clip_table(table, config.names)
        source = Source(num_clips=found.num_rows, table=found)
    ledger = Ledger(output)
    networks: dict[str, Any] = {}
    if latents is not None:
        profile = load_settings(latents, of_profile).profile
        networks = {"profile": profile, "model_digests": digest_weights(profile.weights)}
    return DatasetGraph(
        config=config,
        source=source,
        ledger=ledger,
        cache=MediaCache(run_id=ledger.run_id),
        **networks,
    )


def _split_changes(changes: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    own: dict[str, str] = {}
    of_profile: list[str] = []
    for change in changes:
        key, value = split_change(change, "num_frames=25")
        if key.startswith(_PROFILE):
            of_profile.append(f"{key.removeprefix(_PROFILE)}={value}")
        else:
            own[key] = value
    return own, of_profile


def _show_plan(graph: DatasetGraph, plan: DatasetPlan) -> int:
    typer.echo(f"output         {graph.ledger.out_uri}")
    typer.echo(f"clips          {graph.source.num_clips}, {graph.source.kind}")
    for line in plan.lines():
        typer.echo(line)
    bad = graph.source.table.failures if graph.source.table else ()
    for failure in bad[:_SHOWN_FAILURES]:
        typer.echo(f"bad {failure.line()}")
    if len(bad) > _SHOWN_FAILURES:
        typer.echo(f"... and {len(bad) - _SHOWN_FAILURES} more bad rows")
    return ROWS_FAILED if bad or plan.failed_before else OK


def _run(graph: DatasetGraph, plan: DatasetPlan, workers: WorkerRange | None) -> int:
    teller, started, ended = Teller(sys.stderr), time.monotonic(), "broken off"
    for line in plan.lines():
        teller.say(line)
    try:
        with terminate_as_interrupt():
            state, made = _make(graph, plan, workers, teller)
            ended = "finished"
    except KeyboardInterrupt:
        ended = "interrupted"
        teller.say("interrupted; finished shards stay, run the same command again to go on")
        return INTERRUPTED
    finally:
        disconnect()
        graph.ledger.end_run(ended)
    for line in _summary_lines(graph, state, made, time.monotonic() - started):
        typer.echo(line)
    return OK if state.whole else ROWS_FAILED


def _make(
    graph: DatasetGraph, plan: DatasetPlan, workers: WorkerRange | None, teller: Teller
) -> tuple[DatasetState, int]:
    """Run the graph; also the number of clips made just now."""
    tally = _Tally(teller, sum(shard.num_clips for shard in plan.to_make))
    if plan.to_make:
        connect()
        shape = measure_cluster()
        found = plan_shard_workers(shape, workers, networks=graph.profile is not None)
        graph = dataclasses.replace(
            graph, shape=shape, num_workers=found.most, least_workers=found.least
        )
        teller.say(f"making {len(plan.to_make)} shards on {found} workers")
    on_shard: OnRow = tally.on_shard
    state, _ = run_make_dataset(graph, plan, on_shard=on_shard)
    return state, tally.made


class _Tally:
    """Counts clips and tells the progress."""

    def __init__(self, teller: Teller, wanted: int) -> None:
        self._teller, self._wanted = teller, wanted
        self._since: float | None = None
        self.made = self._failed = 0

    def on_shard(self, outcome: dict[str, Any] | None, view: BoardView) -> None:
        """Note a shard's end, or that a second went by."""
        if self._since is None and view.workers_ready:
            self._since = time.monotonic()
        if outcome is not None:
            self.made += outcome["num_clips"]
            self._failed += outcome["num_failed"]
            if outcome["status"] != "committed":
                self._teller.say(f"shard {outcome['name']} was given up: it kills its worker")
        done = self.made + self._failed
        last = done == self._wanted
        if self._teller.wants_progress(last=last):
            seconds = 0.0 if self._since is None else time.monotonic() - self._since
            rate = f", {self.made / seconds:.1f} clips/s" if self.made and seconds else ""
            if rate and not last:
                rate += f", about {describe_seconds((self._wanted - done) * seconds / done)} left"
            line = f"{done}/{self._wanted} clips, {self._failed} failed{rate}"
            self._teller.progress(line, last=last)


def _summary_lines(graph: DatasetGraph, state: DatasetState, made: int, wall_s: float) -> list[str]:
    store = graph.ledger.store
    lines = [
        f"made           {made} clips in {describe_seconds(wall_s)} "
        f"({made / wall_s:.1f} clips/s with start-up)",
        f"dataset        {state.clips.num_rows} clips in {len(state.paths)} shards, "
        f"{state.num_bytes / 2**20:.1f} MiB",
        f"failed         {graph.source.num_clips - state.clips.num_rows} clips",
    ]
    lines += [f"  {failure.line()}" for failure in state.failures[:_SHOWN_FAILURES]]
    if len(state.failures) > _SHOWN_FAILURES:
        rest = len(state.failures) - _SHOWN_FAILURES
        lines.append(f"  ... and {rest} more in {store.uri_of(FAILED)}")
    return [
        *lines,
        f"index          {store.uri_of(INDEX)}",
        f"card           {store.uri_of(PAGE)} and {CARD}",
    ]


if __name__ == "__main__":
    sys.exit(main())
