from __future__ import annotations

import dataclasses

import pytest
import torch

from musev.conditions import ClipMedia, encode_conditions, fit_media
from musev.config import ClipRequest, WeightsConfig
from musev.models.bundle import load_bundle
from musev.models.cost import ClipShape, CostModel, conditioning_bytes
from musev.registry import get_profile

TINY = WeightsConfig(random_seed=1)


@pytest.fixture(scope="module")
def released() -> CostModel:
    """The published networks in half precision; no file of theirs is there."""
    return CostModel(get_profile("musev").weights, "float16")


@pytest.fixture(scope="module")
def tiny() -> CostModel:
    return CostModel(TINY)


def test_a_window_costs_what_the_original_was_measured_at(released: CostModel) -> None:
    """COST.md, less what is not computed again here (see benchmarks/unet_step.py)."""
    shape = ClipShape(width=256, height=256, guided=False, given_frames=1)
    window = released.window(shape, 12)
    assert window.flops / 1e12 == pytest.approx(4.258, rel=0.05)
    assert window.flops / 1e12 < 4.258
    guided = released.window(dataclasses.replace(shape, guided=True), 12)
    assert guided.flops == pytest.approx(2 * window.flops, rel=0.01)
    assert guided.peak_bytes == pytest.approx(2 * window.peak_bytes, rel=0.05)
    assert released.decode_frame(256, 256).flops / 1e12 == pytest.approx(0.622, rel=0.01)


def test_attention_scores_take_no_memory(released: CostModel) -> None:
    """All scores of one 512x512 window would be 4096 x 8192 x 8 heads x 13 frames: 7 GB."""
    shape = ClipShape(width=512, height=512, guided=False, given_frames=1)
    assert 0.3e9 < released.window(shape, 12).peak_bytes < 2e9


def test_weights_are_counted_in_the_precision_they_are_held_in(released: CostModel) -> None:
    assert released.weights_bytes() / 1e9 == pytest.approx(5.51, abs=0.05)
    full = CostModel(get_profile("musev").weights, "float32")
    vae_bytes = 4 * 83.65e6  # in float32 either way
    halved = (full.weights_bytes() - vae_bytes) / 2 + vae_bytes
    assert released.weights_bytes() == pytest.approx(halved, rel=1e-3)


def test_a_bundles_weights_are_those_that_are_loaded(tiny: CostModel) -> None:
    bundle = load_bundle(TINY)
    loaded = {
        name: sum(p.nbytes for p in [*net.parameters(), *net.buffers()])
        for name, net in bundle.networks.items()
    }
    control = loaded.pop("controlnets/openpose")
    assert tiny.weights_bytes() == sum(loaded.values())
    assert tiny.weights_bytes(("openpose",)) == sum(loaded.values()) + control


@pytest.mark.parametrize("guided", [False, True])
def test_conditioning_is_as_large_as_the_real_one(tiny: CostModel, guided: bool) -> None:
    request = ClipRequest(
        request_id="a",
        num_frames=5,
        fps=4.0,
        width=64,
        height=64,
        seed=0,
        profile="tiny",
        condition_image="a.png",
        sampling=dataclasses.replace(
            get_profile("mini").sampling,
            guidance=dataclasses.replace(
                get_profile("mini").sampling.guidance, scale=3.0 if guided else 1.0
            ),
        ),
    )
    picture = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    media = fit_media(request, ClipMedia(condition_image=picture))
    with torch.inference_mode():
        real = encode_conditions(load_bundle(TINY), request, media)
    shape = ClipShape(width=64, height=64, guided=guided, given_frames=1)
    assert tiny.condition(shape).kept_bytes == conditioning_bytes(real.network)


def test_what_is_asked_for_is_what_is_counted(tiny: CostModel) -> None:
    plain = ClipShape(width=64, height=64, guided=False)
    window, condition = tiny.window(plain, 6), tiny.condition(plain)
    assert tiny.window(plain, 12).flops > 1.8 * window.flops
    control = dataclasses.replace(plain, control=("openpose",))
    assert tiny.window(control, 6).flops > 1.05 * window.flops
    assert tiny.control_frame(control).flops > 0
    assert tiny.control_frame(plain).flops == 0
    reference = dataclasses.replace(plain, has_reference=True)
    assert tiny.condition(reference).flops > condition.flops
    assert tiny.condition(reference).kept_bytes > condition.kept_bytes
    drawn = dataclasses.replace(plain, given_frames=1, first_frame_steps=10)
    more = dataclasses.replace(drawn, first_frame_steps=20)
    given = dataclasses.replace(drawn, first_frame_steps=0)
    step = (tiny.condition(more).flops - tiny.condition(drawn).flops) / 10
    assert 0 < step < window.flops / 3
    assert tiny.condition(given).flops < tiny.condition(drawn).flops - 10 * step
    assert tiny.latent_bytes(plain) == 4 * 8 * 8 * 4


def test_equal_calls_are_counted_once(tiny: CostModel) -> None:
    shape = ClipShape(width=64, height=128, guided=False)
    assert tiny.window(shape, 3) is tiny.window(dataclasses.replace(shape), 3)


def test_a_bundles_configs_are_enough(monkeypatch) -> None:
    """Planning must work where the weights are too large to load."""
    import musev.weights

    def refuse(path: object) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(musev.weights, "load_state_dict", refuse)
    monkeypatch.setattr("musev.models.loading.load_state_dict", refuse)
    mini = CostModel(get_profile("mini").weights)
    assert mini.weights_bytes() > 1e7
