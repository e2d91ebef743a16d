"""Judge the videos of a run, or of a profile on held-out requests.

    python -m jobs.evaluate out/run
    python -m jobs.evaluate --profile mini --requests 200 --seed 1 --json scores.json

The first adds scores to the results table of any run and makes a page. The second renders requests
that no training has seen through the ordinary job first: captions, driven poses, portraits, long
clips. Run the same command again after any interruption: what is rendered or judged stays.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ROWS_FAILED,
    WORKERS,
    ProfileOption,
    SetOption,
    errors_as_status,
    load_settings,
    run_app,
)
from jobs._console import (
    INTERRUPTED,
    Teller,
    disconnect,
    run_command,
    terminate_as_interrupt,
)
from musev.errors import ConfigError
from musev.weight_parts import controlnet_names, digest_weights
from pipelines.evaluate import EvaluationGraph, EvaluationPlan, plan_evaluation, run_evaluation
from pipelines.evaluation_page import PAGE
from pipelines.held_out import (
    INPUTS,
    plan_held_out,
    portrait_columns_of,
    report_of,
    unusable_kinds,
    write_inputs,
)
from pipelines.ledger import RESULTS, Ledger
from pipelines.manifest import write_manifest
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.resources import (
    WorkerRange,
    connect,
    measure_cluster,
    parse_workers,
    plan_shard_workers,
)
from pipelines.scores import Scored, read_statuses

_MANIFEST = f"{INPUTS}/manifest.parquet"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def evaluate(
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="[OUT]",
            help="Output folder or URL of a run; with --requests where to render, "
            "default out/evaluation-PROFILE.",
        ),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help="Render so many held-out requests first."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the held-out requests.")] = 0,
    posed: Annotated[
        bool,
        typer.Option(
            "--text-to-pose",
            help="Give held-out requests of text alone poses first, as jobs.text_to_pose does.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the averages to this file.")
    ] = None,
    changes: SetOption = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar=WORKERS,
            help="Judges, default one a CPU; with --requests renderers too.",
        ),
    ] = None,
) -> None:
    """Judge the videos of a run, or of a profile on held-out requests."""
    with errors_as_status():
        asked = parse_workers(workers)
        if requests is None:
            if output is None:
                raise ConfigError("give the output of a run, or --requests N to render some")
            if changes:
                raise ConfigError("--set changes how --requests are rendered; there are none here")
            if posed:
                raise ConfigError("--text-to-pose is for --requests; there are none here")
            status = _run(Ledger(output), asked, json_file)
        else:
            place = output or f"out/evaluation-{profile}"
            job = _Job(Ledger(place), profile, tuple(changes or ()), asked, posed)
            status = _run_held_out(job, requests, seed, json_file)
    raise typer.Exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 all judged, 3 some rows could not be rendered or judged, 2 wrong command, 130
        interrupted, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.evaluate")


@dataclasses.dataclass(frozen=True)
class _Job:
    """Where held-out requests are rendered, and how."""

    ledger: Ledger
    profile_name: str
    changes: tuple[str, ...]
    workers: WorkerRange | None
    posed: bool
    """Whether requests of text alone are given poses first."""

    def render(self, manifest: str) -> int:
        """Render through the ordinary job, in a process of its own; what is done stays."""
        command = [sys.executable, "-m", "jobs.text_to_video", "--profile", self.profile_name]
        command += ["--manifest", manifest, "--output", self.ledger.out_uri]
        command += [word for change in self.changes for word in ("--set", change)]
        command += [] if self.workers is None else ["--workers", str(self.workers)]
        command += ["--text-to-pose"] if self.posed else []
        return run_command(command, Path.cwd())


def _run_held_out(job: _Job, num_requests: int, seed: int, json_file: Path | None) -> int:
    profile = load_settings(job.profile_name, job.changes).profile
    digests = digest_weights(profile.weights)
    skipped = unusable_kinds(digests, controlnet_names(profile.weights))
    clips = [c for c in plan_held_out(num_requests, seed) if c.kind not in skipped]
    if not clips:
        raise ConfigError(f"these weights can render none of the requests: {skipped}")
    teller = Teller(sys.stderr)
    for kind, reason in skipped.items():
        teller.say(f"left out: requests of kind {kind}, because {reason}")
    ledger = job.ledger
    teller.say(f"drawing {len(clips)} held-out requests")
    columns = portrait_columns_of(digests)
    rows = write_inputs(ledger.store, clips, profile, portrait_columns=columns)
    write_manifest(rows, ledger.store.uri_of(_MANIFEST))
    status = job.render(ledger.store.uri_of(_MANIFEST))
    if status not in (OK, ROWS_FAILED):
        return status
    statuses = read_statuses(ledger.store, RESULTS)
    facts = {
        "profile": job.profile_name,
        "changes": list(job.changes),
        "seed": seed,
        "requests": num_requests,
        "text_to_pose": job.posed,
        "rendered": sum(value == "committed" for value in statuses.values()),
        "failed": sum(value != "committed" for value in statuses.values()),
        "model_digests": digests,
        "sampling": dataclasses.asdict(profile.sampling),
    }
    judged = _run(
        ledger,
        job.workers,
        json_file,
        only={name for name, value in statuses.items() if value == "committed"},
        skipped=skipped,
        facts=facts,
    )
    return judged or status


def _run(
    ledger: Ledger,
    workers: WorkerRange | None,
    json_file: Path | None,
    *,
    only: set[str] | None = None,
    skipped: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Judge what is committed, publish, and tell the averages."""
    started = time.monotonic()
    teller = Teller(sys.stderr)
    plan = plan_evaluation(ledger, only=only)
    teller.say(f"{len(plan.commits)} videos, {plan.num_there} judged before")
    try:
        with terminate_as_interrupt():
            scores = _judge(ledger, plan, workers, teller)
    except KeyboardInterrupt:
        teller.say("interrupted; scores stay, run the same command again to go on")
        return INTERRUPTED
    finally:
        disconnect()
    report = {**(facts or {}), **report_of(scores.values(), skipped or {})}
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    refused = sum("video" in scored.reasons for scored in scores.values())
    for line in _summary_lines(ledger, report, len(scores) - refused, time.monotonic() - started):
        typer.echo(line)
    return OK if refused == 0 and len(scores) == len(plan.commits) else ROWS_FAILED


def _judge(
    ledger: Ledger, plan: EvaluationPlan, workers: WorkerRange | None, teller: Teller
) -> dict[str, Scored]:
    graph = EvaluationGraph(ledger=ledger, cache=MediaCache(run_id=ledger.run_id))
    if plan.to_judge:
        connect()
        shape = measure_cluster()
        found = plan_shard_workers(shape, workers, networks=False)
        most = min(found.most, len(plan.to_judge))
        graph = dataclasses.replace(
            graph, shape=shape, num_workers=most, least_workers=min(found.least, most)
        )
    done = 0

    def on_row(row: Row) -> None:
        nonlocal done
        done += 1
        if row["reason"]:
            teller.say(f"{row['sample_id'][:12]} could not be judged: {row['reason']}")
        last = done == len(plan.to_judge)
        if teller.wants_progress(last=last):
            teller.progress(f"{done} of {len(plan.to_judge)} videos judged", last=last)

    return run_evaluation(graph, plan, title=f"Judged: {ledger.out_uri}", on_row=on_row)


def _summary_lines(
    ledger: Ledger, report: Mapping[str, Any], num_judged: int, wall_s: float
) -> list[str]:
    lines = [f"judged         {num_judged} videos, in {wall_s:.0f} s"]
    for name, facts in report["details"].items():
        between = "" if facts["low"] is None else f"  ({facts['low']:.3g} to {facts['high']:.3g})"
        lines.append(f"  {name:26} {facts['value']:8.4g}  n {facts['n']}{between}")
    lines += [f"  {name:26} not judged: {why}" for name, why in report["skipped"].items()]
    return [
        *lines,
        f"results table  {ledger.store.uri_of(RESULTS)}",
        f"page           {ledger.store.uri_of(PAGE)}",
    ]


if __name__ == "__main__":
    sys.exit(main())
