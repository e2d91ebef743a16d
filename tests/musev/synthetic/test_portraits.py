"""Portraits: the same person every time, different people for different seeds, a face in each."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from musev.synthetic.portraits import choose_person, draw_portrait

DIGEST = (
    "import hashlib; from musev.synthetic.portraits import draw_portrait;"
    "print(hashlib.sha256(draw_portrait(3, width=64, height=64).tobytes()).hexdigest())"
)


def test_the_same_seed_gives_the_same_pixels_in_another_process() -> None:
    runs = {
        subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_different_seeds_give_different_people() -> None:
    portraits = [draw_portrait(seed, width=48, height=48).astype(int) for seed in range(6)]
    for one in range(6):
        for other in range(one):
            assert np.abs(portraits[one] - portraits[other]).mean() > 5


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (64, 112)])
def test_size_type_and_body_down_to_the_lower_edge(width: int, height: int) -> None:
    image = draw_portrait(1, width=width, height=height)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    clothes = np.array(choose_person(1).clothes)
    assert np.abs(image[-1, width // 2].astype(int) - clothes).max() < 40


@pytest.mark.parametrize("seed", range(6))
def test_the_face_has_skin_eyes_and_a_mouth(seed: int) -> None:
    person = choose_person(seed)
    image = draw_portrait(seed, width=256, height=256).astype(int)
    cheek = image[int(0.50 * 256), int((0.5 + 0.3 * person.head_width) * 256)]
    assert np.abs(cheek - np.array(person.skin)).max() < 45
    eyes = image[int(0.41 * 256) : int(0.445 * 256), int(0.39 * 256) : int(0.61 * 256)]
    assert eyes.sum(axis=-1).min() < 130  # pupils
    assert eyes.min(axis=-1).max() > 225  # the white of the eyes, or the light in them
    mouth = image[int(0.54 * 256) : int(0.57 * 256), 128]
    redness = mouth[:, 0] - mouth[:, 1:].mean(axis=-1)
    skin = np.array(person.skin)
    assert redness.max() > skin[0] - skin[1:].mean()


def test_small_portraits_are_large_ones_scaled_down() -> None:
    small = draw_portrait(2, width=64, height=64).astype(int)
    large = draw_portrait(2, width=256, height=256).astype(int)
    scaled = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - scaled).mean() < 2


def test_choices_vary() -> None:
    people = [choose_person(seed) for seed in range(60)]
    assert len({person.hair_style for person in people}) == 8
    assert len({person.collar for person in people}) == 4
    assert len({person.skin for person in people}) == 7
    assert 0 < sum(person.glasses for person in people) < 40
    assert all(not (person.beard and person.lashes) for person in people)
