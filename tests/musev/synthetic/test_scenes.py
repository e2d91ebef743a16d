"""Scenes are told apart by their colours, and fit any picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from musev.synthetic.people import FRAMINGS, SCENES, RandomStream
from musev.synthetic.scenes import draw_neutral, draw_scene


def scene_of(scene: str, seed: int, framing: str = "full", size: int = 64) -> np.ndarray:
    return draw_scene(scene, framing, RandomStream(seed), height=size, width=size)[0]


def signature(image: np.ndarray) -> np.ndarray:
    """Mean colour of five horizontal bands."""
    return np.concatenate([band.mean(axis=(0, 1)) for band in np.array_split(image, 5)])


def test_the_nearest_signature_names_the_scene() -> None:
    """A classifier of fifteen numbers from other seeds gets every scene right, in any framing."""
    known = {
        (scene, framing): np.mean(
            [signature(scene_of(scene, s, framing)) for s in range(8)], axis=0
        )
        for scene in SCENES
        for framing in FRAMINGS
    }
    for (scene, framing), seed in itertools.product(known, range(20, 30)):
        seen = signature(scene_of(scene, seed, framing))
        assert min(known, key=lambda key: np.linalg.norm(known[key] - seen))[0] == scene


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_vary_with_the_stream_and_repeat_with_it(scene: str) -> None:
    assert (scene_of(scene, 1) == scene_of(scene, 1)).all()
    assert (scene_of(scene, 1) != scene_of(scene, 2)).any()


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("height", "width"), [(96, 160), (200, 72), (33, 33)])
def test_scenes_fill_any_picture(scene: str, height: int, width: int) -> None:
    image, shadow = draw_scene(scene, "half", RandomStream(4), height=height, width=width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.reshape(-1, 3).any(axis=-1).all()  # nothing left unpainted
    assert len(shadow) == 3


def test_the_reference_backdrop_is_grey() -> None:
    image = draw_neutral(height=48, width=32).astype(int)
    assert image.shape == (48, 32, 3)
    assert np.ptp(image, axis=-1).max() < 8
