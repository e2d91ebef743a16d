"""The small random networks: the same everywhere, complete, and fit to be looked at."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from musev.models.bundle import ModelBundle
from musev.models.image_prompt import encode_image_prompt
from musev.models.text import encode_prompts
from musev.models.tiny import make_byte_tokenizer, make_tiny_bundle, randomize
from musev.models.vae import decode_latents, decode_to_float, encode_frames

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tiny() -> ModelBundle:
    return make_tiny_bundle(0)


def _digest(bundle: ModelBundle) -> int:
    crc = 0
    for net in bundle.networks.values():
        for value in net.state_dict().values():
            crc = zlib.crc32(value.numpy().tobytes(), crc)
    return crc


def test_a_seed_decides_every_weight_in_every_process(tiny: ModelBundle) -> None:
    code = (
        "import torch; torch.manual_seed(99); torch.randn(7)\n"
        "from tests.musev.models.test_tiny import _digest, make_tiny_bundle\n"
        "print(_digest(make_tiny_bundle(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) == _digest(tiny)
    assert _digest(make_tiny_bundle(1)) != _digest(tiny)


def test_the_global_generator_decides_nothing() -> None:
    torch.manual_seed(5)
    first = _digest(make_tiny_bundle(2))
    assert _digest(make_tiny_bundle(2)) == first


def test_values_follow_names_not_order() -> None:
    one = randomize(nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 5)}), seed=0, prefix="p")
    two = randomize(nn.ModuleDict({"b": nn.Linear(4, 5), "a": nn.Linear(3, 4)}), seed=0, prefix="p")
    assert torch.equal(one["a"].weight, two["a"].weight)
    other = randomize(nn.ModuleDict({"a": nn.Linear(3, 4)}), seed=0, prefix="q")
    assert not torch.equal(one["a"].weight, other["a"].weight)


def test_the_whole_architecture_is_there(tiny: ModelBundle) -> None:
    assert set(tiny.networks) == {
        "unet", "vae", "text_encoder", "referencenet", "image_encoder", "image_projection",
        "controlnets/openpose",
    }  # fmt: skip
    assert tiny.vae_scale_factor == 8
    keys = set(tiny.unet.state_dict())
    for mark in ("to_k_ip", "refer_emb_attns", "temp_convs", "temp_attentions"):
        assert any(mark in key for key in keys)
    size = sum(p.numel() * 4 for net in tiny.networks.values() for p in net.parameters())
    assert size < 20e6
    assert not any(p.requires_grad for net in tiny.networks.values() for p in net.parameters())


def test_prompts_and_pictures_move_their_tokens(tiny: ModelBundle) -> None:
    text = encode_prompts(tiny.tokenizer, tiny.text_encoder, ["a cat", "a dog"])
    assert not torch.allclose(text[0], text[1])
    pictures = np.stack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)])
    assert tiny.image_encoder is not None
    assert tiny.image_projection is not None
    tokens = [
        encode_image_prompt(tiny.image_encoder, tiny.image_projection, picture[None], False)
        for picture in pictures
    ]
    assert tokens[0].shape == (1, 4, 32)
    assert (tokens[0] - tokens[1]).abs().max() > 0.1


def test_the_tokenizer_knows_every_text() -> None:
    tokenizer = make_byte_tokenizer()
    ids = tokenizer("Ab ü 猫").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert len(ids) == 2 + 2 + 2 + 3
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_the_vae_carries_a_blurred_picture_through(tiny: ModelBundle) -> None:
    """A red left half and a blue right half stay apart, each in its colour."""
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[:, :, :32, 0] = 255
    picture[:, :, 32:, 2] = 255
    back = decode_latents(tiny.vae, encode_frames(tiny.vae, picture))[0, 0].astype(float)
    left, right = back[16:48, 4:24].mean((0, 1)), back[16:48, 40:60].mean((0, 1))
    assert left[0] > right[0] + 50
    assert right[2] > left[2] + 50


@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0])
def test_pictures_are_neither_flat_nor_saturated(tiny: ModelBundle, scale: float) -> None:
    latents = scale * torch.randn(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    frame = decode_to_float(tiny.vae, latents)
    assert 0.05 < frame.std() < 0.35
    assert ((frame == 0) | (frame == 1)).float().mean() < 0.05


def test_layer_norm_eps_is_the_callers() -> None:
    assert make_tiny_bundle(0, layer_norm_eps=1e-5).unet.config.layer_norm_eps == 1e-5
