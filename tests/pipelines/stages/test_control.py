"""The stage as a plain object: one unit in, maps in storage out, whatever the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.config import ControlConfig
from musev.control.person import Person, PoseVideo, read_poses, write_poses
from musev.errors import StorageError, WeightsError
from musev.media import read_image, read_video
from pipelines.control_units import MapUnit
from pipelines.progress import Board, Pulse
from pipelines.stages.control import MakeMaps, MapSetup
from tests.pipelines.stand_ins import film, graph, picture


class Inverse:
    """A detector without weights: the negative."""

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        assert len(frames_TYXC) <= 8
        return 255 - frames_TYXC


class Poses:
    """Finds one person, further right in brighter frames, and nobody in dark ones."""

    def detect(self, frames_TYXC: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        found = []
        for frame_YXC in frames_TYXC:
            tone = float(frame_YXC.mean()) / 255
            body_K3 = np.full((18, 3), [tone, 0.5, 1.0], np.float32)
            found.append((Person.of(body_K3),) if tone > 0.3 else ())
        return frames_TYXC // 2, found


def stage(folder: Path, detector: Any) -> MakeMaps:
    wired = graph(folder)

    def load(name: str, config: ControlConfig, device: str) -> Any:
        if isinstance(detector, Exception):
            raise detector
        return detector

    setup = MapSetup(
        config=ControlConfig(),
        device="cpu",
        ledger=wired.ledger,
        cache=wired.cache,
        open_detector=load,
    )
    return MakeMaps(setup, Pulse(Board()))


def unit(make: MakeMaps, uri: str, **changes: Any) -> MapUnit:
    digest = make._cache.fetch(uri)[0]
    values: dict[str, Any] = {
        "control": "canny",
        "column": "video",
        "detector": {"control": "canny"},
        "width": 32,
        "height": 32,
        "upstream_fit": False,
        "fps": 4.0,
        "stop": 6,
        **changes,
    }
    return MapUnit(uri=uri, digest=digest, **values)


def run(make: MakeMaps, wanted: MapUnit) -> dict[str, Any]:
    return make({"name": wanted.key, "unit": wanted.to_json()})


def output(folder: Path, path: str) -> Path:
    return folder / "out" / path


def test_a_piece_of_a_video_becomes_a_map_video_with_a_record(tmp_path: Path) -> None:
    make = stage(tmp_path, Inverse())
    wanted = unit(make, film(tmp_path / "a.mp4", 20), first=9, stop=19)
    outcome = run(make, wanted)
    record = json.loads(outcome["record"])
    assert outcome["status"] == "ready"
    assert record["frames"] == 10
    assert record["people"] is None
    source = list(read_video(tmp_path / "a.mp4"))[9:19]
    maps = list(read_video(output(tmp_path, record["map"]["path"])))
    np.testing.assert_array_equal(np.stack(maps), 255 - np.stack(source))
    assert json.loads(output(tmp_path, wanted.path(".json")).read_bytes()) == record
    left = [path for path in (tmp_path / "out" / "work").rglob("*") if path.is_file()]
    assert left == []


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    first = stage(tmp_path, Inverse())
    wanted = unit(first, film(tmp_path / "a.mp4"))
    made = run(first, wanted)
    again = stage(tmp_path, RuntimeError("must not be opened"))
    assert run(again, wanted)["record"] == made["record"]


def test_a_map_whose_record_was_lost_is_taken_over(tmp_path: Path) -> None:
    make = stage(tmp_path, Inverse())
    wanted = unit(make, film(tmp_path / "a.mp4"))
    before = json.loads(run(make, wanted)["record"])
    output(tmp_path, wanted.path(".json")).unlink()
    after = json.loads(run(make, wanted)["record"])
    assert after["map"] == before["map"]
    assert after["token"] != before["token"]


def test_people_are_kept_beside_the_maps_of_poses(tmp_path: Path) -> None:
    make = stage(tmp_path, Poses())
    video = film(tmp_path / "a.mp4", 6, colour=66)  # frames of 66, 71, ... 91: from 77 on somebody
    record = json.loads(run(make, unit(make, video, control="pose"))["record"])
    people = read_poses(output(tmp_path, record["people"]["path"]))
    assert [len(frame) for frame in people] == [0, 0, 0, 1, 1, 1]
    assert (record["frames"], record["frames_without_people"]) == (6, 3)


def test_a_picture_becomes_a_picture(tmp_path: Path) -> None:
    make = stage(tmp_path, Inverse())
    wanted = unit(make, picture(tmp_path / "c.png", colour=30), column="condition_image", stop=1)
    record = json.loads(run(make, wanted)["record"])
    map_YXC = read_image(output(tmp_path, record["map"]["path"]))
    assert map_YXC.shape == (32, 32, 3)
    assert (map_YXC == 225).all()


def test_keypoints_are_drawn_without_any_detector(tmp_path: Path) -> None:
    body_K3 = np.zeros((18, 3), np.float32)
    body_K3[1], body_K3[2] = [0.5, 0.5, 1], [0.9, 0.5, 1]
    path = tmp_path / "people.parquet"
    # Twice as wide as the clip: only the middle half of it is seen.
    people = [(), (Person.of(body_K3),), ()]
    write_poses(path, people, PoseVideo(num_frames=3, width=128, height=64, fps=4.0))
    make = stage(tmp_path, RuntimeError("must not be opened"))
    detector = {"min_confidence": "0.3"}
    size = {"width": 64, "height": 64}
    wanted = unit(
        make, str(path), column="keypoints", control="pose_body", detector=detector, stop=3, **size
    )
    record = json.loads(run(make, wanted)["record"])
    maps = list(read_video(output(tmp_path, record["map"]["path"])))
    assert [bool(map_YXC.any()) for map_YXC in maps] == [False, True, False]
    columns = np.flatnonzero(maps[1].any(axis=(0, 2)))
    assert columns[-1] == 63  # the shoulder lies at 1.3, outside: the limb is cut by the border
    assert columns[0] < 32


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [("text", "cannot be read as a video"), ("cut", "cannot be read"), ("gone", "no file at")],
)
def test_a_bad_source_costs_its_unit_and_leaves_nothing(
    tmp_path: Path, kind: str, phrase: str
) -> None:
    path = Path(film(tmp_path / "a.mp4"))
    if kind == "text":
        path.write_bytes(b"this is no video")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    wanted = unit(stage(tmp_path, Inverse()), str(path))
    if kind == "gone":
        path.unlink()
    outcome = run(stage(tmp_path / "another-machine", Inverse()), wanted)
    assert (outcome["status"], outcome["error_class"]) == ("failed", "MediaError")
    assert phrase in outcome["error_message"]
    assert str(path) in outcome["error_message"]
    assert "in_use" not in outcome["error_message"]
    assert not [path for path in (tmp_path / "another-machine/out").rglob("*") if path.is_file()]


def test_missing_weights_fail_the_unit_with_the_detectors_words(tmp_path: Path) -> None:
    make = stage(tmp_path, WeightsError("put netG.pth into a folder"))
    outcome = run(make, unit(make, film(tmp_path / "a.mp4")))
    assert (outcome["status"], outcome["error_class"]) == ("failed", "WeightsError")
    assert outcome["error_message"] == "put netG.pth into a folder"


def test_a_unit_that_was_tried_too_often_is_quarantined(tmp_path: Path) -> None:
    make = stage(tmp_path, Inverse())
    wanted = unit(make, film(tmp_path / "a.mp4"))
    for _ in range(3):
        make._ledger.begin_attempt(wanted.key)
    outcome = run(make, wanted)
    assert outcome["status"] == "quarantined"
    assert "3 times while making control maps" in outcome["error_message"]


def test_silent_storage_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = stage(tmp_path, Inverse())
    wanted = unit(make, film(tmp_path / "a.mp4"))

    def silent(*_: Any) -> bool:
        raise StorageError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(make._ledger.store, "create_from_file", silent)
        with pytest.raises(StorageError):
            run(make, wanted)
    assert run(make, wanted)["status"] == "ready"
    assert make._ledger.begin_attempt(wanted.key).number == 1


def figure(*, right: float = 0.0, arm: float = 0.1) -> Person:
    """Somebody who stands; the arms as long as told."""
    joints = [(0.5, 0.2), (0.5, 0.3)]
    for side in (-1, 1):  # shoulder, elbow, wrist
        joints += [(0.5 + side * 0.1, 0.3 + n * arm) for n in range(3)]
    for side in (-1, 1):  # hip, knee, ankle
        joints += [(0.5 + side * 0.06, 0.55 + n * 0.15) for n in range(3)]
    joints += [(0.48, 0.18), (0.52, 0.18), (0.46, 0.19), (0.54, 0.19)]
    body_K3 = np.array([(x + right, y, 1.0) for x, y in joints], np.float32)
    return Person.of(body_K3)


def moved(
    folder: Path, portrait: tuple[Person, ...], video: list[tuple[Person, ...]], how: str
) -> tuple[dict[str, Any], Path]:
    folder.mkdir(exist_ok=True)
    size = PoseVideo(num_frames=len(video), width=64, height=64)
    write_poses(folder / "video.parquet", video, size)
    write_poses(folder / "portrait.parquet", [portrait], size)
    make = stage(folder, RuntimeError("must not be opened"))

    def place(name: str) -> dict[str, str]:
        uri = str(folder / f"{name}.parquet")
        return {"uri": uri, "digest": make._cache.fetch(uri)[0]}

    wanted = unit(
        make,
        place("video")["uri"],
        column="people",
        control="pose_body",
        detector={"min_confidence": "0.3"},
        width=64,
        height=64,
        stop=len(video),
        align=how,
        leader=place("video"),
        portrait=place("portrait"),
    )
    return run(make, wanted), folder / "out"


def test_one_person_is_followed_through_the_pieces_with_a_report(tmp_path: Path) -> None:
    size = PoseVideo(num_frames=2, width=64, height=64)
    one, other = figure(), figure(right=0.3, arm=0.05)
    write_poses(tmp_path / "0.parquet", [(one, other), ()], size)
    write_poses(tmp_path / "1.parquet", [(other, one), (other, one)], size)
    make = stage(tmp_path, RuntimeError("must not be opened"))
    sources = [
        {"uri": uri, "digest": make._cache.fetch(uri)[0]}
        for uri in (str(tmp_path / f"{n}.parquet") for n in range(2))
    ]
    wanted = unit(
        make,
        sources[0]["uri"],
        column="steady",
        control="pose_body",
        detector={"min_confidence": "0.3", "steady": '{"max_gap_frames":1,"smoothing":0.0}'},
        width=64,
        height=64,
        stop=4,
        sources=sources,
    )
    outcome = run(make, wanted)
    assert outcome["status"] == "ready", outcome["error_message"]
    record = json.loads(outcome["record"])
    assert record["map"] is None
    people = read_poses(tmp_path / "out" / record["people"]["path"])
    assert len(people) == 4
    for persons in people:
        np.testing.assert_allclose(persons[0].body_K3, one.body_K3, atol=1e-5)
    assert record["report"]["num_frames_without_person"] == 0, "the gap was filled"
    assert record["report"]["most_people"] == 2
    moved_on = {**json.loads(wanted.to_json()), "sources": sources[::-1]}
    assert MapUnit(**moved_on).key != wanted.key


def test_people_are_moved_onto_the_one_in_the_portrait(tmp_path: Path) -> None:
    dance = [(figure(),), (figure(right=0.05),), ()]
    outcome, out = moved(tmp_path, (figure(right=0.2, arm=0.13),), dance, "auto")
    assert outcome["status"] == "ready", outcome["error_message"]
    record = json.loads(outcome["record"])
    people = read_poses(out / record["people"]["path"])
    np.testing.assert_allclose(people[0][0].body_K3, figure(right=0.2, arm=0.13).body_K3, atol=1e-5)
    assert people[1][0].body_K3[1, 0] == pytest.approx(0.75, abs=1e-4)
    assert people[2] == ()
    maps = list(read_video(out / record["map"]["path"]))
    assert [bool(map_YXC.any()) for map_YXC in maps] == [True, True, False]
    assert np.flatnonzero(maps[0].any(axis=(0, 2))).mean() == pytest.approx(0.7 * 64, abs=3)


@pytest.mark.parametrize(
    ("portrait", "first"),
    [((figure(right=0.005),), (figure(),)), ((), (figure(),)), ((figure(),), ())],
)
def test_where_nobody_has_to_be_moved_the_maps_stay_as_they_are(
    tmp_path: Path, portrait: Any, first: Any
) -> None:
    outcome, out = moved(tmp_path, portrait, [first, (figure(right=0.1),)], "auto")
    assert outcome["status"] == "ready"
    record = json.loads(outcome["record"])
    assert (record["map"], record["people"]) == (None, None)
    assert not list(out.rglob("*.mkv"))


def test_what_cannot_be_aligned_is_refused_with_a_reason(tmp_path: Path) -> None:
    outcome, _ = moved(tmp_path / "nobody", (), [(figure(),)], "always")
    assert (outcome["status"], outcome["error_class"]) == ("failed", "RequestError")
    assert "nobody was found in the condition image" in outcome["error_message"]
    legs_K3 = figure(right=0.2).body_K3.copy()
    legs_K3[:8] = legs_K3[14:] = 0
    outcome, _ = moved(tmp_path / "legs", (Person.of(legs_K3),), [(figure(),)], "auto")
    assert outcome["status"] == "failed"
    assert "neither a neck nor both shoulders" in outcome["error_message"]
