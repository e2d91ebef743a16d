"""Runs: everything that belongs together is made once, shared out, resumed and written whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from musev.config import ScheduleConfig, WeightsConfig
from musev.errors import ConfigError
from musev.models.bundle import load_bundle, save_bundle
from musev.models.text_to_pose import load_text_to_pose
from musev.settings import replace_settings
from musev.training.checkpoints import CheckpointStore
from musev.training.loop import resume, run_steps
from musev.training.networks import build_networks, bundle_of, get_sizes
from musev.training.run_config import RunConfig, Worker
from musev.training.runs import VISION_PARTS, export_to, prepare_run
from musev.training.stages import MINI_SCHEDULE, SD15_SCHEDULE, get_stage
from musev.training.starts import load_vae
from musev.training.vae import make_vae
from musev.training.vocabulary import make_word_tokenizer
from tests.musev.training.small import save_small_vae, small_run

SMALL_VAE = {
    "size_px": "32",
    "crop_px": "16",
    "num_crops": "2",
    "num_whole": "1",
    "whole_every": "2",
    "loop.num_steps": "3",
    "optimizer.warmup_steps": "0",
}


def _vae_run(folder: Path, name: str = "mini-vae", init: str | None = None) -> RunConfig:
    stage = replace_settings(get_stage(name), SMALL_VAE)
    return RunConfig(stage=stage, out=str(folder / name), init=init)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    save_small_vae(folder)
    return folder


@pytest.mark.parametrize("name", ["mini-vae", "mini-vae-decoder"])
def test_a_vae_learns_and_goes_on(name: str, vae_folder: Path, tmp_path: Path) -> None:
    """Whatever stage: steps, stop, go on, and the bits of a run that never stopped."""
    init = None if name == "mini-vae" else str(vae_folder)
    run = _vae_run(tmp_path, name, init)
    whole = prepare_run(run)
    sizes = [whole.batches_of(step)[0]["pixels"].shape for step in range(2)]
    assert sizes == [(2, 3, 16, 16), (1, 3, 32, 32)]
    start = {n: p.detach().clone() for n, p in whole.module.named_parameters()}
    run_steps(whole.trainer, whole.batches_of, run.stage.loop)
    store = CheckpointStore(f"{run.out}/checkpoints")
    first = prepare_run(run)
    for step in range(2):
        first.trainer.do_step(first.batches_of(step), 3)
    store.save(2, first.trainer.state_dict())
    again = prepare_run(run)
    assert resume(again.trainer, store)
    run_steps(again.trainer, again.batches_of, run.stage.loop, store=store)
    for key, value in again.module.named_parameters():
        assert torch.equal(value, whole.module.get_parameter(key)), key
        is_encoder = key.startswith(("vae.encoder", "vae.quant_conv"))
        if name == "mini-vae-decoder" and is_encoder:
            assert torch.equal(value, start[key]), key


def test_a_joint_vae_is_exported_normalised_and_goes_on_as_it_was(tmp_path: Path) -> None:
    run = _vae_run(tmp_path)
    prepared = prepare_run(run)
    run_steps(prepared.trainer, prepared.batches_of, run.stage.loop)
    before = {n: p.detach().clone() for n, p in prepared.module.named_parameters()}
    export_to(prepared, f"{run.out}/export")
    assert all(torch.equal(p, before[n]) for n, p in prepared.module.named_parameters())
    vae = load_vae(f"{run.out}/export").eval()
    pixels = prepared.batches_of(1)[0]["pixels"]
    with torch.no_grad(), prepared.trainer.ema.applied(prepared.module):
        own = prepared.vae.decode(prepared.vae.encode(pixels).latent_dist.mean).sample
        found = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    torch.testing.assert_close(found, own, atol=1e-3, rtol=1e-3)
    assert vae.config.scaling_factor == 1.0
    assert not torch.equal(vae.quant_conv.weight, before["vae.quant_conv.weight"])
    assert json.loads((tmp_path / "mini-vae" / "export" / "training.json").read_text()) == {
        "stage": "mini-vae",
        "step": 3,
    }


@pytest.mark.parametrize(
    "name", ["mini-image", pytest.param("mini-reference", marks=pytest.mark.slow)]
)
def test_diffusion_goes_on_with_the_same_bits(name: str, vae_folder: Path, tmp_path: Path) -> None:
    run = small_run(name, tmp_path, str(vae_folder / "vae"), accumulate="2")
    whole = prepare_run(run)
    run_steps(whole.trainer, whole.batches_of, run.stage.loop)
    store = CheckpointStore(f"{run.out}/checkpoints")
    first = prepare_run(run)
    first.trainer.do_step(first.batches_of(0), 2)
    store.save(1, first.trainer.state_dict())
    again = prepare_run(run)
    assert resume(again.trainer, store)
    run_steps(again.trainer, again.batches_of, run.stage.loop, store=store)
    for key, value in again.module.named_parameters():
        assert torch.equal(value, whole.module.get_parameter(key)), key
    saved = store.load()
    assert saved is not None
    assert all(
        torch.equal(v, whole.trainer.ema.averages[k]) for k, v in saved["ema"]["averages"].items()
    )


def test_workers_encode_a_share_each_and_see_all(vae_folder: Path, tmp_path: Path) -> None:
    run = small_run("text-to-image", tmp_path, str(vae_folder / "vae"))
    met = []
    workers = [Worker(rank=rank, count=2, meet=lambda: met.append(1)) for rank in range(2)]
    with pytest.raises(ConfigError, match="seen by all workers"):
        prepare_run(run, workers[1])  # alone: the other's share is not there
    shares = [prepare_run(run, worker).batches_of(0) for worker in workers]
    assert len(met) == 3
    assert not torch.equal(shares[0][0]["noise_BCTHW"], shares[1][0]["noise_BCTHW"])


def test_an_export_replaces_the_old_one_whole(vae_folder: Path, tmp_path: Path) -> None:
    prepared = prepare_run(_vae_run(tmp_path, "mini-vae-decoder", str(vae_folder)))
    target = tmp_path / "export"
    (target / "stale").mkdir(parents=True)
    export_to(prepared, str(target))
    assert not (target / "stale").exists()
    assert not Path(f"{target}.part").exists()
    place = f"memory://{tmp_path.name}/export"
    export_to(prepared, place)
    files, root = fsspec.core.url_to_fs(place)
    name = "vae/diffusion_pytorch_model.safetensors"
    assert files.cat_file(f"{root}/{name}") == (target / name).read_bytes()


def test_what_is_exported_is_the_average(vae_folder: Path, tmp_path: Path) -> None:
    prepared = prepare_run(_vae_run(tmp_path, "mini-vae-decoder", str(vae_folder)))
    prepared.trainer.ema.averages["vae.decoder.conv_out.bias"].fill_(0.25)
    export_to(prepared, str(tmp_path / "export"))
    file = load_file(tmp_path / "export" / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(file["decoder.conv_out.bias"], torch.full((3,), 0.25))


def test_an_image_encoder_learns_alone_and_the_bundle_around_it_stays(tmp_path: Path) -> None:
    init = save_small_vae(tmp_path)
    torch.manual_seed(0)
    image = prepare_run(small_run("mini-image", tmp_path, init))
    export_to(image, str(tmp_path / "image"))
    small = {
        "num_images": "4",
        "size_px": "32",
        "loop.num_steps": "2",
        "optimizer.warmup_steps": "0",
    }
    run = RunConfig(
        stage=replace_settings(get_stage("mini-vision"), small),
        out=str(tmp_path / "vision"),
        init=str(tmp_path / "image" / "bundle"),
        size="narrow",
    )
    whole, first = prepare_run(run), prepare_run(run)
    before = {n: p.detach().clone() for n, p in whole.module.named_parameters()}
    run_steps(whole.trainer, whole.batches_of, run.stage.loop)
    assert not any(
        torch.equal(p, before[n]) for n, p in whole.module.named_parameters() if "readers" in n
    )
    store = CheckpointStore(f"{run.out}/checkpoints")
    first.trainer.do_step(first.batches_of(0), 2)
    store.save(1, first.trainer.state_dict())
    again = prepare_run(run)
    assert resume(again.trainer, store)
    run_steps(again.trainer, again.batches_of, run.stage.loop)
    for key, value in again.module.named_parameters():
        assert torch.equal(value, whole.module.get_parameter(key)), key
    export_to(again, f"{run.out}/export")
    found = load_bundle(WeightsConfig(bundle=f"{run.out}/export/bundle"))
    start = load_bundle(WeightsConfig(bundle=run.init))
    averages = again.trainer.ema.averages
    assert all(
        torch.equal(p, averages[f"image_encoder.{n}"])
        for n, p in found.networks["image_encoder"].named_parameters()
    )
    unets = [bundle.networks["unet"].state_dict() for bundle in (start, found)]
    assert all(torch.equal(value, unets[1][key]) for key, value in unets[0].items())
    assert set(whole.evaluate(2)) >= {"right_skin", "right_scene"}


def _pose_run(folder: Path, init: str | None = None) -> RunConfig:
    small = {
        "batch_clips": "4",
        "num_frames": "12",
        "num_given": "4",
        "width": "32",
        "depth": "1",
        "loop.num_steps": "3",
        "optimizer.warmup_steps": "0",
    }
    stage = replace_settings(get_stage("text-to-pose"), small)
    return RunConfig(stage=stage, out=str(folder / "poses"), init=init, num_clips=8)


def test_text_to_pose_learns_goes_on_and_starts_from_its_export(tmp_path: Path) -> None:
    run = _pose_run(tmp_path)
    whole = prepare_run(run)
    run_steps(whole.trainer, whole.batches_of, run.stage.loop)
    store = CheckpointStore(f"{run.out}/checkpoints")
    first = prepare_run(run)
    for step in range(2):
        first.trainer.do_step(first.batches_of(step), 3)
    store.save(first.trainer.step, first.trainer.state_dict())
    second = prepare_run(run)
    resume(second.trainer, store)
    run_steps(second.trainer, second.batches_of, run.stage.loop)
    for name, parameter in second.module.named_parameters():
        assert torch.equal(parameter, whole.module.get_parameter(name)), name
    assert set(whole.evaluate(3)) == {"held_out_mse", "right_action"}
    export_to(whole, f"{run.out}/export")
    net = load_text_to_pose(tmp_path / "poses" / "export")
    assert (net.config.num_frames, net.config.width, net.config.fps) == (12, 32, 8.0)
    again = prepare_run(_pose_run(tmp_path, f"{run.out}/export"))
    for name, parameter in net.named_parameters():
        assert torch.equal(again.module.net.get_parameter(name), parameter), name


def test_windows_too_short_for_their_judge_are_refused_at_the_start(tmp_path: Path) -> None:
    run = _pose_run(tmp_path)
    short = replace_settings(run.stage, {"num_frames": "11"})
    with pytest.raises(ConfigError, match=r"num_frames is 11.*--set num_frames=12 or more"):
        prepare_run(dataclasses.replace(run, stage=short))


def test_another_batch_seed_sees_the_same_clips_in_other_noise(
    vae_folder: Path, tmp_path: Path
) -> None:
    run = small_run("mini-joint", tmp_path, str(vae_folder), batch__num_frames="1")
    runs = (run, dataclasses.replace(run, batch_seed=0), dataclasses.replace(run, batch_seed=5))
    plain, same, other = (prepare_run(one).batches_of(0)[0] for one in runs)
    assert torch.equal(plain["noise_BCTHW"], same["noise_BCTHW"])
    assert not torch.equal(plain["noise_BCTHW"], other["noise_BCTHW"])
    sums = {round(float(clip.sum()), 3) for clip in plain["latents_BCTHW"]}
    assert {round(float(clip.sum()), 3) for clip in other["latents_BCTHW"]} & sums


def test_held_out_errors_are_over_all_timesteps_alike(vae_folder: Path, tmp_path: Path) -> None:
    vae = str(vae_folder / "vae")
    evenly = prepare_run(small_run("mini-image", tmp_path, vae))
    near = prepare_run(small_run("mini-image", tmp_path, vae, corruption__timestep_spread="0.01"))
    assert near.evaluate(0) == evenly.evaluate(0)
    times = [run.batches_of(0)[0]["timesteps_B"].tolist() for run in (evenly, near)]
    assert all(abs(time - 500) < 20 for time in times[1])
    assert times[0] != times[1]


def test_a_network_that_stays_random_is_warned_of(
    vae_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A VAE alone has no text encoder: text-to-image leaves it as it is, mini-image trains it."""
    vae = str(vae_folder / "vae")
    prepare_run(small_run("text-to-image", tmp_path, vae))
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.partition(":")[0] for text in told] == ["text_encoder"]
    assert "stage text-to-image does not train it" in told[0]
    caplog.clear()
    prepare_run(small_run("mini-image", tmp_path, vae))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("name", ["mini-vae-decoder", "mini-vision", "motion"])
def test_stages_that_need_a_start_say_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--init"):
        prepare_run(RunConfig(stage=get_stage(name), out=str(tmp_path)))


def _save_bundle(folder: Path, schedule: ScheduleConfig) -> str:
    torch.manual_seed(0)
    tokenizer = make_word_tokenizer(["a", "red"], max_length=32)
    networks = build_networks(
        get_sizes("narrow"), (*VISION_PARTS, "referencenet"), vocab_size=len(tokenizer)
    )
    vae = make_vae((8, 8, 8, 8))
    bundle = bundle_of(networks, vae=vae, tokenizer=tokenizer, schedule=schedule)
    save_bundle(bundle, folder / "start")
    return str(folder / "start")


def test_another_diffusion_than_the_starts_is_learnt_only_on_purpose(tmp_path: Path) -> None:
    """Stage lora is of epsilon, the start of v: unnoticed, its factors would learn nonsense."""
    start = _save_bundle(tmp_path, MINI_SCHEDULE)
    with pytest.raises(ConfigError, match="prediction_type v_prediction and not epsilon"):
        prepare_run(small_run("lora", tmp_path, start))
    fitting = {
        "schedule__prediction_type": "v_prediction",
        "schedule__rescale_betas_zero_snr": "true",
        "min_snr_gamma": "none",
    }
    prepare_run(small_run("lora", tmp_path, start, **fitting))
    prepare_run(small_run("mini-motion", tmp_path, start))
    changed = dataclasses.replace(small_run("lora", tmp_path, start), new_schedule=True)
    bundle = prepare_run(changed).bundle
    assert bundle is not None
    assert bundle.schedule == SD15_SCHEDULE


def test_an_image_encoder_leaves_the_starts_schedule_as_it_is(tmp_path: Path) -> None:
    start = _save_bundle(tmp_path, SD15_SCHEDULE)
    stage = replace_settings(get_stage("mini-vision"), {"num_images": "2", "size_px": "32"})
    run = RunConfig(stage=stage, out=str(tmp_path / "vision"), init=start, size="narrow")
    export_to(prepare_run(run), str(tmp_path / "export"))
    found = load_bundle(WeightsConfig(bundle=str(tmp_path / "export" / "bundle")))
    assert found.schedule == SD15_SCHEDULE


def test_all_networks_of_the_samples_are_on_the_workers_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the stage hands on. No GPU here: moves are noted, not made."""
    start, device = _save_bundle(tmp_path, SD15_SCHEDULE), torch.device("meta")
    moved: set[nn.Module] = set()

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if device in (*args, *kwargs.values()):
            moved.update(module.modules())
        return module

    run = small_run("text-to-image", tmp_path, start)
    monkeypatch.setattr(nn.Module, "to", to)
    bundle = prepare_run(run, Worker(device=device)).bundle
    assert bundle is not None
    assert {name for name, net in bundle.networks.items() if net not in moved} == set()
    assert "referencenet" in bundle.networks
