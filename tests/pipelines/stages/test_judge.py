"""The judge stage as a plain object: real drawn videos in, scores beside them out; no Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.config import (
    ClipRequest,
    EncoderConfig,
    FirstFrameConfig,
    SamplingConfig,
    WindowConfig,
)
from musev.errors import StorageError
from musev.media import encode_png, write_segment
from musev.quality.drawn import DrawnClip
from musev.synthetic.clips import Clip
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.rows import request_to_json
from pipelines.scores import Scored, picture_path, read_scores
from pipelines.stages import judge
from pipelines.stages.judge import JudgeClip
from tests.pipelines.stand_ins import request

POSED = DrawnClip("pose", 9, 1)
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
    monkeypatch.setattr(judge, "MOST_BYTES", 24 * 96 * 96 * 13)
    stage(row)
    assert scores_of(ledger).scores["pck_0.1"] > 0.85
    monkeypatch.setattr(judge, "MOST_BYTES", 24 * 40 * 40 * 13)
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
