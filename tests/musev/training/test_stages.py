"""Every stage: one real step changes what it says and nothing else; at full size it fits together.

At Stable Diffusion 1.5's size nothing is computed: on the meta device, shapes alone go through.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.training_step import PUBLISHED, build_stage, make_batch
from musev.errors import ConfigError
from musev.settings import replace_settings
from musev.training.runs import prepare_run
from musev.training.stages import STAGES, DiffusionStage, VaeStage, get_stage
from tests.musev.training.small import changed, save_small_vae, small_run, weights_of

DIFFUSION = [name for name, stage in STAGES.items() if isinstance(stage, DiffusionStage)]
# What may change, by the names a reader knows; everything else must not.
MARKS: dict[str, tuple[str, ...]] = {
    "motion": ("temp_convs", "temp_attentions", "frame_embedding"),
    "reference": ("referencenet.", "image_projection.", "refer_emb_attns", "_ip.weight"),
    "controlnet": ("networks.controlnet.",),
    "lora": (".parametrizations.weight.0.",),
    "ip-adapter": ("image_projection.", "_ip.weight"),
    "mini-controlnet": ("networks.controlnet.",),
}
NEVER = {
    "text-to-image": ("temp_", "frame_embedding", "refer_emb", "_ip.", "text_encoder."),
    "mini-image": ("temp_", "frame_embedding", "refer_emb", "_ip."),
    "mini-motion": ("refer_emb", "_ip."),
    "mini-reference": (),
    "mini-joint": ("image_encoder.",),
}
# Millions of parameters that learn at full size.
LEARNING = {
    "text-to-image": 859.5,
    "motion": 557.8,
    "reference": 416.9,
    "controlnet": 361.3,
    "lora": 3.2,
    "ip-adapter": 22.3,
}


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    save_small_vae(folder)
    return folder


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_step_changes_what_the_stage_says(name: str, vae_folder: Path) -> None:
    # Everything is attached, nothing dropped, so that every part takes part.
    keep = {
        "corruption__drop_reference": "0",
        "corruption__no_condition_frame": "0",
        "corruption__short_window": "0",
        "corruption__drop_image_prompt": "0",
        "corruption__drop_pictures": "0",
        "corruption__drop_control": "0",
    }
    run = small_run(name, vae_folder, str(vae_folder / "vae"), **keep)
    prepared = prepare_run(run)
    before = weights_of(prepared.module)
    learning = {n for n, p in prepared.module.named_parameters() if p.requires_grad}
    first = prepared.trainer.do_step(prepared.batches_of(0), 2)
    second = prepared.trainer.do_step(prepared.batches_of(1), 2)
    assert all(torch.tensor([*first.values(), *second.values()]).isfinite())
    moved = changed(prepared.module, before)
    assert moved
    assert moved <= learning
    if name in MARKS:
        assert all(any(mark in each for mark in MARKS[name]) for each in learning)
        assert all(any(mark in each for each in moved) for mark in MARKS[name])
    else:
        assert not any(mark in each for mark in NEVER[name] for each in learning)
        assert any("unet.down_blocks.0.resnets" in each for each in moved)
    # Adam moves everything that had a gradient; zero layers hide what lies before them at first.
    assert len(moved) > 0.3 * len(learning), sorted(learning - moved)[:10]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_stages_fit_together(name: str) -> None:
    stage = get_stage(name)
    assert isinstance(stage, DiffusionStage)
    module = build_stage(stage)
    for part in ("unet", "referencenet", "controlnet"):
        if part in module.networks:
            module.networks[part].enable_gradient_checkpointing()
    losses = module(make_batch(stage, latent=64))
    losses["loss"].backward()
    assert losses["loss"].shape == ()
    learning = [p for p in module.parameters() if p.requires_grad]
    assert round(sum(p.numel() for p in learning) / 1e6, 1) == LEARNING[name]
    without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "every weight that is said to learn has a gradient"
    assert not any(p.grad is not None for p in module.parameters() if not p.requires_grad)


def test_stages_say_what_they_are() -> None:
    assert set(STAGES) == {
        *MARKS,
        *NEVER,
        "mini-vae",
        "mini-vae-decoder",
        "mini-vision",
        "text-to-pose",
    }
    for name, stage in STAGES.items():
        assert stage.name == name
        assert stage.about
        assert stage.optimizer.warmup_steps < stage.loop.num_steps


def test_the_decoder_stage_leaves_the_encoder_alone() -> None:
    joint, alone = get_stage("mini-vae"), get_stage("mini-vae-decoder")
    assert isinstance(joint, VaeStage)
    assert dataclasses.replace(joint, joint=False).trained == alone.trained
    assert not any("encoder." in pattern.replace("decoder.", "") for pattern in alone.trained)


def test_unknown_stages_are_listed() -> None:
    with pytest.raises(ConfigError, match="mini-vae-decoder"):
        get_stage("mini")


@pytest.mark.parametrize(
    ("name", "key", "value", "remedy"),
    [
        ("motion", "accumulate", "0", "--set accumulate=1"),
        ("lora", "lora_rank", "0", "--set lora_rank=1"),
        ("motion", "person", "-1", "--set person=0"),
        ("motion", "min_snr_gamma", "0", "none for equal weights"),
        ("motion", "batch.num_clips", "0", "--set batch.num_clips=1"),
        ("motion", "batch.num_frames", "0", "--set batch.num_frames=1"),
        ("mini-motion", "batch.image_every", "0", "--set batch.image_every=1"),
        ("mini-motion", "batch.images_then", "0", "--set batch.images_then=1"),
        ("mini-vae", "accumulate", "-2", "--set accumulate=1"),
        ("mini-vae", "whole_every", "0", "--set whole_every=1"),
        ("mini-vae", "num_crops", "0", "--set num_crops=1"),
        ("mini-vae", "num_whole", "0", "--set num_whole=1"),
        ("mini-vae", "crop_px", "0", "--set crop_px=1"),
        ("mini-vae", "widths", "16;0", "--set 'widths=16;32;64'"),
        ("mini-vision", "num_images", "0", "--set num_images=1"),
        ("text-to-pose", "batch_clips", "0", "--set batch_clips=1"),
        ("text-to-pose", "accumulate", "0", "--set accumulate=1"),
        ("text-to-pose", "fps", "0", "--set fps=8"),
    ],
)
def test_numbers_that_train_nothing_are_refused(
    name: str, key: str, value: str, remedy: str
) -> None:
    field = key.rpartition(".")[2]
    with pytest.raises(ConfigError, match=f"^{field} must") as caught:
        replace_settings(get_stage(name), {key: value})
    assert value.split(";")[-1] in str(caught.value)
    assert remedy in str(caught.value)
