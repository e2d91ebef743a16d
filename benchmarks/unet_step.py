"""What one step of the video U-Net costs: FLOPs counted on the meta device, seconds really run.

    python benchmarks/unet_step.py                                  # FLOPs of the usual sizes
    python benchmarks/unet_step.py --size 256x256 --seconds         # also run it here, on the CPU
    python benchmarks/unet_step.py --size 512x512 --guidance --split
    python benchmarks/unet_step.py --seconds --device cuda --dtype float16 --json step.json

Multiply and add count as two FLOPs, attention products included. ``prepare`` is what a request pays
once; a step is what it pays for every window at every step. Weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from musev.models.attachments import (
    ConditionFrames,
    ImagePrompt,
    ReferenceFeatures,
    TemporalOff,
    UNetConditioning,
)
from musev.models.unet import RELEASED, UNet3DConditionModel, released_config

VAE_FACTOR = 8
TEXT_TOKENS, IMAGE_TOKENS, TOKEN_WIDTH = 77, 4, 768

# Part of the U-Net -> what its module names contain; the first match counts.
PARTS = {
    "temporal transformers": ("temp_attentions", "transformer_in"),
    "temporal convolutions": ("temp_convs",),
    "reference fuse attention": ("refer_emb_attns",),
    "spatial self-attention": (".attn1",),
    "spatial cross-attention": (".attn2",),
    "spatial feed-forward": (".ff",),
    "spatial proj_in/out": (".attentions.",),
    "resnets": (".resnets.",),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table; ``baseline`` is the original's TFLOP for it (COST.md)."""

    variant: str = "musev_referencenet"
    width: int = 512
    height: int = 512
    frames: int = 12
    condition_frames: int = 1
    guidance: bool = False
    references: bool = True
    temporal: bool = True
    baseline: float | None = None

    @property
    def label(self) -> str:
        """A short description."""
        notes = [f"{self.width}x{self.height}", f"{self.condition_frames}+{self.frames} frames"]
        notes += ["guidance"] if self.guidance else []
        notes += [] if self.references or self.variant == "musev" else ["nothing attached"]
        notes += [] if self.temporal else ["temporal layers off"]
        return f"{self.variant} " + ", ".join(notes)


CASES = (
    Case(width=256, height=256, baseline=4.258),
    Case(baseline=20.703),
    Case(guidance=True, baseline=41.405),
    Case(width=768, guidance=True, baseline=69.657),
    Case(temporal=False, baseline=14.836),
    Case(condition_frames=0, frames=13, references=False, baseline=16.309),
    Case(variant="musev", references=False, baseline=18.476),
)


def make_inputs(
    unet: UNet3DConditionModel, case: Case
) -> tuple[Tensor, Tensor, tuple[object, ...], tuple[object, ...]]:
    """Random latents, text and attachments of a case, where the network is."""
    batch = 2 if case.guidance else 1
    height, width = case.height // VAE_FACTOR, case.width // VAE_FACTOR
    frames = case.frames + case.condition_frames
    like = {"device": unet.device, "dtype": unet.dtype}
    noisy_BCTHW = torch.randn(batch, 4, frames, height, width, **like)
    text_BLD = torch.randn(batch, TEXT_TOKENS, TOKEN_WIDTH, **like)
    request: tuple[object, ...] = ()
    if case.references:
        tokens_BLD = torch.randn(batch, IMAGE_TOKENS, TOKEN_WIDTH, **like)
        request = (ImagePrompt(tokens_BLD), make_references(unet, batch, height, width))
    call: tuple[object, ...] = ()
    if case.condition_frames:
        call += (ConditionFrames(tuple(range(case.condition_frames))),)
    if not case.temporal:
        call += (TemporalOff(),)
    return noisy_BCTHW, text_BLD, request, call


def make_references(
    unet: UNet3DConditionModel, batch: int, height: int, width: int
) -> ReferenceFeatures:
    """Random features of one reference image, of the sizes that the reference network gives."""
    like = {"device": unet.device, "dtype": unet.dtype}
    levels = list(unet.config.block_out_channels)
    sizes = [(levels[0], height, width)]
    for level, channels in enumerate(levels):
        sizes += [(channels, height, width)] * unet.config.layers_per_block
        if level < len(levels) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            sizes.append((channels, height, width))
    maps = [torch.randn(batch, c, 1, h, w, **like) for c, h, w in sizes]
    return ReferenceFeatures(tuple(maps), torch.randn_like(maps[-1]))


def count_flops(case: Case) -> dict[str, Any]:
    """TFLOP of ``prepare`` and of a step, split by part."""
    with torch.device("meta"):
        unet = UNet3DConditionModel(**released_config(case.variant))
    noisy, text, request, call = make_inputs(unet, case)
    with torch.no_grad(), FlopCounterMode(display=False) as preparing:
        conditioning = unet.prepare(text, request)
    timestep = torch.zeros(1, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as stepping:
        # The frame index lives on the host: the meta device has no values to index with.
        unet(noisy, timestep, conditioning, call)
    return {
        "prepare_tflop": preparing.get_total_flops() / 1e12,
        "step_tflop": stepping.get_total_flops() / 1e12,
        "parts_tflop": split_by_part(unet, stepping),
    }


def split_by_part(unet: UNet3DConditionModel, counter: FlopCounterMode) -> dict[str, float]:
    """Sum the counted FLOPs of the leaf modules by :data:`PARTS`."""
    counts = counter.get_flop_counts()
    prefix = type(unet).__name__ + "."
    parts: dict[str, float] = defaultdict(float)
    total = counter.get_total_flops()
    assigned = 0
    for name, module in unet.named_modules():
        if not is_counted_whole(name, module):
            continue
        flops = sum(counts.get(prefix + name, {}).values())
        part = next(
            (part for part, marks in PARTS.items() if any(mark in f".{name}" for mark in marks)),
            "the rest",
        )
        parts[part] += flops / 1e12
        assigned += flops
    parts["the rest"] += (total - assigned) / 1e12
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def is_counted_whole(name: str, module: torch.nn.Module) -> bool:
    """Whether a module belongs to one part as a whole (so its children are not looked at)."""
    tail = name.rpartition(".")
    parent = tail[0].rpartition(".")[2]
    if "temp_attentions" in name or name.startswith("transformer_in"):
        return parent == "temp_attentions" or name == "transformer_in"
    if parent in ("temp_convs", "resnets", "refer_emb_attns"):
        return True
    if name.endswith("refer_emb_attns"):
        return not isinstance(module, torch.nn.ModuleList)
    if ".attentions." in name:
        return tail[2] in ("attn1", "attn2", "ff", "proj_in", "proj_out")
    return False


def measure_seconds(
    case: Case, *, device: str, dtype: torch.dtype, repeats: int, channels_last: bool
) -> dict[str, Any]:
    """Really run ``prepare`` and steps; median and spread of the steps, and peak memory."""
    config = released_config(case.variant)
    with torch.device("meta"):
        unet = UNet3DConditionModel(**config)
    unet = fill(unet.to_empty(device=device).to(dtype))
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    noisy, text, request, call = make_inputs(unet, case)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        prepare_s, conditioning = timed(lambda: unet.prepare(text, request), device)
        start_cpu_s = time.process_time()
        steps_s = [
            timed(lambda: unet(noisy, 500, conditioning, call), device)[0] for _ in range(repeats)
        ]
        cpu_s = (time.process_time() - start_cpu_s) / repeats
    return {
        "prepare_s": prepare_s,
        "step_s": statistics.median(steps_s),
        "steps_s": steps_s,
        "step_cpu_s": cpu_s,
        "peak_gb": peak_gb(device),
        "conditioning_mb": conditioning_mb(conditioning),
        "load_1min": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }


def fill(unet: UNet3DConditionModel) -> UNet3DConditionModel:
    """Give every parameter small random values (zeros would be faster on some machines)."""
    with torch.no_grad():
        for parameter in unet.parameters():
            fan_in = max(parameter[0].numel(), 1)
            parameter.normal_(std=fan_in**-0.5 if parameter.ndim > 1 else 0.1)
    return unet


def timed(call: Any, device: str) -> tuple[float, Any]:
    """Seconds and result of a call; a GPU is waited for."""
    start_s = time.perf_counter()
    result = call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start_s, result


def peak_gb(device: str) -> float:
    """Peak memory so far: of the GPU, or resident memory of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def conditioning_mb(conditioning: UNetConditioning) -> float:
    """Size of what a request keeps for all its steps."""
    pairs = list(conditioning.references.values())
    for layer in conditioning.layers.values():
        pairs += [layer.text, *(branch.key_value for branch in layer.extra)]
        pairs += [layer.reference] if layer.reference is not None else []
    tensors = [tensor for pair in pairs for tensor in pair]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def show(rows: list[dict[str, Any]], *, split: bool) -> None:
    """Print the table, and the split of every row where asked."""
    console = Console(width=150)
    table = Table(
        "case", "step TFLOP", "original", "ratio", "prepare TFLOP", "step s", "CPU s", "peak GB"
    )
    for row in rows:
        baseline = row["case"]["baseline"]
        table.add_row(
            row["label"],
            f"{row['step_tflop']:.3f}",
            f"{baseline:.3f}" if baseline else "-",
            f"{row['step_tflop'] / baseline:.3f}" if baseline else "-",
            f"{row['prepare_tflop']:.3f}",
            f"{row['step_s']:.2f}" if "step_s" in row else "-",
            f"{row['step_cpu_s']:.1f}" if "step_cpu_s" in row else "-",
            f"{row['peak_gb']:.1f}" if "peak_gb" in row else "-",
        )
    console.print(table)
    for row in rows if split else ():
        console.print(f"[bold]{row['label']}[/bold]")
        for part, tflop in row["parts_tflop"].items():
            console.print(f"  {tflop:8.3f}  {part}")


def parse_cases(options: argparse.Namespace) -> tuple[Case, ...]:
    """The table's cases, or the one that the options describe."""
    if options.size is None:
        return CASES
    width, height = (int(number) for number in options.size.lower().split("x"))
    case = Case(
        variant=options.variant,
        width=width,
        height=height,
        frames=options.frames,
        condition_frames=options.condition_frames,
        guidance=options.guidance,
        references=options.variant != "musev",
    )
    known = {dataclasses.replace(other, baseline=None): other for other in CASES}
    return (known.get(case, case),)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Count, and with ``--seconds`` run, the chosen cases."""
    parser = argparse.ArgumentParser(description="Cost of one step of the video U-Net.")
    parser.add_argument("--size", help="pixels, WIDTHxHEIGHT; without it the usual table")
    parser.add_argument("--frames", type=int, default=12, help="generated frames")
    parser.add_argument("--condition-frames", type=int, default=1)
    parser.add_argument("--variant", choices=tuple(RELEASED), default="musev_referencenet")
    parser.add_argument("--guidance", action="store_true", help="both halves of the batch")
    parser.add_argument("--seconds", action="store_true", help="also run it")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--split", action="store_true", help="FLOPs of each part")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    for case in parse_cases(options):
        row = {"label": case.label, "case": dataclasses.asdict(case), **count_flops(case)}
        if options.seconds:
            row |= measure_seconds(
                case,
                device=options.device,
                dtype=getattr(torch, options.dtype),
                repeats=options.repeats,
                channels_last=options.channels_last,
            )
            row["dtype"] = options.dtype
        rows.append(row)
    show(rows, split=options.split)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
