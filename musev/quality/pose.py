"""Where joints and parts of drawn people are, and whether they are where they should be.

Axes here: T frame, J joint (OpenPose body 18), P part, Y X pixel rows and columns, C channel, H W
cells. Joints are (x, y) in pixels, the centre of the first pixel at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from musev.errors import ShapeError
from musev.quality.networks import CELL_PX, PARTS, SIDE_PX, load_people_net
from musev.quality.score import Score, unknown

SEEN = 0.5
_BATCH = 24
_AROUND = 2

# Lengths as shares of the body's height, from musev.synthetic.people.draw_body_lengths.
_BONES = ((1, 8, 11, 0.275), (9, 10, 10, 0.2), (12, 13, 13, 0.2), (8, 9, 9, 0.205))


@dataclass(frozen=True)
class People:
    """What was found in the frames of a clip, one person a frame."""

    points_TJ2: np.ndarray
    """float32 pixels of the frames given."""
    seen_TJ: np.ndarray
    """0 to 1: whether each joint is in the picture and turned to the camera."""
    parts_TPYX: np.ndarray
    """float16 0 to 1: how sure each pixel belongs to each of ``networks.PARTS``."""


def find_people(frames_TYXC: np.ndarray) -> People:
    """Find joints and parts of the drawn person in every frame.

    The network was fitted on drawn people only (:mod:`musev.quality.fitting`); in other pictures it
    finds nonsense, and ``seen_TJ`` is low where it noticed.

    Args:
        frames_TYXC: uint8 RGB of any size; brought to 128 pixels, the longer side whole.

    Returns:
        Joints, how sure they are seen, and part maps of the frames' size.
    """
    num_frames, height, width = frames_TYXC.shape[:3]
    scale = SIDE_PX / max(height, width)
    points, seen = [], []
    parts_TPYX = np.empty((num_frames, len(PARTS), height, width), np.float16)
    for first in range(0, num_frames, _BATCH):
        batch = np.stack([_fit(frame, scale) for frame in frames_TYXC[first : first + _BATCH]])
        pictures = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        joints_BJHW, part_logits, seen_logits = load_people_net()(pictures)
        points.append(_peaks(joints_BJHW.numpy()))
        seen.append(torch.sigmoid(seen_logits).numpy())
        for t, cells_PHW in enumerate(torch.softmax(part_logits, dim=1).numpy(), start=first):
            parts_TPYX[t] = _unfit(cells_PHW, scale, height, width)
    return People(
        points_TJ2=(np.concatenate(points) + 0.5) / scale - 0.5,
        seen_TJ=np.concatenate(seen),
        parts_TPYX=parts_TPYX,
    )


def pck(
    found: People, points_TJ2: np.ndarray, visible_TJ: np.ndarray, *, threshold: float = 0.1
) -> Score:
    """Share of visible joints found within a tenth of the body's height, 0 to 1.

    Joints that should be in the picture count whether or not the finder is sure of them: a video
    without a person gets a low score, not an excuse.

    Args:
        found: What was found in the frames.
        points_TJ2: Where the joints should be, pixels of the same frames.
        visible_TJ: Which joints should be seen.
        threshold: Greatest distance, as a share of the body's height.

    Returns:
        The share, over all frames and joints together.

    Raises:
        ShapeError: If there are not as many frames.
    """
    if found.points_TJ2.shape != points_TJ2.shape:
        raise ShapeError(f"found {found.points_TJ2.shape} joints, expected {points_TJ2.shape}")
    if not visible_TJ.any():
        return unknown("no joint should be visible")
    distance_TJ = np.linalg.norm(found.points_TJ2 - points_TJ2, axis=-1)
    near = distance_TJ <= threshold * body_height_px(points_TJ2)
    return Score(float(near[visible_TJ].mean()))


def body_height_px(points_TJ2: np.ndarray) -> float:
    """A standing person's height in pixels, from bones seen in their full length at some time.

    Args:
        points_TJ2: Joints over time, those outside the picture too.

    Returns:
        The greatest of the heights that spine, thigh and shins imply.
    """
    heights = []
    for start, end, other_end, share in _BONES:
        middle = (points_TJ2[:, end] + points_TJ2[:, other_end]) / 2
        length_T = np.linalg.norm(middle - points_TJ2[:, start], axis=-1)
        heights.append(float(np.percentile(length_T, 90)) / share)
    return max(heights)


def _fit(frame_YXC: np.ndarray, scale: float) -> np.ndarray:
    if scale != 1.0:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frame_YXC = cv2.resize(frame_YXC, None, fx=scale, fy=scale, interpolation=how)
    below, right = (SIDE_PX - size for size in frame_YXC.shape[:2])
    if below == right == 0:
        return frame_YXC
    return cv2.copyMakeBorder(frame_YXC, 0, below, 0, right, cv2.BORDER_REPLICATE)


def _unfit(cells_PHW: np.ndarray, scale: float, height: int, width: int) -> np.ndarray:
    side = SIDE_PX / scale
    size = (round(side), round(side))
    whole = [cv2.resize(cells, size, interpolation=cv2.INTER_LINEAR) for cells in cells_PHW]
    return np.stack(whole)[:, :height, :width]


def _peaks(maps_BJHW: np.ndarray) -> np.ndarray:
    """The best cell of each map, refined by the mean of the cells around it; network pixels."""
    batch, joints, rows, columns = maps_BJHW.shape
    best = maps_BJHW.reshape(batch, joints, -1).argmax(axis=-1)
    offsets = np.arange(-_AROUND, _AROUND + 1)
    y = (best // columns)[..., None] + offsets
    x = (best % columns)[..., None] + offsets
    inside = ((y >= 0) & (y < rows))[..., :, None] & ((x >= 0) & (x < columns))[..., None, :]
    b, j = np.ogrid[:batch, :joints]
    near = maps_BJHW[
        b[..., None, None],
        j[..., None, None],
        y.clip(0, rows - 1)[..., :, None],
        x.clip(0, columns - 1)[..., None, :],
    ]
    near = np.where(inside, near, -np.inf)
    weights = np.exp(near - near.max(axis=(-2, -1), keepdims=True))
    weights /= weights.sum(axis=(-2, -1), keepdims=True)
    points = np.stack(
        [(weights * x[..., None, :]).sum((-2, -1)), (weights * y[..., :, None]).sum((-2, -1))],
        axis=-1,
    )
    return ((points + 0.5) * CELL_PX - 0.5).astype(np.float32)


def part_of(found: People, name: str) -> np.ndarray:
    """How sure each pixel belongs to a part, ``(T, Y, X)``."""
    return found.parts_TPYX[:, PARTS.index(name)]


def surely_part(found: People, name: str, *, above: float) -> np.ndarray:
    """Which pixels belong to a part for certain.

    Args:
        found: What was found in the frames.
        name: Of ``networks.PARTS``.
        above: How sure is sure, 0 to 1.

    Returns:
        ``sure_TYX``: bool, the caller's own.
    """
    return part_of(found, name) > above
