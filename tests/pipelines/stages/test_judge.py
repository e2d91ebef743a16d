"""The judge stage as a plain object: real drawn videos in, scores beside them out; no Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.config import (
    ClipRequest,
    EncoderConfig,
    FirstFrameConfig,
    SamplingConfig,
    ShotConfig,
    WindowConfig,
)
from musev.control.person import Person, PoseVideo, write_poses
from musev.denoise.windows import plan_windows
from musev.errors import StorageError
from musev.media import encode_png, write_segment
from musev.quality.drawn import DrawnClip
from musev.quality.seams import window_borders
from musev.synthetic.clips import Clip
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.rows import request_to_json
from pipelines.scores import Scored, picture_path, read_scores
from pipelines.stages import judge
from pipelines.stages.judge import JudgeClip
from tests.musev.quality.controls import grainy, stepped
from tests.pipelines.stand_ins import request

POSED = DrawnClip("pose", 9, 1)
NOBODY = np.zeros((64, 64, 3), np.uint8)
TILES = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=0))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out"))


@pytest.fixture
def stage(ledger: Ledger, tmp_path: Path) -> JudgeClip:
    return JudgeClip(ledger=ledger, cache=MediaCache(run_id="t", folder=str(tmp_path / "cache")))


def drawn(num_frames: int = 24) -> Clip:
    return POSED.draw(num_frames=num_frames, fps=8.0, height=128, width=128)


def put(ledger: Ledger, frames_TYXC: np.ndarray, asked: ClipRequest, tmp_path: Path) -> dict:
    path = tmp_path / "video.mp4"
    write_segment(path, frames_TYXC, fps=8.0, encoder=EncoderConfig(crf=12))
    ledger.store.put("videos/v.mp4", path)
    return {
        "sample_id": "s" * 64,
        "request": request_to_json(asked),
        "video": "videos/v.mp4",
        "sha256": "digest",
        "media_digests": "{}",
        "fps": 8.0,
        "num_frames": len(frames_TYXC),
        "height": frames_TYXC.shape[1],
        "width": frames_TYXC.shape[2],
    }


def asked_for(clip: Clip, **columns: Any) -> ClipRequest:
    values = {"fps": 8.0, "width": 128, "height": 128, "num_frames": 24, "sampling": TILES}
    return request("r", prompt=clip.caption, **{**values, **columns})


def scores_of(ledger: Ledger) -> Scored:
    (scored,) = read_scores(ledger.store).values()
    return scored


def test_the_truth_scores_as_the_truth(stage: JudgeClip, ledger: Ledger, tmp_path: Path) -> None:
    clip = drawn()
    asked = asked_for(clip, extra=POSED.to_extra())
    outcome = stage(put(ledger, clip.frames_TYXC, asked, tmp_path))
    assert outcome == {"sample_id": "s" * 64, "status": "judged", "reason": ""}
    scored = scores_of(ledger)
    assert (scored.sha256, scored.kind, scored.version) == ("digest", "pose", judge.VERSION)
    for name in ("scene_accuracy", "shirt_color_accuracy", "action_accuracy"):
        assert scored.scores[name] == 1, name
    assert scored.scores["pck_0.1"] > 0.9
    assert scored.scores["seam_ratio"] < 1.4
    assert "identity" not in scored.scores
    assert {"color_drift", "subject_drift", "seam_curve", "borders"} == set(scored.curves)
    for name in ("frames", "seams"):
        assert ledger.store.read(picture_path("s" * 64, name))[:2] == b"\xff\xd8"


def test_judging_twice_writes_the_same(stage: JudgeClip, ledger: Ledger, tmp_path: Path) -> None:
    row = put(ledger, drawn().frames_TYXC, asked_for(drawn()), tmp_path)
    stage(row)
    before = {path: ledger.store.read(path) for path in ledger.store.list("metrics")}
    stage(row)
    assert {path: ledger.store.read(path) for path in ledger.store.list("metrics")} == before


def test_people_who_are_not_drawn_are_not_judged_as_if_they_were(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    asked = dataclasses.replace(asked_for(drawn()), prompt="a painter looks up from the canvas")
    stage(put(ledger, drawn().frames_TYXC, asked, tmp_path))
    named = set(scores_of(ledger).scores)
    assert not {name for name in named if name.endswith("accuracy")}
    assert not {"pck_0.1", "identity", "subject_drift_slope"} & named
    assert {"flicker", "seam_ratio", "drift_slope"} <= named


def test_pictures_of_the_request_are_judged_too(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    clip = drawn()
    for name, picture in (("first", clip.frames_TYXC[0]), ("portrait", clip.reference_YXC)):
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture))
    asked = asked_for(
        clip,
        condition_image=str(tmp_path / "first.png"),
        reference_image=str(tmp_path / "portrait.png"),
    )
    stage(put(ledger, clip.frames_TYXC, asked, tmp_path))
    scored = scores_of(ledger)
    assert scored.scores["identity"] == 1
    assert scored.scores["first_frame_psnr"] > 28
    assert len(scored.curves["seam_curve"]) == 22  # the given frame is in no window


def test_pictures_that_are_gone_cost_their_own_scores_only(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    asked = asked_for(drawn(), condition_image=str(tmp_path / "gone.png"))
    assert stage(put(ledger, drawn().frames_TYXC, asked, tmp_path))["status"] == "judged"
    scored = scores_of(ledger)
    assert "gone.png" in scored.reasons["condition"]
    assert "first_frame_psnr" not in scored.scores
    assert "scene_accuracy" in scored.scores


def test_a_portrait_that_changed_after_rendering_is_a_reason_and_no_score(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    clip, portrait = drawn(), tmp_path / "portrait.png"
    own = encode_png(clip.reference_YXC)
    portrait.write_bytes(encode_png(NOBODY))
    asked = asked_for(clip, reference_image=str(portrait))
    row = put(ledger, clip.frames_TYXC, asked, tmp_path)
    digest = f"sha256:{hashlib.sha256(own).hexdigest()}"
    row |= {"media_digests": json.dumps({"reference_image": digest})}
    stage(row)
    assert "changed" in scores_of(ledger).reasons["reference"]
    assert "identity" not in scores_of(ledger).scores
    portrait.write_bytes(own)
    again = JudgeClip(
        ledger=ledger, cache=MediaCache(run_id="again", folder=str(tmp_path / "cache"))
    )
    again(row)
    assert scores_of(ledger).scores["identity"] == 1
    portrait.unlink()  # this machine still knows what the video was made with
    again(row)
    assert scores_of(ledger).scores["identity"] == 1


def put_keypoints(path: Path, clip: Clip, num_people: int = 1) -> str:
    """Write the clip's joints as keypoints of a picture of 128 pixels."""
    poses = []
    for points_J2, visible_J in zip(clip.points_TJ2, clip.visible_TJ, strict=True):
        body_J3 = np.concatenate([(points_J2 + 0.5) / 128, visible_J[:, None]], axis=1)
        poses.append((Person.of(body_J3 * visible_J[:, None]),) * num_people)
    write_poses(path, poses, PoseVideo(width=128, height=128, fps=8.0))
    return str(path)


def test_a_row_led_by_keypoints_is_held_against_them(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    clip = drawn()
    other = dataclasses.replace(POSED, index=6).draw(num_frames=24, fps=8.0, height=128, width=128)
    shares = []
    for led_by in (clip, other):
        uri = put_keypoints(tmp_path / f"{led_by.index}.parquet", led_by)
        stage(put(ledger, clip.frames_TYXC, asked_for(clip, keypoints=uri), tmp_path))
        shares.append(scores_of(ledger).scores["pck_0.1"])
    assert shares[0] > 0.9 > shares[1] + 0.2


def test_keypoints_that_say_nothing_of_the_video_have_reasons(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    clip = drawn()
    two = put_keypoints(tmp_path / "two.parquet", clip, num_people=2)
    one = put_keypoints(tmp_path / "one.parquet", clip)
    moved = {"keypoints": one, "align": "auto"}
    gone = {"keypoints": str(tmp_path / "gone.parquet")}
    for columns, name, phrase in (
        ({"keypoints": two}, "pck_0.1", "several people"),
        (moved, "pck_0.1", "elsewhere"),
        (gone, "keypoints", "gone.parquet"),
    ):
        stage(put(ledger, clip.frames_TYXC, asked_for(clip, **columns), tmp_path))
        assert phrase in scores_of(ledger).reasons[name]
        assert "pck_0.1" not in scores_of(ledger).scores
    unknown = dataclasses.replace(asked_for(clip, keypoints=one), prompt="a painter at work")
    stage(put(ledger, clip.frames_TYXC, unknown, tmp_path))
    assert "pck_0.1" not in scores_of(ledger).scores


def test_a_video_that_cannot_be_read_fails_alone_with_its_reason(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    row = put(ledger, drawn().frames_TYXC, asked_for(drawn()), tmp_path)
    ledger.store.put("videos/v.mp4", b"no video at all")
    outcome = stage(row)
    assert outcome["status"] == "failed"
    assert "MediaError" in outcome["reason"]
    assert scores_of(ledger).reasons["video"] == outcome["reason"]
    ledger.store.delete(["videos/v.mp4"])
    assert stage(row)["status"] == "failed"
    assert stage({**row, "request": "{}"})["status"] == "failed"


def test_silent_storage_is_nobodys_fault(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = put(ledger, drawn().frames_TYXC, asked_for(drawn()), tmp_path)

    def silent(path: str, target: Path) -> None:
        raise StorageError("no answer")

    monkeypatch.setattr(ledger.store, "fetch", silent)
    with pytest.raises(StorageError):
        stage(row)
    assert read_scores(ledger.store) == {}


def test_more_pixels_than_fit_are_judged_smaller_or_refused(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = drawn()
    row = put(ledger, clip.frames_TYXC, asked_for(clip, extra=POSED.to_extra()), tmp_path)
    monkeypatch.setattr(judge, "MOST_BYTES", 24 * 96 * 96 * 16)
    stage(row)
    assert scores_of(ledger).scores["pck_0.1"] > 0.85
    monkeypatch.setattr(judge, "MOST_BYTES", 24 * 40 * 40 * 16)
    assert "too much to judge" in stage(row)["reason"]


@pytest.mark.parametrize("layout", ["musev", "upstream", "upstream_uniform", "rotating"])
def test_every_layout_can_be_judged(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path, layout: str
) -> None:
    windows = WindowConfig(num_frames=8, overlap=2, layout=layout)  # type: ignore[arg-type]
    asked = asked_for(drawn(), sampling=SamplingConfig(windows=windows))
    outcome = stage(put(ledger, drawn().frames_TYXC, asked, tmp_path))
    assert outcome["reason"] == ""


@pytest.mark.parametrize(("origin", "num_border_changes"), [("drawn", 22), ("noise", 23)])
def test_a_first_frame_drawn_by_itself_is_in_no_window(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path, origin: str, num_border_changes: int
) -> None:
    sampling = dataclasses.replace(TILES, first_frame=FirstFrameConfig(origin=origin))  # type: ignore[arg-type]
    stage(put(ledger, drawn().frames_TYXC, asked_for(drawn(), sampling=sampling), tmp_path))
    assert len(scores_of(ledger).curves["seam_curve"]) == num_border_changes
    one = drawn().frames_TYXC[:1]
    assert stage(put(ledger, one, asked_for(drawn(), sampling=sampling), tmp_path))["reason"] == ""


@pytest.mark.parametrize(
    ("origin", "borders", "seen_at"), [("noise", [8, 16], (8, 16)), ("drawn", [7, 15], (8, 16))]
)
def test_the_borders_of_shots_are_borders(
    stage: JudgeClip,
    ledger: Ledger,
    tmp_path: Path,
    origin: str,
    borders: list[int],
    seen_at: tuple[int, ...],
) -> None:
    sampling = dataclasses.replace(
        TILES,
        shots=ShotConfig(num_frames=8),
        first_frame=FirstFrameConfig(origin=origin),  # type: ignore[arg-type]
    )
    clip = stepped(grainy(drawn().frames_TYXC, 3), seen_at, 15)
    stage(put(ledger, clip, asked_for(drawn(), sampling=sampling), tmp_path))
    assert scores_of(ledger).curves["borders"] == borders
    assert scores_of(ledger).scores["seam_ratio"] > 1.5


def test_windows_of_shots_are_those_of_each_shot(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    windows = WindowConfig(num_frames=6, overlap=0)
    first = FirstFrameConfig(origin="noise")
    sampling = SamplingConfig(windows=windows, shots=ShotConfig(num_frames=10), first_frame=first)
    stage(put(ledger, drawn().frames_TYXC, asked_for(drawn(), sampling=sampling), tmp_path))
    assert scores_of(ledger).curves["borders"] == [4, 6, 10, 14, 16, 20]


@pytest.mark.parametrize(("index", "video_frame"), [((-1,), 12), ((6,), 13), ((0,), 13)])
def test_conditioning_frames_are_left_out_wherever_they_stand(
    stage: JudgeClip,
    ledger: Ledger,
    tmp_path: Path,
    index: tuple[int, ...],
    video_frame: int,
) -> None:
    clip = drawn(25)
    asked = asked_for(clip, num_frames=25, condition_image="unread.png", condition_index=index)
    shown = stepped(grainy(clip.frames_TYXC, 3), (video_frame,), 15)
    stage(put(ledger, shown, asked, tmp_path))
    scored = scores_of(ledger)
    assert scored.curves["borders"] == [12]
    assert scored.scores["seam_ratio"] > 2


def test_the_last_step_of_a_clip_that_starts_from_a_video_is_counted_from_its_own_first(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path
) -> None:
    windows = WindowConfig(num_frames=6, overlap=0, layout="rotating", settle_steps=0)
    first = FirstFrameConfig(origin="noise")
    sampling = SamplingConfig(num_steps=6, strength=0.5, windows=windows, first_frame=first)
    asked = asked_for(drawn(), sampling=sampling, video="v.mp4", start_from_video=True)
    stage(put(ledger, drawn().frames_TYXC, asked, tmp_path))
    own = window_borders(plan_windows(24, windows, step=2, num_steps=3), 24)
    assert own != window_borders(plan_windows(24, windows, step=5, num_steps=6), 24)
    assert scores_of(ledger).curves["borders"] == list(own)


@pytest.mark.parametrize("extra", [None, POSED.to_extra()])
def test_judging_takes_no_more_memory_than_it_says(
    stage: JudgeClip, ledger: Ledger, tmp_path: Path, extra: str | None
) -> None:
    frames_TYXC = np.concatenate([drawn().frames_TYXC] * 5)
    asked = asked_for(drawn(), num_frames=len(frames_TYXC), extra=extra)
    row = put(ledger, frames_TYXC, asked, tmp_path)
    num_pixels = frames_TYXC.size / 3
    stage(row)  # what is loaded once is none of a clip's
    tracemalloc.start()
    stage(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 13 < peak / num_pixels <= judge._PIXEL_BYTES
