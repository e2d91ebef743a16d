"""Say what a manifest will cost before anything runs: tasks, FLOPs, seconds, memory and bytes.

    musev plan requests.parquet --workers 8 --seconds-per-task 0.5
    musev plan requests.parquet --workers 8 --like s3://bucket/earlier-run --output s3://bucket/run
    musev plan requests.parquet --workers 8 --explain long-clip --png long-clip.png

FLOPs are counted by calling the profile's networks without their weights. Seconds are simulated
with the planner that a run uses; they need the speed of a worker, given or learnt from an earlier
run. Bad rows are listed and do not stop the others; with --output, rows committed there are done.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ROWS_FAILED,
    WORKERS,
    ProfileOption,
    SetOption,
    Settings,
    errors_as_status,
    load_settings,
    run_app,
)
from musev.config import ClipRequest, Precision, WeightsConfig
from musev.errors import ConfigError, ManifestError
from musev.weight_parts import digest_weights
from pipelines.clip_forecast import (
    BYTES_PER_PIXEL,
    FindCost,
    Speed,
    describe_bytes,
    describe_flops,
    forecast_clip,
    measure_bytes_per_pixel,
    measure_speed,
    model_clip,
)
from pipelines.control_maps import describe_detectors
from pipelines.forecast import Forecast, RowForecast, forecast_run, usual_pool
from pipelines.ledger import Ledger
from pipelines.manifest import read_manifest, resolve_rows
from pipelines.media_cache import MediaCache
from pipelines.plan import RunPlan, measured_requests, plan_run
from pipelines.progress import describe_seconds
from pipelines.resources import parse_workers
from pipelines.text_to_video import Graph, check_inputs_here
from pipelines.wavefront_picture import Panel, draw_timelines

if TYPE_CHECKING:
    from musev.models.cost import CostModel

_SHOWN = 50
_NOWHERE = "memory://nothing-is-written"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known about the machines and the videos besides the manifest."""

    num_workers: int
    speed: Speed | float | None
    bytes_per_pixel: float


@app.command(help=__doc__)
def plan(
    manifest: Annotated[str, typer.Argument(help="Requests to plan; path or URL.")],
    output: Annotated[
        str | None, typer.Option("--output", help="The run's output: what it holds is done.")
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
    workers: Annotated[
        str, typer.Option("--workers", metavar=WORKERS, help="Render workers; the most count.")
    ] = "1",
    seconds_per_task: Annotated[
        float | None,
        typer.Option(
            "--seconds-per-task",
            help="Seconds of a network call on the costliest window; others scale with FLOPs.",
        ),
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", help="Output of an earlier run on such workers.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Plan rows that failed in an earlier run.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="ROW", help="Draw this row's windows.")
    ] = None,
    png: Annotated[Path, typer.Option("--png", help="Picture that --explain writes.")] = Path(
        "plan.png"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every number to this file.")
    ] = None,
) -> None:
    """Say what a manifest will cost before anything runs: tasks, FLOPs, seconds, memory, bytes."""
    with errors_as_status():
        settings = load_settings(profile, changes or ())
        asked = parse_workers(workers)
        assert asked is not None
        num_workers = asked.most
        run_plan = _plan_rows(settings, manifest, output, retry_failed)
        find_cost = _cost_finder(settings)
        known = _learn(find_cost, num_workers, seconds_per_task, like)
        forecast = forecast_run(
            run_plan,
            find_cost,
            num_workers=num_workers,
            segment_frames=settings.profile.encoder.segment_frames,
            speed=known.speed,
            bytes_per_pixel=known.bytes_per_pixel,
        )
        _show(forecast)
        if json_file is not None:
            json_file.write_text(json.dumps(forecast.to_plain(), indent=1))
        if explain is not None:
            request = _find_row(run_plan, explain)
            speed = forecast.speed if isinstance(forecast.speed, Speed) else None
            _draw(request, find_cost, num_workers, speed, png, settings)
            typer.echo(f"picture        {png}")
    raise typer.Exit(ROWS_FAILED if forecast.problems else OK)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 all rows are good, 3 some are bad, 2 wrong command or manifest, 1 otherwise.
    """
    return run_app(app, argv, prog_name="musev plan")


def _plan_rows(
    settings: Settings, manifest: str, output: str | None, retry_failed: bool
) -> RunPlan:
    """Do what a run does before it renders, without Ray and without writing anything."""
    raw = read_manifest(manifest)
    if not raw.rows:
        raise ManifestError(f"manifest {manifest} has no rows; there is nothing to plan.")
    requests, refused = resolve_rows(
        raw.rows, settings.profile, raw.base_uri, find_profile=settings.find_profile
    )
    ledger = Ledger(output or _NOWHERE)
    graph = Graph(
        profile=settings.profile,
        ledger=ledger,
        cache=MediaCache(run_id=ledger.run_id),
        # Only to know what the output holds: a plan without one needs no weights.
        model_digests=digest_weights(settings.profile.weights) if output else {},
        detectors=describe_detectors(requests, settings.profile.control),
    )
    checked = check_inputs_here(graph, requests)
    return plan_run(
        measured_requests(requests, checked),
        refused,
        checked,
        committed=ledger.committed_ids() if output else (),
        failed=ledger.failures() if output else (),
        retry_failed=retry_failed,
    )


def _cost_finder(settings: Settings) -> FindCost:
    def find_cost(name: str) -> CostModel:
        found = settings.find_profile(name)
        return _cost_of(found.weights, found.precision)

    return find_cost


@functools.cache
def _cost_of(weights: WeightsConfig, precision: Precision) -> CostModel:
    from musev.models.cost import CostModel

    return CostModel(weights, precision)


def _learn(
    find_cost: FindCost, num_workers: int, seconds_per_task: float | None, like: str | None
) -> _Known:
    if seconds_per_task is not None and like is not None:
        raise ConfigError("--seconds-per-task and --like both tell a worker's speed; give one")
    if seconds_per_task is not None and seconds_per_task <= 0:
        raise ConfigError(f"--seconds-per-task must be positive, got {seconds_per_task}")
    if like is None:
        return _Known(
            num_workers=num_workers, speed=seconds_per_task, bytes_per_pixel=BYTES_PER_PIXEL
        )
    records = list(Ledger(like).committed().values())
    return _Known(
        num_workers=num_workers,
        speed=measure_speed(records, find_cost, like),
        bytes_per_pixel=measure_bytes_per_pixel(records),
    )


def _show(forecast: Forecast) -> None:
    table = Table("request", "video", "windows", "steps", "tasks", "work", "moved", box=None)
    for name in ("a worker", "worker time", "alone"):
        table.add_column(name)
    for row in forecast.rows[:_SHOWN]:
        table.add_row(*_cells(row))
    # Wide enough for every column, wherever the output goes.
    Console(file=sys.stdout, width=150, highlight=False, markup=False).print(table)
    if len(forecast.rows) > _SHOWN:
        typer.echo(f"... and {len(forecast.rows) - _SHOWN} more rows; --json FILE has them all")
    for name, stage, kind, message in forecast.problems[:_SHOWN]:
        typer.echo(f"bad row {name}: {kind} in {stage}: {message}")
    if len(forecast.problems) > _SHOWN:
        typer.echo(f"... and {len(forecast.problems) - _SHOWN} more bad rows")
    typer.echo("")
    for line in forecast.lines():
        typer.echo(line)


def _cells(row: RowForecast) -> list[str]:
    video = f"{row.width}x{row.height}, {row.num_frames} frames"
    if row.clip is None:
        return [row.request_id, video, row.state]
    clip = row.clip
    return [
        row.request_id,
        video,
        str(clip.windows),
        str(clip.steps),
        str(clip.tasks),
        describe_flops(clip.flops),
        describe_bytes(clip.moved_bytes),
        describe_bytes(clip.memory_bytes),
        "?" if row.worker_s is None else describe_seconds(row.worker_s),
        "?" if row.alone_s is None else describe_seconds(row.alone_s),
    ]


def _find_row(plan: RunPlan, name: str) -> ClipRequest:
    bad = {problem[0]: problem for problem in plan.problems}
    if name in bad:
        raise ManifestError(f"row {name!r} cannot be drawn: {bad[name][3]}")
    for request in plan.requests:
        if request.request_id == name:
            return request
    raise ManifestError(f"--explain {name!r}: the manifest has no such request_id")


def _draw(
    request: ClipRequest,
    find_cost: FindCost,
    num_workers: int,
    speed: Speed | None,
    target: Path,
    settings: Settings,
) -> None:
    """Draw one row as if it had the pool for itself."""
    from musev.denoise.simulate import simulate

    clip = forecast_clip(request, find_cost(request.profile), num_workers=num_workers)
    if not clip.windows:
        raise ManifestError(f"row {request.request_id!r} has no frame that is denoised in windows")
    unit = "s"
    if speed is None:
        unit = "task times"
        speed = Speed(clip.window_flops, clip.window_flops, "a task is the unit")
    model = model_clip(request, clip, speed, segment_frames=settings.profile.encoder.segment_frames)
    timeline = simulate([model], usual_pool(num_workers))
    windows = request.sampling.windows
    heading = (
        f"{clip.generated_frames} of {request.num_frames} frames denoised, "
        f"{request.width}x{request.height}, {clip.steps} steps of "
        f"{clip.windows} windows ({windows.num_frames}/{windows.overlap}, {windows.layout}), "
        f"{num_workers} workers"
    )
    about = f"{timeline.total_s:.3g} {unit}, workers busy {timeline.efficiency:.0%}"
    panel = Panel(request.request_id, about, timeline)
    draw_timelines([panel], heading=heading).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
