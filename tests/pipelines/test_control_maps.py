"""Control maps on a real local Ray: made once for all rows, whoever dies; bad videos cost a row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.config import ClipRequest, ControlConfig
from musev.control.person import Person, read_poses
from musev.errors import WeightsError
from musev.media import read_video, write_segment
from musev.media.ffmpeg import run_ffmpeg
from pipelines.control_maps import Detectors, describe_detectors, make_maps
from pipelines.stages.control import MapSetup
from pipelines.text_to_video import Graph, check_inputs_here, run_text_to_video
from tests.pipelines.stand_ins import film, graph, picture, request
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)

DRAWN = {"control": "pose_body", "version": "1", "min_confidence": "0.3"}
STEADY_BY = '{"max_gap_frames":2,"smoothing":0.0}'
DETECTORS = Detectors(
    known={name: {"control": name} for name in ("canny", "hed")},
    unusable={"hed": "control 'hed' needs ControlNetHED.pth. Put it into a folder"},
)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


@dataclass(frozen=True)
class CountingDetectors:
    """Opens negatives that note what they look at, and take their process down as told."""

    notes: Path
    deaths: int = 0
    """How often a process ends in the middle of frames that are brighter than 200."""

    def __call__(self, name: str, config: ControlConfig, device: str) -> Any:
        return _Counting(self)


@dataclass(frozen=True)
class _Counting:
    told: CountingDetectors

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        for _ in frames_TYXC:
            with self.told.notes.open("a") as notes:
                notes.write("frame\n")
        deaths = self.told.notes.with_suffix(".deaths")
        if frames_TYXC.max() > 200:
            with deaths.open("a+") as file:
                file.seek(0)
                if len(file.read()) < self.told.deaths:
                    file.write("x")
                    file.flush()
                    os._exit(9)
        return 255 - frames_TYXC


def wired(folder: Path, **detectors: Any) -> Graph:
    folder.mkdir(exist_ok=True)
    opens = CountingDetectors(folder / "seen", **detectors)
    return graph(folder, detectors=DETECTORS, open_detector=opens)


def following(name: str, video: str, **columns: Any) -> ClipRequest:
    values = {"video": video, "control": ("canny",), "num_frames": 0, **columns}
    return request(name, **values)


def run(graph: Graph, *requests: ClipRequest) -> dict[str, dict[str, Any]]:
    told: list[tuple[int, int, int]] = []
    records = run_text_to_video(
        graph,
        requests,
        [],
        on_plan=lambda plan: lambda tally, view: None,
        on_maps=lambda *counts: told.append(counts),
    )
    assert told == sorted(told)
    return {record["request_id"]: record for record in records}


def num_seen(folder: Path) -> int:
    return len((folder / "seen").read_text().splitlines())


def bad_videos(folder: Path) -> list[ClipRequest]:
    """Rows with videos that are empty, no video, only sound, cut short, of one frame; and no
    weights."""
    long = film(folder / "long.mp4", 60)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_bytes(b"this is no video")
    sound = ["-v", "error", "-f", "lavfi", "-i", "sine=d=1", str(folder / "sound.mp4")]
    run_ffmpeg(sound, what="test")
    fast = ["-v", "error", "-i", long, "-c", "copy", "-movflags", "faststart"]
    run_ffmpeg([*fast, str(folder / "fast.mp4")], what="test")
    data = (folder / "fast.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    one, cut = film(folder / "one.mp4", 1), str(folder / "cut.mp4")
    face = picture(folder / "face.png")
    rows = [following(name, str(folder / f"{name}.mp4")) for name in ("empty", "text", "sound")]
    return [
        *rows,
        following("cut", cut),
        following("as far as it goes", cut, video_may_be_cut=True, seed=3),
        following("one", one),
        following("one with face", one, condition_image=face),
        following("no weights", long, control=("hed",)),
    ]


REASONS = {
    "empty": "the file is empty",
    "text": "cannot be read as a video",
    "sound": "sound.mp4",
    "cut": "cut.mp4",
    "one with face": "needs 2 at least",
    "no weights": "needs ControlNetHED.pth. Put it into a folder",
}


def test_fifty_rows_share_one_driving_video_and_bad_videos_cost_their_rows(folder: Path) -> None:
    video = film(folder / "dance.mp4", 6)
    rows = [following(f"r{n}", video, seed=n, num_frames=1 + n % 6) for n in range(50)]
    own = {"condition_image": picture(folder / "c.png", colour=205), "condition_has_own_map": True}
    rows += [
        following("own", video, num_frames=4, **own),
        following("maps", video, num_frames=4, video_is_control=True, **own),
    ]
    graph = wired(folder)
    records = run(graph, *rows, *bad_videos(folder))
    assert {n for n, record in records.items() if record["status"] != "committed"} == set(REASONS)
    for name, phrase in REASONS.items():
        assert phrase in records[name]["error_message"], name
    usable = records["as far as it goes"]["num_frames"]
    assert 8 < usable < 60
    assert records["one"]["num_frames"] == 1
    # Six frames of the shared video, one picture, one frame, and what is left of the cut one.
    assert num_seen(folder) == 6 + 1 + 1 + usable
    # The stand-in paints each frame in its map's brightness: the clip followed the maps.
    shown = {
        name: [frame.mean() for frame in read_video(records[name]["video_uri"])]
        for name in ("r5", "own", "maps")
    }
    assert shown["r5"] == pytest.approx([155 - 5 * n for n in range(6)], abs=3)
    # Frame 0 is the picture's own; frame t follows frame t - 1 of the video, or its negative.
    assert shown["own"][1:] == pytest.approx([155, 150, 145], abs=3)
    assert shown["maps"][1:] == pytest.approx([100, 105, 110], abs=3)
    record = next(r for r in graph.ledger.committed().values() if r["request_id"] == "r5")
    (piece,) = record["control_maps"]["canny"]["pieces"]
    assert Path(piece["uri"]).is_file()


@pytest.mark.slow
def test_a_second_run_makes_no_maps_that_are_there(folder: Path) -> None:
    video = film(folder / "dance.mp4", 6)
    run(wired(folder), following("first", video))
    again = run(wired(folder), following("first", video), following("new", video, seed=77))
    assert {record["status"] for record in again.values()} == {"committed"}
    assert num_seen(folder) == 6


@pytest.mark.faults
def test_a_worker_that_dies_in_the_middle_loses_nothing(folder: Path) -> None:
    video = film(folder / "bright.mp4", 12, colour=180)
    record = run(wired(folder, deaths=2), following("r", video))["r"]
    assert record["status"] == "committed"
    shown = [frame.mean() for frame in read_video(record["video_uri"])]
    assert shown == pytest.approx([75 - 5 * n for n in range(12)], abs=3)
    assert (folder / "seen.deaths").read_text() == "xx"


@pytest.mark.faults
def test_frames_that_kill_every_worker_cost_their_rows_only(folder: Path) -> None:
    deadly, good = film(folder / "deadly.mp4", colour=220), film(folder / "good.mp4")
    rows = [following(f"d{n}", deadly, seed=n) for n in range(2)]
    records = run(wired(folder, deaths=99), *rows, following("good", good), request("plain"))
    assert {name: record["status"] for name, record in records.items()} == {
        "d0": "quarantined",
        "d1": "quarantined",
        "good": "committed",
        "plain": "committed",
    }
    assert records["d0"]["error_stage"] == "control"
    assert "3 times while making control maps" in records["d0"]["error_message"]
    healed = run_text_to_video(
        wired(folder),
        rows,
        [],
        retry_failed=True,
        on_plan=lambda plan: lambda tally, view: None,
    )
    assert {record["status"] for record in healed} == {"committed"}


def test_poses_are_described_with_how_one_person_is_followed() -> None:
    clip = following("r", "v", control=("pose_body", "canny"))
    plain = describe_detectors([clip], ControlConfig()).known
    for setting in ({"smoothing": 0.5}, {"max_gap_frames": 3}, {"follow_person": True}):
        found = describe_detectors([clip], ControlConfig(**setting)).known
        assert found["canny"] == plain["canny"]
        steady = found["pose_body"]["steady"]
        assert found["pose_body"] == plain["pose_body"] | {"steady": steady}
        wanted = {"smoothing": 0.0, "max_gap_frames": 0} | setting
        assert json.loads(steady) == {k: v for k, v in wanted.items() if k != "follow_person"}
    found = describe_detectors([following("r", "v", control=("canny", "hed"))], ControlConfig())
    assert found.known["canny"]["low"] == "100.0"
    assert "ControlNetHED.pth" in found.unusable["hed"]


@dataclass(frozen=True)
class TwoPeople:
    """Opens a detector that finds two people, now in one order and now in the other."""

    def __call__(self, name: str, config: ControlConfig, device: str) -> Any:
        return self

    def detect(self, frames_TYXC: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        found = []
        for frame_YXC in frames_TYXC:
            number = round(float(frame_YXC.mean()) / 8)
            pair = [_figure(0.3), _figure(0.7, small=True)]
            found.append(tuple(pair[::-1] if number % 2 else pair) if number % 5 else ())
        return frames_TYXC // 2, found


def _figure(right: float, *, small: bool = False) -> Person:
    size = 0.2 if small else 0.4
    body_K3 = np.ones((18, 3), np.float32)
    body_K3[:, 0] = right + 0.05 * np.sin(np.arange(18))
    body_K3[:, 1] = 0.3 + size * np.linspace(0, 1, 18)
    return Person.of(body_K3)


def test_one_person_is_followed_through_all_pieces_of_a_video(folder: Path) -> None:
    """Across pieces, through frames without anybody, drawn again as it is then."""
    tones = [8 * number % 240 for number in range(100)]
    frames = (np.full((64, 64, 3), tone, np.uint8) for tone in tones)
    place = folder / "two" / "people.mp4"
    place.parent.mkdir()
    write_segment(place, frames, fps=4)
    clip = following("r", f"file://{place}", control=("pose_body",), num_frames=100)
    detectors = Detectors(known={"pose_body": {**DRAWN, "steady": STEADY_BY}})
    wired = graph(folder / "two", detectors=detectors, open_detector=TwoPeople())
    (row,) = check_inputs_here(wired, [clip])
    setup = MapSetup(
        config=ControlConfig(max_gap_frames=2),
        device="cpu",
        ledger=wired.ledger,
        cache=wired.cache,
        open_detector=TwoPeople(),
    )
    (made,) = make_maps(setup, wired.shape, [row], detectors)
    assert made["status"] == "ready", made["error_message"]
    records = [
        json.loads(path.read_bytes()) for path in (folder / "two/out/control").rglob("*.json")
    ]
    (steadied,) = [record for record in records if "report" in record]
    people = read_poses(folder / "two/out" / steadied["people"]["path"])
    assert len(people) == 100
    lefts = [persons[0].body_K3[0, 0] for persons in people[1:99]]
    assert np.ptp(lefts) < 0.01, "always the larger one, also where it was filled in"
    assert steadied["report"]["most_people"] == 2
    pieces = json.loads(made["control_maps"])["pose_body"]["pieces"]
    assert len(pieces) == 2
    drawn = [
        record for record in records if record["unit"]["column"] == "keypoints" and record["map"]
    ]
    assert {record["map"]["digest"] for record in drawn} == {piece["digest"] for piece in pieces}


def test_the_sample_is_named_by_what_decides_its_maps(folder: Path) -> None:
    video = film(folder / "a.mp4")

    def named(detectors: Detectors, *clips: ClipRequest) -> list[str]:
        rows = check_inputs_here(graph(folder, detectors=detectors), clips)
        return [row["sample_id"] for row in rows]

    other = Detectors(known={"canny": {"control": "canny", "version": "2"}})
    clip, plain = following("r", video), request("r")
    assert named(DETECTORS, clip) != named(other, clip)
    assert named(DETECTORS, plain) == named(other, plain)
    maps = following("r", video, video_is_control=True)
    assert named(DETECTORS, maps) == named(other, maps)
    with pytest.raises(WeightsError, match="ControlNetHED"):
        DETECTORS.of(following("r", video, control=("hed",)))
    assert json.loads(
        check_inputs_here(graph(folder, detectors=DETECTORS), [clip])[0]["media_digests"]
    )
