"""Graph: requests in, videos with commit records on storage out.

    requests -> load_inputs (tasks) -> [driver: drop what is settled] -> make maps (actors)
                                                    -> drive + commit (actors)
                                                         |  leases, windows
                                                       pool of workers

Datasets after one another, not one, for a reason: workers hold their GPUs from the first row on, so
all else (fetching, checking, naming, dropping, control maps) is over before they start. Rows are
tiny in all; of pixels, only encoded segments leave a worker. The workers are no stage of the
dataset but a pool beside it (:mod:`pipelines.pool`), outside Ray Data's budget: a row with one
window is one task of one worker, commit included; the windows of a longer one go to whoever is
free. The commit is made inside the stage: what a dataset has yet to write when its driver dies is
lost, what is committed is not.

A row whose worker dies goes to another one, and is given up by its own count in storage. A row that
vanishes with its driver, or a dataset that stands still, costs a new round over the rows that wait.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from musev.config import ClipRequest, Profile, to_plain
from pipelines.clip_worker import ClipWorker, WorkerSetup
from pipelines.control_maps import Detectors, OnMaps, make_maps
from pipelines.control_units import digests_of
from pipelines.engines import LoadEngine, load_networks
from pipelines.ledger import Ledger, Record, sample_id
from pipelines.media_cache import MediaCache
from pipelines.outcomes import READY, Row, fail_row, failure_record, unsampled_id
from pipelines.plan import RunPlan, measured_requests, plan_run
from pipelines.pool import PoolPlan, end_broker, start_broker
from pipelines.progress import Board, BoardView
from pipelines.resources import (
    MAX_ATTEMPTS,
    ClusterShape,
    Pooled,
    apply_stage,
    drive_args,
    keep_out_of_budget,
    load_inputs_args,
    one_row_a_block,
    stream_rows,
    worker_resources,
)
from pipelines.rounds import SILENCE_S, Rounds, WorkersFailError, run_rounds
from pipelines.rows import (
    TEXT_TO_POSE,
    RowFailure,
    request_columns,
    request_from_json,
    request_to_json,
)
from pipelines.stages.control import MapSetup, OpenDetector, open_real_detector
from pipelines.stages.load_inputs import STAGE as LOAD_INPUTS
from pipelines.stages.load_inputs import load_inputs

logger = logging.getLogger(__name__)

MANIFEST = RowFailure.stage
_LOCAL_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the graph needs to know besides the rows; picklable, workers get a copy."""

    profile: Profile
    ledger: Ledger
    cache: MediaCache
    model_digests: dict[str, str]
    licences: dict[str, str] = field(default_factory=dict)
    """Licence of the weights' parts, for the record."""
    shape: ClusterShape = field(default_factory=lambda: ClusterShape(num_cpus=1, num_gpus=0))
    num_workers: int = 1
    """Most workers there may be."""
    least_workers: int | None = None
    """Workers that are there from the start to the end; None for all."""
    load_engine: LoadEngine = load_networks
    detectors: Detectors = field(default_factory=Detectors)
    """Of the control maps that rows need; see :func:`pipelines.control_maps.describe_detectors`."""
    open_detector: OpenDetector = open_real_detector
    silence_s: float = SILENCE_S
    conducting: dict[str, Any] = field(default_factory=dict)
    """Changes to :class:`pipelines.conductor.ConductorConfig`."""

    def map_setup(self) -> MapSetup:
        """Tell a worker that makes control maps what it needs to know."""
        return MapSetup(
            config=self.profile.control,
            device=self.shape.device,
            ledger=self.ledger,
            cache=self.cache,
            open_detector=self.open_detector,
        )

    def worker_setup(self, *, shares_parts: bool = False) -> WorkerSetup:
        """Tell a worker of the pool what it needs to know."""
        return WorkerSetup(
            profile=self.profile,
            device=self.shape.device,
            ledger=self.ledger,
            cache=self.cache,
            model_digests=self.model_digests,
            licences=self.licences,
            load_engine=self.load_engine,
            shares_parts=shares_parts,
        )

    def name_sample(self, request: ClipRequest, media_digests: Mapping[str, str]) -> str:
        """Name a request's video by everything that decides its bytes.

        Args:
            request: Resolved, its length known.
            media_digests: Column to digest of its media.

        Returns:
            The sample id.

        Raises:
            WeightsError: If its control maps cannot be made.
        """
        detectors = self.detectors.of(request)
        control = {"control": detectors} if detectors else {}
        return sample_id(
            to_plain(request),
            media_digests,
            digests_of(self.model_digests, request),
            to_plain(self.profile.encoder),
            settings={"precision": self.profile.precision, **control},
        )


@dataclass(kw_only=True)
class Tally:
    """Rows of the render phase: which still wait, and what became of the others."""

    waiting: dict[str, Row]
    outcomes: list[Row] = field(default_factory=list)


OnTick = Callable[[Tally, BoardView], None]


def run_text_to_video(
    graph: Graph,
    requests: Sequence[ClipRequest],
    refused: Sequence[RowFailure],
    *,
    retry_failed: bool = False,
    on_plan: Callable[[RunPlan], OnTick],
    on_maps: OnMaps = lambda done, failed, total: None,
) -> list[Record]:
    """Bring every row of a manifest to its end and write the results table.

    Args:
        graph: Where and with what.
        requests: Resolved requests.
        refused: Rows of the manifest that make no request.
        retry_failed: Try rows again that failed in an earlier run.
        on_plan: Told the plan once it is known; returns what is told of the progress.
        on_maps: Told how the making of control maps goes, where rows need some.

    Returns:
        The rows of the results table.
    """
    ledger = graph.ledger
    ledger.check()
    ledger.clear_settled_work()
    failures = ledger.failures()
    checked = list(check_inputs(graph, requests))
    requests = measured_requests(requests, checked)
    plan = plan_run(
        requests,
        refused,
        checked,
        committed=ledger.committed_ids(),
        failed=failures,
        retry_failed=retry_failed,
    )
    _record_bad_rows(ledger, plan, failures)
    on_tick = on_plan(plan)
    if plan.to_render:
        for row in plan.to_render:
            if row["sample_id"] in failures:
                ledger.clear_failure(row["sample_id"])
        mapped = make_maps(
            graph.map_setup(),
            graph.shape,
            plan.to_render,
            graph.detectors,
            on_maps=on_maps,
            silence_s=graph.silence_s,
        )
        render_rows(graph, mapped, on_tick=on_tick)
    return ledger.write_results(
        [
            (requests[row["row"]].request_id, row["sample_id"], _own_columns(requests[row["row"]]))
            for row in sorted(checked, key=lambda row: row["row"])
        ],
        [failure.to_record() for failure in refused],
    )


def _record_bad_rows(ledger: Ledger, plan: RunPlan, failures: Mapping[str, Record]) -> None:
    """Put this manifest's bad rows on record, and forget what is no longer true of its rows."""
    bad_now = {failure.sample_id: failure.to_record() for failure in plan.refused}
    for row in plan.unreadable:
        bad_now[row["sample_id"]] = failure_record(row, plan.request_of(row))
    with ThreadPoolExecutor(_LOCAL_THREADS) as pool:  # object stores answer slowly, not seldom
        list(pool.map(lambda item: ledger.fail(*item), bad_now.items()))
    names = {request.request_id for request in plan.requests}
    names |= {failure.request_id for failure in plan.refused}
    for sample, record in failures.items():
        before_render = record.get("error_stage") in (MANIFEST, TEXT_TO_POSE, LOAD_INPUTS)
        if before_render and sample not in bad_now and record.get("request_id") in names:
            ledger.clear_failure(sample)


def _own_columns(request: ClipRequest) -> dict[str, Any]:
    """Columns in which requests that share a video may still differ."""
    return {"request": to_plain(request), **request_columns(to_plain(request))}


def check_inputs(graph: Graph, requests: Sequence[ClipRequest]) -> Iterator[Row]:
    """Fetch and check every request's media on the cluster, and name its sample.

    Args:
        graph: Where and with what.
        requests: Resolved requests.

    Yields:
        One row a request, in no particular order: ``ready`` or ``failed``.
    """
    from ray.exceptions import RayError

    waiting = _input_rows(requests)
    build = functools.partial(_inputs_dataset, graph=graph)
    for _ in range(MAX_ATTEMPTS):
        seen = set()
        try:
            for row in stream_rows(build, waiting):
                seen.add(row["row"])
                yield row
        except RayError as problem:
            logger.warning("the rows' check was broken off: %s", problem)
        waiting = [row for row in waiting if row["row"] not in seen]
        if not waiting:
            return
        logger.warning("%d rows vanished while they were checked; trying again", len(waiting))
    error = WorkersFailError(
        f"the process that reads this row's media died {MAX_ATTEMPTS} times. Look at the files it "
        "names: a decoder may crash on one of them."
    )
    for row in waiting:
        request = request_from_json(row["request"])
        named = {**row, "sample_id": unsampled_id(request), "media_digests": "{}"}
        yield fail_row(named, stage=LOAD_INPUTS, error=error)


def check_inputs_here(graph: Graph, requests: Sequence[ClipRequest]) -> list[Row]:
    """Do what :func:`check_inputs` does in threads of this process, without Ray (for dry runs)."""
    check = functools.partial(load_inputs, cache=graph.cache, name_sample=graph.name_sample)
    with ThreadPoolExecutor(_LOCAL_THREADS) as pool:
        return list(pool.map(check, _input_rows(requests)))


def render_rows(graph: Graph, rows: Sequence[Row], *, on_tick: OnTick) -> list[Row]:
    """Render and commit rows on the pool; every row ends committed, failed or quarantined.

    Long clips start first, so that no worker is left with one at the end.

    Args:
        graph: Where and with what.
        rows: Rows of :func:`check_inputs`, each sample once; those that have failed since are put
            on record only.
        on_tick: Called about once a second and after every row.

    Returns:
        One outcome a row.

    Raises:
        WorkersFailError: If workers cannot load the networks, or rows keep vanishing.
    """
    commit = graph.worker_setup().commit()
    ready = [row for row in rows if row["status"] == READY]
    tally = Tally(
        waiting={row["sample_id"]: row for row in sorted(ready, key=_work, reverse=True)},
        outcomes=[commit(row) for row in rows if row["status"] != READY],
    )
    on_tick(tally, Board().view())

    def on_row(outcome: Row | None, view: BoardView) -> None:
        if outcome is not None:
            tally.outcomes.append(outcome)
        on_tick(tally, view)

    rounds = Rounds(
        build=functools.partial(_drive_dataset, graph=graph),
        key="sample_id",
        num_workers=graph.num_workers,
        loads=f"the networks of profile {graph.profile.name!r}",
        silence_s=graph.silence_s,
    )
    run_rounds(rounds, tally.waiting, on_row)
    return tally.outcomes


def _input_rows(requests: Sequence[ClipRequest]) -> list[Row]:
    return [
        {"row": number, "request": request_to_json(request)}
        for number, request in enumerate(requests)
    ]


def _inputs_dataset(rows: list[Row], *, graph: Graph) -> Any:
    args = load_inputs_args(graph.shape)
    stage = {"cache": graph.cache, "name_sample": graph.name_sample}
    return apply_stage(one_row_a_block(rows), load_inputs, args, **stage)


def _drive_dataset(rows: list[Row], *, graph: Graph, board: Any) -> Pooled:
    """A dataset that drives rows over a pool, which ends with it."""
    setup = graph.worker_setup(shares_parts=_share_media(rows))
    resources = worker_resources(graph.shape, graph.num_workers)
    least = graph.num_workers if graph.least_workers is None else graph.least_workers
    broker = start_broker(
        PoolPlan(least=least, most=graph.num_workers),
        functools.partial(_make_worker, setup=setup, board=board, resources=resources),
    )
    keep_out_of_budget(resources, graph.num_workers)
    numbered = [{**row, "order": number} for number, row in enumerate(rows)]
    dataset = apply_stage(
        one_row_a_block(numbered),
        DriveRows,
        drive_args(graph.num_workers, len(rows)),
        setup=setup,
        broker=broker,
        board=board,
        num_workers=graph.num_workers,
        settings=graph.conducting,
    )
    return Pooled(dataset, functools.partial(end_broker, broker))


class DriveRows:
    """:class:`pipelines.clip_driver.DriveClips`, imported where it runs: it needs torch, which the
    processes that only hand rows on do without."""

    def __init__(self, **arguments: Any) -> None:
        from pipelines.clip_driver import DriveClips

        self._drive = DriveClips(**arguments)

    def __call__(self, row: Row) -> Row:
        """Bring one row to its end."""
        return self._drive(row)


def _make_worker(
    broker: Any, *, setup: WorkerSetup, board: Any, resources: Mapping[str, float]
) -> Any:
    import ray

    return ray.remote(ClipWorker).options(**resources).remote(setup, board, broker)


def _share_media(rows: Sequence[Row]) -> bool:
    """Whether any picture or video is named by more than one row."""
    digests = [digest for row in rows for digest in json.loads(row["media_digests"]).values()]
    return len(set(digests)) < len(digests)


def _work(row: Row) -> float:
    request = request_from_json(row["request"])
    return request.num_frames * request.width * request.height * request.sampling.num_steps
