"""Train one stage on any number of workers, from its newest checkpoint on.

    python -m jobs.train --stage mini-vae --output /data/vae
    python -m jobs.train --stage mini-image --init /data/vae/export --output /data/image --workers 2

Run the same command again after any interruption: it goes on at the last checkpoint, with the same
bits as if it had never stopped. ``--workers 0`` trains in this process, without Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs._cli import OK, errors_as_status, run_app, split_change
from musev.errors import ConfigError, MusevError

if TYPE_CHECKING:
    from musev.training.checkpoints import CheckpointStore
    from musev.training.loop import Trainer
    from musev.training.runs import PreparedRun, RunConfig, Worker

logger = logging.getLogger(__name__)

Strategy = Literal["ddp", "fsdp"]
CURVES, LOG, EXPORT = "curves.png", "log.jsonl", "export"
MAX_FAILURES = 3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def train(
    stage: Annotated[str, typer.Option("--stage", help="Which stage; see docs/training.md.")],
    output: Annotated[
        str, typer.Option("--output", help="Folder or URL for checkpoints, curves and weights.")
    ],
    init: Annotated[
        str | None,
        typer.Option("--init", help="Folder to start from: an earlier stage's export."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the stage, e.g. loop.num_steps=500 or batch.num_clips=8; repeatable. "
            "run.NAME changes the run: data, size, seed, num_clips, size_px, num_samples, latents, "
            "renew (networks to build anew), new_schedule (another diffusion than the start's).",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Ray workers; 0: this process, no Ray.")
    ] = 0,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker, bfloat16.")] = False,
    strategy: Annotated[
        str, typer.Option("--strategy", help="ddp, or fsdp for networks too large for one GPU.")
    ] = "ddp",
) -> None:
    """Train one stage on any number of workers, from its newest checkpoint on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    with errors_as_status():
        if strategy not in ("ddp", "fsdp"):
            raise ConfigError(f"--strategy must be ddp or fsdp, got {strategy!r}")
        if workers == 0 and (gpu or strategy == "fsdp"):
            flag = "--gpu" if gpu else "--strategy fsdp"
            raise ConfigError(f"{flag} needs --workers 1 or more; without it nothing runs on Ray")
        run = make_run(stage, output, init, changes or ())
        if workers == 0:
            train_here(run)
        else:
            train_on_ray(run, workers, gpu=gpu, strategy=strategy)
    raise typer.Exit(OK)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 trained, 2 wrong command, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.train")


def make_run(stage: str, output: str, init: str | None, changes: Sequence[str]) -> RunConfig:
    """Make the run's settings from the command line.

    Args:
        stage: Name of a stage.
        output: Folder.
        init: Folder to start from.
        changes: ``KEY=VALUE`` texts.

    Returns:
        The run.

    Raises:
        ConfigError: If there is no such stage or setting, or a value does not fit.
    """
    from musev.settings import replace_settings
    from musev.training.runs import RunConfig
    from musev.training.stages import get_stage

    own: dict[str, Any] = {}
    of_stage: dict[str, Any] = {}
    for change in changes:
        key, value = split_change(change, "loop.num_steps=500")
        if key.startswith("run."):
            own[key.removeprefix("run.")] = value
        else:
            of_stage[key] = value
    changed = replace_settings(get_stage(stage), of_stage)
    for name in ("data", "latents"):
        if own.get(name, "none").lower() != "none":
            own[name] = _absolute(own[name])
    run = RunConfig(stage=changed, out=_absolute(output), init=_absolute(init) if init else None)
    return replace_settings(run, own)


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def train_here(run: RunConfig) -> None:
    """Train in this process."""
    from musev.training.runs import Worker

    _train(run, Worker())


def train_on_ray(run: RunConfig, workers: int, *, gpu: bool, strategy: str) -> None:
    """Train on Ray workers; a worker that dies costs the steps since the last checkpoint.

    Args:
        run: What to train; its output must be seen by all workers.
        workers: How many.
        gpu: One GPU each, and bfloat16.
        strategy: ``ddp`` or ``fsdp``.

    Raises:
        ConfigError: If the run cannot be done as it is asked for; workers try that once.
        MusevError: If it failed more often than :data:`MAX_FAILURES` times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from musev.training.run_config import check_run

    check_run(run, strategy)
    if not ray.is_initialized():
        ray.init(log_to_driver=True)
    refusal = ray.remote(_Refusal).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"run": run, "strategy": strategy, "gpu": gpu, "refusal": refusal},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=f"musev-{run.stage.name}-{int(time.time())}",
            # Ray's own records only: our checkpoints lie in run.out.
            storage_path=tempfile.mkdtemp(prefix="musev-ray-"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise MusevError(
            f"training failed: {error}. Run the same command again to go on from the last "
            "checkpoint."
        ) from error
    if words := ray.get(refusal.read.remote()):
        raise ConfigError(words)


class _Refusal:
    """An actor that keeps what a worker found wrong with the command.

    Ray starts workers again after any error. Those that find a refusal return at once, and the
    command ends with its words.
    """

    def __init__(self) -> None:
        self._words = ""

    def write(self, words: str) -> None:
        """Keep the first words."""
        self._words = self._words or words

    def read(self) -> str:
        """The words; empty: nothing is wrong."""
        return self._words


def _ray_worker(config: dict[str, Any]) -> None:
    """Train this worker's share, unless the command was found to be wrong."""
    import ray

    refusal = config["refusal"]
    if ray.get(refusal.read.remote()):
        return
    try:
        _train_share(config)
    except ConfigError as error:
        ray.get(refusal.write.remote(str(error)))
        raise


def _train_share(config: dict[str, Any]) -> None:
    """What every Ray worker runs: a share of every batch, gradients averaged over all."""
    import ray.train
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from musev.training.runs import Worker

    logging.basicConfig(level=logging.INFO)
    context = ray.train.get_context()
    if not config["gpu"]:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    worker = Worker(
        rank=context.get_world_rank(),
        count=context.get_world_size(),
        meet=dist.barrier,
        device=get_device(),
    )
    _train(config["run"], worker, strategy=config["strategy"], bfloat16=config["gpu"])


def _train(
    run: RunConfig, worker: Worker, *, strategy: str = "ddp", bfloat16: bool = False
) -> None:
    """Train one worker's share to the last step; worker 0 writes."""
    import dataclasses

    from musev.training.checkpoints import CheckpointStore
    from musev.training.loop import Hooks, resume_together, run_steps
    from musev.training.runs import prepare_run

    if strategy == "fsdp":
        from musev.training.sharding import shard

        worker = dataclasses.replace(worker, place=shard)
    prepared = prepare_run(run, worker)
    store = CheckpointStore(f"{run.out.rstrip('/')}/checkpoints")
    resume_together(prepared.trainer, store)
    if worker.count > 1 and strategy == "ddp":
        _wrap_ddp(prepared)
    if bfloat16:
        _use_bfloat16(prepared, worker.device.type)
    first, whole = worker.rank == 0, strategy == "ddp"
    with contextlib.ExitStack() as stack:
        hooks = Hooks(evaluate=None if whole else prepared.evaluate)
        if first:
            records = stack.enter_context(_Records(run, store))
            hooks = Hooks(
                on_log=records.write,
                evaluate=lambda step: _evaluate(prepared, store, run, step, whole=whole),
                on_save=records.upload,
            )
        run_steps(
            prepared.trainer,
            prepared.batches_of,
            run.stage.loop,
            store=store if first else None,
            hooks=hooks,
        )
    if first:
        _export(run, prepared if whole else None, store)


def _export(run: RunConfig, prepared: PreparedRun | None, store: CheckpointStore) -> None:
    """Write what was learnt; a sharded run is put together from its last checkpoint first."""
    from musev.training.loop import resume
    from musev.training.runs import Worker, export_to, prepare_run

    if prepared is None:
        prepared = prepare_run(run, Worker())
        resume(prepared.trainer, store)
    export_to(prepared, f"{run.out.rstrip('/')}/{EXPORT}")
    logger.info("exported to %s/%s", run.out, EXPORT)


def _wrap_ddp(prepared: PreparedRun) -> None:
    from torch.nn.parallel import DistributedDataParallel

    # What a batch leaves out (reference, control) leaves parameters without gradients.
    wrapped = DistributedDataParallel(prepared.module, find_unused_parameters=True)
    prepared.trainer.forward = wrapped
    prepared.trainer.no_sync = wrapped.no_sync


def _use_bfloat16(prepared: PreparedRun, device_type: str) -> None:
    import torch

    plain = prepared.trainer.forward or prepared.module

    def forward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return plain(batch)

    prepared.trainer.forward = forward


def _evaluate(
    prepared: PreparedRun, store: CheckpointStore, run: RunConfig, step: int, *, whole: bool
) -> dict[str, float]:
    """Measure, and draw samples; none of shards, as drawing is worker 0's alone."""
    found = prepared.evaluate(step)
    if whole and run.num_samples and prepared.vae is not None:
        from jobs._samples import draw_samples

        picture = draw_samples(prepared, run.num_samples, run.size_px)
        store.put_bytes(f"../samples/step-{step:08d}.png", picture)
    return found


class _Records:
    """Log lines, TensorBoard files and curves of a run, on its storage.

    Args:
        run: Whose.
        store: Its checkpoints; records lie one folder up.
    """

    def __init__(self, run: RunConfig, store: Any) -> None:
        self._store = store
        self._scratch = tempfile.TemporaryDirectory(prefix="musev-events-")
        self._lines: list[str] = []
        self._part = int(time.time())
        self._cpu_s = time.process_time()
        self._name = run.stage.name

    def __enter__(self) -> _Records:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(self._scratch.name)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._scratch.cleanup()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Note the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{self._name}/{name}", value, step)
        facts = {"step": step, "time": round(time.time()), "cpu_s": round(time.process_time(), 1)}
        rounded = {name: round(value, 6) for name, value in metrics.items()}
        self._lines.append(json.dumps(facts | rounded))
        logger.info("step %d %s", step, " ".join(f"{k}={v:.4g}" for k, v in metrics.items()))

    def upload(self, trainer: Trainer) -> None:
        """Write curves, the log of this process and its TensorBoard file to the output."""
        from musev.training.curves import draw_curves

        self._writer.flush()
        for path in Path(self._scratch.name).iterdir():
            self._store.put_bytes(f"../tensorboard/{path.name}", path.read_bytes())
        text = "\n".join(self._lines) + "\n"
        self._store.put_bytes(f"../log/{self._part}.jsonl", text.encode())
        self._store.put_bytes(f"../{CURVES}", draw_curves(trainer.history))


if __name__ == "__main__":
    raise SystemExit(main())
