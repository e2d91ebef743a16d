"""All flows in one manifest on two workers, each beside a row that is wrong in its own way."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import text_to_video, video_to_video
from musev.control.person import Person, PoseVideo, PoseWriter
from musev.media import encode_png, probe_video, read_video, write_segment
from musev.synthetic.clips import draw_clip
from musev.synthetic.portraits import draw_portrait
from pipelines.manifest import write_manifest
from tests.job_flags import flags_of
from tests.job_process import run_job

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
SMALL = [
    *("--set", f"width={SIZE}", "--set", f"height={SIZE}", "--set", "sampling.num_steps=4"),
    *("--set", "sampling.first_frame.num_steps=2"),
]
FACE, OTHER = "person-0.png", "person-1.png"

GOOD: list[tuple[dict[str, Any], int]] = [
    ({"request_id": "text", "prompt": "a person in a red shirt"}, 4),
    ({"request_id": "image", "condition_image": FACE}, 4),
    ({"request_id": "two-references", "prompt": "a", "reference_image": [FACE, OTHER]}, 4),
    ({"request_id": "two-image-prompts", "prompt": "a", "ip_adapter_image": [FACE, OTHER]}, 4),
    ({"request_id": "redrawn", "condition_image": FACE, "redraw": True}, 4),
    (
        {
            "request_id": "both-ends",
            "condition_image": [FACE, OTHER],
            "condition_index": [0, -1],
        },
        6,
    ),
    ({"request_id": "shots", "condition_image": FACE, "shot_frames": 3}, 8),
    ({"request_id": "matched", "condition_image": FACE, "histogram_match": True}, 4),
    ({"request_id": "changed", "prompt": "a", "video": "v.mp4", "start_from_video": True}, 16),
    *(
        (
            {
                "request_id": name,
                "prompt": "a",
                "condition_image": FACE,
                "video": "v.mp4",
                "start_from_video": True,
                "strength": strength,
            },
            16,
        )
        for name, strength in (("changed-little", 0.25), ("changed-much", 1.0))
    ),
    (
        {
            "request_id": "maps",
            "prompt": "a",
            "video": "maps.mp4",
            "video_is_control": True,
            "control_end": [0.5],
        },
        5,
    ),
    (
        {
            "request_id": "keypoints",
            "prompt": "a",
            "keypoints": "people.parquet",
            "control": ["dwpose_body"],
        },
        5,
    ),
]
BAD = {
    "no-image-to-redraw": ({"prompt": "a", "redraw": True}, "redraw"),
    "places-meet": (
        {"condition_image": [FACE, OTHER], "condition_index": [0, 0], "num_frames": 6},
        "condition_index",
    ),
    "one-place-too-few": (
        {"condition_image": [FACE, OTHER], "condition_index": [0], "num_frames": 6},
        "condition_index",
    ),
    "places-in-shots": (
        {"condition_image": [FACE, OTHER], "condition_index": [0, -1], "shot_frames": 2},
        "condition_index",
    ),
    "strength-of-nothing": ({"prompt": "a", "strength": 0.5}, "strength"),
    "starts-from-maps": (
        {
            "prompt": "a",
            "video": "maps.mp4",
            "video_is_control": True,
            "start_from_video": True,
        },
        "start_from_video",
    ),
    "starts-from-nothing": ({"prompt": "a", "start_from_video": True}, "start_from_video"),
    "two-ends-for-one-net": (
        {"prompt": "a", "video": "maps.mp4", "video_is_control": True, "control_end": [0.5, 1.0]},
        "control_end",
    ),
    "no-shot": ({"prompt": "a", "shot_frames": 0}, "shot_frames"),
    "second-picture-missing": ({"condition_image": [FACE, "gone.png"]}, "gone.png"),
    "gone-video": ({"prompt": "a", "video": "gone.mp4", "start_from_video": True}, "gone.mp4"),
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Pictures, a driving video, maps, keypoints and the manifest."""
    path = Path(tempfile.mkdtemp(prefix="mvv", dir="/tmp"))
    for seed in range(2):
        picture = encode_png(draw_portrait(seed, width=96, height=96))
        (path / f"person-{seed}.png").write_bytes(picture)
    clip = draw_clip(1, 0, held_out=True, height=SIZE, width=SIZE, num_frames=16, fps=8.0)
    write_segment(path / "v.mp4", clip.frames_TYXC, fps=8)
    write_segment(path / "maps.mp4", clip.control_TYXC[:5], fps=8)
    video = PoseVideo(width=SIZE, height=SIZE, fps=8.0)
    with PoseWriter(path / "people.parquet", video) as writer:
        for points, seen in zip(clip.points_TJ2[:5], clip.visible_TJ[:5], strict=True):
            body = np.concatenate([points / SIZE, seen[:, None]], axis=1).astype(np.float32)
            writer.write((Person.of(body_K3=body),))
    rows = [{"num_frames": count} | row for row, count in GOOD]
    rows += [{"request_id": name, "num_frames": 4} | row for name, (row, _) in BAD.items()]
    write_manifest(rows, str(path / "all.parquet"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """The results table of the run, by request."""
    command = ["--manifest", str(folder / "all.parquet"), "--output", str(folder / "out"), *SMALL]
    done = run_job("jobs.text_to_video", *command, "--workers", "2", timeout_s=500)
    assert done.returncode == 3, done.stderr
    table = pq.read_table(folder / "out" / "results.parquet")
    return {row["request_id"]: row for row in table.to_pylist()}


def frames_of(row: dict[str, Any]) -> np.ndarray:
    """The frames of a finished video."""
    return np.stack(list(read_video(Path(row["video_uri"].removeprefix("file://")))))


@pytest.mark.timeout(550)
def test_every_flow_becomes_a_video(finished: dict[str, dict[str, Any]]) -> None:
    """Committed, as long as asked for, whatever stands beside it."""
    assert set(finished) == {row["request_id"] for row, _ in GOOD} | set(BAD)
    for row, num_frames in GOOD:
        found = finished[row["request_id"]]
        assert found["status"] == "committed", found["error_message"]
        facts = probe_video(Path(found["video_uri"].removeprefix("file://")))
        assert (facts.num_frames, facts.width, facts.height) == (num_frames, SIZE, SIZE)


@pytest.mark.timeout(550)
@pytest.mark.parametrize("name", BAD)
def test_a_wrong_row_says_what_is_wrong_with_it(
    finished: dict[str, dict[str, Any]], name: str
) -> None:
    """It fails alone and names the column or file."""
    row, named = finished[name], BAD[name][1]
    assert row["status"] == "failed"
    assert named in row["error_message"]
    assert len([part for part in row["error_message"].split(". ") if part]) >= 2


@pytest.mark.timeout(550)
def test_the_videos_are_what_their_rows_say(
    folder: Path, finished: dict[str, dict[str, Any]]
) -> None:
    """Nearer to the driving video with less strength; both given frames at their places."""
    driving = np.stack(list(read_video(folder / "v.mp4"))).astype(float)

    def away(name: str) -> float:
        return float(np.abs(frames_of(finished[name])[1:] - driving[1:]).mean())

    assert away("changed-little") < away("changed-much")
    ends = frames_of(finished["both-ends"]).astype(float)
    one = frames_of(finished["image"])[0].astype(float)
    assert np.abs(ends[0] - one).mean() < np.abs(ends[-1] - one).mean()


@pytest.mark.timeout(550)
def test_video_to_video_refuses_rows_that_nothing_drives(
    folder: Path, finished: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same job, more strict; what it finds committed it leaves as it is."""
    command = ["--manifest", str(folder / "all.parquet"), "--output", str(folder / "out"), *SMALL]
    assert video_to_video.main([*command, "--dry-run"]) == 3
    told = capsys.readouterr().out
    assert "bad row text: RequestError in manifest" in told
    assert "render the row with text-to-video" in told
    assert "already there" in told
    driven = [row["request_id"] for row, _ in GOOD if {"video", "keypoints"} & set(row)]
    assert not any(f"bad row {name}:" in told for name in driven)


def test_both_jobs_have_the_same_flags() -> None:
    """Whoever knows one knows the other; rows that are led by a video need no poses from words."""
    assert flags_of(text_to_video.app) - {"--text-to-pose"} == flags_of(video_to_video.app)
