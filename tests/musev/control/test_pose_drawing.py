"""People are drawn as the original draws its recorded keypoints, and each switch switches."""

from __future__ import annotations

import numpy as np
import pytest

from musev.control.person import Person
from musev.control.pose_drawing import draw_people
from tests.goldens import GOLDENS, load_tensors, require_goldens

FOLDER = GOLDENS / "pipeline" / "functions" / "dwpose_draw"
CANVASES = {0: (256, 192), 1: (128, 320)}
SWITCHES = {
    "body": ("body",),
    "body_hand": ("body", "hands"),
    "body_hand_face": ("body", "hands", "face"),
    "face_only": ("face",),
    "hand_only": ("hands",),
}


def golden_people(case: int) -> list[Person]:
    """The recorded 134 points of each person as the original's detector gives them."""
    require_goldens()
    tensors = load_tensors(FOLDER / "keypoints.safetensors")
    points = tensors[f"{case}.candidate"].numpy()
    scores = tensors[f"{case}.score"].numpy()
    return [
        Person.of(
            all_K3[:18],
            face_K3=all_K3[24:92],
            left_hand_K3=all_K3[92:113],
            right_hand_K3=all_K3[113:],
        )
        for all_K3 in np.concatenate([points, scores[..., None]], axis=-1)
    ]


@pytest.mark.parity
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("case", CANVASES)
def test_maps_of_people_equal_the_pipelines(case: int, name: str) -> None:
    from PIL import Image

    height, width = CANVASES[case]
    people = golden_people(case)
    assert len(people) == case + 1
    drawn = draw_people(people, height=height, width=width, parts=SWITCHES[name])
    suffix = "_expected_if_fixed" if "only" in name else ""
    golden = np.asarray(Image.open(FOLDER / f"{case}.{name}{suffix}.png").convert("RGB"))
    np.testing.assert_array_equal(drawn, golden)


def two_people() -> list[Person]:
    rng = np.random.default_rng(0)

    def points(count: int, left: float) -> np.ndarray:
        xy = np.array([left, 0.1]) + rng.random((count, 2)) * np.array([0.3, 0.8])
        return np.concatenate([xy, np.full((count, 1), 0.9)], axis=1)

    return [
        Person.of(
            points(18, left),
            left_hand_K3=points(21, left),
            right_hand_K3=points(21, left),
            face_K3=points(68, left),
        )
        for left in (0.05, 0.6)
    ]


def test_every_part_switches_by_itself_and_for_everybody() -> None:
    people = two_people()
    alone = {
        part: draw_people(people, height=96, width=128, parts=(part,))
        for part in ("body", "hands", "face")
    }
    for part, drawn in alone.items():
        assert drawn[:, :58].any(), f"{part} of the first"
        assert drawn[:, 70:].any(), f"{part} of the second"
    assert set(np.unique(alone["face"])) == {0, 255}
    assert (draw_people(people, height=96, width=128, parts=()) == 0).all()
    everything = draw_people(people, height=96, width=128)
    for drawn in alone.values():
        assert (everything != drawn).any()


def test_what_is_not_sure_enough_is_not_drawn() -> None:
    people = two_people()
    faint = [
        Person.of(
            person.body_K3 * (1, 1, 0.5),
            left_hand_K3=person.left_hand_K3 * (1, 1, 0.5),
            right_hand_K3=person.right_hand_K3 * (1, 1, 0.5),
            face_K3=person.face_K3 * (1, 1, 0.5),
        )
        for person in people
    ]
    size = {"height": 96, "width": 128}
    clear = draw_people(people, **size)
    np.testing.assert_array_equal(draw_people(faint, **size, min_confidence=0.3), clear)
    assert not draw_people(faint, **size, min_confidence=0.5).any()
    mixed = draw_people([people[0], faint[1]], **size, min_confidence=0.5)
    np.testing.assert_array_equal(mixed, draw_people(people[:1], **size))


def test_an_empty_frame_is_black() -> None:
    assert not draw_people((), height=8, width=9).any()
    assert not draw_people((Person.of(),), height=8, width=9).any()
