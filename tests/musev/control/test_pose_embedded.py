"""The embedded engine finds people where they are, says so when there are none, and repeats."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musev.control.pose_embedded import (
    BODY_FROM_33,
    FACE_FROM_478,
    MODELS,
    EmbeddedEngine,
    find_models,
)
from musev.errors import WeightsError
from tests.goldens import GOLDENS

MEDIA = GOLDENS.parent / "media"


def portrait(name: str, height: int = 447) -> np.ndarray:
    path = MEDIA / f"{name}.jpg"
    if not path.is_file():
        pytest.skip(f"no reference media at {MEDIA}")
    picture = Image.open(path).convert("RGB")
    width = round(picture.width * height / picture.height)
    return np.asarray(picture.resize((width, height)))


@pytest.fixture(scope="module")
def engine() -> EmbeddedEngine:
    try:
        return EmbeddedEngine()
    except WeightsError as error:
        pytest.skip(str(error))


def assert_near(point: np.ndarray, x: float, y: float, within: float = 0.05) -> None:
    assert np.hypot(point[0] - x, point[1] - y) < within, point
    assert point[2] > 0.5


def test_a_portraits_body_face_and_hand_are_found(engine: EmbeddedEngine) -> None:
    ((person,),) = engine.find(portrait("Mona_Lisa")[None])
    body = person.body_K3
    assert_near(body[0], 0.44, 0.26)  # nose
    assert_near(body[1], 0.53, 0.46)  # neck
    assert_near(body[2], 0.33, 0.45)  # her right shoulder is on the left of the picture
    assert_near(body[5], 0.76, 0.49, 0.08)  # under her veil
    assert_near(body[14], 0.40, 0.24, 0.03)  # right eye
    assert_near(body[15], 0.52, 0.24, 0.03)
    assert not body[[10, 13], 2].any(), "ankles are not in the picture"
    face = person.face_K3[:, :2]
    assert_near(person.face_K3[30], 0.43, 0.27, 0.04)  # tip of the nose
    chin, brow = face[8], face[19]
    assert chin[1] > face[57][1] > face[30][1] > face[36][1] > brow[1]
    assert face[36][0] < face[39][0] < face[42][0] < face[45][0]
    hand = person.right_hand_K3
    assert np.hypot(*(hand[0, :2] - body[4, :2])) < 0.08
    assert np.ptp(hand[:, 0]) < 0.4


def test_every_person_of_several_is_found(engine: EmbeddedEngine) -> None:
    # Grey between them: side by side without it, two halves can make a third.
    one = portrait("Mona_Lisa", 320)
    gap = np.full((320, 60, 3), 110, np.uint8)
    picture = np.concatenate([one, gap, one[:, ::-1]], axis=1)
    (people,) = engine.find(picture[None])
    noses = sorted(float(person.body_K3[0, 0]) for person in people)
    width = picture.shape[1]
    expected = [0.44 * one.shape[1] / width, 1 - 0.44 * one.shape[1] / width]
    assert noses == pytest.approx(expected, abs=0.04)


def test_a_painting_that_the_first_look_misses_is_found_by_the_second(
    engine: EmbeddedEngine,
) -> None:
    ((person,),) = engine.find(portrait("The-Laughing-Cavalier")[None])
    assert_near(person.body_K3[0], 0.40, 0.31)
    assert person.face_K3.any()


def test_somebody_who_leans_is_found_by_a_turned_look(engine: EmbeddedEngine) -> None:
    ((person,),) = engine.find(portrait("Portrait-of-Dr.-Gachet", 985)[None])
    assert_near(person.body_K3[0], 0.34, 0.28, 0.08)
    eyes = person.face_K3[[36, 45], :2] * (800, 985)
    slope = np.degrees(np.arctan2(*(eyes[1] - eyes[0])[::-1]))
    assert -60 < slope < -15, "his head leans to the left of the picture"


@pytest.mark.parametrize("kind", ["black", "noise", "foliage"])
def test_nobody_is_found_where_nobody_is(engine: EmbeddedEngine, kind: str) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        "black": np.zeros((200, 160, 3), np.uint8),
        "noise": rng.integers(0, 255, (200, 160, 3), np.uint8),
        "foliage": np.kron(
            rng.integers(0, 255, (25, 20, 3), np.uint8), np.ones((8, 8, 1), np.uint8)
        ),
    }
    assert engine.find(pictures[kind][None]) == [()]


def test_a_frame_does_not_depend_on_its_neighbours(engine: EmbeddedEngine) -> None:
    frame = portrait("Mona_Lisa", 320)
    other = np.ascontiguousarray(frame[:, ::-1])
    (alone,) = engine.find(frame[None])
    *_, among = engine.find(np.stack([other, np.zeros_like(frame), frame]))
    assert len(alone) == len(among) == 1
    for part in ("body", "right_hand", "face"):
        np.testing.assert_array_equal(alone[0].part(part), among[0].part(part))


def test_the_tables_name_every_point_once() -> None:
    points = [point for point in BODY_FROM_33 if point >= 0]
    assert len(BODY_FROM_33) == 18
    assert len(set(points)) == 17
    assert len(set(FACE_FROM_478)) == len(FACE_FROM_478) == 68


def test_a_folder_may_hold_the_models_but_only_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not hold pose_landmarker\.task"):
        find_models(str(tmp_path))
    try:
        known = find_models()
    except WeightsError as error:
        pytest.skip(str(error))
    for path in known.values():
        shutil.copy(path, tmp_path)
    assert {path.parent for path in find_models(str(tmp_path)).values()} == {tmp_path}
    with (tmp_path / "hand_landmarker.task").open("ab") as file:
        file.write(b"more")
    expected = MODELS["hand_landmarker.task"]
    with pytest.raises(WeightsError, match=f"hand_landmarker.task has sha256 .* {expected}"):
        find_models(str(tmp_path))


def test_a_process_that_forgets_to_close_it_ends_without_complaint(engine: EmbeddedEngine) -> None:
    code = "from musev.control.pose_embedded import EmbeddedEngine; kept = EmbeddedEngine()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
