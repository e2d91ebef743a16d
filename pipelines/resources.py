"""Stage to Ray arguments: Ray's names for CPUs, GPUs, restarts and retries live only here.

Nothing here imports Ray at the top, so a dry run stays light.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from musev.errors import ConfigError

MAX_ATTEMPTS = 3
"""A row that kills its worker this often is quarantined (DESIGN.md 6)."""

POLL_S = 1.0
"""How often a running dataset is looked after."""
WORKERS_PER_DRIVER = 64
"""How many workers' windows one process puts together."""
_STAGE_CPUS = 0.25
_CONTROL_WORKERS_PER_GPU = 4
_LOCAL_OBJECT_STORE_BYTES = 256 * 2**20  # rows are tiny; media never enter the object store


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """What the cluster has, or may grow to."""

    num_cpus: float
    num_gpus: float

    @property
    def device(self) -> str:
        """Where networks run: ``cuda`` as soon as the cluster has a GPU."""
        return "cuda" if self.num_gpus >= 1 else "cpu"


@dataclass(frozen=True)
class WorkerRange:
    """How many workers are there from the start, and how many there may be."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least}:{self.most}"


def parse_workers(text: str | None) -> WorkerRange | None:
    """Read ``--workers``.

    Args:
        text: ``N`` or ``MIN:MAX``; None where the flag was not given.

    Returns:
        The range, or None.

    Raises:
        ConfigError: If it is neither.
    """
    if text is None:
        return None
    numbers = text.split(":")
    if len(numbers) <= 2 and all(number.isdigit() and int(number) for number in numbers):
        found = WorkerRange(int(numbers[0]), int(numbers[-1]))
        if found.least <= found.most:
            return found
    raise ConfigError(f"--workers must be N or MIN:MAX, each at least 1, got {text!r}")


def plan_workers(shape: ClusterShape, asked: WorkerRange | None) -> WorkerRange:
    """Decide how many render workers to start.

    Args:
        shape: Of the cluster.
        asked: What the user asked for; None for one a GPU, or a single one without GPUs.

    Returns:
        The range. Its upper end may lie beyond what the cluster has now: machines may join.

    Raises:
        ConfigError: If more are asked for from the start than there are GPUs: the rest would wait
            for ever.
    """
    num_gpus = int(shape.num_gpus)
    if asked is None:
        return WorkerRange(max(1, num_gpus), max(1, num_gpus))
    if shape.device == "cuda" and asked.least > num_gpus:
        raise ConfigError(
            f"--workers is {asked}, but the cluster has {num_gpus} GPUs and a worker holds one. "
            f"Ask for {num_gpus} or fewer, for {num_gpus}:{asked.most} if machines will join, or "
            "add machines."
        )
    return asked


def on_this_machine() -> dict[str, Any]:
    """Options for a small actor or task that has to live as long as its caller does.

    Without CPUs it could be put anywhere, and go with a machine that leaves.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def load_inputs_args(shape: ClusterShape) -> dict[str, Any]:
    """Arguments of the input stage: small tasks, never more of them than CPUs.

    Args:
        shape: Of the cluster.

    Returns:
        Keyword arguments for ``Dataset.map`` (the compute strategy as ``task_pool_size``).
    """
    return {"task_pool_size": max(1, int(shape.num_cpus)), "num_cpus": _STAGE_CPUS}


def worker_resources(shape: ClusterShape, num_workers: int) -> dict[str, float]:
    """What one worker of the pool asks Ray for.

    Args:
        shape: Of the cluster.
        num_workers: Most workers there may be.

    Returns:
        Options of an actor: a GPU, or without GPUs a share of the CPUs that leaves room for the
        stages.
    """
    if shape.device == "cuda":
        return {"num_gpus": 1, "num_cpus": 0}
    return {"num_cpus": _cpu_share(shape.num_cpus - 2 * _STAGE_CPUS, num_workers)}


def keep_out_of_budget(resources: Mapping[str, float], num_workers: int) -> None:
    """Tell Ray Data what the pool's workers hold; it does not see actors that are not its own.

    Call it in the process that runs the dataset.

    Args:
        resources: Of one worker.
        num_workers: Most workers there may be.
    """
    from ray.data import DataContext, ExecutionResources

    DataContext.get_current().execution_options.exclude_resources = ExecutionResources(
        cpu=num_workers * resources.get("num_cpus", 0.0),
        gpu=num_workers * resources.get("num_gpus", 0.0),
    )


def drive_args(num_workers: int, num_rows: int) -> dict[str, Any]:
    """Arguments of the stage that drives rows over the pool: few actors, many rows in each.

    A driver computes a few milliseconds for every window that a worker computes for half a second;
    how many workers one can serve is measured in docs/wavefront.md. More rows are driven than there
    are workers, so that a free one always finds a task: one in work, one that waits behind it, and
    as many again in the queue, without which none would be let wait behind another.

    Args:
        num_workers: Most workers of the pool.
        num_rows: Rows there are.

    Returns:
        Keyword arguments for :func:`apply_stage`.
    """
    num_actors = math.ceil(num_workers / WORKERS_PER_DRIVER)
    rows = math.ceil(min(num_rows, 4 * num_workers + 2) / num_actors)
    return {
        "actor_pool_size": (num_actors, num_actors),
        "rows_at_a_time": max(1, rows),
        "max_task_retries": MAX_ATTEMPTS + 1,
        "num_cpus": _STAGE_CPUS,
    }


def plan_shard_workers(
    shape: ClusterShape, asked: WorkerRange | None, *, networks: bool
) -> WorkerRange:
    """Decide how many workers make the shards of a dataset, or judge videos.

    Args:
        shape: Of the cluster.
        asked: What the user asked for; None for one a GPU where networks take part and there are
            GPUs, else one a CPU.
        networks: Whether a worker holds networks.

    Returns:
        The range.
    """
    if networks and shape.device == "cuda":
        return plan_workers(shape, asked)
    num_cpus = max(1, int(shape.num_cpus))
    return WorkerRange(num_cpus, num_cpus) if asked is None else asked


def shard_args(
    shape: ClusterShape, num_workers: int, *, networks: bool, least: int | None = None
) -> dict[str, Any]:
    """Arguments of a stage of actors that make shards or judge: one row in each one's hands.

    Without GPUs a worker asks for a fraction of a CPU, so that the pool always fits with room for
    Ray's own tasks: a pool that takes every CPU hangs for ever (DEPENDENCIES, Ray and start-up).
    Restarts are bounded by the attempts of each row, which storage counts.

    Args:
        shape: Of the cluster.
        num_workers: Most workers, from :func:`plan_shard_workers`.
        networks: Whether a worker holds networks, and so a GPU where there are some.
        least: Workers from the start; None for all.

    Returns:
        Keyword arguments for :func:`apply_stage`.
    """
    args: dict[str, Any] = {
        "actor_pool_size": (num_workers if least is None else least, num_workers),
        "max_task_retries": MAX_ATTEMPTS + 1,
    }
    if networks and shape.device == "cuda":
        return {**args, "num_gpus": 1}
    return {**args, "num_cpus": _cpu_share(shape.num_cpus - _STAGE_CPUS, num_workers)}


def plan_control_workers(shape: ClusterShape, num_units: int) -> int:
    """Decide how many workers make control maps: no more than there is work for."""
    most = _CONTROL_WORKERS_PER_GPU * shape.num_gpus if shape.device == "cuda" else shape.num_cpus
    return max(1, min(int(most), num_units))


def control_args(shape: ClusterShape, num_workers: int) -> dict[str, Any]:
    """Arguments of the stage of actors that make control maps, one stretch of maps each at a time.

    Detectors are small beside the video networks, so several share a GPU. Restarts are bounded by
    the attempts of each stretch, which storage counts.

    Args:
        shape: Of the cluster.
        num_workers: From :func:`plan_control_workers`.

    Returns:
        Keyword arguments for :func:`apply_stage`.
    """
    args: dict[str, Any] = {
        "actor_pool_size": (num_workers, num_workers),
        "max_task_retries": MAX_ATTEMPTS + 1,
        "num_cpus": _cpu_share(shape.num_cpus - _STAGE_CPUS, num_workers),
    }
    if shape.device == "cuda":
        args["num_gpus"] = 1 / _CONTROL_WORKERS_PER_GPU
    return args


def _cpu_share(num_cpus: float, num_workers: int) -> float:
    """What each of some workers may ask for, at most a CPU: rounded down, so that all fit."""
    return max(0.01, int(min(1.0, num_cpus / num_workers) * 100) / 100)


def apply_stage(dataset: Any, stage: Any, args: dict[str, Any], **constructor: Any) -> Any:
    """Add a stage to a dataset with the arguments of this module.

    Args:
        dataset: A Ray dataset with one row a block.
        stage: A function of one row, or a class built once a worker and then called per row.
        args: From a function of this module.
        **constructor: Arguments of the class, or of the function beside the row.

    Returns:
        The dataset with the stage added.
    """
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    args = dict(args)
    if (size := args.pop("task_pool_size", None)) is not None:
        return dataset.map(
            stage, fn_kwargs=constructor, compute=TaskPoolStrategy(size=size), **args
        )
    rows = args.pop("rows_at_a_time", 1)
    least, most = args.pop("actor_pool_size")
    pool = ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_tasks_in_flight_per_actor=rows,
        max_concurrent_calls_per_actor=rows if rows > 1 else None,
        enable_true_multi_threading=rows > 1,  # else calls wait for one another in the actor
    )
    return dataset.map(stage, fn_constructor_kwargs=constructor, compute=pool, **args)


def configure_data(max_errored_rows: int = -1) -> None:
    """Set Ray Data up for rows that take hours.

    Args:
        max_errored_rows: How many rows may vanish with their worker before the dataset fails; -1
            for any number. The graph notices a vanished row and starts it again.
    """
    import logging

    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # default: fail after 30 idle minutes
    context.max_errored_blocks = max_errored_rows  # one row a block
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def one_row_a_block(rows: list[Any]) -> Any:
    """Make a dataset whose every block is one row: what is retried or lost is then one row."""
    import ray

    return ray.data.from_items(rows, override_num_blocks=len(rows))


def stream_rows(
    build: Callable[[list[Any]], Any],
    rows: list[Any],
    *,
    watch: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Run a dataset in a Ray task of its own and hand its rows over as they come.

    The task owns the dataset's actors. Whatever ends this generator (its end, an error in
    ``watch``, Ctrl-C) ends the task and the actors with it; a dataset that hangs cannot take the
    driver along.

    Args:
        build: Rows to a dataset, or to a :class:`Pooled` one; runs in the task.
        rows: The rows.
        watch: Called about once a second while nothing comes; may raise.

    Yields:
        Rows of the dataset.
    """
    import ray

    if not rows:
        return
    task = ray.remote(_run_dataset).options(max_retries=0, **on_this_machine())
    stream = task.remote(build, rows)
    ended = False
    try:
        while True:
            ready, _ = ray.wait([stream], timeout=POLL_S)
            if not ready:
                watch()
                continue
            try:
                batch = ray.get(next(stream))
            except StopIteration:
                ended = True
                return
            yield from batch
    finally:
        if not ended:  # a late cancel would kill the process, which may have its next task already
            ray.cancel(stream, force=True)


@dataclass(frozen=True)
class Pooled:
    """A dataset, and what has to be ended with it.

    Not left to references that go out of scope: a dataset's are freed by the garbage collector at
    some time, and until then a pool would hold the machines that the next one waits for.
    """

    dataset: Any
    close: Callable[[], None]


def _run_dataset(build: Callable[[list[Any]], Any], rows: list[Any]) -> Iterator[list[Any]]:
    configure_data()
    built = build(rows)
    dataset = built.dataset if isinstance(built, Pooled) else built
    try:
        for batch in dataset.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pandas"
        ):
            yield batch.to_dict("records")
    finally:
        if isinstance(built, Pooled):
            built.close()


def connect() -> None:
    """Connect to the cluster this process was started in, or start a local one.

    A cluster is joined only when ``RAY_ADDRESS`` names it (``ray job submit`` sets it); a local run
    never joins whatever cluster a killed process may have left behind.
    """
    import logging

    import ray

    if ray.is_initialized():
        return
    with keep_sigterm_handler():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.WARNING)
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: ``ray.init`` puts its own, ``sys.exit``, in place."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread, and Ray leaves them alone elsewhere
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:  # Ray's handler, while it was in place
        raise KeyboardInterrupt from ended
    finally:
        signal.signal(signal.SIGTERM, handler)


def measure_cluster() -> ClusterShape:
    """Ask Ray what the cluster has, counting machines an autoscaler may still add."""
    import ray
    from ray._private.state import state  # private: Ray 2.60 has no public way to ask

    now = ray.cluster_resources()
    later = state.get_max_resources_from_cluster_config() or {}
    return ClusterShape(
        num_cpus=max(now.get("CPU", 0.0), later.get("CPU", 0.0), 1.0),
        num_gpus=max(now.get("GPU", 0.0), later.get("GPU", 0.0)),
    )
