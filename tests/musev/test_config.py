"""Settings refuse bad values in words, cannot be changed, and travel between processes."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from musev.config import (
    ClipRequest,
    ControlConfig,
    EncoderConfig,
    FirstFrameConfig,
    GuidanceConfig,
    Profile,
    SamplingConfig,
    ScheduleConfig,
    ShotConfig,
    WeightsConfig,
    WindowConfig,
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
    (
        GuidanceConfig,
        {"unconditional": "none"},
        "unconditional must be one of with_reference, bare",
    ),
    (
        SamplingConfig,
        {"prompt_from_image": True, "guidance": GuidanceConfig(unconditional="bare")},
        "take unconditional=with_reference",
    ),
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


def test_several_pictures_of_a_column_have_names_of_their_own() -> None:
    """One picture is the same request however it is written; JSON knows lists only."""
    several = dataclasses.replace(REQUEST, reference_image=["a", "b"])  # type: ignore[arg-type]
    assert several.media == {"reference_image": "a", "reference_image.1": "b"}
    assert several.reference_image == ("a", "b")
    assert dataclasses.replace(REQUEST, reference_image=("file:///r.png",)) == REQUEST
    assert dataclasses.replace(several, condition_image=("c", "d")).num_given == 2


def test_to_plain_is_nested_plain_values() -> None:
    plain = to_plain(PROFILE)
    assert plain["sampling"]["windows"]["overlap"] == 4
    assert plain["weights"]["random_seed"] == 0


def clip(num_frames: int, **changes: Any) -> ClipRequest:
    """A request without pictures."""
    sampling = changes.pop("sampling", SamplingConfig())
    return dataclasses.replace(
        REQUEST, reference_image=None, num_frames=num_frames, sampling=sampling, **changes
    )


BY_LENGTH = SamplingConfig(
    windows=WindowConfig(num_frames=12),
    first_frame=FirstFrameConfig(origin="by_length", guidance=GuidanceConfig(scale=3.0)),
    guidance=GuidanceConfig(scale=1.0),
)


@pytest.mark.parametrize("num_frames", [2, 12, 13])
def test_a_short_clip_of_text_alone_is_generated_together(num_frames: int) -> None:
    """In one window, with the guidance that its first frame would have had."""
    short = clip(num_frames, sampling=BY_LENGTH)
    assert short.sampling.first_frame.origin == "noise"
    assert short.num_given == 0
    assert short.sampling.windows.num_frames == max(12, num_frames)
    assert not short.spreads
    assert short.sampling.guidance.scale == 3.0
    guided = dataclasses.replace(BY_LENGTH, guidance=GuidanceConfig(scale=1.5))
    assert clip(num_frames, sampling=guided).sampling.guidance.scale == 1.5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 14},
        {"num_frames": 1},
        {"condition_image": "a.png"},
        {"reference_image": "a.png"},
        {"ip_adapter_image": "a.png"},
        {"face_image": "a.png"},
        {"face_embedding": (0.5,)},
        {"control": ("openpose",), "video": "a.mp4"},
        {"sampling": dataclasses.replace(BY_LENGTH, shots=ShotConfig(num_frames=6))},
        {
            "sampling": dataclasses.replace(
                BY_LENGTH,
                first_frame=dataclasses.replace(BY_LENGTH.first_frame, negative_prompt="blur"),
            )
        },
    ],
)
def test_the_first_frame_of_every_other_clip_is_drawn(changes: dict[str, Any]) -> None:
    """A long video needs a picture that all its windows go on from."""
    changes = {"sampling": BY_LENGTH} | changes
    request = dataclasses.replace(clip(13), **changes)
    asked = changes["sampling"]
    drawn = dataclasses.replace(asked.first_frame, origin="drawn")
    assert request.sampling == dataclasses.replace(asked, first_frame=drawn)


def test_a_clip_spreads_when_it_has_two_windows() -> None:
    """A first frame, drawn or given, is none of a window's."""
    noise = SamplingConfig(first_frame=FirstFrameConfig(origin="noise"))
    assert [clip(n).spreads for n in (13, 14)] == [False, True]
    assert [clip(n, sampling=noise).spreads for n in (12, 13)] == [False, True]
    shown = {"condition_image": "face.png", "sampling": noise}
    assert [clip(n, **shown).spreads for n in (13, 14)] == [False, True]
    assert [clip(n, condition_image=("a", "b")).spreads for n in (14, 15)] == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": SamplingConfig(shots=ShotConfig(num_frames=12))},
        {"sampling": SamplingConfig(histogram_match=True)},
        {"condition_image": ("a", "b"), "condition_index": (0, -1)},
    ],
)
def test_a_clip_whose_parts_wait_for_all_of_it_stays_whole(changes: dict[str, Any]) -> None:
    assert not clip(100, **changes).spreads


def test_a_clip_that_starts_from_a_video_runs_the_last_steps() -> None:
    """As many as its strength says, at least one; all where strengths are kept dead."""
    start = {"start_from_video": True, "video": "v"}
    for strength, steps in ((1.0, 10), (0.55, 5), (0.01, 1)):
        assert clip(9, sampling=SamplingConfig(strength=strength), **start).num_steps == steps
        assert clip(9, sampling=SamplingConfig(strength=strength)).num_steps == 10
    dead = SamplingConfig(strength=0.5, strength_counts=False)
    assert clip(9, sampling=dead, **start).num_steps == 10
