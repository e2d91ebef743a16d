from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.config import EncoderConfig
from musev.media import write_segment
from musev.synthetic.clips import draw_clip
from pipelines.clip_sources import BadMediaError, cut_frames, drawn_clip, real_clip
from pipelines.clip_table import ClipRow
from pipelines.dataset_plan import DatasetConfig
from pipelines.media_cache import MediaCache

CONFIG = DatasetConfig(width=32, height=48, num_frames=3, fps=8.0)


@pytest.fixture
def cache(tmp_path: Path) -> MediaCache:
    return MediaCache(run_id="test", folder=str(tmp_path / "cache"))


def grey_video(path: Path, num_frames: int = 24, *, fps: float = 24, side: int = 64) -> str:
    """Frames of 64 by 96 pixels whose grey is ten times their number."""
    greys = (np.arange(num_frames) * 10 % 256).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (num_frames, side, side + 32, 3))
    write_segment(path, frames, fps=fps, encoder=EncoderConfig(preset="ultrafast", crf=1))
    return str(path)


def row(video: str, **changes: Any) -> ClipRow:
    return ClipRow(**{"row": 7, "clip_id": "c", "video": video, "caption": "x", **changes})


def greys(frames_TYXC: np.ndarray) -> list[int]:
    return [round(frame.mean() / 10) for frame in frames_TYXC]


def test_a_drawn_clip_is_the_renderers() -> None:
    found = drawn_clip(3, 5, CONFIG)
    clip = draw_clip(3, 5, height=48, width=32, num_frames=3, fps=8.0)
    np.testing.assert_array_equal(found.frames_TYXC, clip.frames_TYXC)
    np.testing.assert_array_equal(found.mask_TYX, clip.mask_TYX)
    assert (found.key, found.clip_id, found.caption) == ("00000005", "train-3-5", clip.caption)
    assert found.attributes["shirt_color"] == clip.attributes.shirt_color
    assert found.facts["seed"] == 3
    json.dumps([found.attributes, found.facts])


def test_held_out_clips_are_other_clips() -> None:
    held_out = DatasetConfig(width=32, height=48, num_frames=1, held_out=True)
    found = drawn_clip(3, 5, held_out)
    assert found.clip_id == "held-out-3-5"
    assert found.caption == draw_clip(3, 5, held_out=True, num_frames=1).caption


def test_a_real_clip_is_cut_resampled_and_cropped(tmp_path: Path, cache: MediaCache) -> None:
    video = grey_video(tmp_path / "v.mp4")
    found = real_clip(row(video, start_s=0.25, licence="CC", attributes={"a": 1}), CONFIG, cache)
    assert found.frames_TYXC.shape == (3, 48, 32, 3)
    assert greys(found.frames_TYXC) == [6, 9, 12]
    assert (found.key, found.clip_id, found.fps) == ("00000007", "c", 8.0)
    assert found.attributes == {"a": 1}
    assert found.facts["source"] == video
    assert found.facts["licence"] == "CC"
    assert found.control_TYXC is found.mask_TYX is found.reference_YXC is None


def test_control_frames_stay_in_step(tmp_path: Path, cache: MediaCache) -> None:
    video, control = grey_video(tmp_path / "v.mp4"), grey_video(tmp_path / "c.mp4", side=32)
    found = real_clip(row(video, control=control, start_s=0.5), CONFIG, cache)
    assert greys(found.control_TYXC) == greys(found.frames_TYXC) == [12, 15, 18]


def test_the_middle_is_kept(tmp_path: Path) -> None:
    frames = np.zeros((2, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 200
    write_segment(tmp_path / "v.mp4", frames, fps=8, encoder=EncoderConfig(crf=1))
    square = DatasetConfig(width=32, height=32, num_frames=2)
    found = cut_frames((tmp_path / "v.mp4").read_bytes(), 0.0, square)
    assert found[:, :, 3:-3].min() > 190


def test_a_digest_in_the_row_is_checked(tmp_path: Path, cache: MediaCache) -> None:
    video = grey_video(tmp_path / "v.mp4")
    digest = hashlib.sha256(Path(video).read_bytes()).hexdigest()
    assert real_clip(row(video, sha256=digest.upper()), CONFIG, cache).clip_id == "c"
    with pytest.raises(BadMediaError, match="the row says"):
        real_clip(row(video, sha256="0" * 64), CONFIG, cache)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (None, "no file at"),
        (b"", "empty"),
        (b"not a video at all", "cannot be read as a video"),
        ("cut", "cannot be read as a video"),
        ("short", "gives 2 frames at 8 frames a second"),
    ],
)
def test_bad_media_name_their_column(
    tmp_path: Path, cache: MediaCache, content: bytes | str | None, phrase: str
) -> None:
    path = tmp_path / "v.mp4"
    if content == "short":
        grey_video(path, 6)
    elif content == "cut":
        path.write_bytes(Path(grey_video(tmp_path / "whole.mp4")).read_bytes()[:-900])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(BadMediaError, match=phrase) as caught:
        real_clip(row(str(path)), CONFIG, cache)
    assert (caught.value.column, caught.value.value) == ("video", str(path))
    assert "musev-cut" not in str(caught.value)


def test_a_bad_control_video_is_told_from_a_bad_video(tmp_path: Path, cache: MediaCache) -> None:
    video = grey_video(tmp_path / "v.mp4")
    with pytest.raises(BadMediaError) as caught:
        real_clip(row(video, control=str(tmp_path / "nowhere.mp4")), CONFIG, cache)
    assert caught.value.column == "control"
