"""How frames follow each other: drawn clips pass, spoiled ones are caught."""

from __future__ import annotations

import numpy as np
import pytest

from musev.quality.temporal import (
    background_flicker,
    black_share,
    camera_motion,
    disorder,
    flicker,
    frozen_share,
    loop_distance,
    motion,
    num_cuts,
)
from tests.musev.quality.controls import (
    clip_of,
    flickering,
    frames,
    grainy,
    panned,
    shuffled,
)

SOME = range(12)


def test_flicker_is_vbenchs_formula() -> None:
    """Two frames that differ by 51 everywhere: (255 - 51) / 255."""
    pair_TYXC = np.stack([np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 151, np.uint8)])
    assert flicker(pair_TYXC).value == pytest.approx(0.8)
    noisy = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    differences = np.abs(np.diff(noisy.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert flicker(noisy).value == pytest.approx((255 - differences.mean()) / 255)


def test_flicker_and_shimmer_are_seen_over_honest_motion() -> None:
    for index in SOME:
        clip = frames(index)
        assert flicker(flickering(clip)).value < flicker(clip).value - 0.02
        assert background_flicker(clip).value < 0.2
        assert background_flicker(flickering(clip)).value > 8
        assert 2.5 < background_flicker(grainy(clip, 4)).value < 5.5


def test_frozen_frames_are_counted() -> None:
    moving = clip_of("dancing").frames_TYXC
    assert frozen_share(moving).value == 0
    half = np.concatenate([moving[:12], np.repeat(moving[11:12], 12, axis=0)])
    assert frozen_share(half).value == pytest.approx(12 / 23)
    still = np.repeat(moving[:1], 24, axis=0)
    assert frozen_share(still).value == 1
    assert motion(still).value < 1e-3


def test_order_is_told_from_disorder() -> None:
    """Drawn motion is smooth: the picture changes more over two frames than over one."""
    ordered = np.array([disorder(frames(index)).value for index in range(16)])
    mixed = np.array([disorder(shuffled(frames(index))).value for index in range(16)])
    moving = ~np.isnan(ordered)
    assert moving.sum() >= 12
    assert np.all(ordered[moving] < 0.8)
    assert np.all(mixed[moving] > ordered[moving] + 0.1)
    assert np.median(mixed[moving]) > 0.9
    assert not disorder(np.repeat(frames(0)[:1], 8, axis=0)).known


def test_a_played_loop_is_told_from_rhythm() -> None:
    for index in SOME:
        once = frames(index)
        assert not loop_distance(once).value < 0.25
    short = clip_of("walking").frames_TYXC[:6]
    assert loop_distance(np.concatenate([short] * 4)).value < 0.05


def test_cuts_are_counted() -> None:
    assert [num_cuts(frames(index)).value for index in SOME] == [0] * len(SOME)
    other = next(
        index for index in SOME if np.abs(frames(index)[0].astype(float) - frames(0)[0]).mean() > 60
    )
    cut_in = np.concatenate([frames(0)[:8], frames(other)[:8], frames(0)[8:16]])
    assert num_cuts(cut_in).value == 2
    assert num_cuts(flickering(frames(0), 18)).value == 0


def test_black_frames_are_counted_and_night_is_not() -> None:
    assert [black_share(frames(index)).value for index in SOME] == [0] * len(SOME)
    clip = frames(0).copy()
    clip[:6] = clip[:6] // 40
    assert black_share(clip).value == 0.25


def test_a_camera_that_moves_is_told_from_people_who_do() -> None:
    for action in ("walking", "dancing", "jumping"):
        clip = clip_of(action, framing="full").frames_TYXC
        assert motion(clip).value > 0.004
        still, moved = camera_motion(clip), camera_motion(panned(clip))
        assert not still.known or still.value < 0.003
        assert moved.value == pytest.approx(3 / 128, rel=0.25)


def test_one_frame_gets_reasons_instead_of_numbers() -> None:
    one = frames(0)[:1]
    for judge in (flicker, frozen_share, num_cuts, motion, camera_motion, disorder, loop_distance):
        assert not judge(one).known
        assert judge(one).reason
