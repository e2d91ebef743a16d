"""Posealign equals the recorded one where that is right, and mends or refuses where it is not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from musev.control.align import (
    PART_NAMES,
    Alignment,
    align_people,
    needs_alignment,
    plan_alignment,
    pose_distance,
)
from musev.control.person import Person
from musev.errors import RequestError
from tests.goldens import GOLDENS, load_tensors, require_goldens

FOLDER = GOLDENS / "pipeline" / "functions" / "posealign"
FLOAT32 = 2e-6  # people are float32, the recorded numbers float64


class Golden:
    """One recorded case, its keypoints as people."""

    def __init__(self, name: str) -> None:
        require_goldens()
        self.facts: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.tensors = {
            key: tensor.numpy()
            for key, tensor in load_tensors(FOLDER / f"{name}.safetensors").items()
        }

    def people(self, prefix: str) -> list[Person]:
        """Everybody in one recorded picture; a point at exactly -1 is missing."""
        tensors = self.tensors
        hands = tensors[f"{prefix}.hands"]
        count = len(hands) // 2
        bodies = tensors[f"{prefix}.candidate"].reshape(count, 18, 2)

        def sure(points_K2: np.ndarray) -> np.ndarray:
            seen = ~(points_K2 == -1).any(axis=1)
            return np.column_stack([points_K2, seen])

        return [
            Person.of(
                sure(bodies[n]),
                left_hand_K3=sure(hands[n]),
                right_hand_K3=sure(hands[count + n]),
                face_K3=sure(tensors[f"{prefix}.faces"][n]),
            )
            for n in range(count)
        ]

    def aspect(self, which: str) -> float:
        height, width = self.facts[f"{which}_hw"]
        return width / height

    def plan(self) -> Alignment:
        return plan_alignment(
            self.people("ref")[0],
            self.people(f"in{self.facts['align_frame']}")[0],
            reference_aspect=self.aspect("ref"),
            video_aspect=self.aspect("video"),
        )

    def scale(self, name: str) -> float:
        return self.facts["scales"][f"scale_{name}"]

    def frames(self) -> list[tuple[int, int]]:
        """Pairs of (frame of the video, frame of the result)."""
        first = self.facts["align_frame"]
        return [(first + n, n) for n in range(self.facts["n_out"])]


def assert_points_equal(found: Person, golden: Golden, prefix: str, joints: list[int]) -> None:
    expected = golden.tensors[f"{prefix}.candidate"][:18]
    there = found.body_K3[joints, 2] > 0
    np.testing.assert_allclose(
        found.body_K3[joints, :2][there], expected[joints][there], atol=FLOAT32
    )


ALL = list(range(18))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["plain", "skip", "nan_face", "two_persons"])
def test_scales_equal_the_pipelines(name: str) -> None:
    golden = Golden(name)
    plan = golden.plan()
    assert set(plan.scales) == set(PART_NAMES)
    for part in PART_NAMES:
        if (name, part) != ("two_persons", "hand"):  # there it takes both people's left hands
            assert plan.scales[part] == pytest.approx(golden.scale(part), rel=2e-6), part


@pytest.mark.parity
@pytest.mark.parametrize("name", ["plain", "skip", "nan_face"])
def test_bodies_and_hands_equal_the_pipelines(name: str) -> None:
    golden = Golden(name)
    plan = golden.plan()
    for source, result in golden.frames():
        (found,) = align_people(tuple(golden.people(f"in{source}")), plan)
        assert_points_equal(found, golden, f"final{result}", ALL)
        hands = golden.tensors[f"final{result}.hands"]
        for side, expected in (("left_hand", hands[0]), ("right_hand", hands[1])):
            points = found.part(side)
            there = points[:, 2] > 0
            assert there.any()
            np.testing.assert_allclose(points[there, :2], expected[there], atol=FLOAT32)


@pytest.mark.parity
def test_the_first_of_two_people_equals_the_original_and_the_second_follows() -> None:
    golden = Golden("two_persons")
    plan = golden.plan()
    for source, result in golden.frames():
        people = tuple(golden.people(f"in{source}"))
        first, second = align_people(people, plan)
        assert_points_equal(first, golden, f"final{result}", ALL)
        # The original leaves the second person's limbs as they were.
        assert segment(second, 2, 3, golden.aspect("ref")) == pytest.approx(
            plan.scales["arm_upper"] * segment(people[1], 2, 3, golden.aspect("video")), rel=1e-4
        )
        apart = (second.body_K3[1, :2] - first.body_K3[1, :2]) * (golden.aspect("ref"), 1)
        was = (people[1].body_K3[1, :2] - people[0].body_K3[1, :2]) * (golden.aspect("video"), 1)
        np.testing.assert_allclose(apart, plan.mean_scale * was, atol=1e-5)


def segment(person: Person, start: int, end: int, aspect: float) -> float:
    ends = person.body_K3[[start, end], :2] * (aspect, 1.0)
    return float(np.linalg.norm(ends[0] - ends[1]))


@pytest.mark.parity
def test_an_infinite_scale_becomes_the_mean_of_the_others() -> None:
    golden = Golden("zero_limb_inf")
    plan = golden.plan()
    assert golden.scale("neck") == np.inf
    others = [golden.scale(part) for part in PART_NAMES if part != "neck"]
    assert plan.scales["neck"] == pytest.approx(np.mean(others), rel=1e-5)
    assert "neck" not in plan.measured
    for source, result in golden.frames():
        (found,) = align_people(tuple(golden.people(f"in{source}")), plan)
        assert np.isfinite(found.body_K3).all()
        limbs = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
        assert_points_equal(found, golden, f"final{result}", limbs)


@pytest.mark.parity
def test_missing_hand_points_are_neither_measured_nor_moved_into_the_picture() -> None:
    golden = Golden("missing")
    plan = golden.plan()
    for part in set(PART_NAMES) - {"hand"}:
        assert plan.scales[part] == pytest.approx(golden.scale(part), rel=2e-6), part
    # The original measures the -1 of missing points as if they were places.
    assert plan.scales["hand"] != pytest.approx(golden.scale("hand"), rel=0.01)
    num_missing = 0
    for source, result in golden.frames():
        (before,) = golden.people(f"in{source}")
        (after,) = align_people((before,), plan)
        assert_points_equal(after, golden, f"final{result}", ALL)
        for side in ("left_hand", "right_hand"):
            missing = before.part(side)[:, 2] == 0
            num_missing += missing.sum()
            assert not after.part(side)[missing].any()
            wrist = before.part(side)[0, 2] > 0
            assert not wrist or np.ptp(after.part(side)[~missing, :2], axis=0).max() < 0.5
    assert num_missing > 0


# Without goldens


def figure(scale: float = 1.0, left: float = 0.5, **limbs: float) -> Person:
    """Somebody standing, in a square picture; a keyword lengthens the part of that name."""
    neck = np.array([left, 0.3])
    body = np.ones((18, 3))

    def put(joint: int, parent: int | None, x: float, y: float, part: str = "") -> None:
        base = neck if parent is None else body[parent, :2]
        body[joint, :2] = base + scale * limbs.get(part, 1.0) * np.array([x, y])

    put(1, None, 0, 0)
    put(0, 1, 0.0, -0.08, "neck")
    for joint, x, y in ((14, -0.02, -0.02), (15, 0.02, -0.02), (16, -0.04, 0), (17, 0.04, 0)):
        put(joint, 0, x, y, "face")
    for side, shoulder, hip in ((-1, 2, 8), (1, 5, 11)):
        put(shoulder, 1, 0.08 * side, 0.01, "shoulder")
        put(shoulder + 1, shoulder, 0.05 * side, 0.12, "arm_upper")
        put(shoulder + 2, shoulder + 1, 0.02 * side, 0.12, "arm_lower")
        put(hip, 1, 0.05 * side, 0.25, "body_len")
        put(hip + 1, hip, 0.01 * side, 0.18, "leg_upper")
        put(hip + 2, hip + 1, 0.0, 0.18, "leg_lower")
    face = np.ones((68, 3))
    face[:, :2] = body[0, :2] + scale * 0.03 * np.random.default_rng(0).normal(size=(68, 2))
    return Person.of(body, face_K3=face)


def plan_square(reference: Person, first: Person) -> Alignment:
    return plan_alignment(reference, first, reference_aspect=1.0, video_aspect=1.0)


def test_the_chosen_frame_becomes_the_portraits_pose() -> None:
    reference, first = figure(1.3, left=0.4, arm_lower=1.2, leg_upper=0.8), figure(0.7, left=0.6)
    plan = plan_square(reference, first)
    (found,) = align_people((first,), plan)
    np.testing.assert_allclose(found.body_K3, reference.body_K3, atol=1e-5)
    assert pose_distance(reference, found, reference_aspect=1.0) < 1e-5
    assert plan.score == pytest.approx(1 / 1.25, rel=0.03)


def test_a_face_turns_with_its_head() -> None:
    reference, first = figure(1.5, left=0.3), figure(1.0)
    (found,) = align_people((first,), plan_square(reference, first))
    np.testing.assert_allclose(found.face_K3, reference.face_K3, atol=1e-5)


def test_the_wider_picture_changes_nothing_but_x() -> None:
    first = figure(0.7, left=0.6)
    wide = Person.of(first.body_K3 * (0.5, 1, 1))  # the same figure in a picture twice as wide
    (square,) = align_people((first,), plan_square(figure(), first))
    plan = plan_alignment(figure(), wide, reference_aspect=1.0, video_aspect=2.0)
    (found,) = align_people((wide,), plan)
    np.testing.assert_allclose(found.body_K3, square.body_K3, atol=1e-5)


def without(person: Person, *joints: int) -> Person:
    body = person.body_K3.copy()
    body[list(joints)] = 0
    return Person.of(body, face_K3=person.face_K3)


def test_a_missing_elbow_does_not_throw_the_wrist_away() -> None:
    first = figure()
    plan = plan_square(figure(1.5), first)
    (found,) = align_people((without(first, 3, 1),), plan)
    (whole,) = align_people((first,), plan)
    assert found.body_K3[3].tolist() == [0, 0, 0]
    assert found.body_K3[1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.body_K3[4, :2], whole.body_K3[4, :2], atol=0.02)


def test_somebody_without_a_neck_is_enlarged_as_a_whole() -> None:
    first = figure()
    plan = plan_square(figure(1.5), first)
    (found,) = align_people((without(first, 1, 2, 5),), plan)
    (whole,) = align_people((first,), plan)
    np.testing.assert_allclose(found.body_K3[[0, 3, 10]], whole.body_K3[[0, 3, 10]], atol=0.02)


def test_nobody_stays_nobody() -> None:
    assert align_people((), plan_square(figure(), figure())) == ()


@pytest.mark.parametrize(
    ("reference", "first", "phrase"),
    [
        (without(figure(), 1, 2), figure(), "portrait shows neither a neck nor both shoulders"),
        (figure(), without(figure(), 1, 5), "driving video shows neither a neck"),
        (figure(), without(figure(), *range(2, 18)), r"only 1 parts .* \(neck\)"),
        (
            figure(arm_lower=6, leg_upper=6),
            figure(neck=6),
            "deformed: neck, arm_lower, leg_upper differ more than 4-fold",
        ),
    ],
)
def test_what_would_be_deformed_is_refused(reference: Person, first: Person, phrase: str) -> None:
    with pytest.raises(RequestError, match=phrase):
        plan_square(reference, first)


def test_a_limb_that_points_at_the_camera_is_not_measured() -> None:
    first = figure()
    body = first.body_K3.copy()
    body[3, :2] = body[2, :2] + (0.001, 0.002)  # the right upper arm, seen from its end
    pointing = Person.of(body, face_K3=first.face_K3)
    plan = plan_square(figure(1.5, arm_upper=0.8), pointing)
    assert plan.scales["arm_upper"] == pytest.approx(1.2), "measured on the other arm"
    body[6, :2] = body[5, :2] + (0.001, 0.002)
    plan = plan_square(figure(1.5, arm_upper=0.8), Person.of(body, face_K3=first.face_K3))
    assert "arm_upper" not in plan.measured
    assert 1.0 < plan.scales["arm_upper"] < 1.6
    (found,) = align_people((first,), plan)
    assert segment(found, 2, 3, 1.0) < 2 * segment(first, 2, 3, 1.0)


def test_only_poses_that_differ_need_alignment() -> None:
    assert not needs_alignment(figure(), figure(), reference_aspect=1.0)
    assert not needs_alignment(figure(), figure(left=0.51), reference_aspect=1.0)
    assert needs_alignment(figure(), figure(left=0.6), reference_aspect=1.0)
    assert needs_alignment(figure(), figure(1.4), reference_aspect=1.0)
    assert needs_alignment(figure(), Person.of(), reference_aspect=1.0)
