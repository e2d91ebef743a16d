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
    apply_stage,
    keep_sigterm_handler,
    load_inputs_args,
    plan_shard_workers,
    plan_workers,
    render_args,
    shard_args,
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
    assert plan_workers(shape, asked) == workers


@pytest.mark.parametrize(("asked", "phrase"), [(0, "at least 1"), (9, "8 GPUs")])
def test_impossible_worker_counts_are_refused_instead_of_waiting(asked: int, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        plan_workers(GPU_BOX, asked)


@pytest.mark.parametrize(
    ("shape", "networks", "workers"),
    [(LAPTOP, False, 2), (LAPTOP, True, 2), (GPU_BOX, False, 64), (GPU_BOX, True, 8)],
)
def test_shards_are_made_on_all_cpus_or_all_gpus(
    shape: ClusterShape, networks: bool, workers: int
) -> None:
    assert plan_shard_workers(shape, None, networks=networks) == workers
    assert plan_shard_workers(shape, 3, networks=networks) == 3
    args = shard_args(shape, workers, networks=networks)
    assert args.get("num_gpus", 0) == (1 if networks and shape is GPU_BOX else 0)
    assert args.get("num_cpus", 0) * workers < shape.num_cpus


def test_only_the_render_stage_asks_for_gpus_and_only_where_there_are_some() -> None:
    assert render_args(GPU_BOX, 8)["num_gpus"] == 1
    assert "num_gpus" not in render_args(LAPTOP, 1)
    assert "num_gpus" not in load_inputs_args(GPU_BOX)


@pytest.mark.parametrize("num_cpus", [1, 2, 4, 64])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7, 32])
def test_a_cpu_pool_leaves_room_for_rays_own_tasks(num_cpus: int, num_workers: int) -> None:
    args = render_args(ClusterShape(num_cpus=num_cpus, num_gpus=0), num_workers)
    assert 0 < args["num_cpus"] <= 1
    assert num_workers * args["num_cpus"] + load_inputs_args(LAPTOP)["num_cpus"] <= num_cpus


def test_a_row_is_retried_often_enough_to_be_quarantined_by_its_own_count() -> None:
    # The call after the last allowed attempt is the one that writes the quarantine record.
    assert render_args(LAPTOP, 1)["max_task_retries"] >= MAX_ATTEMPTS


def test_stages_reach_ray_with_one_row_in_each_workers_hands() -> None:
    dataset = RecordingDataset()
    apply_stage(dataset, dict, render_args(GPU_BOX, 4), colour="red")
    apply_stage(dataset, len, load_inputs_args(LAPTOP), colour="blue")
    (_, render), (_, inputs) = dataset.calls
    assert render["compute"].min_size == render["compute"].max_size == 4
    assert render["compute"].max_tasks_in_flight_per_actor == 1
    assert render["num_gpus"] == 1
    assert render["fn_constructor_kwargs"] == {"colour": "red"}
    assert inputs["compute"].size == 2
    assert inputs["fn_kwargs"] == {"colour": "blue"}
    assert not {"task_pool_size", "actor_pool_size"} & (set(render) | set(inputs))


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
