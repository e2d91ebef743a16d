"""A stage made ready to run: networks, batches, evaluation and what comes out, for one worker.

run = prepare_run(RunConfig(stage=get_stage("mini-image"), out=..., init=...), worker)
run_steps(run.trainer, run.batches_of, run.stage.loop, store=..., hooks=...)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from musev.errors import ConfigError
from musev.models.bundle import ModelBundle, save_bundle
from musev.models.published import MOTION_MARKS
from musev.models.text_to_pose import TextToPoseNet, load_text_to_pose, save_text_to_pose
from musev.training.clip_batches import ClipBatches, Position
from musev.training.corruption import CorruptionConfig
from musev.training.diffusion import DiffusionLossConfig, DiffusionTraining
from musev.training.frames import frame_batch
from musev.training.frozen import freeze_except
from musev.training.latents import ClipSource, LatentStore, epoch_order, mark_of
from musev.training.loop import Trainer, seed_of
from musev.training.lora import add_lora, export_kohya
from musev.training.networks import Networks, bundle_of, get_sizes
from musev.training.optimizer import Batch
from musev.training.poses import (
    ACTION_FRAMES,
    PoseClips,
    PoseTraining,
    drawn_words_config,
    right_actions,
)
from musev.training.published import save_published
from musev.training.run_config import RunConfig, Worker, check_run
from musev.training.shard_clips import ShardClips, open_clips
from musev.training.stages import DiffusionStage, PoseStage, Stage, VaeStage, VisionStage
from musev.training.starts import (
    Start,
    load_vae,
    local_folder,
    read_start,
    refuse_other_schedule,
)
from musev.training.vae import (
    VaeTraining,
    add_latent_noise,
    make_vae,
    normalise_latents,
    psnr,
)
from musev.training.vision import VisionTraining, look_batch, right_by_look

logger = logging.getLogger(__name__)

Clips = LatentStore | ShardClips
NUM_HELD_OUT = 64
_HELD_OUT_BATCHES = 4
VISION_PARTS = ("unet", "text_encoder", "image_encoder", "image_projection")
"""A bundle has no image encoder without these beside it."""
_POSE_SIZES = ("fps", "num_frames", "num_given", "width", "depth")


@dataclass
class PreparedRun:
    """What the loop needs."""

    stage: Stage
    trainer: Trainer
    batches_of: Callable[[int], Sequence[Batch]]
    evaluate: Callable[[int], dict[str, float]]
    export: Callable[[Path], None]
    """Write what was learnt into an empty folder; call it with the average applied."""
    bundle: ModelBundle | None = None
    """Networks for samples; None for the stages on pixels."""
    vae: AutoencoderKL | None = None
    """Of a VAE's stage or a diffusion's; None where nothing can be drawn."""

    @property
    def module(self) -> nn.Module:
        """What learns."""
        return self.trainer.module


def prepare_run(run: RunConfig, worker: Worker | None = None) -> PreparedRun:
    """Build a stage's networks, encode its clips if that has not been done, and make its trainer.

    Args:
        run: What to run.
        worker: Whose share.

    Returns:
        The run, not resumed yet.

    Raises:
        ConfigError: If the stage cannot be run on what is given.
    """
    torch.manual_seed(run.seed)  # initial weights only; all else draws from its own generators
    worker = worker or Worker()
    check_run(run)
    if isinstance(run.stage, VaeStage):
        return _prepare_vae(run, run.stage, worker)
    if isinstance(run.stage, VisionStage):
        return _prepare_vision(run, run.stage, worker)
    if isinstance(run.stage, PoseStage):
        return _prepare_poses(run, run.stage, worker)
    return _prepare_diffusion(run, run.stage, worker)


def _prepare_vae(run: RunConfig, stage: VaeStage, worker: Worker) -> PreparedRun:
    if run.init is not None:
        with local_folder(run.init) as folder:
            vae = load_vae(folder)
    else:
        vae = make_vae(stage.widths)
    module = VaeTraining(vae, stage.loss).to(worker.device)
    freeze_except(module, stage.trained)
    if worker.place is not None:
        worker.place(module)
    held_out = frame_batch(
        run.seed, 0, num_images=NUM_HELD_OUT, size_px=stage.size_px, held_out=True
    )
    num_whole, num_crops = stage.num_whole, stage.num_crops

    def batch_at(position: Position) -> Batch:
        whole = position.step % stage.whole_every == stage.whole_every - 1
        # Crops and whole pictures come from sources of their own, so that numbers never collide.
        source = seed_of(run.seed, "whole" if whole else "crops") % 2**31
        batch = frame_batch(
            source,
            position.number,
            num_images=num_whole if whole else num_crops,
            crop_px=None if whole else stage.crop_px,
            size_px=stage.size_px,
        )
        return add_latent_noise(batch, seed=seed_of(run.seed, "noise", position.number))

    def export(folder: Path) -> None:
        if stage.joint:
            pictures = frame_batch(
                seed_of(run.seed, "normalise") % 2**31, 0, num_images=128, size_px=stage.size_px
            )
            kept = {name: value.clone() for name, value in vae.state_dict().items()}
            normalise_latents(vae, pictures["pixels"].to(worker.device))
            vae.save_pretrained(folder / "vae", safe_serialization=True)
            vae.load_state_dict(kept)
        else:
            vae.save_pretrained(folder / "vae", safe_serialization=True)

    return PreparedRun(
        stage=stage,
        trainer=Trainer(module, stage.optimizer),
        batches_of=_batches_of(batch_at, stage.accumulate, worker),
        evaluate=lambda _: psnr(
            vae, held_out["pixels"].to(worker.device), held_out["mask"].to(worker.device)
        ),
        export=export,
        vae=vae,
    )


def _prepare_vision(run: RunConfig, stage: VisionStage, worker: Worker) -> PreparedRun:
    assert run.init is not None
    start = read_start(run.init, get_sizes(run.size), VISION_PARTS, renew=run.renew)
    encoder = start.networks["image_encoder"]
    module = VisionTraining(encoder).to(worker.device)
    freeze_except(module, stage.trained)
    if worker.place is not None:
        worker.place(module)

    def batch(seed: int, number: int, *, num_images: int, held_out: bool) -> Batch:
        return look_batch(
            seed,
            number,
            num_images=num_images,
            image_prompt_px=encoder.config.image_size,
            size_px=stage.size_px,
            held_out=held_out,
        )

    def evaluate(_: int) -> dict[str, float]:
        held = batch(run.seed, 0, num_images=4 * NUM_HELD_OUT, held_out=True)
        return right_by_look(module, to_device(held, worker.device))

    source = seed_of(run.seed, "looks") % 2**31

    def export(folder: Path) -> None:
        bundle = bundle_of(
            Networks({**start.networks, **start.others}),
            vae=start.vae,
            tokenizer=start.tokenizer,
            schedule=start.schedule or stage.schedule,
        )
        save_bundle(bundle, folder / "bundle")

    return PreparedRun(
        stage=stage,
        trainer=Trainer(module, stage.optimizer),
        batches_of=_batches_of(
            lambda at: batch(source, at.number, num_images=stage.num_images, held_out=False),
            stage.accumulate,
            worker,
        ),
        evaluate=evaluate,
        export=export,
    )


def _prepare_poses(run: RunConfig, stage: PoseStage, worker: Worker) -> PreparedRun:
    if run.init is None:
        sizes = {name: getattr(stage, name) for name in _POSE_SIZES}
        net = TextToPoseNet(drawn_words_config(**sizes))
    else:
        with local_folder(run.init) as folder:
            net = load_text_to_pose(folder).requires_grad_(True).train()
    if net.config.num_frames < ACTION_FRAMES:
        raise ConfigError(
            f"num_frames is {net.config.num_frames}, the judge of actions needs {ACTION_FRAMES} "
            f"frames; give --set num_frames={ACTION_FRAMES} or more and a start, if any, as long"
        )
    module = PoseTraining(net, stage.corruption).to(worker.device)
    if worker.place is not None:
        worker.place(module)
    clips = PoseClips(net.config, seed=run.seed, num_clips=run.num_clips)
    held = PoseClips(net.config, seed=run.seed, num_clips=NUM_HELD_OUT, held_out=True)
    held_batch = held.batch(range(NUM_HELD_OUT), stage.corruption, seed=0)

    def batch_at(at: Position) -> Batch:
        first = at.number * stage.batch_clips
        order = epoch_order(run.num_clips, seed=run.seed, first=first, count=stage.batch_clips)
        return clips.batch(order, stage.corruption, seed=seed_of(run.seed, "poses", at.number))

    def evaluate(_: int) -> dict[str, float]:
        mse = float(module(to_device(held_batch, worker.device))["mse"])
        return {"held_out_mse": mse, "right_action": right_actions(net, held, seed=run.seed)}

    return PreparedRun(
        stage=stage,
        trainer=Trainer(module, stage.optimizer),
        batches_of=_batches_of(batch_at, stage.accumulate, worker),
        evaluate=evaluate,
        export=lambda folder: save_text_to_pose(net, folder),
    )


def _warn_of_random(start: Start, stage: Stage) -> None:
    """Say which networks are built anew and yet not trained: they hand on noise."""
    for name in start.new:
        if not any(p.requires_grad for p in start.networks[name].parameters()):
            logger.warning(
                "%s: the start has none, so it is built with random weights, and stage %s does not "
                "train it; give a start that has it, or train it first",
                name,
                stage.name,
            )


def _prepare_diffusion(run: RunConfig, stage: DiffusionStage, worker: Worker) -> PreparedRun:
    assert run.init is not None
    start = read_start(run.init, get_sizes(run.size), stage.parts, renew=run.renew)
    if not run.new_schedule:
        refuse_other_schedule(start, stage.schedule)
    networks, vae, tokenizer = start.networks, start.vae, start.tokenizer
    vae.requires_grad_(False).eval().to(worker.device)
    start.others.to(worker.device)  # sample pictures use them beside those that learn
    module = DiffusionTraining(
        networks,
        DiffusionLossConfig(
            schedule=stage.schedule,
            min_snr_gamma=stage.min_snr_gamma,
            person=stage.person,
            motion=stage.motion,
        ),
    ).to(worker.device)
    if stage.lora_rank is not None:
        module.requires_grad_(False)
        add_lora(networks["unet"], stage.lora_rank)
    learning = freeze_except(module, stage.trained, but_not=stage.but_not)
    _warn_of_random(start, stage)
    if stage.gradient_checkpointing:
        for name in ("unet", "referencenet", "controlnet"):
            if name in networks:
                networks[name].enable_gradient_checkpointing()
    if worker.place is not None:
        worker.place(module)

    def batches(store: Clips, corruption: CorruptionConfig) -> ClipBatches:
        return ClipBatches(
            store=store,
            config=stage.batch,
            corruption=corruption,
            tokenizer=tokenizer,
            seed=run.seed if run.batch_seed is None else run.batch_seed,
            image_prompt_px=_image_prompt_px(networks, run),
            num_timesteps=stage.schedule.num_train_timesteps,
        )

    training, held_out = open_clip_stores(run, stage, vae, worker)
    evenly = dataclasses.replace(stage.corruption, timestep_spread=None, timestep_mean=0.0)
    held_batches = [
        batches(held_out, evenly).at(Position(step=n)) for n in range(_HELD_OUT_BATCHES)
    ]

    def evaluate(_: int) -> dict[str, float]:
        losses = [float(module(to_device(b, worker.device))["mse"]) for b in held_batches]
        return {"held_out_mse": sum(losses) / len(losses)}

    whole = Networks({**networks, **start.others})
    bundle = dataclasses.replace(
        bundle_of(whole, vae=vae, tokenizer=tokenizer, schedule=stage.schedule),
        device=worker.device,
    )

    def export(folder: Path) -> None:
        if stage.lora_rank is not None:
            save_file(export_kohya(networks["unet"]), folder / "lora.safetensors")
            return
        save_bundle(bundle, folder / "bundle")
        save_published(
            whole,
            folder / "published",
            vae=vae,
            tokenizer=tokenizer,
            schedule=stage.schedule,
            base=any(_is_of_base(name) for name in learning),
        )

    return PreparedRun(
        stage=stage,
        trainer=Trainer(module, stage.optimizer),
        batches_of=_batches_of(batches(training, stage.corruption).at, stage.accumulate, worker),
        evaluate=evaluate,
        export=export,
        bundle=bundle,
        vae=vae,
    )


def _image_prompt_px(networks: Networks, run: RunConfig) -> int:
    encoder = networks.get("image_encoder")
    return encoder.config.image_size if encoder is not None else get_sizes(run.size).vision_size_px


def _is_of_base(name: str) -> bool:
    """Whether a parameter belongs to the base model: text encoder or picture layers."""
    if name.startswith("networks.unet."):
        return not any(mark in name for mark in MOTION_MARKS)
    return name.startswith("networks.text_encoder.")


def open_clip_stores(
    run: RunConfig, stage: DiffusionStage, vae: AutoencoderKL, worker: Worker
) -> tuple[Clips, Clips]:
    """Open the stage's clips; drawn ones are encoded first, each worker its share of the files.

    Args:
        run: Where, which and how many clips.
        stage: Decides frames, references and control.
        vae: Frozen; a mark of it is part of the files' names.
        worker: Whose share.

    Returns:
        Training and held-out clips.
    """
    uri = run.latents or f"{run.out.rstrip('/')}/latents"
    if run.data is not None:
        needs = {"num_frames": stage.batch.num_frames, "control": stage.batch.control}
        return open_clips(run.data, vae, uri, needs)
    stores = []
    for held_out, num_clips in ((False, run.num_clips), (True, min(NUM_HELD_OUT, run.num_clips))):
        source = ClipSource(
            seed=run.seed,
            num_frames=stage.batch.num_frames,
            size_px=run.size_px,
            references=stage.batch.reference,
            held_out=held_out,
        )
        per_file = min(256 if stage.batch.num_frames == 1 else 64, num_clips)
        store = LatentStore(uri, source, clips_per_file=per_file, vae_mark=mark_of(vae))
        num_files = num_clips // per_file
        for number in range(worker.rank, num_files, worker.count):
            if store.encode(vae, number):
                logger.info("encoded %s", store.path(number))
        stores.append((store, num_files))
    worker.meet()
    for store, num_files in stores:
        store.load(num_files)
    return stores[0][0], stores[1][0]


def export_to(run: PreparedRun, uri: str) -> None:
    """Write what was learnt, as an average, to ``uri``; whole, under a temporary name first.

    Args:
        run: With the trainer somewhere in its course.
        uri: Folder that does not exist; fsspec URI.
    """
    with tempfile.TemporaryDirectory(prefix="musev-export-") as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        with run.trainer.ema.applied(run.module):
            run.export(folder)
        facts = {"stage": run.stage.name, "step": run.trainer.step}
        (folder / "training.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        files, root = fsspec.core.url_to_fs(uri)
        if "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol):
            Path(root).parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(folder, f"{root}.part", dirs_exist_ok=True)
            Path(f"{root}.part").rename(root)
        else:
            files.put(f"{folder}/", root, recursive=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _batches_of(
    batch_at: Callable[[Position], Batch], accumulate: int, worker: Worker
) -> Callable[[int], Sequence[Batch]]:
    def batches(step: int) -> list[Batch]:
        return [
            to_device(
                batch_at(
                    Position(
                        step=step,
                        micro=micro,
                        accumulate=accumulate,
                        worker=worker.rank,
                        num_workers=worker.count,
                    )
                ),
                worker.device,
            )
            for micro in range(accumulate)
        ]

    return batches
