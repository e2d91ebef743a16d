"""Where the joints of a clip should be, from the keypoints that its request brought along.

Axes here: T frame, J joint (OpenPose body 18). Joints are (x, y) in pixels, as in
:mod:`musev.quality.pose`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musev.config import ClipRequest
from musev.control.keypoints import fit_people, read_people, time_people
from musev.control.person import scan_poses
from musev.control.pose_drawing import MIN_CONFIDENCE
from musev.errors import RequestError
from musev.media import pick_frames


def read_joints(
    path: Path, request: ClipRequest, num_frames: int, *, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read the joints that a clip was led by, frame for frame as its control maps were drawn.

    Args:
        path: The request's ``keypoints``, a frame for every frame of the clip; a file that cannot
            be read is a MediaError.
        request: Decides which of their frames are shown.
        num_frames: Of the clip.
        height: Rows of the clip's frames.
        width: Columns of the clip's frames.

    Returns:
        ``points_TJ2`` and ``visible_TJ``: joints that were drawn and lie in the picture.

    Raises:
        RequestError: If there are too few frames, or more than one person in one of them.
    """
    video = scan_poses(path)
    times = time_people(path, fps=request.fps)
    numbers = pick_frames(times, fps=request.fps, sample_rate=request.sample_rate)[:num_frames]
    if len(numbers) < num_frames:
        raise RequestError(f"the keypoints last for {len(numbers)} of {num_frames} frames")
    body_TJ3 = np.zeros((num_frames, 18, 3), np.float32)
    for t, people in enumerate(read_people(path, numbers)):
        if len(people) > 1:
            raise RequestError("the keypoints are of several people, and the judge finds one")
        for person in fit_people(people, video, width=width, height=height):
            body_TJ3[t] = person.body_K3
    shares_TJ2 = body_TJ3[..., :2]
    inside_TJ = ((shares_TJ2 >= 0) & (shares_TJ2 < 1)).all(axis=-1)
    # Fractions count from the picture's edge, pixels from the middle of the first one.
    points_TJ2 = shares_TJ2 * np.array([width, height], np.float32) - 0.5
    return points_TJ2, (body_TJ3[..., 2] > MIN_CONFIDENCE) & inside_TJ
