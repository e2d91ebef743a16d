"""The networks of training: one architecture in three sizes, alive from the first step."""

from __future__ import annotations

import pytest
import torch

from musev.errors import ConfigError
from musev.models.bundle import ModelBundle
from musev.training.networks import (
    LAYER_NORM_EPS,
    SIZES,
    Networks,
    build_networks,
    bundle_of,
    get_sizes,
    networks_of,
)
from musev.training.stages import MINI_SCHEDULE
from musev.training.vae import make_vae
from musev.training.vocabulary import make_word_tokenizer

PARTS = ("unet", "text_encoder", "referencenet", "image_encoder", "image_projection", "controlnet")
# As recorded from the original (goldens/fullsize, total_parameters); the text encoder is CLIP
# ViT-L's, the image encoder CLIP ViT-H's.
PUBLISHED = {
    "unet": 1_482_356_202,
    "text_encoder": 123_060_480,
    "referencenet": 348_712_960,
    "image_encoder": 632_076_800,
    "image_projection": 3_150_336,
    "controlnet": 361_279_120,
}


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_full_size_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        networks = build_networks(get_sizes("sd15"), PARTS, vocab_size=49408)
    assert {name: _count(net) for name, net in networks.items()} == PUBLISHED


def test_the_narrow_copy_has_the_names_of_the_full_size() -> None:
    """Those of the networks that are trained; the frozen encoders are shorter."""
    with torch.device("meta"):
        full, narrow = (
            build_networks(get_sizes(size), ("unet", "referencenet", "controlnet"), vocab_size=9)
            for size in ("sd15", "narrow")
        )
    widths = SIZES["narrow"].widths
    ours, theirs = ({name for name, _ in net.named_parameters()} for net in (narrow, full))
    # Where a level is as wide as the one before, a residual layer needs no shortcut.
    assert all("conv_shortcut" in name for name in ours ^ theirs)
    assert len(widths) == len(SIZES["sd15"].widths)


def test_the_mini_networks_are_small_and_fit_together() -> None:
    torch.manual_seed(0)
    tokenizer = make_word_tokenizer(["a"], max_length=32)
    networks = build_networks(get_sizes("mini"), PARTS, vocab_size=len(tokenizer))
    assert 2 * _count(networks) < 16e6, "bytes in half precision"
    bundle = bundle_of(
        networks,
        vae=make_vae((16, 32, 64, 80)),
        tokenizer=tokenizer,
        schedule=MINI_SCHEDULE,
    )
    assert isinstance(bundle, ModelBundle)
    assert bundle.takes_references
    assert bundle.takes_image_prompts
    again = networks_of(bundle)
    assert again.keys() == networks.keys()
    assert all(again[name] is networks[name] for name in PARTS)


def test_other_controlnets_of_a_bundle_are_kept() -> None:
    tokenizer = make_word_tokenizer(["a"], max_length=32)
    networks = build_networks(get_sizes("narrow"), PARTS[:2], vocab_size=len(tokenizer))
    extra = build_networks(get_sizes("narrow"), ("controlnet",), vocab_size=1)["controlnet"]
    networks = Networks({**networks, "controlnets/depth": extra})
    vae = make_vae((8, 8, 8, 8))
    bundle = bundle_of(networks, vae=vae, tokenizer=tokenizer, schedule=MINI_SCHEDULE)
    assert bundle.controlnets == {"depth": extra}
    assert networks_of(bundle).keys() == networks.keys()


def test_temporal_layers_start_as_the_identity_that_can_learn() -> None:
    torch.manual_seed(0)
    unet = build_networks(get_sizes("narrow"), ("unet",), vocab_size=0)["unet"]
    weights = [p for name, p in unet.named_parameters() if name.endswith("temporal_weight")]
    assert weights
    assert all(weight.item() == 1 for weight in weights)
    assert unet.config.layer_norm_eps == LAYER_NORM_EPS
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, 1, 8, 8, generator=generator)
    still, text = noisy.expand(-1, -1, 3, -1, -1), torch.randn(1, 5, 32, generator=generator)
    with torch.no_grad():
        estimates = [unet(x, 5, unet.prepare(text)) for x in (noisy, still)]
    torch.testing.assert_close(estimates[1], estimates[0].expand_as(still), atol=1e-5, rtol=1e-4)
    unet(still, 5, unet.prepare(text)).square().sum().backward()
    lasts = [p for n, p in unet.named_parameters() if "temp_attentions" in n and "proj_out.w" in n]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lasts)


def test_a_new_controlnet_adds_nothing_but_hears_its_control_frames() -> None:
    """Gradients reach the embedding as soon as an output has moved off zero."""
    torch.manual_seed(0)
    net = build_networks(get_sizes("narrow"), ("controlnet",), vocab_size=0)["controlnet"]
    noisy, text, maps = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32), torch.rand(1, 3, 64, 64)

    def outputs() -> list[torch.Tensor]:
        found = net(noisy, torch.tensor([5]), text, net.embed_condition(maps))
        return [value for value in vars(found).values() if isinstance(value, torch.Tensor)] + [
            each for value in vars(found).values() if isinstance(value, tuple) for each in value
        ]

    assert outputs()
    assert all(not value.any() for value in outputs())
    with torch.no_grad():
        net.controlnet_mid_block.weight.add_(0.01)
    sum(value.square().sum() for value in outputs()).backward()
    first = net.controlnet_cond_embedding.conv_in.weight.grad
    assert first is not None
    assert first.abs().sum() > 0


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="sd15"):
        get_sizes("xl")
