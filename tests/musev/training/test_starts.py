"""What a run starts from: bundles, base models, VAEs, on any store; and what is new in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fsspec
import pytest
import torch

from musev.config import WeightsConfig
from musev.errors import ConfigError, WeightsError
from musev.models.bundle import load_bundle, save_bundle
from musev.training.networks import build_networks, bundle_of, get_sizes, networks_of
from musev.training.published import save_published
from musev.training.stages import MINI_SCHEDULE, SD15_SCHEDULE
from musev.training.starts import (
    copy_shared,
    load_vae,
    local_folder,
    read_start,
    refuse_other_schedule,
)
from musev.training.vae import make_vae
from musev.training.vocabulary import make_word_tokenizer
from tests.musev.training.small import save_small_vae

NARROW, BASE = get_sizes("narrow"), ("unet", "text_encoder")


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow bundle, and the same as a base model under ``published``."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    tokenizer = make_word_tokenizer(["a", "red"], max_length=32)
    networks = build_networks(NARROW, (*BASE, "referencenet"), vocab_size=len(tokenizer))
    bundle = bundle_of(
        networks, vae=make_vae((8, 8, 8, 8)), tokenizer=tokenizer, schedule=MINI_SCHEDULE
    )
    save_bundle(bundle, folder / "bundle")
    save_published(
        networks_of(bundle),
        folder / "published",
        vae=bundle.vae,
        tokenizer=tokenizer,
        schedule=MINI_SCHEDULE,
        base=True,
    )
    return folder


def test_a_bundle_gives_its_parts_and_keeps_the_rest_aside(bundle_folder: Path) -> None:
    torch.manual_seed(1)
    start = read_start(str(bundle_folder / "bundle"), NARROW, (*BASE, "controlnet"))
    saved = load_bundle(WeightsConfig(bundle=str(bundle_folder / "bundle")))
    assert list(start.networks) == [*BASE, "controlnet"]
    assert list(start.others) == ["referencenet"]
    for name in BASE:
        state = saved.networks[name].state_dict()
        assert all(
            torch.equal(value, state[key])
            for key, value in start.networks[name].state_dict().items()
        )
    assert all(p.requires_grad for p in start.networks.parameters())
    assert all(module.training for module in start.networks.modules())
    assert not any(p.requires_grad for p in start.others.parameters())


def test_a_new_controlnet_starts_as_the_way_down_of_the_unet(bundle_folder: Path) -> None:
    start = read_start(str(bundle_folder / "bundle"), NARROW, (*BASE, "controlnet"))
    unet, control = (start.networks[name].state_dict() for name in ("unet", "controlnet"))
    own = {name for name in control if name not in unet}
    assert {name.split(".")[0] for name in own} == {
        "controlnet_cond_embedding",
        "controlnet_down_blocks",
        "controlnet_mid_block",
    }
    assert all(torch.equal(control[name], unet[name]) for name in control if name not in own)
    assert not any(control[name].any() for name in own if "cond_embedding" not in name)


def test_a_part_can_be_built_anew(bundle_folder: Path) -> None:
    """A ReferenceNet as the U-Net is now, and not as it was trained; nothing else changes."""
    init, parts = str(bundle_folder / "bundle"), (*BASE, "referencenet")
    wider = dataclasses.replace(NARROW, reference_self_attention=True)
    kept = read_start(init, wider, parts)
    renewed = read_start(init, wider, parts, renew=("referencenet",))
    assert not kept.networks["referencenet"].config.need_self_attn_block_embs
    assert renewed.networks["referencenet"].config.need_self_attn_block_embs
    unet, reference = (renewed.networks[n].state_dict() for n in ("unet", "referencenet"))
    assert {name.split(".")[0] for name in reference} >= {"down_blocks", "mid_block", "up_blocks"}
    assert all(torch.equal(value, unet[name]) for name, value in reference.items())
    before = kept.networks["unet"].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in unet.items())
    with pytest.raises(ConfigError, match="renew names controlnet"):
        read_start(init, wider, parts, renew=("controlnet",))


def test_a_base_model_gives_the_picture_layers(bundle_folder: Path) -> None:
    torch.manual_seed(1)
    start = read_start(str(bundle_folder / "published" / "t2i" / "base"), NARROW, BASE)
    saved = load_bundle(WeightsConfig(bundle=str(bundle_folder / "bundle")))
    expected = saved.unet.state_dict()
    for name, value in start.networks["unet"].state_dict().items():
        if "temp_" not in name and "_ip." not in name and "refer_emb" not in name:
            if "frame_embedding" not in name:
                assert torch.equal(value, expected[name]), name
    for name, value in start.networks["text_encoder"].state_dict().items():
        assert torch.equal(value, saved.text_encoder.state_dict()[name])
    assert len(start.tokenizer) == len(saved.tokenizer)


def test_a_start_says_which_diffusion_its_unet_learnt(bundle_folder: Path, tmp_path: Path) -> None:
    bundle, base = (str(bundle_folder / place) for place in ("bundle", "published/t2i/base"))
    assert read_start(bundle, NARROW, BASE).schedule == MINI_SCHEDULE
    found = read_start(base, NARROW, BASE).schedule
    assert found is not None
    assert (found.prediction_type, found.beta_schedule) == ("v_prediction", "scaled_linear")
    assert read_start(bundle, NARROW, BASE, renew=("unet",)).schedule is None
    assert read_start(save_small_vae(tmp_path), NARROW, BASE).schedule is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_type": "sample"}, "--set schedule.prediction_type=v_prediction"),
        ({"rescale_betas_zero_snr": False}, "--set schedule.rescale_betas_zero_snr=True"),
        ({"beta_end": 0.02}, "beta_end 0.012 and not 0.02.*--set schedule.beta_end=0.012"),
        ({"beta_schedule": "linear"}, "--set schedule.beta_schedule=scaled_linear"),
        ({"num_train_timesteps": 500}, "--set schedule.num_train_timesteps=1000"),
        ({"prediction_type": "sample", "timestep_spacing": "leading"}, "timestep_spacing=trailing"),
    ],
)
def test_another_diffusion_is_refused(change: dict, words: str, bundle_folder: Path) -> None:
    start = read_start(str(bundle_folder / "bundle"), NARROW, BASE)
    with pytest.raises(ConfigError, match=f"{words}.*--set run.new_schedule=true"):
        refuse_other_schedule(start, dataclasses.replace(MINI_SCHEDULE, **change))


def test_other_steps_of_sampling_are_no_other_diffusion(bundle_folder: Path) -> None:
    start = read_start(str(bundle_folder / "bundle"), NARROW, BASE)
    changes = {"timestep_spacing": "leading", "steps_offset": 0, "clip_sample": True}
    refuse_other_schedule(start, dataclasses.replace(MINI_SCHEDULE, **changes))
    refuse_other_schedule(dataclasses.replace(start, schedule=None), SD15_SCHEDULE)


def test_a_base_model_of_another_size_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(WeightsError, match="t2i_unet"):
        read_start(str(bundle_folder / "published" / "t2i" / "base"), get_sizes("mini"), BASE)


def test_a_vae_alone_gives_new_networks_that_the_seed_decides(tmp_path: Path) -> None:
    init = save_small_vae(tmp_path)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(read_start(init, NARROW, BASE).networks.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_folders_on_other_stores_are_fetched(tmp_path: Path) -> None:
    save_small_vae(tmp_path)
    place = f"memory://{tmp_path.name}/run/export"
    files, root = fsspec.core.url_to_fs(place)
    files.put(f"{tmp_path}/vae", f"{root}/vae", recursive=True)
    with local_folder(place) as folder:
        found = load_vae(folder).state_dict()
    expected = load_vae(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_folder_without_a_vae_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_start(str(tmp_path), NARROW, BASE)


def test_only_equal_names_and_shapes_are_copied() -> None:
    source = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 3)})
    target = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 4)})
    before = target["b"].weight.clone()
    assert copy_shared(source, target) == 2
    assert torch.equal(target["a"].weight, source["a"].weight)
    assert torch.equal(target["b"].weight, before)
