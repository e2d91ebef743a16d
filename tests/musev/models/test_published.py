"""The published layout: loaded whole, and every way in which it can be wrong is named."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from musev.conditions import ClipMedia, encode_conditions
from musev.config import (
    ClipRequest,
    FirstFrameConfig,
    SamplingConfig,
    ScheduleConfig,
    WeightsConfig,
)
from musev.errors import WeightsError
from musev.models.bundle import ModelBundle, load_bundle
from musev.models.published import MOTION_MARKS, build_released
from musev.models.tiny import make_tiny_bundle
from musev.render import denoise_request
from musev.weight_parts import digest_weights, published_paths
from tests.goldens import GOLDENS, require_goldens
from tests.musev.models.published_layout import SCHEDULER, write_config, write_published

State = dict[str, Tensor]
UNET = "motion/musev_referencenet/unet/diffusion_pytorch_model.bin"
T2I_UNET = "t2i/tiny/unet/diffusion_pytorch_model.bin"
REFERENCE = "motion/musev_referencenet/referencenet/diffusion_pytorch_model.bin"
VAE = "vae/sd-vae-ft-mse/diffusion_pytorch_model.bin"
TEXT = "t2i/tiny/text_encoder/pytorch_model.bin"
PROMPT = "motion/musev_referencenet/ip_adapter_image_proj.bin"
ENCODER = "image_encoder/pytorch_model.bin"


@pytest.fixture(scope="module")
def tiny() -> ModelBundle:
    return make_tiny_bundle(3)


def assert_same_networks(found: ModelBundle, expected: ModelBundle) -> None:
    assert found.networks.keys() == expected.networks.keys()
    for name, net in expected.networks.items():
        loaded = found.networks[name].state_dict()
        assert loaded.keys() == net.state_dict().keys()
        for key, value in net.state_dict().items():
            assert torch.equal(loaded[key], value), f"{name}: {key}"


@pytest.mark.parametrize("safetensors", [False, True])
def test_all_parts_arrive(tiny: ModelBundle, tmp_path: Path, safetensors: bool) -> None:
    config = write_published(tiny, tmp_path, safetensors=safetensors)
    found = load_bundle(config)
    assert_same_networks(found, tiny)
    assert found.schedule == ScheduleConfig()
    text = "a (red:1.2) coat, ünïcode"
    assert found.tokenizer(text).input_ids == tiny.tokenizer(text).input_ids
    for net in found.networks.values():
        assert not net.training
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert not any(buffer.is_meta for buffer in net.buffers())
    assert set(digest_weights(config)) == {
        *found.networks, "tokenizer", "scheduler", "t2i_unet", "image_prompt", "settings"
    } - {"image_projection"}  # fmt: skip


def test_optional_parts_may_be_left_out(tiny: ModelBundle, tmp_path: Path) -> None:
    config = write_published(tiny, tmp_path)
    without = dict.fromkeys(["referencenet", "image_prompt", "image_encoder"])
    bare = dataclasses.replace(config, **without, controlnets={})
    assert set(load_bundle(bare).networks) == {"unet", "vae", "text_encoder"}


def test_the_base_models_own_vae_is_the_default(tiny: ModelBundle, tmp_path: Path) -> None:
    config = write_published(tiny, tmp_path)
    assert config.t2i is not None
    (tmp_path / "vae" / "sd-vae-ft-mse").rename(Path(config.t2i) / "vae")
    assert_same_networks(load_bundle(dataclasses.replace(config, vae=None)), tiny)


def test_layer_norm_eps_reaches_both_networks(tiny: ModelBundle, tmp_path: Path) -> None:
    config = dataclasses.replace(write_published(tiny, tmp_path), layer_norm_eps=1e-5)
    found = load_bundle(config)
    for net in (found.unet, found.referencenet):
        assert net is not None
        assert net.config.layer_norm_eps == 1e-5
        norms = [m for name, m in net.named_modules() if name.endswith(".norm1")]
        eps = {norm.eps for norm in norms if isinstance(norm, torch.nn.LayerNorm)}
        assert eps == {1e-5}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_leaves_the_vae_in_float32(
    tiny: ModelBundle, tmp_path: Path, precision: str
) -> None:
    found = load_bundle(write_published(tiny, tmp_path), precision=precision)
    assert found.dtype == getattr(torch, precision)
    for name, net in found.networks.items():
        expected = torch.float32 if name == "vae" else found.dtype
        assert {parameter.dtype for parameter in net.parameters()} == {expected}


def test_image_weights_of_the_prompt_file_fill_a_network_without(
    tiny: ModelBundle, tmp_path: Path
) -> None:
    config = write_published(tiny, tmp_path)
    state = torch.load(tmp_path / UNET, weights_only=True)
    blocks = [
        *(f"down_blocks.{level}.attentions.0" for level in (0, 1)),
        *(f"up_blocks.{level}.attentions.{layer}" for level in (1, 2) for layer in (0, 1)),
        "mid_block.attentions.0",
    ]
    ip_adapter = {}
    for rank, block in enumerate(blocks):
        layer = f"{block}.transformer_blocks.0.attn2"
        for leaf in ("to_k_ip.weight", "to_v_ip.weight"):
            ip_adapter[f"{2 * rank + 1}.{leaf}"] = state.pop(f"{layer}.{leaf}")
    groups = torch.load(tmp_path / PROMPT, weights_only=True)
    torch.save(groups | {"ip_adapter": ip_adapter}, tmp_path / PROMPT)
    torch.save(state, tmp_path / UNET)
    assert_same_networks(load_bundle(config), tiny)


def test_the_networks_own_image_weights_win(tiny: ModelBundle, tmp_path: Path) -> None:
    config = write_published(tiny, tmp_path)
    groups = torch.load(tmp_path / PROMPT, weights_only=True)
    other = {"1.to_k_ip.weight": torch.zeros(32, 32)}
    torch.save(groups | {"ip_adapter": other}, tmp_path / PROMPT)
    assert_same_networks(load_bundle(config), tiny)


def _drop(state: State) -> str:
    key = sorted(state)[0]
    del state[key]
    return key


def _add(state: State) -> str:
    state["surprise.weight"] = torch.ones(1)
    return "surprise.weight"


def _reshape(state: State) -> str:
    key = sorted(key for key, value in state.items() if value.ndim)[0]
    state[key] = state[key].reshape(-1)[None, None, None]
    return key


@pytest.mark.parametrize("change", [_drop, _add, _reshape])
@pytest.mark.parametrize("file", [UNET, T2I_UNET, REFERENCE, VAE, TEXT, ENCODER, PROMPT])
def test_every_wrong_key_is_named(
    tiny: ModelBundle, tmp_path: Path, file: str, change: Callable[[State], str]
) -> None:
    config = write_published(tiny, tmp_path)
    path = tmp_path / file
    content = torch.load(path, weights_only=True)
    state = content["image_proj"] if file == PROMPT else content
    key = change(state).removeprefix("text_model.")
    torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"(?s){path}.*{key}"):
        load_bundle(config)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT, PROMPT])
def test_a_truncated_file_is_named(tiny: ModelBundle, tmp_path: Path, file: str) -> None:
    config = write_published(tiny, tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=str(path)):
        load_bundle(config)


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("file", [UNET, PROMPT])
def test_code_in_a_file_is_refused(tiny: ModelBundle, tmp_path: Path, file: str) -> None:
    config = write_published(tiny, tmp_path)
    torch.save({"conv_in.weight": _Hostile(tmp_path / "ran")}, tmp_path / file)
    with pytest.raises(WeightsError, match="refused"):
        load_bundle(config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "part", ["t2i/tiny/tokenizer", "t2i/tiny/scheduler", "image_encoder", UNET, PROMPT]
)
def test_a_missing_part_is_named(tiny: ModelBundle, tmp_path: Path, part: str) -> None:
    config = write_published(tiny, tmp_path)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    name = Path(part).parent if part == UNET else part
    with pytest.raises(WeightsError, match=str(name)):
        load_bundle(config)


def test_unknown_parts_of_the_prompt_file_are_named(tiny: ModelBundle, tmp_path: Path) -> None:
    config = write_published(tiny, tmp_path)
    groups = torch.load(tmp_path / PROMPT, weights_only=True)
    torch.save(groups | {"mystery": {}}, tmp_path / PROMPT)
    with pytest.raises(WeightsError, match="mystery"):
        load_bundle(config)


def test_the_name_of_the_network_decides_its_layers(tiny: ModelBundle, tmp_path: Path) -> None:
    config = write_published(tiny, tmp_path)
    plain = dataclasses.replace(
        config, motion_name="musev", referencenet=None, image_prompt=None, image_encoder=None
    )
    with pytest.raises(WeightsError, match=r"(?s)missing: .*transformer_in.* extra: .*refer_emb"):
        load_bundle(plain)


def test_settings_left_out_of_a_schedule_are_the_originals(
    tiny: ModelBundle, tmp_path: Path
) -> None:
    """The original builds Euler from the file; that class fills the gaps."""
    from diffusers import EulerDiscreteScheduler

    config = write_published(tiny, tmp_path)
    sparse = {key: value for key, value in SCHEDULER.items() if key != "timestep_spacing"}
    write_config(tmp_path / "t2i/tiny/scheduler", sparse, "scheduler_config.json")
    found = load_bundle(config).schedule
    euler = EulerDiscreteScheduler.from_config(sparse).config
    for name in ("timestep_spacing", "prediction_type", "steps_offset", "beta_end"):
        assert getattr(found, name) == euler[name]


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
    ],
)
def test_schedules_that_cannot_be_followed_are_refused(
    tiny: ModelBundle, tmp_path: Path, change: dict, phrase: str
) -> None:
    config = write_published(tiny, tmp_path)
    write_config(tmp_path / "t2i/tiny/scheduler", SCHEDULER | change, "scheduler_config.json")
    with pytest.raises(WeightsError, match=phrase):
        load_bundle(config)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", ["musev", "musev_referencenet", "musev_referencenet_with_ip_adapter_face"]
)
def test_the_image_half_at_full_size_is_stable_diffusions(name: str) -> None:
    require_goldens()
    folder = GOLDENS / "fullsize"
    image = json.loads((folder / "sd15_unet2d.json").read_text())["tensors"]
    video = json.loads((folder / f"unet_{name}.json").read_text())["tensors"]
    half = {key: shape for key, shape in video.items() if not any(m in key for m in MOTION_MARKS)}
    assert half == image


def test_the_layout_needs_both_halves_of_an_image_prompt(tmp_path: Path) -> None:
    config = WeightsConfig(t2i=str(tmp_path), motion=str(tmp_path), image_prompt="x.bin")
    with pytest.raises(WeightsError, match="together"):
        load_bundle(config)


def test_released_sizes_are_those_of_the_published_files() -> None:
    """Parameters as the model cards and the original's COST.md run count them."""
    parts = {"referencenet": "r", "image_prompt": "i", "image_encoder": "e"}
    everything = WeightsConfig(t2i="nowhere", motion="nowhere", **parts)
    with torch.device("meta"):
        nets = build_released(everything)
        least = build_released(WeightsConfig(t2i="nowhere", motion="nowhere"))
    millions = {name: sum(p.numel() for p in net.parameters()) / 1e6 for name, net in nets.items()}
    assert millions["vae"] == pytest.approx(83.65, abs=0.01)
    assert millions["text_encoder"] == pytest.approx(123.06, abs=0.01)
    assert millions["image_encoder"] == pytest.approx(632.08, abs=0.01)
    assert millions["image_projection"] == pytest.approx(3.15, abs=0.01)
    assert set(least) == {"unet", "vae", "text_encoder"}


@pytest.mark.parametrize("own_network", [True, False])
def test_self_attention_reads_a_reference_without_reference_weights(
    tiny: ModelBundle, tmp_path: Path, own_network: bool
) -> None:
    """Reference-only: the base model looks at the picture, with fuse layers beside it or not."""
    config = write_published(tiny, tmp_path)
    flat = {
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    }
    sizes = ("block_out_channels", "layers_per_block", "attention_head_dim", "cross_attention_dim")
    given = {name: tiny.unet.config[name] for name in sizes}
    write_config(tmp_path / "t2i/tiny/unet", given | flat | {"norm_num_groups": 32})
    only = dataclasses.replace(config, referencenet=None, reference_attention=True)
    bundle = load_bundle(only)
    assert bundle.takes_references
    if not own_network:
        unet = bundle.unet.from_config(dict(bundle.unet.config) | {"need_refer_emb": False})
        state = {k: v for k, v in bundle.unet.state_dict().items() if k in unet.state_dict()}
        unet.load_state_dict(state)
        bundle = dataclasses.replace(bundle, unet=unet.eval().requires_grad_(False))
        assert bundle.takes_references
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8) for _ in range(2)]
    request = ClipRequest(
        request_id="r",
        prompt="a",
        num_frames=4,
        fps=8,
        width=64,
        height=64,
        seed=1,
        profile="p",
        sampling=SamplingConfig(num_steps=1, first_frame=FirstFrameConfig(origin="noise")),
    )
    with torch.inference_mode():
        seen = []
        for picture in (*pictures, np.concatenate(pictures), None):
            media = ClipMedia(reference_image=picture)
            conditions = encode_conditions(bundle, request, media)
            seen.append(denoise_request(bundle, request, conditions))
    for one, other in itertools.combinations(seen, 2):
        assert torch.isfinite(one).all()
        assert not torch.equal(one, other)


def test_a_single_file_is_no_reference(tmp_path: Path) -> None:
    """It has no folder to read the U-Net from; the error says what to give instead."""
    config = WeightsConfig(
        t2i=str(tmp_path / "base.safetensors"),
        t2i_config=str(tmp_path),
        motion=str(tmp_path),
        reference_attention=True,
    )
    with pytest.raises(WeightsError, match=r"weights\.referencenet"):
        published_paths(config)
