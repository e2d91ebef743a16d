"""Held-out requests: rows that resolve, media that show what the clip shows, honest averages."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.media import read_image, read_video, write_segment
from musev.quality.drawn import KINDS, DrawnClip, drawn_clip_of
from musev.registry import get_profile
from musev.synthetic.people import is_held_out
from pipelines.held_out import (
    INPUTS,
    LONG_FRAMES,
    NEUTRAL_PROMPT,
    REPORTED,
    plan_held_out,
    portrait_columns_of,
    report_of,
    unusable_kinds,
    write_inputs,
)
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.resolve import resolve_rows
from pipelines.rows import request_to_json
from pipelines.scores import Scored, read_scores
from pipelines.stages.judge import JudgeClip
from pipelines.storage import Store

PROFILE = get_profile("mini")
FOUR = plan_held_out(4, 9)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_every_kind_comes_early_and_fewer_are_the_first_of_more() -> None:
    many = plan_held_out(200, 9)
    assert {clip.kind for clip in FOUR} == set(KINDS)
    assert many[:4] == FOUR
    assert Counter(clip.kind for clip in many) == {
        "text": 90,
        "pose": 50,
        "identity": 40,
        "long": 20,
    }
    assert len({clip.index for clip in many}) == 200


def test_rows_resolve_to_requests_and_say_which_clip_they_are(store: Store) -> None:
    rows = write_inputs(store, FOUR, PROFILE)
    requests, refused = resolve_rows(rows, PROFILE, store.uri_of(INPUTS))
    assert refused == []
    assert [drawn_clip_of(request.extra) for request in requests] == FOUR
    for request, drawn in zip(requests, FOUR, strict=True):
        clip = drawn.draw(num_frames=1, fps=8.0, height=32, width=32)
        assert is_held_out(clip.attributes)
        assert request.prompt == (NEUTRAL_PROMPT if drawn.kind == "identity" else clip.caption)
        assert request.num_frames == (LONG_FRAMES if drawn.kind == "long" else 13)


def test_media_show_what_the_clip_shows(store: Store) -> None:
    write_inputs(store, FOUR, PROFILE)
    posed, portrait = FOUR[1], FOUR[2]
    clip = posed.draw(num_frames=13, fps=8.0, height=128, width=128)
    found = np.stack([*read_video(store.local_path(f"{INPUTS}/pose-9-00001.mp4"))])
    assert found.shape == clip.control_TYXC.shape
    assert np.abs(found.astype(float) - clip.control_TYXC).mean() < 4
    clip = portrait.draw(num_frames=1, fps=8.0, height=128, width=128)
    picture = read_image(store.read(f"{INPUTS}/identity-9-00002.png"), name="reference")
    assert np.array_equal(picture, clip.reference_YXC)


def test_writing_twice_writes_the_same_bytes(store: Store) -> None:
    write_inputs(store, FOUR[:3], PROFILE)
    before = {path: store.read(path) for path in store.list(INPUTS)}
    write_inputs(store, FOUR[:3], PROFILE)
    assert {path: store.read(path) for path in store.list(INPUTS)} == before
    assert len(before) == 2


def test_another_seed_in_the_same_folder_writes_over_nothing(store: Store) -> None:
    rows = write_inputs(store, FOUR, PROFILE)
    before = {path: store.read(path) for path in store.list(INPUTS)}
    rows += write_inputs(store, plan_held_out(4, 10), PROFILE)
    assert {path: store.read(path) for path in before} == before
    assert len([*store.list(INPUTS)]) == 2 * len(before)
    assert len({row["request_id"] for row in rows}) == 8


def test_kinds_that_weights_cannot_render_have_reasons() -> None:
    everything = {"referencenet": "", "image_projection": ""}
    assert unusable_kinds(everything, ["openpose"]) == {}
    assert unusable_kinds({"random": ""}, ["openpose"]) == {}
    reasons = unusable_kinds({"unet": ""}, ["depth"])
    assert set(reasons) == {"pose", "identity"}
    assert "only depth" in reasons["pose"]
    assert portrait_columns_of(everything) == ("reference_image", "ip_adapter_image")
    assert portrait_columns_of({"referencenet": ""}) == ("reference_image",)


def scored(kind: str, reasons: dict[str, str] | None = None, **scores: float) -> Scored:
    return Scored(sha256="", version=1, scores=scores, kind=kind, reasons=reasons or {})


def test_averages_are_over_the_kinds_they_are_about() -> None:
    scores = [
        scored("text", scene_accuracy=1, action_accuracy=1),
        scored("pose", scene_accuracy=0, action_accuracy=0),
        scored("identity", identity=0.75),
        scored("text", scene_accuracy=1, action_accuracy=1, seam_ratio=9.0),
        scored("long", {"drift_slope": "too short"}, scene_accuracy=0, seam_ratio=1.1),
    ]
    report = report_of(scores, {"pose": "no ControlNet"})
    assert report["scene_accuracy"] == 0.5
    assert report["details"]["scene_accuracy"]["n"] == 4
    assert report["action_accuracy"] == 1
    assert report["seam_ratio"] == 1.1
    assert report["identity_accuracy"] == 0.75
    assert report["details"]["identity_accuracy"]["low"] is None
    assert report["pck_0.1"] is None
    assert report["skipped"]["pck_0.1"] == "no ControlNet"
    assert report["skipped"]["drift_slope"] == "too short"
    assert set(report) == {*REPORTED, "details", "skipped"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_videos_of_any_other_run_count_everywhere() -> None:
    report = report_of([scored("", seam_ratio=1.5, flicker=0.9)], {})
    assert (report["seam_ratio"], report["flicker"]) == (1.5, 0.9)
    assert "applies to" in report["skipped"]["pck_0.1"]


def test_clips_are_drawn_at_the_profiles_size_and_rate(store: Store) -> None:
    small = dataclasses.replace(PROFILE, width=64, height=48, num_frames=5, fps=4.0)
    rows = write_inputs(store, [DrawnClip("pose", 9, 1)], small)
    assert rows[0]["num_frames"] == 5
    frames = [*read_video(store.local_path(f"{INPUTS}/pose-9-00001.mp4"))]
    assert (len(frames), frames[0].shape) == (5, (48, 64, 3))
    assert io.BytesIO(store.read(f"{INPUTS}/pose-9-00001.mp4")).read(12)[4:8] == b"ftyp"


def test_a_perfect_renderer_gets_perfect_scores_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    """The whole way but Ray: rows, media, videos, judges, averages; videos are the drawn truth."""
    plan = plan_held_out(8, 21)
    right = judged_report(tmp_path / "right", plan, plan)
    others = [dataclasses.replace(clip, index=clip.index + 100) for clip in plan]
    wrong = judged_report(tmp_path / "wrong", plan, others)
    for name in ("scene_accuracy", "shirt_color_accuracy", "trousers_color_accuracy"):
        assert right[name] == 1, name
        assert wrong[name] < 0.5, name
    assert right["action_accuracy"] >= 0.75 > wrong["action_accuracy"]
    assert right["pck_0.1"] > 0.93 > wrong["pck_0.1"] + 0.2
    assert right["identity_accuracy"] > 0.9 > wrong["identity_accuracy"] + 0.2
    assert right["seam_ratio"] < 1.3
    assert abs(right["drift_slope"]) < 1
    assert right["flicker"] > 0.95
    assert right["skipped"] == {} or set(right["skipped"]) <= {"camera_motion", "static_overlay"}


def judged_report(folder: Path, plan: list[DrawnClip], shown: list[DrawnClip]) -> dict[str, Any]:
    """Scores of videos that show ``shown`` where ``plan`` was asked for."""
    ledger = Ledger(str(folder))
    judge = JudgeClip(ledger=ledger, cache=MediaCache(run_id="t", folder=str(folder / "cache")))
    rows = write_inputs(ledger.store, plan, PROFILE)
    requests, refused = resolve_rows(rows, PROFILE, ledger.store.uri_of(INPUTS))
    assert refused == []
    for request, clip in zip(requests, shown, strict=True):
        size = {"height": request.height, "width": request.width}
        truth = clip.draw(num_frames=request.num_frames, fps=request.fps, **size)
        video = folder / "video.mp4"
        write_segment(video, truth.frames_TYXC, fps=request.fps, encoder=PROFILE.encoder)
        ledger.store.put("videos/v.mp4", video)
        row = {"sample_id": request.request_id, "request": request_to_json(request), **size}
        row |= {"video": "videos/v.mp4", "sha256": "", "fps": request.fps, "media_digests": "{}"}
        assert judge({**row, "num_frames": request.num_frames})["reason"] == ""
    return report_of(read_scores(ledger.store).values(), {})
