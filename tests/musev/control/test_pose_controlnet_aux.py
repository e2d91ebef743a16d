"""OpenPose's points become ours; the real networks load from files in the published layout."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from musev.control.person import PARTS
from musev.control.pose_controlnet_aux import (
    FILES,
    ControlnetAuxEngine,
    body_points,
    heatmap_peaks,
    part_points,
)
from musev.errors import WeightsError

Keypoint = namedtuple("Keypoint", "x y score")


def test_joints_become_fractions_with_confidences() -> None:
    keypoints = [None] * 18
    keypoints[4] = Keypoint(20, 30, 1.0)
    keypoints[7] = Keypoint(10, 60, 0.1)
    body = body_points(keypoints, height=120, width=40)
    assert body[4].tolist() == [0.5, 0.25, 1.0]
    assert body[7].tolist() == [0.25, 0.5, 0.5]
    assert not np.delete(body, [4, 7], axis=0).any()


def test_negative_hand_points_are_missing() -> None:
    points = [Keypoint(0.5, 0.25, 1.0)] * 21
    points[3] = Keypoint(-0.01, 0.2, 1.0)
    hand = part_points(points, 21)
    assert hand is not None
    assert hand[3].tolist() == [0, 0, 0]
    assert hand[4].tolist() == [0.5, 0.25, 1]
    assert part_points(None, 21) is None


def test_a_face_point_without_a_peak_leaves_the_others_in_place() -> None:
    heatmaps = np.zeros((3, 8, 6))
    heatmaps[0, 2, 5] = 0.9
    heatmaps[1] = 0.01
    heatmaps[2, 7, 1] = 0.2
    assert heatmap_peaks(heatmaps).tolist() == [[5, 2, 0.9], [0, 0, 0], [1, 7, 0.5]]


def test_a_damaged_file_is_named_with_its_place(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=f"files at {tmp_path} do not load"):
        ControlnetAuxEngine(str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_networks_load_and_run(tmp_path: Path) -> None:
    """Random weights in the published layout: body and hand files lack their keys' first prefix."""
    import torch

    from musev.control.aux_library import import_controlnet_aux

    torch.manual_seed(0)
    model = import_controlnet_aux("controlnet_aux.open_pose.model")
    face = import_controlnet_aux("controlnet_aux.open_pose.face")
    for name, network in (
        (FILES[0], model.bodypose_model()),
        (FILES[1], model.handpose_model()),
    ):
        state = {key.split(".", 1)[1]: value for key, value in network.state_dict().items()}
        torch.save(state, tmp_path / name)
    torch.save(face.FaceNet().state_dict(), tmp_path / FILES[2])
    engine = ControlnetAuxEngine(str(tmp_path))
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 48, 3), np.uint8)
    first = engine.find(frames)
    again = engine.find(frames[1:])
    assert len(first) == 2
    for people, repeated in ((first[1], again[0]),):
        assert len(people) == len(repeated)
        for one, other in zip(people, repeated, strict=True):
            for part in PARTS:
                np.testing.assert_array_equal(one.part(part), other.part(part))
    # Random networks find nobody; what they would say of a body goes through the same code.
    bgr = np.ascontiguousarray(np.kron(frames[0], np.ones((4, 4, 1), np.uint8)))
    body_type = import_controlnet_aux("controlnet_aux.open_pose.body").BodyResult
    joints = [Keypoint(100, 20 + 10 * k, 1.0) for k in range(14)]
    joints += [Keypoint(100 + dx, 15, 1.0) for dx in (-10, 10, -25, 25)]
    face_K3 = engine._face(body_type(joints, 1.0, 18), bgr)
    assert face_K3 is not None
    assert face_K3.shape == (68, 3)
    left, right = engine._openpose.detect_hands(body_type(joints, 1.0, 18), bgr)
    assert part_points(left, 21) is None or part_points(left, 21).shape == (21, 3)
    assert part_points(right, 21) is None or part_points(right, 21).shape == (21, 3)
