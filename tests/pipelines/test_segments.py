"""Segments: what is missing, what waits, what is stored."""

from __future__ import annotations

import numpy as np

from musev.clip_front import open_front
from pipelines.segments import Segments
from tests.pipelines.conducting import PROFILE, long_request
from tests.pipelines.stand_ins import ColourEngine


def test_segments_know_what_is_missing() -> None:
    clip = long_request(num_frames=17)
    _, facts = ColourEngine(PROFILE).condition(clip, {"condition_image": np.ones((2, 2, 3))})
    segments = Segments(17, 8, facts)
    assert [segments.generated(number) for number in range(3)] == [(-1, 7), (7, 15), (15, 16)]
    segments.start(open_front(clip, facts))
    assert segments.take_next() is None
    segments.complete(range(8))
    assert segments.take_next() == 0
    assert segments.take_next() is None
    segments.complete(range(8, 16))
    assert [segments.take_next(), segments.take_next()] == [1, 2]
    segments.give_back(1)
    assert segments.num_waiting == 1
    assert segments.store(1)
    assert segments.num_waiting == 0, "the first answer wins"
    assert not segments.store(1)
    assert [segments.store(0), segments.store(2), segments.finished] == [True, True, True]
    only_given = Segments(2, 1, facts)
    assert only_given.take_next() == 0, "a segment of given frames alone needs no window"


def test_a_segment_that_is_late_and_then_lost_waits_once() -> None:
    clip = long_request(num_frames=17)
    _, facts = ColourEngine(PROFILE).condition(clip, {"condition_image": np.ones((2, 2, 3))})
    segments = Segments(17, 8, facts)
    segments.start(open_front(clip, facts))
    segments.complete(range(16))
    assert segments.take_next() == 0
    segments.give_back(0)  # late
    segments.give_back(0)  # and then its worker was lost
    assert [segments.take_next() for _ in range(4)] == [0, 1, 2, None]
