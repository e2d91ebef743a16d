"""Overlays: words over what moves, and words that clips share."""

from __future__ import annotations

import numpy as np

from musev.quality.overlay import shared_overlay, static_overlay
from tests.musev.quality.controls import drawn, frames, panned, stamped


def test_drawn_clips_carry_no_overlay() -> None:
    scores = [static_overlay(frames(index)) for index in range(24)]
    assert max(score.value for score in scores if score.known) < 1


def test_a_word_over_a_picture_that_moves_is_often_seen() -> None:
    """Never where it lies on plain ground, as on snow: there nothing passes."""
    clean = [static_overlay(panned(frames(index))).value for index in range(16)]
    spoiled = [static_overlay(stamped(panned(frames(index)))).value for index in range(16)]
    assert max(clean) < 1
    assert np.mean(np.array(spoiled) > 1) >= 0.4
    assert max(spoiled) > 5


def test_what_clips_share_is_seen_even_where_nothing_moves() -> None:
    for num_clips in (16, 32):
        pictures = np.stack([drawn(index, 1).frames_TYXC[0] for index in range(num_clips)])
        assert shared_overlay(pictures).value < 12
        assert shared_overlay(stamped(pictures, 0.3)).value > 40


def test_reasons() -> None:
    clip = frames(0)
    assert "at least 6" in static_overlay(clip[:5]).reason
    assert "nothing passes" in static_overlay(np.repeat(clip[:1], 8, axis=0)).reason
    assert "at least 12" in shared_overlay(clip[:5]).reason
