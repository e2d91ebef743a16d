"""One of several people is followed; gaps are filled and motion smoothed by known amounts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from musev.control.person import FramePoses, Person
from musev.control.tracking import (
    MAX_LOST_FRAMES,
    fill_gaps,
    follow_person,
    report_poses,
    smooth_motion,
    steady_people,
)

SHAPE = np.random.default_rng(3).uniform(-0.1, 0.1, (18, 2)) * (0.5, 2)


def person_at(x: float, *, sure: float = 0.9, size: float = 1.0, y: float = 0.5) -> Person:
    body = np.column_stack([SHAPE * size + (x, y), np.full(18, sure)])
    return Person.of(body, face_K3=np.column_stack([np.full((68, 2), x), np.full(68, sure)]))


def nose(person: Person) -> float:
    return float(person.body_K3[0, 0] - SHAPE[0, 0])


def shuffled(people: list[Person], seed: int) -> FramePoses:
    order = np.random.default_rng(seed).permutation(len(people))
    return tuple(people[n] for n in order)


def test_the_most_visible_person_is_followed_whatever_the_order() -> None:
    frames = [shuffled([person_at(0.3 + 0.01 * t), person_at(0.7, size=0.5)], t) for t in range(20)]
    for t, people in enumerate(follow_person(frames)):
        assert len(people) == 2
        assert nose(people[0]) == pytest.approx(0.3 + 0.01 * t, abs=1e-6)


def test_people_who_cross_keep_their_names() -> None:
    going = [0.2 + 0.02 * t for t in range(30)]
    coming = [0.8 - 0.02 * t for t in range(30)]
    frames = [
        shuffled([person_at(a, size=1.02), person_at(b)], t)
        for t, (a, b) in enumerate(zip(going, coming, strict=True))
    ]
    followed = [nose(people[0]) for people in follow_person(frames)]
    sizes = [float(np.ptp(people[0].body_K3[:, 1])) for people in follow_person(frames)]
    assert sizes == pytest.approx([sizes[0]] * 30, abs=1e-6)
    assert followed[-1] > 0.7


def test_somebody_else_does_not_step_in_for_a_lost_person() -> None:
    other = person_at(0.9, size=0.6)
    frames = [(person_at(0.2), other)] * 5 + [(other,)] * 5 + [(other, person_at(0.22))] * 3
    followed = list(follow_person(frames))
    for people in followed[5:10]:
        assert not people[0].body_K3.any()
        assert len(people) == 2
    assert [nose(people[0]) for people in followed[10:]] == pytest.approx([0.22] * 3, abs=1e-6)


def test_after_long_somebody_else_is_followed() -> None:
    frames = [(person_at(0.1),)] * 3 + [()] * (MAX_LOST_FRAMES + 1) + [(person_at(0.9),)] * 2
    followed = list(follow_person(frames))
    assert len(followed) == len(frames)
    assert followed[3 : 4 + MAX_LOST_FRAMES] == [()] * (MAX_LOST_FRAMES + 1)
    assert nose(followed[-1][0]) == pytest.approx(0.9, abs=1e-6)


def test_short_gaps_are_filled_on_a_line_and_long_ones_stay() -> None:
    frames: list[FramePoses] = [(person_at(0.1 * t, sure=0.9 - 0.1 * (t == 4)),) for t in range(5)]
    frames[1] = frames[2] = frames[3] = ()
    assert [len(people) for people in fill_gaps(frames, 2)] == [1, 0, 0, 0, 1]
    filled = list(fill_gaps(frames, 3))
    assert [nose(people[0]) for people in filled] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4], abs=1e-6
    )
    assert [float(people[0].body_K3[5, 2]) for people in filled] == pytest.approx(
        [0.9, 0.8, 0.8, 0.8, 0.8]
    )
    assert filled[2][0].face_K3[7, 0] == pytest.approx(0.2)


def test_one_joint_is_filled_while_the_others_stay_as_they_are() -> None:
    frames = []
    for t in range(6):
        person = person_at(0.1 * t * t)
        body = person.body_K3.copy()
        if t in (2, 3):
            body[4, 2] = 0.1  # not sure enough counts as missing
        frames.append((Person.of(body),))
    filled = list(fill_gaps(frames, 2))
    expected = [0.1, 0.1 + (1.6 - 0.1) / 3, 0.1 + 2 * (1.6 - 0.1) / 3, 1.6]
    found = [float(people[0].body_K3[4, 0]) - SHAPE[4, 0] for people in filled[1:5]]
    assert found == pytest.approx(expected, abs=1e-5)
    for before, after in zip(frames, filled, strict=True):
        np.testing.assert_array_equal(before[0].body_K3[:4], after[0].body_K3[:4])


def test_gaps_at_either_end_of_the_video_stay() -> None:
    frames: list[FramePoses] = [(), (), (person_at(0.5),), (), ()]
    assert [len(people) for people in fill_gaps(frames, 3)] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_no_frame_is_lost_or_added(length: int) -> None:
    frames = [(person_at(0.1 * t), person_at(0.9)) for t in range(length)]
    assert len(list(steady_people(frames, max_gap_frames=4, smoothing=0.5))) == length


def test_without_settings_nothing_but_the_order_changes() -> None:
    frames = [(person_at(0.8, size=0.3), person_at(0.1 + 0.01 * t)) for t in range(4)]
    for before, after in zip(frames, steady_people(frames), strict=True):
        assert after[0] is before[1]
        assert after[1] is before[0]


def test_smoothing_keeps_a_share_and_starts_afresh_after_a_gap() -> None:
    places = [0.0, 1.0, 1.0, None, 0.0]
    frames = [() if place is None else (person_at(place),) for place in places]
    smooth = list(smooth_motion(frames, 0.25))
    found = [nose(people[0]) if people else None for people in smooth]
    assert found[3] is None
    assert found[:3] == pytest.approx([0.0, 0.75, 0.9375], abs=1e-6)
    assert found[4] == pytest.approx(0.0, abs=1e-6)


def test_smoothing_lowers_jitter_and_the_report_measures_it() -> None:
    rng = np.random.default_rng(0)
    steady = [(person_at(0.2 + 0.01 * t),) for t in range(40)]
    shaky = [(person_at(0.2 + 0.01 * t + rng.normal(0, 0.01)),) for t in range(40)]
    assert report_poses(steady).jitter == pytest.approx(0.0, abs=1e-5)
    rough = report_poses(shaky).jitter
    assert rough > 0.02
    assert report_poses(smooth_motion(shaky, 0.6)).jitter < 0.5 * rough


def test_the_report_names_absences_and_lost_limbs() -> None:
    whole = person_at(0.5)
    body = whole.body_K3.copy()
    body[4] = 0
    armless = Person.of(body)
    frames: list[FramePoses] = [
        (whole, whole),
        (armless,),
        (),
        (),
        (whole,),
        (armless,),
        (whole,),
        (),
    ]
    report = report_poses(frames).as_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["num_frames"] == 8
    assert report["num_frames_without_person"] == 3
    assert report["frames_without_person"] == [[2, 3], [7, 7]]
    assert report["most_people"] == 2
    assert report["limb_losses"] == {"right_elbow-right_wrist": 2}
    assert report["limb_frames"]["right_elbow-right_wrist"] == 3
    assert report["limb_frames"]["left_elbow-left_wrist"] == 5
