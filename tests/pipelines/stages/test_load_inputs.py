"""The input stage as a plain function: one row in, one row out, never an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from musev.control.person import PoseVideo, write_poses
from musev.lora_choice import LoraChoice
from pipelines.control_maps import Detectors
from pipelines.outcomes import unsampled_id
from pipelines.rows import request_from_json, request_to_json
from pipelines.stages.load_inputs import load_inputs
from tests.pipelines.stand_ins import film, graph, picture, request


def check(folder: Path, **columns: Any) -> dict[str, Any]:
    wired = graph(folder)
    row = {"row": 4, "request": request_to_json(request("one", **columns))}
    return load_inputs(row, cache=wired.cache, name_sample=wired.name_sample)


def test_a_good_row_gets_its_sample_id_and_the_digest_of_every_picture(tmp_path: Path) -> None:
    face, coat = picture(tmp_path / "face.png"), picture(tmp_path / "coat.png", colour=7)
    row = check(tmp_path, condition_image=face, reference_image=coat)
    digests = json.loads(row["media_digests"])
    assert row["status"] == "ready"
    assert row["row"] == 4
    assert set(digests) == {"condition_image", "reference_image"}
    assert digests["condition_image"] != digests["reference_image"]


def test_the_sample_follows_the_pictures_content_not_its_place(tmp_path: Path) -> None:
    first = check(tmp_path, condition_image=picture(tmp_path / "a.png"))
    moved = check(tmp_path, condition_image=picture(tmp_path / "b.png"))
    other = check(tmp_path, condition_image=picture(tmp_path / "c.png", colour=101))
    assert first["sample_id"] == moved["sample_id"] != other["sample_id"]


def controlled(folder: Path, video: str, **columns: Any) -> dict[str, Any]:
    given = {"video": video, "video_is_control": True, "control": ("openpose",), "num_frames": 0}
    return check(folder, **given | columns)


@pytest.mark.parametrize(
    ("fps", "asked", "found"), [(4.0, 0, 6), (2.0, 0, 3), (8.0, 0, 12), (4.0, 5, 5), (8.0, 12, 12)]
)
def test_a_video_decides_the_length_where_the_row_does_not(
    tmp_path: Path, fps: float, asked: int, found: int
) -> None:
    row = controlled(tmp_path, film(tmp_path / "a.mp4"), fps=fps, num_frames=asked)
    assert row["status"] == "ready"
    assert request_from_json(row["request"]).num_frames == found
    assert set(json.loads(row["media_digests"])) == {"video"}


def test_a_length_that_is_measured_and_one_that_is_given_name_the_same_sample(
    tmp_path: Path,
) -> None:
    video = film(tmp_path / "a.mp4")
    given = controlled(tmp_path, video, num_frames=6)
    assert controlled(tmp_path, video)["sample_id"] == given["sample_id"]
    assert controlled(tmp_path, video, num_frames=5)["sample_id"] != given["sample_id"]
    other = controlled(tmp_path, film(tmp_path / "b.mp4", colour=50))
    assert other["sample_id"] != given["sample_id"]


@pytest.mark.parametrize(
    ("columns", "phrase"),
    [
        ({"num_frames": 7}, "has 6 frames at 4 frames a second, but num_frames is 7. Ask for 6"),
        ({"num_frames": 4, "fps": 2.0}, r"has 3 frames at 2 frames a second (6 at its own 4), but"),
        ({"fps": 0.5, "condition_image": "face"}, "has 1 frames at 0.5"),
    ],
)
def test_a_video_that_is_too_short_is_told_with_both_numbers(
    tmp_path: Path, columns: dict[str, Any], phrase: str
) -> None:
    if "condition_image" in columns:
        columns = columns | {"condition_image": picture(tmp_path / "face.png")}
    row = controlled(tmp_path, film(tmp_path / "a.mp4"), **columns)
    assert (row["status"], row["error_class"]) == ("failed", "RequestError")
    assert phrase in row["error_message"]


def test_every_so_manieth_frame_decides_the_length(tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", 7)
    row = controlled(tmp_path, video, sample_rate=3, fps=24.0)
    assert request_from_json(row["request"]).num_frames == 3
    assert row["video_frames"] == 3
    row = controlled(tmp_path, video, sample_rate=3, num_frames=4)
    assert "has 3 frames, taking every 3. of its 7, but num_frames is 4" in row["error_message"]


def test_a_condition_image_of_its_own_makes_the_clip_a_frame_longer(tmp_path: Path) -> None:
    own = {"condition_image": picture(tmp_path / "c.png"), "condition_has_own_map": True}
    video = film(tmp_path / "a.mp4")
    given = {"video": video, "video_is_control": True, "num_frames": 0, **own}
    row = check(tmp_path, **given)
    assert request_from_json(row["request"]).num_frames == 7
    assert row["video_frames"] == 6
    row = check(tmp_path, **given | {"num_frames": 8})
    assert "with the condition image in front a clip has 7 at most" in row["error_message"]


def test_keypoints_are_measured_as_a_video_is(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    write_poses(path, [()] * 10, PoseVideo(num_frames=10, fps=8.0))
    given = {"keypoints": str(path), "control": ("pose",), "num_frames": 0}
    detectors = Detectors(known={"pose": {"control": "pose", "min_confidence": "0.3"}})
    wired = graph(tmp_path, detectors=detectors)
    row = {"row": 0, "request": request_to_json(request("k", **given))}
    row = load_inputs(row, cache=wired.cache, name_sample=wired.name_sample)
    assert row["status"] == "ready", row["error_message"]
    assert request_from_json(row["request"]).num_frames == 5
    assert set(json.loads(row["media_digests"])) == {"keypoints"}
    path.write_bytes(b"no table")
    bad = check(tmp_path / "b", **given)
    assert bad["status"] == "failed"
    assert f"keypoints {path} is not a readable Parquet file" in bad["error_message"]


def test_a_damaged_video_is_read_as_far_as_it_goes_where_the_row_says_so(tmp_path: Path) -> None:
    good = Path(film(tmp_path / "good.mp4", 60)).read_bytes()
    middle = good.index(b"mdat") + 400
    (tmp_path / "bad.mp4").write_bytes(good[:middle] + bytes(300) + good[middle + 300 :])
    bad = str(tmp_path / "bad.mp4")
    row = controlled(tmp_path, bad, video_may_be_cut=True)
    assert row["status"] == "ready", row["error_message"]
    assert 0 < request_from_json(row["request"]).num_frames < 60
    row = controlled(tmp_path, bad, video_may_be_cut=True, num_frames=60)
    assert "frames before it is damaged at 4 frames a second" in row["error_message"]


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "text"])
def test_a_bad_video_fails_its_row_by_its_own_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dance.mp4"
    good = Path(film(tmp_path / "good.mp4")).read_bytes()
    content = {"truncated": good[: len(good) // 2], "empty": b"", "text": b"this is no video"}
    if kind != "missing":
        path.write_bytes(content[kind])
    row = controlled(tmp_path, str(path))
    assert (row["status"], row["error_class"]) == ("failed", "MediaError")
    assert str(path) in row["error_message"]
    assert "in_use" not in row["error_message"]
    assert row["error_message"].count(". ") >= 1  # a reason, then a remedy


def write_broken(path: Path, kind: str) -> None:
    good = Path(picture(path.with_name("good.png"), side=64)).read_bytes()
    content = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"this is no picture",
        "video": b"\x00\x00\x00\x18ftypisom" + bytes(64),
    }
    if kind != "missing":
        path.write_bytes(content[kind])


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "text", "video"])
def test_a_bad_picture_fails_its_row_with_class_stage_reason_and_remedy(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "face.png"
    write_broken(path, kind)
    row = check(tmp_path, condition_image=str(path))
    assert (row["status"], row["error_class"], row["error_stage"]) == (
        "failed",
        "MediaError",
        "load_inputs",
    )
    assert "face.png" in row["error_message"]
    assert row["error_message"].count(".") >= 2  # a reason, then a remedy
    assert row["sample_id"] == unsampled_id(request("one", condition_image=str(path)))


def test_an_unknown_error_fails_the_row_too_and_keeps_its_traceback(tmp_path: Path) -> None:
    def name_sample(*_: Any) -> str:
        raise ZeroDivisionError("a bug of ours")

    row = {"row": 0, "request": request_to_json(request("one"))}
    row = load_inputs(row, cache=graph(tmp_path).cache, name_sample=name_sample)
    assert row["status"] == "failed"
    assert row["error_class"] == "ZeroDivisionError"
    assert "--retry-failed" in row["error_message"]
    assert "name_sample" in row["error_traceback"]


def lora(path: Path, key: str = "lora_unet_x.lora_up.weight", value: int = 0) -> LoraChoice:
    """Write a file by hand: what it may hold besides its keys is of no interest here."""
    header = json.dumps({key: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([value]))
    return LoraChoice(file=path.as_uri())


def test_a_lora_counts_by_its_content(tmp_path: Path) -> None:
    one = check(tmp_path, loras=(lora(tmp_path / "a.safetensors"),))
    assert one["status"] == "ready"
    assert set(json.loads(one["media_digests"])) == {"loras.0"}
    moved = check(tmp_path, loras=(lora(tmp_path / "b.safetensors"),))
    other = check(tmp_path, loras=(lora(tmp_path / "c.safetensors", value=1),))
    half = dataclasses.replace(lora(tmp_path / "b.safetensors"), strength=0.5)
    weaker = check(tmp_path, loras=(half,))
    plain = check(tmp_path)
    assert one["sample_id"] == moved["sample_id"]
    assert len({row["sample_id"] for row in (one, other, weaker, plain)}) == 4


def test_what_is_no_lora_is_told_before_a_gpu_is_held(tmp_path: Path) -> None:
    for choice, phrase in (
        (lora(tmp_path / "unet.safetensors", key="conv_in.weight"), "holds no LoRA"),
        (LoraChoice(file=(tmp_path / "gone.safetensors").as_uri()), "gone.safetensors"),
    ):
        row = check(tmp_path, loras=(choice,))
        assert row["status"] == "failed"
        assert phrase in row["error_message"]
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    row = check(tmp_path, loras=(LoraChoice(file=(tmp_path / "cut.safetensors").as_uri()),))
    assert "damaged or truncated" in row["error_message"]
