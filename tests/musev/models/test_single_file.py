"""Single-file models: our names for their keys are those that diffusers' own converter reads."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import save_file
from torch import Tensor

from musev.config import WeightsConfig
from musev.errors import WeightsError
from musev.models.bundle import ModelBundle, load_bundle
from musev.models.published import MOTION_MARKS
from musev.models.single_file import (
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    read_single_file,
    unet_name,
    vae_name,
)
from musev.models.tiny import make_tiny_bundle
from musev.weight_parts import digest_weights
from tests.goldens import GOLDENS, require_goldens
from tests.musev.models.published_layout import write_config, write_published

State = dict[str, Tensor]


@pytest.mark.parity
def test_all_keys_of_the_full_size_networks_are_named() -> None:
    require_goldens()
    unet = json.loads((GOLDENS / "fullsize" / "sd15_unet2d.json").read_text())["tensors"]
    vae = json.loads((GOLDENS / "fullsize" / "vae_sd15.json").read_text())["tensors"]
    relation = json.loads((GOLDENS / "fullsize" / "relation_to_sd15.json").read_text())
    assert len(unet) == relation["ref"]["common"]

    def meta(shape: list[int]) -> Tensor:
        return torch.empty(shape, device="meta")

    unet_file = {
        UNET_PREFIX + unet_name(key, layers_per_block=2): meta(shape) for key, shape in unet.items()
    }
    assert len(unet_file) == len(unet)
    read = convert_ldm_unet_checkpoint(dict(unet_file), {"layers_per_block": 2})
    assert {key: list(value.shape) for key, value in read.items()} == unet

    vae_file = {}
    for key, shape in vae.items():
        kernel = [1, 1] if "attentions" in key and len(shape) == 2 else []
        vae_file[VAE_PREFIX + vae_name(key, num_levels=4)] = meta(shape + kernel)
    config = {"down_block_types": ["D"] * 4, "up_block_types": ["U"] * 4}
    read = convert_ldm_vae_checkpoint(dict(vae_file), config)
    assert {key: list(value.shape) for key, value in read.items()} == vae


def parts_of(bundle: ModelBundle) -> dict[str, State]:
    unet = {
        key: value
        for key, value in bundle.unet.state_dict().items()
        if not any(mark in key for mark in MOTION_MARKS)
    }
    return {
        "unet": unet,
        "vae": bundle.vae.state_dict(),
        "text": bundle.text_encoder.state_dict(),
    }


def write_single_file(bundle: ModelBundle, file: Path) -> State:
    """Write a model file, with what such files hold besides."""
    rename = functools.partial(unet_name, layers_per_block=1)
    levels = len(bundle.vae.config.block_out_channels)
    parts = parts_of(bundle)
    state = {UNET_PREFIX + rename(key): value for key, value in parts["unet"].items()}
    for key, value in parts["vae"].items():
        is_conv = "attentions" in key and value.ndim == 2
        stored = value[..., None, None] if is_conv else value
        state[VAE_PREFIX + vae_name(key, num_levels=levels)] = stored
    for key, value in parts["text"].items():
        state[TEXT_PREFIX + key.removeprefix("text_model.")] = value
    state["model_ema.decay"] = torch.zeros(1)
    state["betas"] = torch.zeros(3)
    state[TEXT_PREFIX + "embeddings.position_ids"] = torch.arange(77)[None]
    state = {key: value.clone().contiguous() for key, value in state.items()}
    if file.suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 5}, file)
    else:
        save_file(state, file)
    return state


def test_diffusers_reads_the_same_out_of_such_a_file(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(5)
    state = write_single_file(bundle, tmp_path / "model.safetensors")
    parts = parts_of(bundle)
    unet = convert_ldm_unet_checkpoint(dict(state), {"layers_per_block": 1})
    levels = {"down_block_types": ["D"] * 4, "up_block_types": ["U"] * 4}
    assert len(bundle.vae.config.block_out_channels) in (3, 4)
    levels = {name: ["B"] * len(bundle.vae.config.block_out_channels) for name in levels}
    vae = convert_ldm_vae_checkpoint(dict(state), levels)
    for found, expected in ((unet, parts["unet"]), (vae, parts["vae"])):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    text = convert_ldm_clip_checkpoint(dict(state))
    for key, value in parts["text"].items():
        name = "text_model." + key.removeprefix("text_model.")
        assert torch.equal(text.get(name, text.get(name.removeprefix("text_model."))), value)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_loads_like_the_folder(tmp_path: Path, suffix: str) -> None:
    bundle = make_tiny_bundle(5)
    folder = write_published(bundle, tmp_path / "published")
    assert folder.t2i is not None
    file = tmp_path / f"model{suffix}"
    write_single_file(bundle, file)
    t2i = Path(folder.t2i)
    write_config(t2i / "vae", json.loads(bundle.vae.to_json_string()))
    values: dict[str, Any] = {
        "motion": folder.motion,
        "referencenet": folder.referencenet,
        "image_prompt": folder.image_prompt,
        "image_encoder": folder.image_encoder,
    }
    single = WeightsConfig(t2i=str(file), t2i_config=str(t2i), **values)
    expected, found = load_bundle(folder).networks, load_bundle(single).networks
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = found[name].state_dict(), expected[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert "t2i_file" in digest_weights(single)

    other_vae = WeightsConfig(
        t2i=str(file), t2i_config=str(t2i), vae=folder.vae, motion=folder.motion
    )
    assert load_bundle(other_vae).vae.config.latent_channels == 4
    with pytest.raises(WeightsError, match=r"weights\.t2i_config"):
        load_bundle(WeightsConfig(t2i=str(file), motion=folder.motion))


def test_what_is_no_such_model_is_told(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(5)
    folder = write_published(bundle, tmp_path / "published")
    state = write_single_file(bundle, tmp_path / "model.safetensors")
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, lora)
    with pytest.raises(WeightsError, match=r"lora\.safetensors holds nothing below"):
        read_single_file(lora)

    key = UNET_PREFIX + "input_blocks.1.0.in_layers.2.weight"
    state["model.diffusion_model.more.weight"] = state.pop(key)
    save_file(state, tmp_path / "other.safetensors")
    other = WeightsConfig(
        t2i=str(tmp_path / "other.safetensors"), t2i_config=folder.t2i, motion=folder.motion
    )
    with pytest.raises(WeightsError, match=rf"1 missing: {key}; 1 extra: .*more\.weight"):
        load_bundle(other)
