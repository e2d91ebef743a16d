"""What is exported loads through the ordinary loaders, and motion goes over any base model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from musev.config import ScheduleConfig, WeightsConfig
from musev.models.bundle import ModelBundle, load_bundle, save_bundle
from musev.models.published import MOTION_MARKS
from musev.training.loop import run_steps
from musev.training.networks import build_networks, bundle_of, get_sizes, networks_of
from musev.training.published import published_weights, save_published
from musev.training.runs import export_to, prepare_run
from musev.training.stages import MINI_SCHEDULE, SD15_SCHEDULE
from musev.training.vae import make_vae
from musev.training.vocabulary import make_word_tokenizer
from tests.musev.training.small import changed, small_run, weights_of

PARTS = (
    "unet",
    "text_encoder",
    "referencenet",
    "image_encoder",
    "image_projection",
    "controlnet",
)


def _bundle(
    seed: int, parts: tuple[str, ...] = PARTS, schedule: ScheduleConfig = MINI_SCHEDULE
) -> ModelBundle:
    torch.manual_seed(seed)
    tokenizer = make_word_tokenizer(["a", "red", "coat"], max_length=32)
    networks = build_networks(get_sizes("narrow"), parts, vocab_size=len(tokenizer))
    vae = make_vae((8, 8, 8, 8))
    return bundle_of(networks, vae=vae, tokenizer=tokenizer, schedule=schedule)


def _save(bundle: ModelBundle, folder: Path) -> None:
    save_published(
        networks_of(bundle),
        folder,
        vae=bundle.vae,
        tokenizer=bundle.tokenizer,
        schedule=bundle.schedule,
        base=True,
    )


def test_all_parts_come_back_through_the_ordinary_loader(tmp_path: Path) -> None:
    bundle = _bundle(0)
    _save(bundle, tmp_path / "out")
    found = load_bundle(published_weights(tmp_path / "out"))
    assert found.networks.keys() == bundle.networks.keys()
    for name, net in bundle.networks.items():
        loaded = found.networks[name].state_dict()
        assert loaded.keys() == net.state_dict().keys()
        assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())
    same = {"steps_offset", "set_alpha_to_one"}  # Euler's file has no such settings
    for field in dataclasses.fields(MINI_SCHEDULE):
        if field.name not in same:
            assert getattr(found.schedule, field.name) == getattr(MINI_SCHEDULE, field.name)
    prompt = "a red coat"
    assert found.tokenizer(prompt).input_ids == bundle.tokenizer(prompt).input_ids


def test_parts_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    _save(_bundle(0, ("unet", "text_encoder")), tmp_path / "out")
    weights = published_weights(tmp_path / "out")
    assert (weights.referencenet, weights.image_prompt, weights.controlnets) == (None, None, {})
    assert set(load_bundle(weights).networks) == {"unet", "text_encoder", "vae"}


def test_motion_trained_over_one_base_runs_over_another(tmp_path: Path) -> None:
    """Two real steps over base A; laid over base B: A's motion, B's pictures, nothing else."""
    for name, seed in (("a", 1), ("b", 2)):
        _save(_bundle(seed, ("unet", "text_encoder"), SD15_SCHEDULE), tmp_path / name)
    base_a, base_b = (tmp_path / name / "t2i" / "base" for name in "ab")
    run = small_run("motion", tmp_path, str(base_a), corruption__no_condition_frame="0")
    prepared = prepare_run(run)
    before = weights_of(prepared.module)
    run_steps(prepared.trainer, prepared.batches_of, run.stage.loop)
    moved = changed(prepared.module, before)
    assert any("temp_attentions" in name for name in moved)
    assert all("temp_" in name or "frame_embedding" in name for name in moved)
    export_to(prepared, str(tmp_path / "export"))
    published = tmp_path / "export" / "published"
    assert not (published / "t2i").exists(), "the base did not change"

    found = load_bundle(published_weights(published, t2i=base_b)).unet.state_dict()
    other = load_bundle(published_weights(tmp_path / "b")).unet.state_dict()
    with prepared.trainer.ema.applied(prepared.module):
        trained = {
            key.removeprefix("networks.unet."): value
            for key, value in weights_of(prepared.module).items()
        }
    kinds = {True: 0, False: 0}
    for key, value in found.items():
        motion = any(mark in key for mark in MOTION_MARKS)
        kinds[motion] += 1
        assert torch.equal(value, (trained if motion else other)[key]), key
    assert min(kinds.values()) > 100
    assert {name for name in moved if name.endswith("temporal_weight")}, "motion did learn"


def test_an_export_is_a_bundle_with_all_that_its_start_had(tmp_path: Path) -> None:
    bundle = _bundle(0, schedule=SD15_SCHEDULE)
    save_bundle(bundle, tmp_path / "start")
    run = small_run("text-to-image", tmp_path, str(tmp_path / "start"))
    prepared = prepare_run(run)
    run_steps(prepared.trainer, prepared.batches_of, run.stage.loop)
    export_to(prepared, str(tmp_path / "export"))
    found = load_bundle(WeightsConfig(bundle=str(tmp_path / "export" / "bundle")))
    assert found.networks.keys() == bundle.networks.keys()
    for name in ("referencenet", "controlnets/openpose", "text_encoder", "vae"):
        old, new = (b.networks[name].state_dict() for b in (bundle, found))
        assert all(torch.equal(new[key], old[key]) for key in old)
    assert not torch.equal(found.unet.conv_in.weight, bundle.unet.conv_in.weight)
    assert (tmp_path / "export" / "published" / "t2i" / "base" / "unet").is_dir()
