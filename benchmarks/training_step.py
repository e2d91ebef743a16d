"""What one training step of each stage costs at Stable Diffusion 1.5's size, counted on meta.

    python benchmarks/training_step.py                         # every stage, 512x512
    python benchmarks/training_step.py --stage motion --latent 32 --json cost.json

Nothing is computed: shapes alone go through forward and backward. FLOPs are those of one micro
batch on one worker, recomputation by gradient checkpointing included. Memory is arithmetic: float32
weights of everything; gradients, two Adam moments and the average of what learns; bfloat16 copies
of all weights while a step runs; and what the backward pass keeps, counted in float32 and halved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from musev.denoise.schedule import make_schedule
from musev.models.blocks import Block
from musev.training.diffusion import DiffusionLossConfig, DiffusionTraining
from musev.training.frozen import freeze_except
from musev.training.lora import add_lora
from musev.training.networks import build_networks, get_sizes
from musev.training.optimizer import Batch
from musev.training.stages import STAGES, DiffusionStage

SIZE, LATENT, VAE_FACTOR = "sd15", 64, 8
CLIP_VOCABULARY, CLIP_TOKENS, IMAGE_PX = 49408, 77, 224
PUBLISHED = tuple(
    name
    for name, stage in STAGES.items()
    if isinstance(stage, DiffusionStage) and not name.startswith("mini-")
)
GB = 1e9


@dataclass(frozen=True)
class Cost:
    """One stage; parameters in millions, memory in GB."""

    stage: str
    clips: int
    frames: int
    tflop: float
    parameters: float
    learning: float
    weights_gb: float
    copies_gb: float
    activations_gb: float
    """With gradient checkpointing, the largest single layer included."""
    plain_activations_gb: float
    """Without it."""

    @property
    def total_gb(self) -> float:
        """All together."""
        return self.weights_gb + self.copies_gb + self.activations_gb


def build_stage(stage: DiffusionStage) -> DiffusionTraining:
    """Build a stage's networks at full size on the meta device, with what learns decided."""
    make_schedule(stage.schedule)  # real numbers, kept from here on
    with torch.device("meta"):
        networks = build_networks(get_sizes(SIZE), stage.parts, vocab_size=CLIP_VOCABULARY)
        config = DiffusionLossConfig(schedule=stage.schedule, min_snr_gamma=stage.min_snr_gamma)
        module = DiffusionTraining(networks, config)
        if stage.lora_rank is not None:
            module.requires_grad_(False)
            add_lora(networks["unet"], stage.lora_rank)
    freeze_except(module, stage.trained, but_not=stage.but_not)
    return module


def make_batch(stage: DiffusionStage, latent: int) -> Batch:
    """A batch of the stage on the meta device, nothing dropped."""
    clips, frames = stage.batch.num_clips, stage.batch.num_frames
    shape, pixels = (clips, 4, frames, latent, latent), VAE_FACTOR * latent
    batch = {
        "latents_BCTHW": torch.empty(shape),
        "noise_BCTHW": torch.empty(shape),
        "person_BTHW": torch.empty(clips, frames, latent, latent),
        "timesteps_B": torch.zeros(clips, dtype=torch.int64),
        "ids_BL": torch.zeros(clips, CLIP_TOKENS, dtype=torch.int64),
    }
    if frames > 1:
        batch["condition_index"] = torch.zeros(1, dtype=torch.int64)
    if stage.batch.control:
        batch["control_BTCYX"] = torch.empty(clips, frames, 3, pixels, pixels)
    if stage.batch.reference:
        batch["reference_BCTHW"] = torch.empty(clips, 4, 1, latent, latent)
        batch["image_prompt_BCYX"] = torch.empty(clips, 3, IMAGE_PX, IMAGE_PX)
        batch["keep_image_B"] = torch.ones(clips, dtype=torch.bool)
    return {name: value.to("meta") for name, value in batch.items()}


def count_cost(name: str, latent: int = LATENT) -> Cost:
    """Count a stage's step.

    Args:
        name: Of a stage on latents.
        latent: Rows and columns of its latents.

    Returns:
        FLOPs and memory of one micro batch.
    """
    stage = STAGES[name]
    assert isinstance(stage, DiffusionStage)
    module, batch = build_stage(stage), make_batch(stage, latent)
    with _flash_attention():
        plain_gb, layer_gb = _kept_gb(module, batch)
        kept_gb = plain_gb
        if stage.gradient_checkpointing:
            _checkpoint(module)
            kept_gb = _kept_gb(module, batch)[0] + layer_gb
        with FlopCounterMode(display=False) as counter:
            module(batch)["loss"].backward()
    whole = sum(p.numel() for p in module.parameters())
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Cost(
        stage=name,
        clips=stage.batch.num_clips,
        frames=stage.batch.num_frames,
        tflop=counter.get_total_flops() / 1e12,
        parameters=whole / 1e6,
        learning=learning / 1e6,
        # Weights; then gradient, two moments and the average, four bytes each.
        weights_gb=(4 * whole + 16 * learning) / GB,
        copies_gb=2 * whole / GB,
        activations_gb=kept_gb,
        plain_activations_gb=plain_gb,
    )


def _checkpoint(module: DiffusionTraining) -> None:
    for name in ("unet", "referencenet", "controlnet"):
        if name in module.networks:
            module.networks[name].enable_gradient_checkpointing()


@contextlib.contextmanager
def _flash_attention() -> Iterator[None]:
    """Count attention as GPUs compute it; on the meta device it would write out its matrices."""
    plain = F.scaled_dot_product_attention

    def flash(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if args or any(option is not None for option in options.values()):
            return plain(query, key, value, *args, **options)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = flash
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _kept_gb(module: nn.Module, batch: Batch) -> tuple[float, float]:
    """What the backward pass keeps in bfloat16: all of it, and the most of any one layer."""
    seen = {p.untyped_storage()._cdata for p in module.parameters()}
    kept, most = 0, 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept += storage.nbytes()
        return tensor

    plain = Block._run_layer

    def watched(self: Block, *args: object) -> Tensor:
        nonlocal most
        before = kept
        found = plain(self, *args)
        most = max(most, kept - before)
        return found

    Block._run_layer = watched  # type: ignore[method-assign]
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = module(batch)
    finally:
        Block._run_layer = plain  # type: ignore[method-assign]
    del losses
    return kept / 2 / GB, most / 2 / GB


def main(argv: list[str] | None = None) -> list[Cost]:
    """Print the table.

    Args:
        argv: Command line without the program's name.

    Returns:
        Its rows.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=PUBLISHED, action="append")
    parser.add_argument("--latent", type=int, default=LATENT, help="rows and columns of latents")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    costs = [count_cost(name, args.latent) for name in args.stage or PUBLISHED]
    table = Table(title=f"One micro batch at {VAE_FACTOR * args.latent} px")
    columns = ("stage", "clips x frames", "TFLOP", "M learning / all", "weights + state GB")
    for column in (*columns, "bf16 copies GB", "activations GB (plain)", "total GB"):
        table.add_column(column)
    for cost in costs:
        table.add_row(
            cost.stage,
            f"{cost.clips} x {cost.frames}",
            f"{cost.tflop:.1f}",
            f"{cost.learning:.1f} / {cost.parameters:.0f}",
            f"{cost.weights_gb:.1f}",
            f"{cost.copies_gb:.1f}",
            f"{cost.activations_gb:.1f} ({cost.plain_activations_gb:.1f})",
            f"{cost.total_gb:.1f}",
        )
    Console(width=140).print(table)
    if args.json:
        rows = [asdict(cost) | {"total_gb": cost.total_gb} for cost in costs]
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return costs


if __name__ == "__main__":
    main()
