"""The VAE against the original's recorded numbers, and what segments may not change."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from musev.errors import ShapeError
from musev.models.vae import decode_latents, decode_to_float, encode_frames, scale_factor
from tests.goldens import (
    GOLDENS,
    load_tensors,
    model_case,
    model_cases,
    model_weights,
    pipeline_case,
    require_goldens,
)


def _tiny_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
    )
    return vae.eval()


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("vae"))
def test_vae_equals_the_recorded_output(name: str) -> None:
    case, config, io = model_case(name)
    vae = AutoencoderKL(**config).eval()
    vae.load_state_dict(model_weights(case), strict=True)
    if "in.image" in io:
        with torch.no_grad():
            found = vae.encode(io["in.image"]).latent_dist
        torch.testing.assert_close(found.mean, io["out.mean"], atol=5e-5, rtol=0)
        torch.testing.assert_close(found.std, io["out.std"], atol=5e-5, rtol=0)
        return
    latents = io["in.latents"]
    if latents.ndim == 4:
        latents = latents.transpose(0, 1)[None]
    frames = decode_to_float(vae, latents)
    torch.testing.assert_close(frames[0], io["out.decoded"], atol=5e-5, rtol=0)


@pytest.mark.parity
def test_full_size_names_and_shapes() -> None:
    require_goldens()
    recorded = json.loads((GOLDENS / "fullsize" / "vae_sd15.json").read_text())
    # Stable Diffusion 1.5's vae/config.json.
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    found = {key: list(value.shape) for key, value in vae.state_dict().items()}
    assert found == recorded["tensors"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["ref_ip_parallel", "t2v_ddim_1cond"])
def test_condition_latents_equal_the_pipelines(name: str) -> None:
    _, tensors = pipeline_case(name)
    part = GOLDENS / "pipeline" / "components" / "vae"
    config = json.loads((part / "config.json").read_text())
    vae = AutoencoderKL.from_config(config).eval()
    weights = load_tensors(part / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    frames = tensors["in.condition_images"][0].permute(1, 2, 3, 0).numpy()
    expected = tensors["c0.condition_latents"]
    torch.testing.assert_close(encode_frames(vae, frames), expected, atol=5e-5, rtol=0)


def test_encoding_uses_the_mean_and_the_scale() -> None:
    vae = _tiny_vae()
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
    found = encode_frames(vae, frames)
    assert found.shape == (1, 4, 2, 2, 4)
    assert torch.equal(found, encode_frames(vae, frames))
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(found[0].transpose(0, 1), mean * 0.18215, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_frames", [1, 2, 3, 100])
def test_neither_chunks_nor_segments_change_a_bit(chunk_frames: int) -> None:
    vae = _tiny_vae()
    latents = torch.randn(2, 4, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    whole = decode_to_float(vae, latents)
    parts = [decode_to_float(vae, latents[:, :, :2]), decode_to_float(vae, latents[:, :, 2:])]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    frames = decode_latents(vae, latents, chunk_frames=chunk_frames)
    assert frames.shape == (2, 5, 24, 16, 3)
    assert frames.dtype == np.uint8
    expected = (whole * 255).permute(0, 1, 3, 4, 2).numpy().astype(np.uint8)
    assert np.array_equal(frames, expected)


def test_frames_do_not_mix_between_clips() -> None:
    vae = _tiny_vae()
    latents = torch.randn(2, 4, 3, 4, 4)
    both = decode_latents(vae, latents)
    assert np.array_equal(both[1:], decode_latents(vae, latents[1:]))


@pytest.mark.parametrize(
    ("frames", "phrase"),
    [
        (np.zeros((1, 8, 8, 4), np.uint8), "uint8"),
        (np.zeros((1, 8, 8, 3), np.float64), "uint8"),
        (np.zeros((1, 8, 6, 3), np.uint8), "multiples of 4"),
    ],
)
def test_other_frames_are_refused(frames: np.ndarray, phrase: str) -> None:
    with pytest.raises(ShapeError, match=phrase):
        encode_frames(_tiny_vae(), frames)


def test_fractions_of_full_brightness_are_frames_too() -> None:
    """What the network has drawn itself goes on without a loss."""
    vae = _tiny_vae()
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    whole = encode_frames(vae, frames)
    exact = encode_frames(vae, frames.astype(np.float32) / 255)
    torch.testing.assert_close(exact, whole, atol=1e-5, rtol=1e-5)


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError, match="chunk_frames"):
        decode_latents(_tiny_vae(), torch.zeros(1, 4, 1, 2, 2), chunk_frames=0)


def test_scale_factor_follows_the_levels() -> None:
    assert scale_factor(_tiny_vae()) == 4
