"""Drawn people are read back where they were drawn, also after resizing, hands and compression."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musev.control.align import align_people, plan_alignment
from musev.control.drawing import draw_skeletons
from musev.control.person import NUM_BODY, Person
from musev.control.pose_colors import read_pose_colors
from musev.control.pose_drawing import draw_people
from musev.media import read_video
from tests.goldens import GOLDENS

MEDIA = GOLDENS.parent / "media"

# Fractions of the picture: somebody who stands with the arms away from the body.
STANDING = np.array(
    [
        *[(0.50, 0.14), (0.50, 0.25), (0.38, 0.26), (0.28, 0.40), (0.20, 0.52), (0.62, 0.26)],
        *[(0.72, 0.40), (0.80, 0.52), (0.43, 0.55), (0.41, 0.74), (0.40, 0.92), (0.57, 0.55)],
        *[(0.59, 0.74), (0.60, 0.92), (0.45, 0.11), (0.55, 0.11), (0.39, 0.13), (0.61, 0.13)],
    ]
)


def standing(scale: float = 1.0, left: float = 0.0, top: float = 0.0, seed: int = 0) -> Person:
    jitter = np.random.default_rng(seed).normal(0, 0.012, STANDING.shape)
    body = np.ones((NUM_BODY, 3))
    body[:, :2] = (STANDING + jitter) * scale + (left, top)
    hands = {}
    for side, wrist in (("left_hand_K3", 7), ("right_hand_K3", 4)):
        offsets = np.random.default_rng(wrist).uniform(-0.04, 0.04, (21, 2)) * scale
        offsets[0] = 0
        hands[side] = np.column_stack([body[wrist, :2] + offsets, np.ones(21)])
    return Person.of(body, **hands)


def distance_px(one: Person, other: Person, height: int, width: int) -> np.ndarray:
    both = (one.body_K3[:, 2] > 0) & (other.body_K3[:, 2] > 0)
    return np.linalg.norm(
        (one.body_K3[both, :2] - other.body_K3[both, :2]) * (width, height), axis=1
    )


@pytest.mark.parametrize(("height", "width"), [(512, 512), (768, 448), (320, 576)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_joint_is_read_where_it_was_drawn(height: int, width: int, seed: int) -> None:
    person = standing(seed=seed)
    drawn = draw_people([person], height=height, width=width, parts=("body",))
    (found,) = read_pose_colors(drawn)
    assert (found.body_K3[:, 2] == 1).all()
    # Drawing cuts fractions of a pixel off, so half a pixel each way is expected.
    assert distance_px(found, person, height, width).max() < 1.6


def test_two_people_are_kept_apart() -> None:
    people = [standing(0.5, 0.0, 0.2, seed=1), standing(0.55, 0.42, 0.1, seed=2)]
    drawn = draw_people(people, height=768, width=768, parts=("body",))
    found = sorted(read_pose_colors(drawn), key=lambda person: float(person.body_K3[1, 0]))
    assert len(found) == 2
    for one, other in zip(found, people, strict=True):
        assert (one.body_K3[:, 2] > 0).all()
        assert distance_px(one, other, 768, 768).max() < 1.6


def test_hands_in_the_same_hues_make_no_second_person_and_move_no_joint() -> None:
    person = standing()
    drawn = draw_people([person], height=512, width=512, parts=("body", "hands"))
    (found,) = read_pose_colors(drawn)
    seen = found.body_K3[:, 2] > 0
    assert seen.sum() >= 16
    assert seen[[9, 12]].all(), "a knee has the hue of the hands' points"
    assert np.median(distance_px(found, person, 512, 512)) < 1.0
    away = np.linalg.norm((found.body_K3 - person.body_K3)[:, :2] * 512, axis=1)
    wrists = [4, 7]  # under the hands
    assert away[seen & ~np.isin(np.arange(NUM_BODY), wrists)].max() < 2
    assert away[wrists][seen[wrists]].max(initial=0) < 0.04 * 512


def test_a_missing_limb_is_not_invented() -> None:
    person = standing()
    body = person.body_K3.copy()
    body[[6, 7, 12]] = 0
    drawn = draw_people([Person.of(body)], height=512, width=512, parts=("body",))
    (found,) = read_pose_colors(drawn)
    assert np.flatnonzero(found.body_K3[:, 2] == 0).tolist() == [6, 7, 12]
    assert found.body_K3[13, 2] == 0.5, "a disc that no limb leads to"


def test_small_smooth_drawings_are_read() -> None:
    person = standing()
    points = person.body_K3[None, :, :2] * 256
    drawn = draw_skeletons(points, np.ones((1, NUM_BODY), bool), height=256, width=256)
    (found,) = read_pose_colors(drawn[0])
    assert (found.body_K3[:, 2] > 0).sum() >= 16
    assert distance_px(found, person, 256, 256).max() < 2


@pytest.mark.parametrize("kind", ["black", "photo"])
def test_what_is_no_pose_map_holds_nobody(kind: str) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (24, 24, 3), np.uint8)
    photo = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
    assert read_pose_colors(photo if kind == "photo" else np.zeros_like(photo)) == ()


@pytest.mark.parametrize("name", ["pose-for-Duffy-4", "video1_girl_poseseq"])
def test_a_real_pose_video_agrees_with_posealigns_geometry(name: str) -> None:
    """Read, moved onto another figure, drawn, read again: the joints are where posealign put them.

    The frames are compressed video with small discs and hands over them, and not our drawings.
    """
    path = MEDIA / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"no reference media at {MEDIA}")
    frames = []
    for number, frame in enumerate(read_video(path)):
        if number % 8 == 0:
            frames.append(np.asarray(frame))
        if len(frames) == 4:
            break
    height, width = frames[0].shape[:2]
    people = [read_pose_colors(frame) for frame in frames]
    assert [len(found) for found in people] == [1] * len(frames)
    assert min((found[0].body_K3[:, 2] > 0).sum() for found in people) >= 16

    reference = standing()
    plan = plan_alignment(
        reference, people[0][0], reference_aspect=0.75, video_aspect=width / height
    )
    errors = []
    for found in people:
        (aligned,) = align_people(found, plan)
        drawn = draw_people([aligned], height=1024, width=768, parts=("body",))
        (read,) = read_pose_colors(drawn)
        errors.append(distance_px(read, aligned, 1024, 768))
    assert min(len(error) for error in errors) >= 16
    assert np.concatenate(errors).mean() < 1.5
    # In the chosen frame every limb has the portrait's length, seen in the drawing itself.
    (aligned,) = align_people(people[0], plan)
    (read,) = read_pose_colors(draw_people([aligned], height=1024, width=768, parts=("body",)))
    for start, end in ((0, 1), (2, 5), (16, 17)):
        lengths = [
            np.linalg.norm((person.body_K3[start, :2] - person.body_K3[end, :2]) * (768, 1024))
            for person in (read, reference)
        ]
        assert lengths[0] == pytest.approx(lengths[1], abs=3)
