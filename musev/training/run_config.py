"""What is asked of a run, and which worker does it; what cannot be is refused before it loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from musev.errors import ConfigError
from musev.training.networks import get_sizes
from musev.training.stages import DiffusionStage, PoseStage, Stage, VaeStage, VisionStage


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of one stage."""

    stage: Stage
    out: str
    """Folder for checkpoints and what comes out; fsspec URI, seen by all workers."""
    init: str | None = None
    """Folder to start from: a bundle, a base model, or a VAE; None: from nothing."""
    data: str | None = None
    """Dataset of clips, written by ``jobs.make_dataset``; None: drawn people. Stages on latents."""
    latents: str | None = None
    """Folder of encoded clips; None: inside ``out``."""
    size: str = "mini"
    seed: int = 0
    batch_seed: int | None = None
    """Of the clips' order, noise and what is left out, in place of ``seed``: a run over clips that
    were learnt from before then sees them in other noise. Stages on latents."""
    num_clips: int = 8192
    """Drawn clips that are encoded and then used again and again."""
    size_px: int = 128
    """Side of drawn clips' frames; a VAE stage has its own."""
    num_samples: int = 8
    """Sample pictures at every evaluation, and a third as many sample videos; 0: none."""
    renew: tuple[str, ...] = ()
    """Networks that are built anew although the start has them, e.g. ``referencenet``."""
    new_schedule: bool = False
    """Teach the start's U-Net another diffusion than it knows, on purpose; else that is refused."""

    def __post_init__(self) -> None:
        get_sizes(self.size)
        if self.num_clips < 1 or self.num_samples < 0:
            raise ConfigError(
                f"num_clips must be at least 1 and num_samples at least 0, got {self.num_clips} "
                f"and {self.num_samples}"
            )


@dataclass(frozen=True)
class Worker:
    """Which of how many; and a meeting point for all."""

    rank: int = 0
    count: int = 1
    meet: Callable[[], None] = lambda: None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    place: Callable[[nn.Module], None] | None = None
    """Spreads a module over the workers, after it is known what learns and before the optimizer."""


def check_run(run: RunConfig, strategy: str = "ddp") -> None:
    """Refuse what can be seen to be wrong without reading a file.

    Args:
        run: What is asked for.
        strategy: ``ddp`` or ``fsdp``.

    Raises:
        ConfigError: If the stage cannot be run on what is given.
    """
    stage = run.stage
    if strategy == "fsdp" and not isinstance(stage, DiffusionStage):
        raise ConfigError(
            f"only diffusion stages can be sharded; train stage {stage.name} with --strategy ddp"
        )
    if run.data is not None and not isinstance(stage, DiffusionStage):
        raise ConfigError(f"stage {stage.name} draws its own pictures; leave run.data out")
    if run.renew and isinstance(stage, VaeStage | PoseStage):
        raise ConfigError(
            f"stage {stage.name} has one network, which starts anew without --init; leave "
            "run.renew out"
        )
    if run.init is None and (missing := _needed_start(stage)):
        raise ConfigError(f"stage {stage.name} {missing}")


def _needed_start(stage: Stage) -> str | None:
    """Why the stage cannot start from nothing; None if it can."""
    if isinstance(stage, DiffusionStage):
        return "works on latents; give --init FOLDER of a VAE"
    if isinstance(stage, VisionStage):
        return (
            "writes a bundle; give --init FOLDER of the networks beside it, e.g. mini-image's "
            "export/bundle"
        )
    if isinstance(stage, VaeStage) and not stage.joint:
        return "trains a decoder alone; give --init FOLDER of a VAE"
    return None
