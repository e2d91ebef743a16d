"""The image encoder's stage: pictures are named as they were drawn, and the encoder learns to."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from musev.synthetic.clips import draw_clip
from musev.synthetic.people import is_held_out
from musev.training.clip_batches import image_prompt_pixels
from musev.training.networks import build_networks, get_sizes
from musev.training.optimizer import OptimizerConfig, make_optimizer, update
from musev.training.vision import (
    LOOKS,
    UNSEEN,
    VisionTraining,
    look_batch,
    looks_of,
    right_by_look,
)

SMALL = {"num_images": 24, "image_prompt_px": 32, "size_px": 64}


@pytest.fixture
def encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    return build_networks(get_sizes("narrow"), ("image_encoder",), vocab_size=2)["image_encoder"]


def test_a_batch_is_a_function_of_its_number() -> None:
    first, again, next_one = (look_batch(3, number, **SMALL) for number in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image_prompt_BCYX"], next_one["image_prompt_BCYX"])
    assert first["image_prompt_BCYX"].shape == (24, 3, 32, 32)
    assert first["looks_BN"].shape == (24, len(LOOKS))


def test_every_picture_has_the_looks_it_shows() -> None:
    """Frames and portraits: the latter show no scene, and below the waist only if they reach it."""
    batch = look_batch(3, 0, **SMALL)
    kinds = set()
    for number in range(24):
        clip = draw_clip(3, number, height=64, width=64, num_frames=1)
        shown = {
            look: values[place]
            for (look, values), place in zip(
                LOOKS.items(), batch["looks_BN"][number].tolist(), strict=True
            )
        }
        is_frame = shown["scene"] != UNSEEN
        picture = clip.frames_TYXC[0] if is_frame else clip.reference_YXC
        prepared = image_prompt_pixels([picture], 32)[0]
        assert torch.equal(batch["image_prompt_BCYX"][number], prepared)
        assert shown == looks_of(clip, is_frame=is_frame)
        assert shown["shirt_color"] == clip.attributes.shirt_color
        assert (shown["hair_color"] == UNSEEN) == (clip.attributes.hair_style == "bald")
        framing = clip.attributes.framing if is_frame else clip.reference_framing
        assert (shown["trousers_color"] == UNSEEN) == (framing == "portrait")
        assert not is_held_out(clip.attributes)
        kinds.add((is_frame, framing))
    assert len(kinds) >= 5


def test_the_encoder_learns_to_name_looks(encoder: CLIPVisionModelWithProjection) -> None:
    module, batch = VisionTraining(encoder), look_batch(5, 0, **SMALL)
    optimizer = make_optimizer(module, OptimizerConfig())
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    history = [
        update(module, [batch], optimizer, learning_rate=3e-3, max_grad_norm=1.0) for _ in range(80)
    ]
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert history[-1]["right"] > 0.9
    # The class token's last norm and projection, and all that feeds them, have moved.
    moved = {n for n, p in encoder.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert len(moved) > 0.9 * len(before)


def test_shares_are_counted_look_by_look(encoder: CLIPVisionModelWithProjection) -> None:
    module, batch = VisionTraining(encoder), look_batch(5, 0, **SMALL)
    places = batch["looks_BN"]
    with torch.no_grad():
        for n, reader in enumerate(module.readers.values()):
            reader.weight.zero_()
            reader.bias.zero_()
            reader.bias[places[:, n].mode().values] = 1.0
    right = right_by_look(module, batch)
    expected = {
        f"right_{look}": float((places[:, n] == places[:, n].mode().values).float().mean())
        for n, look in enumerate(LOOKS)
    }
    assert right == pytest.approx(expected)
    assert float(module(batch)["right"]) == pytest.approx(sum(right.values()) / len(LOOKS))
