"""Every judge that applies to a clip, in one call.

Axes here: T frame, J joint (OpenPose body 18), Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from musev.denoise.windows import Window
from musev.quality import drift, fidelity, temporal
from musev.quality.attributes import agreement, identity, read_attributes, read_identity
from musev.quality.overlay import static_overlay
from musev.quality.pose import People, find_people, pck
from musev.quality.score import Score
from musev.quality.seams import seam_ratio

ALWAYS = {
    "flicker": temporal.flicker,
    "background_flicker": temporal.background_flicker,
    "drift_slope": drift.drift_slope,
    "sharpness": fidelity.sharpness,
    "sharpness_slope": drift.sharpness_slope,
    "frozen_share": temporal.frozen_share,
    "black_share": temporal.black_share,
    "num_cuts": temporal.num_cuts,
    "disorder": temporal.disorder,
    "loop_distance": temporal.loop_distance,
    "motion": temporal.motion,
    "camera_motion": temporal.camera_motion,
    "static_overlay": static_overlay,
}
"""Judges that need nothing but the frames."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known about a clip beside its frames; each part lets more judges speak."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    """What the caption asked for: any of ``scene, shirt_color, trousers_color, skin, hair_color,
    action``."""
    points_TJ2: np.ndarray | None = None
    visible_TJ: np.ndarray | None = None
    reference_YXC: np.ndarray | None = None
    condition_YXC: np.ndarray | None = None
    """The picture that the first frame should be."""
    truth_TYXC: np.ndarray | None = None
    windows: Sequence[Window] | None = None
    """Those of the generated frames' last step, the first generated frame being number 0."""
    given: tuple[int, ...] = ()
    """Numbers, rising, of the frames that were given, or drawn by themselves: no window holds
    them."""

    @property
    def shows_person(self) -> bool:
        """Whether a drawn person is expected, so that the judges of people have a say."""
        return bool(self.attributes) or self.poses or self.reference_YXC is not None

    @property
    def poses(self) -> bool:
        """Whether it is known where the joints should be."""
        return self.points_TJ2 is not None and self.visible_TJ is not None

    def generated(self, frames_TYXC: np.ndarray) -> np.ndarray:
        """Leave out the frames that were given; no copy where these stand in front.

        Args:
            frames_TYXC: The whole clip.

        Returns:
            The frames that windows hold.
        """
        num_given = len(self.given)
        if self.given == tuple(range(num_given)):
            return frames_TYXC[num_given:]
        return np.delete(frames_TYXC, self.given, axis=0)


def judge_clip(
    frames_TYXC: np.ndarray, expected: Expected | None = None, *, fps: float = 8.0
) -> dict[str, Score]:
    """Run every judge that applies, with reasons where one cannot say.

    Args:
        frames_TYXC: uint8 RGB.
        expected: What is known about the clip.
        fps: Frames a second.

    Returns:
        Scores by name: :data:`ALWAYS`; ``scene_accuracy`` and so on for every expected attribute (1
        right, 0 wrong); ``pck_0.1``; ``identity``; ``first_frame_psnr``; ``psnr`` and ``ssim``;
        ``seam_ratio`` (against the truth where there is one). Where a drawn person is expected,
        ``subject_drift_slope`` too.
    """
    known = expected or Expected()
    scores = {name: judge(frames_TYXC) for name, judge in ALWAYS.items()}
    if known.windows is not None:
        truth = None if known.truth_TYXC is None else known.generated(known.truth_TYXC)
        scores["seam_ratio"] = seam_ratio(known.generated(frames_TYXC), known.windows, truth)
    if known.truth_TYXC is not None:
        scores["psnr"] = fidelity.psnr(frames_TYXC, known.truth_TYXC)
        scores["ssim"] = fidelity.ssim(frames_TYXC, known.truth_TYXC)
    if known.condition_YXC is not None:
        scores["first_frame_psnr"] = fidelity.psnr(frames_TYXC[:1], known.condition_YXC[None])
    if known.shows_person:
        scores |= _judge_person(frames_TYXC, known, find_people(frames_TYXC), fps)
    return scores


def score_clip(
    frames_TYXC: np.ndarray, expected: Expected | None = None, *, fps: float = 8.0
) -> dict[str, float]:
    """The values of :func:`judge_clip`; NaN where a judge cannot say.

    Args:
        frames_TYXC: uint8 RGB.
        expected: What is known about the clip.
        fps: Frames a second.

    Returns:
        Values by name.
    """
    return {name: score.value for name, score in judge_clip(frames_TYXC, expected, fps=fps).items()}


def _judge_person(
    frames_TYXC: np.ndarray, known: Expected, found: People, fps: float
) -> dict[str, Score]:
    scores = {"subject_drift_slope": drift.subject_drift_slope(frames_TYXC, found)}
    if known.points_TJ2 is not None and known.visible_TJ is not None:
        scores["pck_0.1"] = pck(found, known.points_TJ2, known.visible_TJ)
    if not known.attributes and known.reference_YXC is None:
        return scores
    readings = read_attributes(frames_TYXC, found, fps=fps)
    for name, word in known.attributes.items():
        scores[f"{name}_accuracy"] = agreement(readings[name], word)
    if known.reference_YXC is not None:
        scores["identity"] = identity(readings, read_identity(known.reference_YXC))
    return scores
