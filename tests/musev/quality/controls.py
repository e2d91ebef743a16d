"""Controls: real drawn clips, and every way in which the tests spoil them."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from musev.synthetic.clips import Clip, draw_clip

SEED = 4711
"""Not a seed that the judges' networks were fitted on (docs/judges.md)."""


@functools.cache
def drawn(index: int, num_frames: int = 24, seed: int = SEED) -> Clip:
    """A held-out clip."""
    return draw_clip(seed, index, held_out=True, num_frames=num_frames)


def frames(index: int, num_frames: int = 24) -> np.ndarray:
    """Frames of a held-out clip; not to be changed in place."""
    return drawn(index, num_frames).frames_TYXC


def clip_of(action: str, num_frames: int = 24, *, framing: str | None = None) -> Clip:
    """The first held-out clip in which this is done."""
    for index in range(400):
        attributes = drawn(index, 1).attributes
        if attributes.action == action and framing in (None, attributes.framing):
            return drawn(index, num_frames)
    raise AssertionError(f"no clip of {action}")


def shuffled(frames_TYXC: np.ndarray) -> np.ndarray:
    return frames_TYXC[np.random.default_rng(0).permutation(len(frames_TYXC))]


def flickering(frames_TYXC: np.ndarray, grey: int = 12) -> np.ndarray:
    """Every other frame is lighter."""
    light_T = grey * (np.arange(len(frames_TYXC)) % 2)
    return _clip(frames_TYXC + light_T[:, None, None, None])


def grainy(frames_TYXC: np.ndarray, grey: float = 4) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, grey, frames_TYXC.shape)
    return _clip(frames_TYXC + noise)


def tinted(frames_TYXC: np.ndarray, grey: float) -> np.ndarray:
    """Redder and less blue from frame to frame, by so much at the end."""
    share_T = np.linspace(0, 1, len(frames_TYXC))
    return _clip(frames_TYXC + grey * share_T[:, None, None, None] * np.array([1, 0, -1]))


def blurred(frames_TYXC: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames_TYXC])


def panned(frames_TYXC: np.ndarray, pixels: int = 3) -> np.ndarray:
    """As filmed by a camera that turns."""
    return np.stack([np.roll(frame, pixels * t, axis=1) for t, frame in enumerate(frames_TYXC)])


def stamped(frames_TYXC: np.ndarray, opacity: float = 0.7) -> np.ndarray:
    """With a word across the lower part."""
    stamp_YX = np.zeros(frames_TYXC.shape[1:3], np.uint8)
    cv2.putText(stamp_YX, "STOCK", (55, 118), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2)
    weight_YX1 = (stamp_YX / 255 * opacity)[..., None]
    return _clip(frames_TYXC * (1 - weight_YX1) + 255 * weight_YX1)


def stepped(frames_TYXC: np.ndarray, borders: tuple[int, ...], grey: float) -> np.ndarray:
    """With another cast of colour, and another sharpness, from each border on."""
    parts = np.split(frames_TYXC.astype(np.float64), borders)
    cast = np.array([1.0, -0.5, 0.5])
    return _clip(np.concatenate([part + (n % 2) * grey * cast for n, part in enumerate(parts)]))


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
