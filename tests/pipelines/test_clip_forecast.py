"""What a video is said to cost, against a video that is really rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from musev.conditions import ClipMedia
from musev.config import (
    ClipRequest,
    EncoderConfig,
    FirstFrameConfig,
    GuidanceConfig,
    SamplingConfig,
    WeightsConfig,
    WindowConfig,
    to_plain,
)
from musev.denoise.simulate import PoolModel, simulate
from musev.errors import ConfigError
from musev.media import write_segment
from musev.models.bundle import ModelBundle, load_bundle
from musev.models.cost import CostModel
from musev.render import render_clip
from pipelines.clip_forecast import (
    BYTES_PER_PIXEL,
    Speed,
    describe_bytes,
    describe_flops,
    forecast_clip,
    measure_bytes_per_pixel,
    measure_speed,
    model_clip,
    speed_of_task,
)

WEIGHTS = WeightsConfig(random_seed=1)
PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return CostModel(WEIGHTS)


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return load_bundle(WEIGHTS)


def request(
    num_frames: int = 20,
    *,
    steps: int = 2,
    guidance: float = 1.0,
    origin: Any = "noise",
    sampling: dict[str, Any] | None = None,
    windows: dict[str, Any] | None = None,
    **columns: Any,
) -> ClipRequest:
    return ClipRequest(
        request_id="a",
        num_frames=num_frames,
        fps=4.0,
        width=64,
        height=64,
        seed=0,
        profile="tiny",
        sampling=SamplingConfig(
            num_steps=steps,
            guidance=GuidanceConfig(scale=guidance),
            windows=WindowConfig(**windows or {}),
            first_frame=FirstFrameConfig(origin=origin, num_steps=3),
            **sampling or {},
        ),
        **columns,
    )


def count_really(bundle: ModelBundle, asked: ClipRequest, video: Path | None, target: Path) -> int:
    # The CPU's fused attention is not in torch's own table.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def count(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    media = ClipMedia(
        condition_image=PICTURE if asked.condition_image else None,
        reference_image=PICTURE if asked.reference_image else None,
        video=video,
    )
    with FlopCounterMode(display=False, custom_mapping={attention: count}) as counter:
        render_clip(bundle, asked, media, encoder=EncoderConfig(), target=target)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "asked",
    [
        request(condition_image="x", guidance=3.0),
        request(origin="drawn", reference_image="y"),
        request(windows={"layout": "upstream"}),  # a short window at the end
        request(30, windows={"layout": "rotating", "settle_steps": 1}),
        request(9, condition_image="x"),  # one window
        request(1, origin="drawn"),  # nothing but the first frame
        request(14, video="v", video_is_control=True, control=("openpose",)),
    ],
    ids=["picture", "drawn", "tail", "rotating", "one window", "one frame", "control"],
)
def test_flops_are_those_of_a_real_render(
    cost: CostModel, bundle: ModelBundle, asked: ClipRequest, tmp_path: Path
) -> None:
    video = None
    if asked.video:
        video = tmp_path / "control.mp4"
        write_segment(video, np.stack([PICTURE] * 14), fps=4.0, encoder=EncoderConfig())
    real = count_really(bundle, asked, video, tmp_path / "a.mp4")
    assert forecast_clip(asked, cost, num_workers=1).flops == pytest.approx(real, rel=1e-9)


def test_maps_that_are_found_cost_the_network_that_reads_them(cost: CostModel) -> None:
    given = request(14, video="v", video_is_control=True, control=("openpose",))
    found = request(14, video="v", control=("dwpose_body_hand",))
    assert forecast_clip(found, cost, num_workers=1) == forecast_clip(given, cost, num_workers=1)


def test_counts_of_a_long_clip(cost: CostModel) -> None:
    """60 frames are 7 windows of 12; at 64x64 a frame's latents are 4 x 8 x 8 values."""
    clip = forecast_clip(request(60, steps=5, guidance=2.0), cost, num_workers=3)
    assert (clip.windows, clip.steps, clip.tasks, clip.calls) == (7, 5, 35, 35)
    assert clip.generated_frames == 60
    assert clip.denoise_flops == pytest.approx(35 * clip.window_flops)
    sent, answered, decoded = 35 * 12, 2 * 35 * 12, 60  # frames; guidance answers twice
    assert clip.latents_moved_bytes == 4 * 256 * (sent + answered + decoded)
    assert clip.conditions_moved_bytes == 3 * clip.conditions_bytes > 0
    assert clip.video_bytes == pytest.approx(60 * 64 * 64 * BYTES_PER_PIXEL, abs=1)
    more = forecast_clip(request(60, steps=5, guidance=2.0), cost, num_workers=100)
    assert more.conditions_moved_bytes == 7 * clip.conditions_bytes
    assert clip.memory_bytes > clip.weights_bytes > 1e6


def test_a_clip_that_starts_from_a_video_costs_the_steps_that_run(cost: CostModel) -> None:
    asked = request(60, steps=10)
    sampling = dataclasses.replace(asked.sampling, strength=0.5)
    late = dataclasses.replace(asked, video="v", start_from_video=True, sampling=sampling)
    half, whole = (forecast_clip(each, cost, num_workers=3) for each in (late, asked))
    assert (half.steps, half.tasks) == (5, whole.tasks // 2)
    assert half.denoise_flops == pytest.approx(whole.denoise_flops / 2)


def test_a_clip_of_one_window_is_one_task_that_moves_only_its_video(cost: CostModel) -> None:
    clip = forecast_clip(request(12, steps=5), cost, num_workers=8)
    assert (clip.windows, clip.tasks, clip.calls) == (1, 1, 5)
    assert clip.moved_bytes == clip.video_bytes
    model = model_clip(request(12, steps=5), clip, Speed(1e9, 1e9, "given"), segment_frames=4)
    assert simulate([model], PoolModel(num_workers=8)).total_s == pytest.approx(clip.flops / 1e9)
    assert model.plan.task(0, 0).frames == tuple(range(12))  # what a picture of it shows


@pytest.mark.parametrize(
    ("num_frames", "layout", "origin"),
    [
        (12, "upstream", "noise"),  # two windows in this layout
        (13, "musev", "noise"),
        (13, "musev", "drawn"),
        (14, "musev", "drawn"),
    ],
)
def test_a_clip_goes_over_the_pool_exactly_where_the_run_says_so(
    cost: CostModel, num_frames: int, layout: str, origin: str
) -> None:
    asked = request(num_frames, origin=origin, windows={"layout": layout})
    assert (forecast_clip(asked, cost, num_workers=4).tasks > 1) == asked.spreads


def test_half_precision_halves_what_is_sent_both_ways_and_the_networks(cost: CostModel) -> None:
    full = forecast_clip(request(60), cost, num_workers=1)
    half = forecast_clip(request(60), CostModel(WEIGHTS, "float16"), num_workers=1)
    num_values = full.calls * 12 * 256
    assert full.latents_moved_bytes - half.latents_moved_bytes == 2 * 2 * num_values
    assert half.weights_bytes < full.weights_bytes
    assert half.peak_bytes < full.peak_bytes
    assert half.flops == full.flops


def test_the_model_has_all_the_work_and_the_noises_barriers(cost: CostModel) -> None:
    asked = request(60, steps=4)
    clip = forecast_clip(asked, cost, num_workers=4)
    speed = Speed(1e9, 2e9, "given")
    model = model_clip(asked, clip, speed, segment_frames=16)
    work_s = (clip.condition_flops + clip.denoise_flops) / 1e9 + clip.decode_flops / 2e9
    assert model.work_s == pytest.approx(work_s)
    assert not any(map(model.waits_for_all, range(4)))
    theirs = request(
        60, steps=4, sampling={"noise": "upstream_random", "solver": "euler_ancestral"}
    )
    assert any(map(model_clip(theirs, clip, speed, segment_frames=16).waits_for_all, range(4)))


def record(asked: ClipRequest, **stages: float) -> dict[str, Any]:
    pixels = asked.width * asked.height * asked.num_frames
    return {
        "request": to_plain(asked),
        "stage_seconds": stages,
        "bytes": pixels // 4,
        "width": asked.width,
        "height": asked.height,
        "num_frames": asked.num_frames,
    }


def test_speed_is_learnt_from_seconds_of_workers(cost: CostModel) -> None:
    find: Callable[[str], CostModel] = {"tiny": cost}.__getitem__
    asked = [request(60), request(12, condition_image="x")]
    clips = [forecast_clip(item, cost, num_workers=1) for item in asked]
    records = [
        record(asked[0], load=9.0, condition=1.0, denoise=7.0, decode=2.0, commit=9.0),
        record(asked[1], denoise=2.0, decode=2.0),
        record(asked[1]),  # adopted: nobody knows how long it took
    ]
    speed = measure_speed(records, find, "out/old")
    flops = sum(clip.condition_flops + clip.denoise_flops for clip in clips)
    assert speed.flops_per_s == pytest.approx(flops / 10)
    assert speed.decode_flops_per_s == pytest.approx(sum(c.decode_flops for c in clips) / 4)
    assert speed.source == "measured over 2 videos of out/old"
    assert measure_bytes_per_pixel(records) == pytest.approx(0.25)
    assert measure_bytes_per_pixel([]) == BYTES_PER_PIXEL
    with pytest.raises(ConfigError, match="out/empty holds no committed video"):
        measure_speed([record(asked[1])], find, "out/empty")


def test_seconds_of_a_task_are_those_of_the_costliest_window(cost: CostModel) -> None:
    clips = [
        forecast_clip(item, cost, num_workers=1)
        for item in (request(60), request(60, guidance=3.0), request(1, origin="drawn"))
    ]
    speed = speed_of_task(0.5, clips)
    assert speed is not None
    assert speed.flops_per_s == pytest.approx(clips[1].window_flops / 0.5)
    assert speed_of_task(0.5, clips[2:]) is None


def test_two_requests_of_one_shape_cost_the_same_whatever_their_words(cost: CostModel) -> None:
    one = forecast_clip(request(30), cost, num_workers=2)
    other = dataclasses.replace(request(30), prompt="something else", seed=9)
    assert forecast_clip(other, cost, num_workers=2) == one


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (describe_flops(41.4e12), "41.4 TFLOP"),
        (describe_flops(999.6e12), "1000 TFLOP"),
        (describe_flops(2e18), "2 EFLOP"),
        (describe_flops(1e6), "0.001 GFLOP"),
        (describe_bytes(393_216), "393 KB"),
        (describe_bytes(5.51e9), "5.51 GB"),
        (describe_bytes(0), "0 KB"),
    ],
)
def test_numbers_for_people(text: str, wanted: str) -> None:
    assert text == wanted
