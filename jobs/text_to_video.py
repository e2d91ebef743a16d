"""Render a manifest of prompts and reference images to videos on storage.

    python -m jobs.text_to_video --manifest requests.parquet --output s3://bucket/run

Run the same command again after any interruption: committed rows are never rendered again. With
``--text-to-pose`` prompts that nothing else leads are turned into poses first, which their videos
follow.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ROWS_FAILED,
    DryRunOption,
    LicenceOption,
    ManifestOption,
    OutputOption,
    ProfileOption,
    RetryOption,
    SetOption,
    WorkersOption,
    errors_as_status,
    load_settings,
    run_app,
)
from jobs._console import INTERRUPTED, Teller, disconnect, terminate_as_interrupt
from jobs._poses import Poses, give_poses, make
from musev.config import ClipRequest, to_plain
from musev.errors import ManifestError, RequestError
from musev.licences import check_licences, licence_of, licences_of
from musev.weight_parts import digest_weights
from pipelines.control_maps import describe_detectors
from pipelines.forecast import compare, forecast_profile
from pipelines.ledger import RESULTS, Ledger, Record
from pipelines.manifest import read_manifest, resolve_rows
from pipelines.media_cache import MediaCache
from pipelines.plan import RunPlan, measured_requests, plan_run
from pipelines.progress import BoardView, Meter, describe_seconds
from pipelines.report import (
    CONTACT_SHEET,
    REPORT,
    Summary,
    conditions_line,
    count_conditions,
    write_report,
)
from pipelines.resources import (
    WorkerRange,
    connect,
    measure_cluster,
    parse_workers,
    plan_workers,
)
from pipelines.rows import RowFailure
from pipelines.text_to_pose import pose_failures, read_pose_settings
from pipelines.text_to_video import (
    Graph,
    OnTick,
    Tally,
    check_inputs_here,
    run_text_to_video,
)

logger = logging.getLogger(__name__)

_SHOWN_FAILURES = 20
_FORECAST_S = 60.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One invocation: what was asked for, and what the manifest turned out to hold."""

    manifest: str
    requests: Sequence[ClipRequest]
    refused: Sequence[RowFailure]
    graph: Graph
    retry_failed: bool
    poses: Poses | None = None
    """To be made before anything is rendered; its requests are what is rendered then."""

    def check_licences(self, required: str | None) -> None:
        """Refuse weights, of the run or of a row, without the licence that is required."""
        own = {lora.file for request in self.requests for lora in request.loras}
        files = {file: licence_of(file) for file in own} if required else {}
        check_licences(self.graph.licences | files, required)


@app.command(help=__doc__)
def text_to_video(
    manifest: ManifestOption,
    output: OutputOption,
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    require_licence: LicenceOption = None,
    text_to_pose: Annotated[
        bool,
        typer.Option(
            "--text-to-pose",
            help="Make poses from prompts first where a row brings nothing to follow, as "
            "jobs.text_to_pose does.",
        ),
    ] = False,
) -> None:
    """Render a manifest of prompts and reference images to videos on storage."""
    with errors_as_status():
        job = prepare(
            manifest,
            output,
            profile,
            changes or (),
            retry_failed=retry_failed,
            text_to_pose=text_to_pose,
        )
        status = run(job, workers, dry_run=dry_run, require_licence=require_licence)
    raise typer.Exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 all committed, 3 finished with failures, 2 wrong command or manifest, 130
        interrupted, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.text_to_video")


def prepare(
    manifest: str,
    output: str,
    profile: str,
    changes: Sequence[str],
    *,
    retry_failed: bool = False,
    require: Callable[[ClipRequest], RequestError | None] = lambda _request: None,
    text_to_pose: bool = False,
) -> Job:
    """Read a manifest and get everything ready that needs neither Ray nor torch.

    Args:
        manifest: Path or URL.
        output: Folder or URL.
        profile: Name of the profile.
        changes: ``KEY=VALUE`` of ``--set``.
        retry_failed: Try rows again that failed in an earlier run.
        require: What a row must have; the error refuses it.
        text_to_pose: Whether prompts that nothing else leads are given poses.

    Returns:
        The job.

    Raises:
        ManifestError: If the manifest cannot be read or has no rows, or its rows could not follow
            poses.
    """
    settings = load_settings(profile, changes)
    raw = read_manifest(manifest)
    if not raw.rows:
        raise ManifestError(f"manifest {manifest} has no rows; there is nothing to render.")
    requests, refused = resolve_rows(
        raw.rows, settings.profile, raw.base_uri, find_profile=settings.find_profile
    )
    misplaced = refuse_rows(raw.rows, requests, require)
    left_out = {failure.request_id for failure in misplaced}
    requests = [request for request in requests if request.request_id not in left_out]
    refused = [*refused, *misplaced]
    ledger = Ledger(output)
    poses = None
    if text_to_pose:
        poses = give_poses(
            raw.rows,
            requests,
            read_pose_settings(),
            ledger.store,
            chosen=settings,
            base_uri=raw.base_uri,
        )
    to_render = poses.requests if poses else requests
    graph = Graph(
        profile=settings.profile,
        ledger=ledger,
        cache=MediaCache(run_id=ledger.run_id),
        model_digests=digest_weights(settings.profile.weights),
        licences=licences_of(settings.profile.weights),
        detectors=describe_detectors(to_render, settings.profile.control),
    )
    return Job(
        manifest=manifest,
        requests=requests,
        refused=refused,
        graph=graph,
        retry_failed=retry_failed,
        poses=poses,
    )


def refuse_rows(
    rows: Sequence[Mapping[str, Any]],
    requests: Sequence[ClipRequest],
    require: Callable[[ClipRequest], RequestError | None],
) -> list[RowFailure]:
    """Refuse good rows that are in the wrong place.

    Args:
        rows: Raw rows of the manifest.
        requests: What they make.
        require: What a row must have; the error refuses it.

    Returns:
        One failure a row that is refused.
    """
    numbers = {row.get("request_id"): number for number, row in enumerate(rows, start=1)}
    found = []
    for request in requests:
        if (problem := require(request)) is not None:
            number = numbers[request.request_id]
            found.append(
                RowFailure(
                    request_id=request.request_id,
                    row=number,
                    column="video",
                    value="",
                    error_class=type(problem).__name__,
                    message=f"row {number} ({request.request_id!r}), column 'video': {problem}",
                )
            )
    return found


def run(
    job: Job, workers: str | None, *, dry_run: bool = False, require_licence: str | None = None
) -> int:
    """Run a prepared job, or say what it would do.

    Args:
        job: From :func:`prepare`.
        workers: ``N`` or ``MIN:MAX``; None for one a GPU.
        dry_run: Start nothing, print the plan.
        require_licence: Kind of licence that all weights must have.

    Returns:
        Exit status; see :func:`main`.
    """
    asked = parse_workers(workers)
    job.check_licences(require_licence)
    return _show_plan(job) if dry_run else _run(job, asked)


def _show_plan(job: Job) -> int:
    """Print the plan; nothing is written, and neither Ray nor torch is started."""
    ledger = job.graph.ledger
    checked = check_inputs_here(job.graph, job.requests)
    plan = plan_run(
        measured_requests(job.requests, checked),
        job.refused,
        checked,
        committed=ledger.committed_ids(),
        failed=ledger.failures(),
        retry_failed=job.retry_failed,
    )
    typer.echo(f"manifest       {job.manifest}")
    typer.echo(f"output         {ledger.out_uri}")
    typer.echo(f"profile        {job.graph.profile.name}")
    for line in job.poses.lines(len(job.poses.rows), {}) if job.poses else ():
        typer.echo(line)
    for line in plan.lines():
        typer.echo(line)
    return ROWS_FAILED if plan.problems or plan.failed_before else OK


def _run(job: Job, workers: WorkerRange | None) -> int:
    started = time.monotonic()
    teller = Teller(sys.stderr)
    ledger = job.graph.ledger
    ended = "broken off"
    try:
        with terminate_as_interrupt():
            records, summary = _render(job, workers, teller, started)
            ended = "finished"
    except KeyboardInterrupt:
        ended = "interrupted"
        teller.say("interrupted; committed rows stay, run the same command again to go on")
        return INTERRUPTED
    finally:
        disconnect()
        ledger.end_run(ended)
    for line in _summary_lines(job, records, summary, time.monotonic() - started):
        typer.echo(line)
    return OK if summary.num_committed == summary.num_rows else ROWS_FAILED


def _render(
    job: Job, workers: WorkerRange | None, teller: Teller, started: float
) -> tuple[list[Record], Summary]:
    ledger = job.graph.ledger
    teller.say(f"run {ledger.run_id}: {len(job.requests)} requests; starting Ray")
    connect()
    shape = measure_cluster()
    found = plan_workers(shape, workers)
    graph = dataclasses.replace(
        job.graph, shape=shape, num_workers=found.most, least_workers=found.least
    )
    requests, refused = _with_poses(job, workers, teller)
    teller.say("checking the rows and their media")
    forecast = _Forecast(graph)

    def on_maps(done: int, failed: int, total: int) -> None:
        if teller.wants_progress(last=done == total):
            line = f"{done}/{total} stretches of control maps done, {failed} failed"
            teller.progress(line, last=done == total)

    def on_plan(plan: RunPlan) -> OnTick:
        forecast.start(plan)
        return _follow(plan, found.most, teller)

    records = run_text_to_video(
        graph,
        requests,
        refused,
        retry_failed=job.retry_failed,
        on_plan=on_plan,
        on_maps=on_maps,
    )
    teller.say("writing the report")
    wall_s = time.monotonic() - started
    summary = write_report(
        ledger,
        records,
        settings={
            "manifest": job.manifest,
            "text_to_pose": job.poses.settings.weights if job.poses else None,
            "profile": to_plain(graph.profile),
        },
        wall_s=wall_s,
    )
    for line in forecast.compare(_new(ledger, records), summary, wall_s):
        typer.echo(line)
    return records, summary


def _with_poses(
    job: Job, workers: WorkerRange | None, teller: Teller
) -> tuple[Sequence[ClipRequest], Sequence[RowFailure]]:
    """Make the poses that rows are to follow; rows that get none for an error are refused."""
    if job.poses is None:
        return job.requests, job.refused
    failed = make(job.poses, workers, teller)
    for line in job.poses.lines(len(job.poses.rows), failed):
        teller.say(line)
    without = pose_failures(job.poses.rows, job.poses.plan, failed)
    left_out = {failure.request_id for failure in without}
    requests = [request for request in job.poses.requests if request.request_id not in left_out]
    return requests, [*job.refused, *without]


class _Forecast:
    """What the run should cost, counted beside it in a process that may hold torch."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._found: Any = None

    def start(self, plan: RunPlan) -> None:
        """Begin to count, unless there is nothing to render."""
        import ray

        if plan.to_render:
            task = ray.remote(forecast_profile).options(num_cpus=0, max_retries=0)
            self._found = task.remote(plan, self._graph.profile, self._graph.num_workers)

    def compare(self, new: Sequence[Record], summary: Summary, wall_s: float) -> list[str]:
        """Lines that set it beside what happened; none if it is not known."""
        import ray
        from ray.exceptions import RayError

        if self._found is None:
            return []
        try:
            forecast = ray.get(self._found, timeout=_FORECAST_S)
        except RayError as error:
            logger.warning("what the run should have cost is not known: %s", error)
            return []
        tasks = [record.get("tasks") or {"tasks": 1} for record in new]
        return compare(
            forecast,
            summary,
            wall_s=wall_s,
            num_tasks=sum(each["tasks"] for each in tasks),
            num_repeated=sum(each.get("duplicates", 0) for each in tasks),
        )


def _new(ledger: Ledger, records: Sequence[Record]) -> list[Record]:
    """Records of videos that this run has committed, each once."""
    found = {
        record["sample_id"]: record
        for record in records
        if record["status"] == "committed" and record.get("run_id") == ledger.run_id
    }
    return list(found.values())


def _follow(plan: RunPlan, num_workers: int, teller: Teller) -> OnTick:
    """Tell the plan, and return what tells the progress."""
    for line in plan.lines():
        teller.say(line)
    meter = Meter(plan.num_frames, num_workers=num_workers)
    told = 0

    def on_tick(tally: Tally, view: BoardView) -> None:
        nonlocal told
        for row in tally.outcomes[told:]:
            if row["status"] != "committed":
                teller.say(
                    f"{row['request_id']} {row['status']}: {row['error_class']} in "
                    f"{row['error_stage']}: {row['error_message']}"
                )
        told = len(tally.outcomes)
        last = not tally.waiting
        if teller.wants_progress(last=last):  # counting a long manifest at every row would add up
            teller.progress(meter.measure(tally.outcomes, view).line(), last=last)

    return on_tick


def _summary_lines(
    job: Job, records: Sequence[Record], summary: Summary, wall_s: float
) -> list[str]:
    ledger = job.graph.ledger
    new = {record["sample_id"]: record["num_frames"] for record in _new(ledger, records)}
    there = sum(
        record["status"] == "committed" and record["sample_id"] not in new for record in records
    )
    frames = sum(new.values())
    lines = [
        f"committed      {len(new)} clips, {frames} frames, in {describe_seconds(wall_s)} "
        f"({frames / wall_s:.2f} frames/s with start-up)",
        f"already there  {there} rows",
        f"failed         {summary.num_failed + summary.num_quarantined} rows",
    ]
    here = [record for record in records if record.get("run_id") == ledger.run_id]
    if conditions := count_conditions(here):
        lines.insert(1, f"conditions     {conditions_line(conditions)}")
    bad = [record for record in records if record["status"] != "committed"]
    lines += [
        f"  {record['request_id']}: {record['error_class']} in {record['error_stage']}: "
        f"{record['error_message']}"
        for record in bad[:_SHOWN_FAILURES]
    ]
    if len(bad) > _SHOWN_FAILURES:
        lines.append(f"  ... and {len(bad) - _SHOWN_FAILURES} more in the results table")
    lines += [
        f"results table  {ledger.store.uri_of(RESULTS)}",
        f"contact sheet  {ledger.store.uri_of(CONTACT_SHEET)}",
        f"report         {ledger.store.uri_of(REPORT)}",
    ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
