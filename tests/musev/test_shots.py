"""Shots, redrawn pictures and videos to start from, on the small seeded networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from musev.clip_front import open_front
from musev.conditions import ClipMedia, encode_conditions
from musev.config import ClipRequest, FirstFrameConfig, SamplingConfig, ShotConfig, WindowConfig
from musev.errors import RequestError
from musev.models.bundle import ModelBundle
from musev.models.tiny import make_tiny_bundle
from musev.render import denoise_request, facts_of
from musev.shots import Shot, denoise_shots, plan_shots

SIZE = 64


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    """The small seeded bundle, loaded once for the file."""
    torch.set_num_threads(1)
    return make_tiny_bundle(0)


def picture(seed: int, count: int = 1) -> np.ndarray:
    """Seeded pictures."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def sampling(**changes: object) -> SamplingConfig:
    """Two steps, short windows."""
    base = SamplingConfig(
        num_steps=2,
        windows=WindowConfig(num_frames=4, overlap=1),
        first_frame=FirstFrameConfig(num_steps=2),
    )
    return dataclasses.replace(base, **changes)  # pyright: ignore[reportArgumentType]


def request(**changes: object) -> ClipRequest:
    """A short clip."""
    values: dict[str, object] = {
        "request_id": "r",
        "prompt": "a",
        "num_frames": 9,
        "fps": 8.0,
        "width": SIZE,
        "height": SIZE,
        "seed": 3,
        "profile": "p",
        "sampling": sampling(),
    }
    return ClipRequest(**(values | changes))  # pyright: ignore[reportArgumentType]


def latents_of(
    bundle: ModelBundle, wanted: ClipRequest, media: ClipMedia, **more: object
) -> torch.Tensor:
    """Latents of a clip, in shots or not."""
    with torch.inference_mode():
        if wanted.sampling.shots.num_frames is not None:
            return denoise_shots(bundle, wanted, media, **more)  # pyright: ignore[reportArgumentType]
        conditions = encode_conditions(bundle, wanted, media, **more)  # pyright: ignore[reportArgumentType]
        return denoise_request(bundle, wanted, conditions)


@pytest.mark.parametrize(
    ("num_frames", "num_given", "drawn", "video", "expected"),
    [
        (9, 1, True, None, [(1, 4), (4, 8), (8, 9)]),
        (9, 1, False, None, [(1, 5), (5, 9)]),
        (9, 1, False, "v", [(1, 4), (4, 8), (8, 9)]),
        (8, 0, False, None, [(0, 4), (4, 8)]),
        (3, 1, True, None, [(1, 3)]),
        (1, 1, True, None, []),
    ],
)
def test_a_video_is_cut_into_shots(
    num_frames: int, num_given: int, drawn: bool, video: str | None, expected: list[tuple[int, int]]
) -> None:
    """A drawn frame belongs to the first shot; given ones stand in front of it."""
    wanted = request(
        num_frames=num_frames, video=video, sampling=sampling(shots=ShotConfig(num_frames=4))
    )
    shots = plan_shots(wanted, num_given, drawn=drawn)
    assert shots == tuple(Shot(n, *ends) for n, ends in enumerate(expected))
    led = dataclasses.replace(wanted, video=None, keypoints=video)
    assert plan_shots(led, num_given, drawn=drawn) == shots, "keypoints stand in place of a video"


def test_nothing_left_to_generate_is_refused() -> None:
    """A given picture alone is no video."""
    with pytest.raises(RequestError, match="2 frames or more"):
        plan_shots(request(num_frames=1), 1, drawn=False)


def test_one_shot_is_the_clip_itself(bundle: ModelBundle) -> None:
    """A shot as long as the clip denoises to the same bits."""
    media = ClipMedia(condition_image=picture(1))
    whole = latents_of(bundle, request(), media)
    one = request(sampling=sampling(shots=ShotConfig(num_frames=20)))
    assert torch.equal(latents_of(bundle, one, media), whole)


def test_a_shot_goes_on_from_the_end_of_the_one_before(bundle: ModelBundle) -> None:
    """The carried frame decides the next shot; with a fixed condition the first one does."""
    media = ClipMedia(condition_image=picture(1), reference_image=picture(2))
    moving = request(sampling=sampling(shots=ShotConfig(num_frames=4)))
    fixed = request(sampling=sampling(shots=ShotConfig(num_frames=4, fixed_condition=True)))
    referring = request(sampling=sampling(shots=ShotConfig(num_frames=4, fixed_reference=False)))
    first, second, third = (
        latents_of(bundle, wanted, media) for wanted in (moving, fixed, referring)
    )
    assert first.shape == (1, 4, 9, 8, 8)
    assert torch.equal(first[:, :, :5], second[:, :, :5])
    assert torch.equal(first[:, :, :5], third[:, :, :5])
    assert not torch.equal(first[:, :, 5:], second[:, :, 5:])
    assert not torch.equal(first[:, :, 5:], third[:, :, 5:])


def test_shots_with_two_carried_frames_and_two_references(bundle: ModelBundle) -> None:
    """The original crashes here: its ReferenceNet takes one picture (ALGORITHM.md 17, number 5)."""
    how = ShotConfig(num_frames=3, carried_frames=2, fixed_reference=False)
    media = ClipMedia(condition_image=picture(1, 2), reference_image=picture(2))
    found = latents_of(bundle, request(sampling=sampling(shots=how)), media)
    assert found.shape == (1, 4, 9, 8, 8)
    assert torch.isfinite(found).all()


def test_strength_decides_how_much_of_a_video_is_made_anew(bundle: ModelBundle) -> None:
    """Fewer steps from nearer to the video; no effect where the original's habit is kept."""
    frames = picture(5, 9)

    def start(**changes: object) -> tuple[int, float]:
        wanted = request(start_from_video=True, sampling=sampling(num_steps=4, **changes))
        with torch.inference_mode():
            conditions = encode_conditions(
                bundle, wanted, ClipMedia(condition_image=picture(1)), source=frames.__getitem__
            )
        front = open_front(wanted, facts_of(bundle, wanted, conditions))
        assert conditions.source_BCTHW is not None
        away = front.latents(0, 8) - conditions.source_BCTHW
        return front.num_steps, float(away.abs().mean())

    (few, near), (all_steps, far) = start(strength=0.25), start(strength=1.0)
    assert (few, all_steps) == (1, 4)
    assert near < 0.1 < far
    assert start(strength=0.25, strength_counts=False) == (4, far)


def test_redrawing_starts_from_the_picture(bundle: ModelBundle) -> None:
    """With little strength the redrawn picture is nearer to the given one than with all."""
    media = ClipMedia(condition_image=picture(1))
    with torch.inference_mode():
        plain = encode_conditions(bundle, request(), media).frames_BCTHW
        assert plain is not None
        far = []
        for strength in (0.25, 1.0):
            first = FirstFrameConfig(num_steps=4, strength=strength)
            wanted = request(redraw=True, sampling=sampling(first_frame=first))
            redrawn = encode_conditions(bundle, wanted, media).frames_BCTHW
            assert redrawn is not None
            far.append(float((redrawn - plain).abs().mean()))
    assert 0 < far[0] < far[1]
    with pytest.raises(RequestError, match="no condition_image"):
        latents_of(bundle, request(redraw=True), ClipMedia())


def test_a_frame_given_at_the_end_stays_there(bundle: ModelBundle) -> None:
    """First and last frame given: they stand where they were put, and both are seen."""
    media = ClipMedia(condition_image=picture(1, 2))
    wanted = request(condition_image=("a", "b"), condition_index=(0, -1))
    found = latents_of(bundle, wanted, media)
    with torch.inference_mode():
        given = encode_conditions(bundle, wanted, media).frames_BCTHW
    assert given is not None
    assert found.shape[2] == 9
    assert torch.equal(found[:, :, 0], given[:, :, 0])
    assert torch.equal(found[:, :, -1], given[:, :, 1])
    other = ClipMedia(condition_image=np.concatenate([picture(1), picture(9)]))
    assert not torch.equal(latents_of(bundle, wanted, other)[:, :, 1:8], found[:, :, 1:8])


def test_shots_and_places_exclude_each_other(bundle: ModelBundle) -> None:
    """A shot goes on from its first frames."""
    how = sampling(shots=ShotConfig(num_frames=4))
    wanted = request(condition_image=("a", "b"), condition_index=(0, -1), sampling=how)
    with pytest.raises(RequestError, match="do not go together"):
        latents_of(bundle, wanted, ClipMedia(condition_image=picture(1, 2)))
