"""The controlnet_aux engine: OpenPose's body, hand and face networks.

Axes here: T frame, K keypoint or its heatmap, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from musev.control.aux_library import import_controlnet_aux
from musev.control.person import NUM_BODY, NUM_FACE, NUM_HAND, FramePoses, Person
from musev.control.weights_files import fetch_files
from musev.errors import WeightsError

FILES = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")
"""OpenPose's networks as PyTorch files (lllyasviel/Annotators). CMU's licence: academic or
non-profit, non-commercial research only."""

MIN_FACE_PEAK = 0.05
"""OpenPose's threshold for a face point."""


class ControlnetAuxEngine:
    """Finds people with OpenPose."""

    def __init__(self, place: str | None, *, device: str = "cpu") -> None:
        """Load the networks.

        Args:
            place: Folder or URL with :data:`FILES`.
            device: Where they run.

        Raises:
            WeightsError: If a file is missing or does not load.
        """
        remedy = f"Put {', '.join(FILES)} into a folder and set control.weights.controlnet_aux."
        if place is None:
            raise WeightsError(f"pose engine 'controlnet_aux' has no place of weights. {remedy}")
        try:
            paths = fetch_files(place, FILES)
        except FileNotFoundError as error:
            raise WeightsError(
                f"pose engine 'controlnet_aux': {place} does not hold {error.args[0]}. {remedy}"
            ) from error
        library = import_controlnet_aux("controlnet_aux.open_pose")
        self._face_detect = library.util.faceDetect
        body, hand, face = (str(paths[name]) for name in FILES)
        try:
            self._openpose = library.OpenposeDetector(
                library.Body(body), library.Hand(hand), library.Face(face)
            ).to(device)
        except Exception as error:  # torch, pickle and the networks have errors of their own
            raise WeightsError(
                f"pose engine 'controlnet_aux': the files at {place} do not load "
                f"({type(error).__name__}: {str(error).splitlines()[0]}). {remedy}"
            ) from error

    def find(self, frames_TYXC: np.ndarray) -> list[FramePoses]:
        """Find everybody in every frame.

        Args:
            frames_TYXC: uint8 RGB.

        Returns:
            The people of each frame.
        """
        return [self._find_in(np.ascontiguousarray(frame[..., ::-1])) for frame in frames_TYXC]

    def _find_in(self, frame_YXC: np.ndarray) -> FramePoses:
        """People of one BGR frame."""
        import torch

        openpose = self._openpose
        height, width = frame_YXC.shape[:2]
        people = []
        with torch.no_grad():
            candidates, subset = openpose.body_estimation(frame_YXC)
            for body in openpose.body_estimation.format_body_result(candidates, subset):
                left, right = openpose.detect_hands(body, frame_YXC)
                people.append(
                    Person.of(
                        body_points(body.keypoints, height=height, width=width),
                        left_hand_K3=part_points(left, NUM_HAND),
                        right_hand_K3=part_points(right, NUM_HAND),
                        face_K3=self._face(body, frame_YXC),
                    )
                )
        return tuple(people)

    def _face(self, body: Any, frame_YXC: np.ndarray) -> np.ndarray | None:
        crop = self._face_detect(body, frame_YXC)
        if crop is None:
            return None
        left, top, side = crop
        heatmaps = self._openpose.face_estimation(frame_YXC[top : top + side, left : left + side])
        points_K3 = heatmap_peaks(heatmaps[:NUM_FACE])
        height, width = frame_YXC.shape[:2]
        points_K3[:, :2] = (points_K3[:, :2] + (left, top)) / (width, height)
        points_K3[points_K3[:, 2] == 0] = 0.0
        return points_K3


def heatmap_peaks(heatmaps_KYX: np.ndarray) -> np.ndarray:
    """Place and height of each map's peak, pixels of the map.

    Not controlnet_aux's own reading: that leaves a point without a peak out of the list, and so
    gives every later point its neighbour's place.
    """
    flat = heatmaps_KYX.reshape(len(heatmaps_KYX), -1)
    y, x = np.unravel_index(flat.argmax(axis=1), heatmaps_KYX.shape[1:])
    height = np.clip(flat.max(axis=1), 0.0, 1.0)
    return np.column_stack([x, y, np.where(height > MIN_FACE_PEAK, np.maximum(height, 0.5), 0.0)])


def body_points(keypoints: Sequence[Any], *, height: int, width: int) -> np.ndarray:
    """OpenPose's joints, pixels with scores or None, to ``body_K3``.

    OpenPose drops what it is not sure of itself, at a score of 0.1; its scores of seen joints reach
    down to that. So a score of 0.1 becomes a confidence of 0.5, and 1 stays 1.
    """
    body_K3 = np.zeros((NUM_BODY, 3))
    for k, point in enumerate(keypoints):
        if point is not None:
            sure = 0.5 + 0.5 * (min(point.score, 1.0) - 0.1) / 0.9
            body_K3[k] = [point.x / width, point.y / height, max(sure, 0.5)]
    return body_K3


def part_points(keypoints: Sequence[Any] | None, count: int) -> np.ndarray | None:
    """OpenPose's hand, fractions of the picture or negative, to ``[K, 3]``; it has no scores."""
    if keypoints is None:
        return None
    points_K3 = np.array([[p.x, p.y, 1.0] for p in keypoints[:count]])
    points_K3[(points_K3[:, :2] < 0).any(axis=1)] = 0.0
    return points_K3
