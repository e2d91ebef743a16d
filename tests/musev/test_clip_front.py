"""A request's wavefront without networks: lazy starts, snapshots, nothing to do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from musev.clip_front import ClipFacts, count_generated, open_front, start_latents
from musev.config import ClipRequest, SamplingConfig, ScheduleConfig, WindowConfig
from musev.denoise.solvers import make_solver
from musev.denoise.sources import make_noise_source
from musev.denoise.wavefront import Wavefront
from musev.errors import RequestError

GIVEN = torch.arange(24.0).reshape(1, 4, 1, 2, 3) / 24
FACTS = ClipFacts(schedule=ScheduleConfig(), latent_height=2, latent_width=3, given_BCTHW=GIVEN)
SAMPLING = SamplingConfig(
    num_steps=3, img_weight=0.2, windows=WindowConfig(num_frames=4, overlap=1)
)
CLIP = ClipRequest(
    request_id="r", num_frames=12, fps=8, width=24, height=16, seed=3, profile="t",
    sampling=SAMPLING,
)  # fmt: skip


def run(front: Wavefront, num_answers: int | None = None) -> Wavefront:
    while num_answers != 0 and (work := front.take_next()) is not None:
        estimate = work.noisy_BCFHW * 0.1 + work.timestep / 1e4
        front.answer(work.task, torch.cat([estimate, estimate * 1.1]))
        num_answers = None if num_answers is None else num_answers - 1
    return front


@pytest.mark.parametrize("noise", ["counter", "upstream_random", "upstream_video_fusion"])
def test_frames_start_where_the_whole_clip_would(noise: str) -> None:
    sampling = dataclasses.replace(SAMPLING, noise=noise)  # type: ignore[arg-type]
    front = open_front(dataclasses.replace(CLIP, sampling=sampling), FACTS)
    solver = make_solver(sampling, FACTS.schedule)
    source = make_noise_source(sampling, CLIP.seed, first_frame=1)
    whole = start_latents(source, (1, 4, 11, 2, 3), GIVEN, solver, sampling)
    assert front.num_frames == 11
    assert torch.equal(front.latents(0, 11), whole)
    assert not torch.equal(whole[:, :, 0], whole[:, :, 1])


def test_a_longer_clip_begins_like_a_shorter_one() -> None:
    longer = open_front(dataclasses.replace(CLIP, num_frames=40), FACTS)
    assert torch.equal(longer.latents(0, 11), open_front(CLIP, FACTS).latents(0, 11))


def test_it_goes_on_from_a_snapshot_to_the_same_bits() -> None:
    wanted = run(open_front(CLIP, FACTS)).release(0, 11)
    half = run(open_front(CLIP, FACTS), num_answers=5)
    assert not half.finished
    resumed = open_front(CLIP, FACTS, snapshot=half.snapshot(), ahead=6)
    assert torch.equal(run(resumed).release(0, 11), wanted)


def test_nothing_to_generate_is_refused_unless_the_picture_was_drawn() -> None:
    still = dataclasses.replace(CLIP, num_frames=1)
    with pytest.raises(RequestError, match="2 frames or more"):
        open_front(still, FACTS)
    assert count_generated(still, dataclasses.replace(FACTS, first_frame_drawn=True)) == 0
    assert count_generated(still, dataclasses.replace(FACTS, given_BCTHW=None)) == 1
