"""A VAE, clips and runs of the smallest size, shared by the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from musev.settings import replace_settings
from musev.training.runs import RunConfig
from musev.training.stages import DiffusionStage, get_stage
from musev.training.vae import make_vae

SIZE_PX, NUM_CLIPS = 32, 2


def save_small_vae(folder: Path) -> str:
    """An untrained VAE of 8x in ``folder``, the same every time."""
    torch.manual_seed(0)
    make_vae((8, 8, 8, 8)).save_pretrained(folder / "vae")
    return str(folder / "vae")


def small_run(name: str, folder: Path, init: str, **changes: str) -> RunConfig:
    """A run of a diffusion stage on the narrow size, two steps, two clips of two frames."""
    stage = get_stage(name)
    assert isinstance(stage, DiffusionStage)
    settings = {
        # Two pictures at least: a group norm wants more than one number a channel.
        "batch.num_clips": "2",
        "batch.images_then": "2",
        "accumulate": "1",
        "loop.num_steps": "2",
        "optimizer.warmup_steps": "0",
    }
    if stage.batch.num_frames > 1:
        settings["batch.num_frames"] = "2"
    if stage.lora_rank is not None:
        settings["lora_rank"] = "2"
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return RunConfig(
        stage=replace_settings(stage, settings),
        out=str(folder / name),
        init=init,
        latents=str(folder / "latents"),
        size="narrow",
        num_clips=NUM_CLIPS,
        size_px=SIZE_PX,
        num_samples=0,
    )


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that are not what they were."""
    return {n for n, p in module.named_parameters() if not torch.equal(p.detach(), before[n])}
