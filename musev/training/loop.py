"""The loop of every stage: update, follow with the average, log, evaluate, save; and resume.

Nothing random lives here: batches are functions of the step, so that a resumed run continues with
the same bits as one that never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from musev.errors import ConfigError, MusevError, WeightsError
from musev.training.checkpoints import CheckpointStore
from musev.training.ema import Ema
from musev.training.optimizer import (
    Batch,
    Losses,
    OptimizerConfig,
    learning_rate_at,
    make_optimizer,
    update,
)
from musev.training.sharding import gathered, is_sharded, spread_like

logger = logging.getLogger(__name__)

BatchesOf = Callable[[int], Sequence[Batch]]
"""Step to the batches whose gradients are averaged in it."""
Metrics = dict[str, float]
State = dict[str, Any]
"""Of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, and how often what."""

    num_steps: int
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 200
    """Steps that are evaluated are saved too."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class Trainer:
    """A module, its optimizer and its average, somewhere in a run.

    ``forward`` stands for the module where workers wrap it.
    """

    module: nn.Module
    optimizer_config: OptimizerConfig
    forward: Callable[[Batch], Losses] | None = None
    no_sync: Callable[[], AbstractContextManager] = contextlib.nullcontext
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry a log interval: step, seconds a step, mean losses; evaluations too."""

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.module, self.optimizer_config)
        self.ema = Ema(self.module, decay=self.optimizer_config.ema_decay)

    def do_step(self, batches: Sequence[Batch], num_steps: int) -> Metrics:
        """Do one update and let the average follow."""
        metrics = update(
            self.forward or self.module,
            batches,
            self.optimizer,
            learning_rate=learning_rate_at(self.optimizer_config, self.step, num_steps),
            max_grad_norm=self.optimizer_config.max_grad_norm,
            no_sync=self.no_sync,
        )
        self.ema.update(self.module)
        self.step += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs: the trained weights, optimizer, average and history.

        Tensors are whole; where weights are sharded, all workers must call this together.
        """
        trained = {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}
        state = {
            "weights": trained,
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "history": self.history,
        }
        return gathered(state) if is_sharded(self.module) else state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint.

        Args:
            state: From :meth:`CheckpointStore.load`.

        The optimizer's settings stay this trainer's: a run may go on with others.

        Raises:
            ConfigError: If it trained other parameters than this stage does, or others in size.
        """
        own = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if own.keys() != state["weights"].keys():
            differing = sorted(own.keys() ^ state["weights"].keys())[:5]
            raise ConfigError(
                f"the checkpoint trained other parameters than this stage, e.g. {differing}; use "
                "another output folder"
            )
        for name, parameter in own.items():
            shape = state["weights"][name].shape
            if shape != parameter.shape:
                raise ConfigError(
                    f"the checkpoint has {name} of shape {tuple(shape)}, this stage "
                    f"{tuple(parameter.shape)}, as with another LoRA rank or size; use another "
                    "output folder"
                )
        for name, parameter in own.items():
            parameter.copy_(spread_like(state["weights"][name], parameter))
        self.optimizer.load_state_dict(self._spread_optimizer(state["optimizer"]))
        self.ema.load_state_dict(state["ema"])
        self.history[:] = state["history"]
        self.step = state["step"]

    def _spread_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        # Entries are numbered as the parameters come in the groups.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        entries = {
            number: {key: spread_like(value, parameters[number]) for key, value in entry.items()}
            for number, entry in state["state"].items()
        }
        return {"state": entries, "param_groups": self.optimizer.state_dict()["param_groups"]}


@dataclass
class Hooks:
    """What a run does besides learning; all optional."""

    on_log: Callable[[int, Metrics], None] | None = None
    evaluate: Callable[[int], Metrics] | None = None
    """Called with the average in place of the weights."""
    on_save: Callable[[Trainer], None] | None = None


def run_steps(
    trainer: Trainer,
    batches_of: BatchesOf,
    config: LoopConfig,
    *,
    store: CheckpointStore | None = None,
    hooks: Hooks | None = None,
) -> None:
    """Train to the last step, from wherever the trainer is.

    A step that is evaluated is saved before, so that the run can go on past an evaluation that
    fails, and again with what was found.

    Args:
        trainer: Resume it first with :func:`resume`.
        batches_of: Batches of a step.
        config: Lengths and intervals.
        store: Where checkpoints go; only one worker has one.
        hooks: Logging and evaluation.
    """
    hooks = hooks or Hooks()
    meter = _Meter()
    while trainer.step < config.num_steps:
        metrics = trainer.do_step(batches_of(trainer.step), config.num_steps)
        meter.add(metrics)
        last = trainer.step == config.num_steps
        if trainer.step % config.log_every == 0 or last:
            logged = meter.take()
            trainer.history.append({"step": trainer.step, **logged})
            if hooks.on_log:
                hooks.on_log(trainer.step, logged)
        evaluate = hooks.evaluate
        if trainer.step % config.evaluate_every and not last:
            evaluate = None
        saves = trainer.step % config.save_every == 0 or last or evaluate is not None
        if saves:
            _save(trainer, store)
        if evaluate is not None:
            with trainer.ema.applied(trainer.module), evaluating(trainer.module):
                found = evaluate(trainer.step)
            trainer.history.append({"step": trainer.step, **found})
            if hooks.on_log:
                hooks.on_log(trainer.step, found)
            _save(trainer, store)
        if saves and hooks.on_save:
            hooks.on_save(trainer)


def _save(trainer: Trainer, store: CheckpointStore | None) -> None:
    if store is not None or is_sharded(trainer.module):  # all workers put shards together
        state = trainer.state_dict()
        if store is not None:
            store.save(trainer.step, state)


def resume(trainer: Trainer, store: CheckpointStore) -> bool:
    """Take up the newest checkpoint; False if there is none."""
    return _take_up(trainer, store.load(), store)


def resume_together(trainer: Trainer, store: CheckpointStore) -> bool:
    """Take up the checkpoint that worker 0 chooses; all workers must call it together.

    Args:
        trainer: Of this worker.
        store: The same for all.

    Returns:
        Whether there was one.

    Raises:
        ConfigError: If this worker cannot read what worker 0 has read.
        WeightsError: If worker 0 can read none of those that are there; on the other workers
            whatever else its store answered.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return resume(trainer, store)
    device = next(trainer.module.parameters()).device
    if dist.get_rank() == 0:
        state = _load_and_tell(store, device)
    else:
        state = _load_as_told(store, device)
    return _take_up(trainer, state, store)


def _load_and_tell(store: CheckpointStore, device: torch.device) -> State | None:
    told: list[int | str | None] = ["the store did not answer"]
    try:
        state = store.load()
        told = [None if state is None else state["step"]]
    except MusevError as error:
        told = [str(error)]
        raise
    finally:  # the others wait for word, whatever it is
        dist.broadcast_object_list(told, src=0, device=device)
    return state


def _load_as_told(store: CheckpointStore, device: torch.device) -> State | None:
    told: list[int | str | None] = [None]
    dist.broadcast_object_list(told, src=0, device=device)
    step = told[0]
    if step is None:
        return None
    if isinstance(step, str):
        raise WeightsError(f"worker 0 found no checkpoint to go on from: {step}")
    try:
        return store.load(step)
    except WeightsError as error:
        raise ConfigError(
            f"worker 0 goes on at step {step}, which this worker cannot read ({error}). --output "
            "must be seen by all workers: give a shared folder or a URL."
        ) from error


def _take_up(trainer: Trainer, state: State | None, store: CheckpointStore) -> bool:
    if state is None:
        return False
    trainer.load_state_dict(state)
    logger.info("resumed at step %d from %s", trainer.step, store.root)
    return True


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and training mode again afterwards if it was on."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def seed_of(*parts: int | str) -> int:
    """One seed from several numbers and names, the same in every process."""
    return random.Random(repr(parts)).getrandbits(63)


class _Meter:
    """Means of metrics since the last look, and seconds a step."""

    def __init__(self) -> None:
        self._sums: Metrics = {}
        self._count = 0
        self._since_s = time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        self._count += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self) -> Metrics:
        now_s = time.perf_counter()
        means = {name: value / self._count for name, value in self._sums.items()}
        means["seconds_per_step"] = (now_s - self._since_s) / self._count
        self._sums, self._count, self._since_s = {}, 0, now_s
        return means
