"""Poses as control maps: a pose engine finds people, and the parts that a name says are drawn.

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import cv2
import numpy as np

from musev.config import ControlConfig
from musev.control.drawing import LIMB_HALF_WIDTH_PX, limb_half_width
from musev.control.person import FramePoses
from musev.control.pose_drawing import draw_people
from musev.control.weights_files import SHARED, digest_file, fetch_files, package_version
from musev.errors import WeightsError

if TYPE_CHECKING:
    from musev.control.pose_engine import PoseEngine


class PoseDetector:
    """Finds people in frames and draws the chosen parts of them."""

    def __init__(
        self, engine: PoseEngine, parts: Collection[str], *, min_confidence: float
    ) -> None:
        """Set up.

        Args:
            engine: Finds people.
            parts: Which of ``body``, ``hands`` and ``face`` are drawn.
            min_confidence: Points below it are not drawn.
        """
        self._engine = engine
        self._parts = frozenset(parts)
        self._min_confidence = min_confidence

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        """Map of each frame: uint8 RGB in, uint8 RGB of the same size out."""
        return self.detect(frames_TYXC)[0]

    def detect(self, frames_TYXC: np.ndarray) -> tuple[np.ndarray, list[FramePoses]]:
        """Map of each frame, and the people found in it, with all their parts."""
        poses = self._engine.find(frames_TYXC)
        return self.draw(poses, *frames_TYXC.shape[1:3]), poses

    def draw(self, poses: list[FramePoses], height: int, width: int) -> np.ndarray:
        """Draw people that were found before, and perhaps moved since; ``maps_TYXC``."""
        maps_TYXC = np.zeros((len(poses), height, width, 3), np.uint8)
        for people, map_YXC in zip(poses, maps_TYXC, strict=True):
            map_YXC[:] = draw_scaled(
                people,
                self._parts,
                height=height,
                width=width,
                min_confidence=self._min_confidence,
            )
        return maps_TYXC


def draw_scaled(
    people: FramePoses,
    parts: Collection[str],
    *,
    height: int,
    width: int,
    min_confidence: float,
) -> np.ndarray:
    """Draw everybody of one frame as the original does on a short side of 512 pixels.

    On other sizes the same picture is drawn and then resized, so that a limb is as wide, measured
    in pictures, as the ControlNet learned it; under 192 pixels limbs stay 3 pixels wide. The
    original draws limbs of 8 pixels on any size.

    Args:
        people: Their points as fractions of the picture.
        parts: Which of ``body``, ``hands`` and ``face``; hands and faces need no body.
        height: Rows of the map.
        width: Its columns.
        min_confidence: Points must be surer than this.

    Returns:
        ``map_YXC``: uint8 RGB on black.
    """
    scale = LIMB_HALF_WIDTH_PX / limb_half_width(height, width)
    rows, columns = round(height * scale), round(width * scale)
    drawn = draw_people(
        people, height=rows, width=columns, parts=parts, min_confidence=min_confidence
    )
    if (rows, columns) == (height, width):
        return drawn
    how = cv2.INTER_AREA if rows > height else cv2.INTER_LINEAR
    return cv2.resize(drawn, (width, height), interpolation=how)


def describe_pose_engine(config: ControlConfig) -> dict[str, str]:
    """Everything about a run's pose engine that decides which people it finds.

    Args:
        config: Names the engine and the place of its weights.

    Returns:
        Text by name; files of other places are fetched to be digested.

    Raises:
        WeightsError: If a file is missing, or no place is given.
    """
    engine = config.pose_engine
    told = {"pose_engine": engine}
    if engine == "embedded":
        from musev.control.pose_embedded import MODELS, POSE_FOLDER, find_models

        find_models(config.weights.get(engine))
        told |= {f"weights {name}": f"sha256:{digest}" for name, digest in MODELS.items()}
        return told | {"mediapipe": package_version("mediapipe", POSE_FOLDER)}
    told[engine] = package_version(engine)
    if engine == "mmpose":
        from musev.control.pose_mmpose import BOX_FILE, POSE_FILE

        names = (POSE_FILE, BOX_FILE)
    else:
        from musev.control.pose_controlnet_aux import FILES as names
    place = config.weights.get(engine, config.weights.get(SHARED))
    lacks = (
        f"pose engine {engine!r} needs {', '.join(names)}. Put them into a folder or bucket and "
    )
    lacks += f"name it: --set control.weights.{engine}=FOLDER."
    if place is None:
        raise WeightsError(f"{lacks} No place is given for them.")
    try:
        files = fetch_files(place, names)
    except FileNotFoundError as error:
        raise WeightsError(f"{lacks} {place} does not hold {error.args[0]}.") from error
    return told | {f"weights {name}": digest_file(path) for name, path in files.items()}
