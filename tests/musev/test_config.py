"""Settings refuse bad values in words, cannot be changed, travel between processes, take --set."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from musev.config import (
    ClipRequest,
    ControlConfig,
    EncoderConfig,
    GuidanceConfig,
    Profile,
    SamplingConfig,
    ScheduleConfig,
    WeightsConfig,
    WindowConfig,
    replace_setting,
    replace_settings,
    to_plain,
)
from musev.errors import ConfigError

SEEDED = WeightsConfig(random_seed=0)
PROFILE = Profile(name="p", weights=SEEDED)
REQUEST = ClipRequest(
    request_id="a",
    num_frames=13,
    fps=8,
    width=64,
    height=64,
    seed=0,
    profile="p",
    sampling=SamplingConfig(),
    reference_image="file:///r.png",
)

BAD: list[tuple[type, dict[str, Any], str]] = [
    (WindowConfig, {"num_frames": 0}, "at least 1 frame, got 0"),
    (WindowConfig, {"overlap": 12}, r"overlap must be in \[0, 12\) .* got 12"),
    (WindowConfig, {"overlap": -1}, "got -1"),
    (WindowConfig, {"stride": 0}, "stride must be at least 1"),
    (WindowConfig, {"settle_steps": -1}, "settle_steps must not be negative: -1"),
    (WindowConfig, {"layout": "tiles"}, "layout must be one of musev, .*; got 'tiles'"),
    (WindowConfig, {"blend": "sharp"}, "blend must be one of flat, linear, pyramid, gaussian"),
    (GuidanceConfig, {"scale": -1.0}, "guidance scale must not be negative"),
    (GuidanceConfig, {"scale_end": -0.5}, "guidance scale_end must not be negative: -0.5"),
    (GuidanceConfig, {"schedule": "cosine"}, "schedule must be one of constant, linear"),
    (ScheduleConfig, {"num_train_timesteps": 0}, "num_train_timesteps must be at least 1"),
    (ScheduleConfig, {"beta_start": 0.1, "beta_end": 0.01}, "betas must satisfy"),
    (ScheduleConfig, {"beta_end": 1.0}, "betas must satisfy"),
    (ScheduleConfig, {"prediction_type": "x0"}, "prediction_type must be one of epsilon"),
    (SamplingConfig, {"num_steps": 0}, r"steps must be in 1\.\.1000, got 0"),
    (SamplingConfig, {"num_steps": 1001}, "got 1001"),
    (SamplingConfig, {"w_ind_noise": 1.5}, r"w_ind_noise must be in \[0, 1\], got 1.5"),
    (SamplingConfig, {"img_weight": -0.1}, "img_weight must be in"),
    (SamplingConfig, {"eta": float("nan")}, "eta must be in"),
    (SamplingConfig, {"motion_speed": 0}, "motion_speed must be positive, got 0"),
    (SamplingConfig, {"solver": "heun"}, "solver must be one of euler"),
    (EncoderConfig, {"crf": 52}, r"crf must be in 0\.\.51, got 52"),
    (EncoderConfig, {"num_threads": 0}, "num_threads must be at least 1"),
    (EncoderConfig, {"segment_frames": 0}, "segment_frames must be at least 1"),
    (WeightsConfig, {}, "exactly one of: bundle, random_seed, .* got none"),
    (WeightsConfig, {"bundle": "b", "random_seed": 1}, "got bundle, random_seed"),
    (WeightsConfig, {"t2i": "x"}, "needs both weights.t2i and weights.motion"),
    (WeightsConfig, {"random_seed": 0, "motion_name": "m"}, "motion_name must be one of musev"),
    (WeightsConfig, {"random_seed": 0, "controlnets": {"a/b": "x"}}, "underscores, got 'a/b'"),
    (ControlConfig, {"pose_engine": "openpose"}, "pose_engine must be one of embedded, mmpose"),
    (ControlConfig, {"weights": {"a/b": "x"}}, "underscores, got 'a/b'"),
    (ControlConfig, {"resolution": 32}, "resolution must be at least 64, got 32"),
    (ControlConfig, {"min_confidence": 1.5}, r"min_confidence must be in \[0, 1\], got 1.5"),
    (ControlConfig, {"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
    (ControlConfig, {"max_gap_frames": -1}, "max_gap_frames must not be negative: -1"),
    (ControlConfig, {"align": "yes"}, "align must be one of auto, always, never; got 'yes'"),
    (ControlConfig, {"canny_low": 300.0}, "0 <= low <= high, got 300.0 and 200.0"),
    (Profile, {"name": "p", "weights": SEEDED, "precision": "float8"}, "precision must be one of"),
]


@pytest.mark.parametrize(("kind", "values", "phrase"), BAD)
def test_bad_value_is_refused_in_words(kind: type, values: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        kind(**values)


@pytest.mark.parametrize("config", [PROFILE, REQUEST, SamplingConfig(), ScheduleConfig(), SEEDED])
def test_configs_are_frozen_and_travel_between_processes(config: Any) -> None:
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, "other")
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert hash(copy) == hash(config)


def test_guidance_is_off_at_or_below_one() -> None:
    assert not GuidanceConfig(scale=1.0).active
    assert GuidanceConfig(scale=1.01, scale_end=0.0).active


def test_media_lists_only_what_is_given() -> None:
    assert REQUEST.media == {"reference_image": "file:///r.png"}


def test_to_plain_is_nested_plain_values() -> None:
    plain = to_plain(PROFILE)
    assert plain["sampling"]["windows"]["overlap"] == 4
    assert plain["weights"]["random_seed"] == 0


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
