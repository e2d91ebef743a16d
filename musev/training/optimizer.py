"""The optimizer, its learning rate over the steps, and one update from several small batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from musev.errors import ConfigError, MusevError

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = 1e-3
    end_ratio: float = 0.05
    """Learning rate at the last step, as a share of the largest."""
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.997

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("end_ratio", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"betas must be two numbers in [0, 1), got {self.betas}; give --set "
                "'optimizer.betas=0.9;0.98'"
            )


def learning_rate_at(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate of one step: a straight rise, then half a cosine down to ``end_ratio``.

    Args:
        config: Largest rate, warm-up and end.
        step: Counted from 0.
        num_steps: Length of the whole run; later steps keep the end's rate.

    Returns:
        The rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    rest = max(num_steps - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / rest, 1.0)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * (config.end_ratio + (1 - config.end_ratio) * cosine)


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over what is trained; vectors and scalars are not decayed.

    Args:
        module: Its parameters that require gradients are trained.
        config: Rates and betas.

    Returns:
        The optimizer.

    Raises:
        ConfigError: If nothing is to be trained.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("every parameter is frozen; there is nothing to train")
    groups = [
        {
            "params": [parameter for parameter in trained if parameter.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def update(
    forward: Callable[[Batch], Losses],
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    max_grad_norm: float,
    no_sync: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, float]:
    """Do one update from the mean gradient of several equally large batches.

    Args:
        forward: Batch to named losses; ``loss`` is what is minimized. A module, or its wrapper for
            many workers.
        batches: At least one; their gradients are averaged.
        optimizer: Over what is trained.
        learning_rate: Of this update.
        max_grad_norm: Longer gradients are shortened to this length.
        no_sync: Entered for all batches but the last, so that workers exchange gradients once.

    Returns:
        Mean losses, the gradient's length before clipping, and the learning rate.

    Raises:
        MusevError: If there is no batch, or the loss or the gradient is not finite; nothing has
            been changed then.
    """
    if not batches:
        raise MusevError("an update needs at least one batch, got none; accumulate must be above 0")
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, float] = {}
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else no_sync():
            losses = forward(batch)
            (losses["loss"] / len(batches)).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.detach().item() / len(batches)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    if not math.isfinite(norm):
        raise MusevError(
            f"gradient norm {norm}, losses {totals}. Resume from the last checkpoint with a lower "
            "learning rate."
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return totals | {"grad_norm": norm, "learning_rate": learning_rate}
