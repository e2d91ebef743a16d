"""What each stage asks Ray for, on machines that need not exist here."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from musev.errors import ConfigError
from pipelines.resources import (
    MAX_ATTEMPTS,
    ClusterShape,
    WorkerRange,
    apply_stage,
    control_args,
    drive_args,
    keep_sigterm_handler,
    load_inputs_args,
    parse_workers,
    plan_control_workers,
    plan_shard_workers,
    plan_workers,
    shard_args,
    worker_resources,
)

LAPTOP = ClusterShape(num_cpus=2, num_gpus=0)
GPU_BOX = ClusterShape(num_cpus=64, num_gpus=8)


class RecordingDataset:
    """Stands in for a Ray dataset: keeps what ``map`` was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def map(self, stage: Any, **kwargs: Any) -> RecordingDataset:
        self.calls.append((stage, kwargs))
        return self


@pytest.mark.parametrize(
    ("shape", "asked", "workers"),
    [(LAPTOP, None, 1), (LAPTOP, 2, 2), (LAPTOP, 5, 5), (GPU_BOX, None, 8), (GPU_BOX, 3, 3)],
)
def test_workers_follow_gpus_unless_asked(
    shape: ClusterShape, asked: int | None, workers: int
) -> None:
    wanted = WorkerRange(workers, workers)
    assert plan_workers(shape, None if asked is None else wanted) == wanted


def test_more_workers_than_gpus_are_refused_unless_machines_may_join() -> None:
    with pytest.raises(ConfigError, match="8 GPUs"):
        plan_workers(GPU_BOX, WorkerRange(9, 9))
    later = WorkerRange(8, 16)
    assert plan_workers(GPU_BOX, later) == later


@pytest.mark.parametrize(
    ("shape", "networks", "workers"),
    [(LAPTOP, False, 2), (LAPTOP, True, 2), (GPU_BOX, False, 64), (GPU_BOX, True, 8)],
)
def test_shards_are_made_on_all_cpus_or_all_gpus(
    shape: ClusterShape, networks: bool, workers: int
) -> None:
    assert plan_shard_workers(shape, None, networks=networks) == WorkerRange(workers, workers)
    asked = WorkerRange(1, 3)
    assert plan_shard_workers(shape, asked, networks=networks) == asked
    args = shard_args(shape, workers, networks=networks)
    assert args.get("num_gpus", 0) == (1 if networks and shape is GPU_BOX else 0)
    assert args.get("num_cpus", 0) * workers < shape.num_cpus


def test_only_the_pool_asks_for_gpus_and_only_where_there_are_some() -> None:
    assert worker_resources(GPU_BOX, 8) == {"num_gpus": 1, "num_cpus": 0}
    assert "num_gpus" not in worker_resources(LAPTOP, 1)
    assert "num_gpus" not in drive_args(8, 100)
    assert "num_gpus" not in load_inputs_args(GPU_BOX)


@pytest.mark.parametrize("num_cpus", [1, 2, 4, 64])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7, 32])
def test_a_cpu_pool_leaves_room_for_rays_own_tasks(num_cpus: int, num_workers: int) -> None:
    shape = ClusterShape(num_cpus=num_cpus, num_gpus=0)
    shards = shard_args(shape, num_workers, networks=False)
    assert 0 < shards["num_cpus"] <= 1
    assert num_workers * shards["num_cpus"] + load_inputs_args(LAPTOP)["num_cpus"] <= num_cpus
    worker = worker_resources(shape, num_workers)["num_cpus"]
    driver = drive_args(num_workers, 9)
    assert 0 < worker <= 1
    used = num_workers * worker + driver["actor_pool_size"][1] * driver["num_cpus"]
    assert used + load_inputs_args(LAPTOP)["num_cpus"] <= num_cpus


def test_drivers_hold_more_rows_than_there_are_workers_but_no_more_than_rows() -> None:
    assert drive_args(8, 1000)["rows_at_a_time"] > 8
    assert drive_args(8, 3)["rows_at_a_time"] == 3
    many = drive_args(200, 10_000)
    assert many["actor_pool_size"][0] > 1
    assert many["actor_pool_size"][0] * many["rows_at_a_time"] > 200


def test_an_actor_that_holds_many_rows_works_on_all_of_them_at_once() -> None:
    """Without Ray's leave, its calls would wait for one another: one worker busy, the rest idle."""
    dataset: Any = RecordingDataset()
    apply_stage(dataset, dict, drive_args(8, 1000))
    apply_stage(dataset, dict, shard_args(LAPTOP, 2, networks=False))
    many, one = (call["compute"] for _, call in dataset.calls)
    assert many.max_concurrent_calls_per_actor > 8
    assert many.enable_true_multi_threading
    assert not one.enable_true_multi_threading


@pytest.mark.parametrize(
    ("text", "least", "most"), [("1", 1, 1), ("8", 8, 8), ("2:8", 2, 8), ("4:4", 4, 4)]
)
def test_workers_are_a_number_or_a_range(text: str, least: int, most: int) -> None:
    found = parse_workers(text)
    assert found == WorkerRange(least, most)
    assert parse_workers(str(found)) == found
    assert parse_workers(None) is None


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "8:2", "0:2", "1:2:3", "1.5"])
def test_other_numbers_of_workers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="MIN:MAX"):
        parse_workers(text)


def test_a_row_is_retried_often_enough_to_be_quarantined_by_its_own_count() -> None:
    # The call after the last allowed attempt is the one that writes the quarantine record.
    assert drive_args(1, 1)["max_task_retries"] >= MAX_ATTEMPTS


def test_stages_reach_ray_with_one_row_in_each_workers_hands() -> None:
    dataset = RecordingDataset()
    args = shard_args(GPU_BOX, 4, networks=True, least=2)
    apply_stage(dataset, dict, args, colour="red")
    apply_stage(dataset, len, load_inputs_args(LAPTOP), colour="blue")
    (_, render), (_, inputs) = dataset.calls
    assert (render["compute"].min_size, render["compute"].max_size) == (2, 4)
    assert render["compute"].max_tasks_in_flight_per_actor == 1
    assert render["num_gpus"] == 1
    assert render["fn_constructor_kwargs"] == {"colour": "red"}
    assert inputs["compute"].size == 2
    assert inputs["fn_kwargs"] == {"colour": "blue"}
    assert not {"task_pool_size", "actor_pool_size"} & (set(render) | set(inputs))


@pytest.mark.parametrize(
    ("shape", "num_units", "workers"),
    [(LAPTOP, 1, 1), (LAPTOP, 99, 2), (GPU_BOX, 99, 4 * int(GPU_BOX.num_gpus)), (GPU_BOX, 3, 3)],
)
def test_workers_that_make_control_maps_fit_the_cluster(
    shape: ClusterShape, num_units: int, workers: int
) -> None:
    assert plan_control_workers(shape, num_units) == workers
    args = control_args(shape, workers)
    assert args["actor_pool_size"] == (workers, workers)
    assert workers * args["num_cpus"] < shape.num_cpus
    assert workers * args.get("num_gpus", 0) <= shape.num_gpus
    assert args["max_task_retries"] >= MAX_ATTEMPTS


def test_ray_does_not_keep_the_handler_of_sigterm() -> None:
    """Ray puts ``sys.exit`` in its place: a run would end without saying that it can go on."""

    def start_like_ray(*, then_terminate: bool) -> None:
        with keep_sigterm_handler():
            signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))
            if then_terminate:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    start_like_ray(then_terminate=False)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyboardInterrupt):
        start_like_ray(then_terminate=True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_importing_needs_no_ray() -> None:
    import subprocess

    code = "import sys, pipelines.resources; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
