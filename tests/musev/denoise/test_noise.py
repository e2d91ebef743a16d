"""Counter-based noise against its written definition, and the original's noise against goldens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.denoise.noise import (
    COMMON_FRAME,
    NoiseStream,
    UpstreamNoise,
    counter_noise,
    mix_condition,
    mix_noise,
)
from musev.errors import ConfigError
from tests.goldens import GOLDENS, load_tensors, model_case, require_goldens

SHAPE = (4, 8, 8)


def draw(frames: Any = range(4), **changes: Any) -> torch.Tensor:
    settings: dict[str, Any] = {
        "seed": 11,
        "stream": NoiseStream.INITIAL,
        "step": 0,
        "shape_CHW": SHAPE,
        "w_ind_noise": 0.5,
    }
    return counter_noise(frames=frames, **{**settings, **changes})


# The definition, written a second time in plain Python


def philox_block(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10 as published (Salmon et al. 2011, section 3.3)."""
    mask = 2**64 - 1
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (second >> 64) ^ c1 ^ k0,
            second & mask,
            (first >> 64) ^ c3 ^ k1,
            first & mask,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


def defined_normals(seed: int, stream: int, frame: int, step: int, count: int) -> list[float]:
    normals: list[float] = []
    block = 1
    while len(normals) < count:
        for word in philox_block((seed, stream), (block, 0, frame, step)):
            radius = math.sqrt(-2 * math.log(((word >> 32) + 0.5) / 2**32))
            angle = 2 * math.pi * (word & (2**32 - 1)) / 2**32
            normals += [radius * math.cos(angle), radius * math.sin(angle)]
        block += 1
    return normals[:count]


@pytest.mark.parametrize(
    ("seed", "stream", "frame", "step"),
    [(0, 0, 0, 0), (7, 1, 3, 9), (2**63 - 1, 1, 99_999, 999), (2**64 - 1, 5, 2**40, 2**33)],
)
def test_draws_follow_the_written_definition(seed: int, stream: int, frame: int, step: int) -> None:
    shape = (1, 3, 5)  # odd: the last normal of a pair is dropped
    own = torch.tensor(defined_normals(seed, stream, frame, step, 15)).view(1, 3, 5)
    common = torch.tensor(defined_normals(seed, stream, COMMON_FRAME, step, 15)).view(1, 3, 5)
    place: dict[str, Any] = {"seed": seed, "stream": stream, "step": step, "shape_CHW": shape}
    found = counter_noise(frames=[frame], w_ind_noise=1.0, **place)
    torch.testing.assert_close(found[:, 0], own, rtol=2e-7, atol=1e-9)
    mixed = counter_noise(frames=[frame], w_ind_noise=0.25, **place)
    expected = math.sqrt(0.75) * common + math.sqrt(0.25) * own
    torch.testing.assert_close(mixed[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_some_values_are_pinned() -> None:
    """A change of these numbers changes every clip ever rendered."""
    noise = counter_noise(
        seed=1, stream=NoiseStream.STEP, frames=[2], step=3, shape_CHW=(1, 1, 3), w_ind_noise=0.5
    )
    assert noise.flatten().tolist() == pytest.approx(PINNED, abs=1e-7)


PINNED = [-0.7613793611526489, -0.1752164363861084, 0.3669704496860504]


# Properties


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.sampled_from([0.0, 0.3, 1.0]))
def test_longer_clips_keep_the_noise_of_their_first_frames(few: int, more: int, w: float) -> None:
    short = draw(range(few), w_ind_noise=w)
    assert torch.equal(draw(range(few + more), w_ind_noise=w)[:, :few], short)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=6))
def test_frames_do_not_depend_on_their_company(frames: list[int]) -> None:
    together = draw(frames)
    alone = torch.cat([draw([frame]) for frame in reversed(frames)], dim=1).flip(1)
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    "change", [{"seed": 12}, {"stream": NoiseStream.STEP}, {"step": 1}, {"frames": range(4, 8)}]
)
def test_every_coordinate_gives_independent_noise(change: dict[str, Any]) -> None:
    shape = (4, 64, 64)
    first = draw(shape_CHW=shape, w_ind_noise=1.0).flatten()
    other = draw(**{"shape_CHW": shape, "w_ind_noise": 1.0, **change}).flatten()
    correlation = float(torch.corrcoef(torch.stack([first, other]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("w", [0.0, 0.2, 0.5, 1.0])
def test_frames_are_unit_gaussian_and_correlate_by_the_common_share(w: float) -> None:
    noise = draw(range(3), shape_CHW=(4, 128, 128), w_ind_noise=w)
    frames = noise.transpose(0, 1).flatten(1)
    slack = 5 / math.sqrt(frames.shape[1])
    assert frames.mean(dim=1).abs().max() < slack
    assert (frames.std(dim=1) - 1).abs().max() < slack
    assert ((frames**4).mean(dim=1) - 3).abs().max() < 10 * slack
    correlation = torch.corrcoef(frames)
    off_diagonal = correlation[~torch.eye(3, dtype=torch.bool)]
    assert (off_diagonal - (1 - w)).abs().max() < slack


def test_repeated_calls_do_not_share_memory() -> None:
    first = draw(w_ind_noise=0.0)
    kept = first.clone()
    first.zero_()
    assert torch.equal(draw(w_ind_noise=0.0), kept)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"step": -1}, "step must be"),
        ({"stream": -1}, "stream must be"),
        ({"frames": [0, -1]}, "frame must be"),
        ({"frames": [COMMON_FRAME]}, "frame must be"),
        ({"w_ind_noise": 1.5}, "w_ind_noise must be"),
    ],
)
def test_places_outside_the_range_are_refused(change: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        draw(**change)


# The original's noise


def test_condition_keeps_the_variance_of_noise() -> None:
    noise, condition = draw(range(2))[None], draw(range(5, 8), w_ind_noise=1.0)[None]
    mixed = mix_condition(noise, condition, 0.36)
    expected = 0.6 * condition.mean(dim=2, keepdim=True) + 0.8 * noise
    torch.testing.assert_close(mixed, expected)
    assert torch.equal(mix_condition(noise, condition, 0.0), noise)


def test_upstream_noise_wants_one_generator_for_each_clip() -> None:
    source = UpstreamNoise([torch.Generator(), torch.Generator()], "upstream_random")
    with pytest.raises(ConfigError, match="2 generators for a batch of 3"):
        source.draw((3, 1, 1, 2, 2))
    with pytest.raises(ConfigError, match="upstream noise is"):
        UpstreamNoise(torch.Generator(), "counter")


def generators(seed: int | list[int]) -> torch.Generator | list[torch.Generator]:
    if isinstance(seed, list):
        return [torch.Generator().manual_seed(one) for one in seed]
    return torch.Generator().manual_seed(seed)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "fn_random_noise__t",
        "fn_random_noise__shape_list",
        "fn_video_fusion_noise__w05",
        "fn_video_fusion_noise__w02_b2",
        "fn_video_fusion_noise__list",
        "fn_video_fusion_noise__common",
    ],
)
def test_functions_draw_the_same_bits(name: str) -> None:
    case, _, io = model_case(name)
    call = case["call"]
    shape = call["shape"] if "shape" in call else io["in.tensor"].shape
    kind = "upstream_random" if call["fn"] == "random_noise" else "upstream_video_fusion"
    source = UpstreamNoise(generators(call["seed"]), kind, call.get("w_ind_noise", 0.5))
    assert torch.equal(source.draw(shape, io.get("in.initial_common_noise")), io["out.out"])


W_OF_CASE = [0.5, 0.2, 0.0, 1.0]


@pytest.mark.parity
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["vf", "rand", "vf_common"])
def test_pipeline_functions_draw_the_same_bits(kind: str, number: int) -> None:
    require_goldens()
    io = load_tensors(GOLDENS / "pipeline" / "functions" / "noise.safetensors")
    w = W_OF_CASE[number]
    seed = 11 + number + (50 if kind == "vf_common" else 0)
    generator = torch.Generator().manual_seed(seed)
    expected = io[f"vf{number}.w{w}" if kind == "vf" else f"{kind}{number}"]
    name = "upstream_random" if kind == "rand" else "upstream_video_fusion"
    common = io[f"common{number}"] if kind == "vf_common" else None
    assert torch.equal(UpstreamNoise(generator, name, w).draw(expected.shape, common), expected)
    if kind == "vf":
        assert torch.equal(torch.randn(3, generator=generator), io[f"vf{number}.next"])


@pytest.mark.parity
def test_pipeline_function_with_two_generators_draws_the_same_bits() -> None:
    require_goldens()
    expected = load_tensors(GOLDENS / "pipeline" / "functions" / "noise.safetensors")["vf_list"]
    source = UpstreamNoise(generators([81, 82]), "upstream_video_fusion", 0.5)
    assert torch.equal(source.draw(expected.shape), expected)


def test_mixture_of_equal_parts_has_unit_variance() -> None:
    common, own = torch.full((1, 1, 1, 1, 1), 3.0), torch.full((1, 1, 2, 1, 1), 4.0)
    assert float(mix_noise(common, own, 0.36).std()) == 0
    torch.testing.assert_close(mix_noise(common, own, 0.36)[0, 0, 0, 0, 0], torch.tensor(4.8))
