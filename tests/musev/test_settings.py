"""Settings by dotted keys: converted to their types, refused in words, checked together."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from musev.config import Profile, ScheduleConfig, WeightsConfig
from musev.errors import ConfigError
from musev.settings import replace_setting, replace_settings

SEEDED = WeightsConfig(random_seed=0)
PROFILE = Profile(name="p", weights=SEEDED)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("sampling.windows.overlap", "3", 3),
        ("sampling.guidance.scale", "2", 2.0),
        ("sampling.guidance.scale_end", "1.5", 1.5),
        ("sampling.guidance.scale_end", "none", None),
        ("sampling.solver", "ddim", "ddim"),
        ("precision", "bfloat16", "bfloat16"),
        ("fps", "23.976", 23.976),
        ("negative_prompt", "none", "none"),
        ("width", 256, 256),
        ("control.canny_low", "50", 50.0),
        ("control.resolution", "256", 256),
        ("control.weights.annotators", "hf://a/b", "hf://a/b"),
    ],
)
def test_text_is_converted_to_the_settings_type(key: str, text: Any, value: Any) -> None:
    changed = replace_setting(PROFILE, key, text)
    found: Any = changed
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)
    assert PROFILE == Profile(name="p", weights=SEEDED)


@pytest.mark.parametrize(
    ("key", "text", "phrase"),
    [
        ("sampling.window.overlap", "3", "no setting 'window' in SamplingConfig; settings: solver"),
        ("colour", "red", "no setting 'colour' in Profile"),
        ("width.px", "3", "'width' has no parts"),
        ("sampling", "x", "'sampling' is a group of settings"),
        ("sampling.num_steps", "ten", "num_steps must be int, got 'ten'"),
        ("sampling.num_steps", "7.5", "num_steps must be int, got '7.5'"),
        ("sampling.guidance.scale", "much", "scale must be float, got 'much'"),
        ("sampling.solver", "heun", "solver must be one of euler"),
        ("sampling.windows.overlap", "12", "overlap must be in"),
    ],
)
def test_bad_settings_are_refused_in_words(key: str, text: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        replace_setting(PROFILE, key, text)


def test_true_and_false() -> None:
    assert replace_setting(ScheduleConfig(), "clip_sample", "True").clip_sample is True
    with pytest.raises(ConfigError, match="clip_sample must be true or false, got 'yes'"):
        replace_setting(ScheduleConfig(), "clip_sample", "yes")


def test_settings_that_are_only_valid_together() -> None:
    settings = {"sampling.windows.num_frames": "4", "sampling.windows.overlap": "1"}
    windows = replace_settings(PROFILE, settings).sampling.windows
    assert (windows.num_frames, windows.overlap) == (4, 1)
    with pytest.raises(ConfigError, match="overlap must be in"):
        replace_setting(PROFILE, "sampling.windows.num_frames", "4")


PUBLISHED = WeightsConfig(t2i="a", motion="b", vae="c", image_encoder="d")


@pytest.mark.parametrize(
    ("weights", "settings", "expected"),
    [
        (SEEDED, {"bundle": "x"}, WeightsConfig(bundle="x")),
        (PUBLISHED, {"bundle": "x"}, WeightsConfig(bundle="x")),
        (PUBLISHED, {"random_seed": "0"}, SEEDED),
        (SEEDED, {"t2i": "x", "motion": "y"}, WeightsConfig(t2i="x", motion="y")),
        (PUBLISHED, {"t2i": "x"}, dataclasses.replace(PUBLISHED, t2i="x")),
        (PUBLISHED, {"vae": "none"}, dataclasses.replace(PUBLISHED, vae=None)),
        (SEEDED, {"layer_norm_eps": "1e-5"}, WeightsConfig(random_seed=0, layer_norm_eps=1e-5)),
    ],
)
def test_naming_a_source_of_weights_drops_the_others(
    weights: WeightsConfig, settings: dict[str, str], expected: WeightsConfig
) -> None:
    assert replace_settings(weights, settings) == expected


def test_controlnets_are_named_one_by_one_beside_any_source() -> None:
    key = "weights.controlnets"
    two = replace_settings(PROFILE, {f"{key}.openpose": "/a", f"{key}.depth": "/b"})
    assert two.weights == dataclasses.replace(SEEDED, controlnets={"openpose": "/a", "depth": "/b"})
    assert PROFILE.weights.controlnets == {}
    one = replace_settings(two, {f"{key}.depth": "none", "weights.bundle": "x"})
    assert one.weights == WeightsConfig(bundle="x", controlnets={"openpose": "/a"})
    with pytest.raises(ConfigError, match=r"'controlnets' is a table.*controlnets\.NAME=VALUE"):
        replace_setting(PROFILE, key, "/a")


def test_two_sources_of_weights_named_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="got bundle, random_seed"):
        replace_settings(PUBLISHED, {"bundle": "x", "random_seed": "1"})


@dataclasses.dataclass(frozen=True)
class _Lists:
    betas: tuple[float, float] = (0.9, 0.98)
    widths: tuple[int, ...] = (8,)
    names: tuple[str, ...] = ()
    extra: tuple[int, ...] | None = None


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("betas", "0.5; 0.6", (0.5, 0.6)),
        ("widths", "16;32;64", (16, 32, 64)),
        ("names", "unet;referencenet", ("unet", "referencenet")),
        ("extra", "1;2", (1, 2)),
        ("extra", "none", None),
    ],
)
def test_the_parts_of_a_list_have_their_own_type(key: str, text: str, value: Any) -> None:
    assert getattr(replace_setting(_Lists(), key, text), key) == value


@pytest.mark.parametrize(
    ("key", "text", "phrase"),
    [
        ("betas", "0.5", "betas must be 2 values with ';' between, got '0.5'"),
        ("betas", "0.5,0.6", "betas must be 2 values with ';' between"),
        ("widths", "16;wide", "widths must be int, got 'wide'"),
    ],
)
def test_lists_that_do_not_fit_are_refused(key: str, text: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        replace_setting(_Lists(), key, text)
