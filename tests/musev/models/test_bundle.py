"""Our own layout: written, read back whole, refused when it is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musev.config import ScheduleConfig, WeightsConfig
from musev.errors import WeightsError
from musev.models.bundle import ModelBundle, empty_networks, load_bundle, save_bundle
from musev.models.control import ControlNet
from musev.models.image_prompt import ImageProjection
from musev.models.tiny import make_tiny_bundle
from musev.weight_parts import BUNDLE_FILE, digest_weights


@pytest.fixture(scope="module")
def tiny() -> ModelBundle:
    schedule = ScheduleConfig(prediction_type="v_prediction", timestep_spacing="trailing")
    return dataclasses.replace(make_tiny_bundle(1), schedule=schedule)


@pytest.fixture
def folder(tiny: ModelBundle, tmp_path: Path) -> Path:
    save_bundle(tiny, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_reads_back_whole(tiny: ModelBundle, folder: Path) -> None:
    found = load_bundle(WeightsConfig(bundle=str(folder)))
    assert found.schedule == tiny.schedule
    assert found.networks.keys() == tiny.networks.keys()
    for name, net in tiny.networks.items():
        loaded = found.networks[name]
        assert type(loaded) is type(net)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert loaded.state_dict().keys() == net.state_dict().keys()
        for key, value in net.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), f"{name}: {key}"
    assert found.tokenizer("a red coat").input_ids == tiny.tokenizer("a red coat").input_ids
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    noisy = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outs = [unet(noisy, 7, unet.prepare(text)) for unet in (found.unet, tiny.unet)]
    assert torch.equal(*outs)


def test_optional_parts_may_be_absent(tiny: ModelBundle, tmp_path: Path) -> None:
    bare = dataclasses.replace(tiny, referencenet=None, image_encoder=None, image_projection=None)
    save_bundle(bare, tmp_path / "bare")
    found = load_bundle(WeightsConfig(bundle=str(tmp_path / "bare")))
    assert found.referencenet is None
    assert found.image_projection is None


def test_controlnets_are_parts_like_any_other(tiny: ModelBundle, folder: Path) -> None:
    assert (folder / "controlnets" / "openpose" / "config.json").is_file()
    found = load_bundle(WeightsConfig(bundle=str(folder)), precision="bfloat16")
    assert list(found.controlnets) == ["openpose"]
    assert found.controlnets["openpose"].dtype == torch.bfloat16


def test_controlnets_can_be_named_beside_a_bundle(tiny: ModelBundle, tmp_path: Path) -> None:
    save_bundle(dataclasses.replace(tiny, controlnets={}), tmp_path / "bare")
    other = make_tiny_bundle(5).controlnets["openpose"]
    # As Stable Diffusion's pose ControlNet was published.
    other.save_pretrained(tmp_path / "net", safe_serialization=False)
    assert (tmp_path / "net" / "diffusion_pytorch_model.bin").is_file()
    config = WeightsConfig(
        bundle=str(tmp_path / "bare"), controlnets={"depth": str(tmp_path / "net")}
    )
    found = load_bundle(config).controlnets
    assert list(found) == ["depth"]
    assert torch.equal(found["depth"].conv_in.weight, other.conv_in.weight)
    taken = load_bundle(
        WeightsConfig(random_seed=1, controlnets={"openpose": str(tmp_path / "net")})
    )
    assert torch.equal(taken.controlnets["openpose"].conv_in.weight, other.conv_in.weight)


def test_a_half_precision_bundle_loads_in_float32(tiny: ModelBundle, tmp_path: Path) -> None:
    half = make_tiny_bundle(1).to("cpu", "float16")
    save_bundle(half, tmp_path / "half")
    found = load_bundle(WeightsConfig(bundle=str(tmp_path / "half")))
    for name, net in found.networks.items():
        assert next(net.parameters()).dtype == torch.float32, name
    assert torch.equal(found.unet.conv_in.weight, tiny.unet.conv_in.weight.half().float())


def test_layer_norm_eps_comes_from_the_settings(folder: Path) -> None:
    config = WeightsConfig(bundle=str(folder), layer_norm_eps=1e-5)
    found = load_bundle(config)
    assert found.unet.config.layer_norm_eps == 1e-5
    assert found.unet.down_blocks[0].attentions[0].block.norm1.eps == 1e-5
    assert found.referencenet is not None
    assert found.referencenet.config.layer_norm_eps == 1e-5


def test_layer_norm_eps_is_what_the_bundle_was_saved_with(tmp_path: Path) -> None:
    save_bundle(make_tiny_bundle(0, layer_norm_eps=1e-5), tmp_path / "trained")
    trained = str(tmp_path / "trained")
    assert load_bundle(WeightsConfig(bundle=trained)).unet.config.layer_norm_eps == 1e-5
    zero = load_bundle(WeightsConfig(bundle=trained, layer_norm_eps=0.0))
    assert zero.unet.config.layer_norm_eps == 0.0


def test_precision_is_the_runs(folder: Path) -> None:
    found = load_bundle(WeightsConfig(bundle=str(folder)), precision="bfloat16")
    assert found.dtype == torch.bfloat16
    assert next(found.unet.parameters()).dtype == torch.bfloat16
    assert next(found.vae.parameters()).dtype == torch.float32


def test_a_seed_gives_the_tiny_bundle() -> None:
    found = load_bundle(WeightsConfig(random_seed=1), precision="float16")
    expected = make_tiny_bundle(1)
    assert torch.equal(found.unet.conv_in.weight, expected.unet.conv_in.weight.half())
    assert found.dtype == torch.float16


def test_a_full_folder_is_not_overwritten(tiny: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match="not empty"):
        save_bundle(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "name", ["unet", "vae", "text_encoder", "image_projection", "controlnets/openpose"]
)
def test_a_wrong_key_is_named(folder: Path, name: str) -> None:
    file = next((folder / name).glob("*.safetensors"))
    state = load_file(file)
    key = sorted(state)[0]
    state["surprise"] = state.pop(key).clone()
    save_file(state, file)
    shown = key.removeprefix("text_model.")
    with pytest.raises(WeightsError, match=rf"{name} at .*1 missing: {shown}.*1 extra: surprise"):
        load_bundle(WeightsConfig(bundle=str(folder)))


def test_a_truncated_part_is_named(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightsError, match=str(file)):
        load_bundle(WeightsConfig(bundle=str(folder)))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"format": 2}, "format 2"),
        ({"parts": {"unet": {}}}, "missing parts"),
        ({"parts": []}, "names no parts"),
        ({"schedule": {"beta_start": 2.0}}, "schedule"),
        ({"schedule": {"sigma": 1}}, "schedule"),
    ],
)
def test_a_wrong_index_is_refused(folder: Path, change: dict, phrase: str) -> None:
    index = json.loads((folder / BUNDLE_FILE).read_text())
    (folder / BUNDLE_FILE).write_text(json.dumps(index | change))
    with pytest.raises(WeightsError, match=phrase):
        load_bundle(WeightsConfig(bundle=str(folder)))


def test_unknown_parts_are_named(folder: Path) -> None:
    index = json.loads((folder / BUNDLE_FILE).read_text())
    index["parts"]["safety_checker"] = {}
    (folder / BUNDLE_FILE).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="safety_checker"):
        load_bundle(WeightsConfig(bundle=str(folder)))


def test_a_folder_without_index_is_no_bundle(folder: Path) -> None:
    (folder / BUNDLE_FILE).unlink()
    with pytest.raises(WeightsError, match=r"musev_bundle\.json is missing"):
        load_bundle(WeightsConfig(bundle=str(folder)))


def test_settings_the_network_refuses_name_the_part(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"act_fn": "relu"}))
    with pytest.raises(WeightsError, match=r"unet at .*act_fn"):
        load_bundle(WeightsConfig(bundle=str(folder)))


def test_parts_that_do_not_fit_together_are_named(tiny: ModelBundle) -> None:
    wide = ImageProjection(cross_attention_dim=32, clip_embeddings_dim=7)
    with pytest.raises(WeightsError, match="image_projection input width is 7, needs 32"):
        dataclasses.replace(tiny, image_projection=wide)
    with pytest.raises(WeightsError, match="only together"):
        dataclasses.replace(tiny, image_encoder=None)
    config = dict(tiny.controlnets["openpose"].config)
    for setting, value, phrase in (
        ("block_out_channels", (32, 64, 96), r"widths is \(32, 64, 96\), needs \(32, 64, 64\)"),
        ("layers_per_block", 2, "layers per block is 2, needs 1"),
        ("conditioning_embedding_out_channels", (8, 16), "pixels a latent is 2, needs 8"),
    ):
        odd = ControlNet.from_config(config | {setting: value})
        with pytest.raises(WeightsError, match=f"controlnets/odd {phrase}"):
            dataclasses.replace(tiny, controlnets={"odd": odd})


def test_digests_cover_every_part(folder: Path, tiny: ModelBundle) -> None:
    digests = digest_weights(WeightsConfig(bundle=str(folder)))
    assert set(digests) == {*tiny.networks, "tokenizer", "index", "settings"}


def test_the_vae_says_how_many_pixels_a_latent_is(tiny: ModelBundle) -> None:
    assert tiny.vae_scale_factor == 8


def test_empty_networks_are_the_bundles_without_its_weights(
    tiny: ModelBundle, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine"
    tiny.controlnets["openpose"].save_pretrained(own)
    weights = WeightsConfig(bundle=str(folder), controlnets={"mine": str(own), "gone": "nowhere"})
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"")  # not read
    nets = empty_networks(weights)
    shapes = {part: {k: v.shape for k, v in net.state_dict().items()} for part, net in nets.items()}
    wanted = {
        part: {k: v.shape for k, v in net.state_dict().items()}
        for part, net in tiny.networks.items()
    }
    wanted["controlnets/mine"] = wanted["controlnets/openpose"]
    full = shapes.pop("controlnets/gone")  # a ControlNet that is not there yet has SD1.5's size
    assert sum(shape.numel() for shape in full.values()) > 3e8
    assert shapes == wanted
    assert {v.device.type for net in nets.values() for v in net.state_dict().values()} == {"meta"}
