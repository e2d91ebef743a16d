"""Faces as control maps: outlines of the face mesh, as the mediapipe face ControlNet learned them.

The original asks controlnet_aux, whose face detector needs a part of mediapipe that was removed.
Its successor, the face landmarker, gives the same 478 points, drawn here by the same rules. Which
faces are found may differ where one is small or turned away.

Axes here: T frame, K mesh point, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from musev.control.plain_maps import to_detection_size, to_frame_size
from musev.control.pose_embedded import MODELS, POSE_FOLDER, find_models, import_mediapipe
from musev.control.weights_files import package_version

MODEL = "face_landmarker.task"
MIN_CONFIDENCE = 0.5
MAX_FACES = 1
MIN_FACE_PX = 64
"""controlnet_aux ``MediapipeFaceDetector``: its defaults, and the size at detection resolution
under which a face is left out."""

_LINE_PX = 2
_PUPIL_PX = 2
_OUTLINES = (
    ("FACE_LANDMARKS_FACE_OVAL", (10, 200, 10)),
    ("FACE_LANDMARKS_LEFT_EYE", (10, 200, 180)),
    ("FACE_LANDMARKS_LEFT_EYEBROW", (10, 220, 180)),
    ("FACE_LANDMARKS_RIGHT_EYE", (180, 200, 10)),
    ("FACE_LANDMARKS_RIGHT_EYEBROW", (180, 220, 10)),
    ("FACE_LANDMARKS_LIPS", (10, 180, 10)),
)
"""mediapipe's name of each outline, in drawing order, and its RGB (controlnet_aux
``mediapipe_face_common``)."""
_PUPILS = ((468, (250, 200, 10)), (473, (10, 200, 250)))
"""Mesh point and RGB of the right and the left pupil."""


class FaceMeshDetector:
    """Draws the outlines of the surest face of each frame. Not thread-safe."""

    def __init__(self, weights: Mapping[str, str], resolution: int | None = None) -> None:
        """Load the landmarker.

        Args:
            weights: Folder by name; ``face_detector``, else ``embedded``, else what is installed.
            resolution: Short side at which it looks; None for that of the frame.

        Raises:
            WeightsError: If mediapipe or the model is missing.
        """
        self._resolution = resolution
        path = find_models(_folder(weights))[MODEL]
        self._mediapipe = import_mediapipe()
        vision = self._mediapipe.tasks.vision
        self._landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=self._mediapipe.tasks.BaseOptions(model_asset_path=str(path)),
                num_faces=MAX_FACES,
                min_face_detection_confidence=MIN_CONFIDENCE,
            )
        )

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        """Map of each frame: uint8 RGB in, uint8 RGB of the same size out; black without a face."""
        maps_TYXC = np.empty_like(frames_TYXC)
        for frame_YXC, map_YXC in zip(frames_TYXC, maps_TYXC, strict=True):
            seen = np.ascontiguousarray(to_detection_size(frame_YXC, self._resolution))
            drawn = np.zeros_like(seen)
            for points_K2 in self._faces(seen):
                draw_face_mesh(drawn, points_K2)
            map_YXC[:] = to_frame_size(drawn, *map_YXC.shape[:2])
        return maps_TYXC

    def _faces(self, frame_YXC: np.ndarray) -> list[np.ndarray]:
        """Mesh points of each face as fractions of the picture."""
        mediapipe = self._mediapipe
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame_YXC)
        found = self._landmarker.detect(image).face_landmarks
        return [np.array([(point.x, point.y) for point in face]) for face in found]


def draw_face_mesh(canvas_YXC: np.ndarray, points_K2: np.ndarray) -> None:
    """Draw one face's outlines and pupils onto a canvas, unless it is too small.

    Args:
        canvas_YXC: uint8 RGB; changed.
        points_K2: The 478 mesh points as fractions of the picture; lines to points outside are left
            out.

    Source:
        controlnet_aux ``mediapipe_face_common`` (colours, widths, sizes) and mediapipe's former
        ``draw_landmarks`` (rounding, what is left out).
    """
    size = np.array([canvas_YXC.shape[1], canvas_YXC.shape[0]])
    if (np.ptp(points_K2, axis=0) * size).min() < MIN_FACE_PX:
        return
    inside = ((points_K2 >= 0) & (points_K2 <= 1)).all(axis=1)
    pixels = np.minimum(np.floor(points_K2 * size), size - 1).astype(int).tolist()
    for edges, color in _edges():
        for start, end in edges:
            if inside[start] and inside[end]:
                cv2.line(canvas_YXC, pixels[start], pixels[end], color, _LINE_PX)
    for point, color in _PUPILS:
        x, y = (points_K2[point] * size).astype(int)
        if ((points_K2[point] >= 0) & (points_K2[point] < 1)).all():
            rows = slice(max(0, y - _PUPIL_PX), y + _PUPIL_PX)
            canvas_YXC[rows, max(0, x - _PUPIL_PX) : x + _PUPIL_PX] = color


@functools.cache
def _edges() -> tuple[tuple[tuple[tuple[int, int], ...], tuple[int, int, int]], ...]:
    connections: Any = import_mediapipe().tasks.vision.FaceLandmarksConnections
    return tuple(
        (tuple((edge.start, edge.end) for edge in getattr(connections, name)), color)
        for name, color in _OUTLINES
    )


def describe_face_mesh(weights: Mapping[str, str]) -> dict[str, str]:
    """Everything that decides the maps besides the frames; a missing model is a WeightsError."""
    find_models(_folder(weights))
    return {
        f"weights {MODEL}": f"sha256:{MODELS[MODEL]}",
        "mediapipe": package_version("mediapipe", POSE_FOLDER),
    }


def _folder(weights: Mapping[str, str]) -> str | None:
    return weights.get("face_detector", weights.get("embedded"))
