"""Colours matched to a target: against scikit-image, which the original calls."""

from __future__ import annotations

import numpy as np
import pytest

from musev.errors import ShapeError
from musev.media.colors import match_histograms


def picture(seed: int, low: int, high: int, size: int = 24) -> np.ndarray:
    """A seeded picture with levels of a range."""
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (size, size, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("ours", "target"), [((0, 256), (0, 256)), ((10, 60), (100, 200)), ((0, 256), (7, 8))]
)
def test_as_scikit_image_does(ours: tuple[int, int], target: tuple[int, int]) -> None:
    """Wide, narrow and flat distributions, frame by frame."""
    exposure = pytest.importorskip("skimage.exposure")
    frames = np.stack([picture(1, *ours), picture(2, *ours)])
    wanted = picture(3, *target, size=16)
    theirs = [exposure.match_histograms(frame, wanted, channel_axis=-1) for frame in frames]
    assert np.array_equal(match_histograms(frames, wanted), np.stack(theirs))


def test_a_picture_matched_to_itself_stays() -> None:
    """Ranks of a picture lead to its own levels."""
    frame = picture(4, 0, 256)
    assert np.array_equal(match_histograms(frame[None], frame)[0], frame)


def test_what_cannot_be_matched_is_refused() -> None:
    """Other types and channels."""
    frame = picture(5, 0, 256)
    with pytest.raises(ShapeError, match="uint8"):
        match_histograms(frame[None].astype(np.float32), frame)
    with pytest.raises(ShapeError, match="channels"):
        match_histograms(frame[None], frame[..., :1])
