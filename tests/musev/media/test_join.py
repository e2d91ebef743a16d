"""Joining: frames keep their bits, times stay exact, wrong segments are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musev.config import EncoderConfig
from musev.errors import MediaError
from musev.media.ffmpeg import run_ffmpeg
from musev.media.join import join_segments, read_track
from musev.media.video import frame_rate, probe_video, read_video, write_segment


def _segment(path: Path, num_frames: int, *, first: int = 0, **options) -> Path:
    rows, columns = np.mgrid[: options.pop("height", 48), :64]
    frames = [
        (np.stack((columns * 3 + 5 * number, rows * 4, rows + 7 * number), axis=-1) % 256)
        for number in range(first, first + num_frames)
    ]
    write_segment(path, [frame.astype(np.uint8) for frame in frames], **{"fps": 4, **options})
    return path


def _frame_times(path: Path) -> list[int]:
    arguments = ["-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    arguments += ["-enc_time_base", "demux", "-f", "framecrc", "-"]
    table, _ = run_ffmpeg(arguments, what="test")
    return [int(line.split(",")[2]) for line in table.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("fps", [4.0, 23.976])
@pytest.mark.parametrize("lengths", [(7, 48, 1), (1, 1, 30), (1,), (48,)])
def test_joined_frames_equal_the_segments_frames(
    tmp_path: Path, fps: float, lengths: tuple[int, ...]
) -> None:
    segments = [
        _segment(tmp_path / f"it's {number} %d.mp4", length, first=50 * number, fps=fps)
        for number, length in enumerate(lengths)
    ]
    target = tmp_path / "joined.mp4"
    assert join_segments(segments, target) == sum(lengths)
    expected = [frame for segment in segments for frame in read_video(segment)]
    np.testing.assert_array_equal(list(read_video(target)), expected)
    info = probe_video(target)
    assert info.num_frames == sum(lengths)
    assert info.fps == pytest.approx(float(frame_rate(fps)))
    assert info.duration_s == pytest.approx(sum(lengths) / float(frame_rate(fps)))


@pytest.mark.parametrize("lengths", [(5, 9), (12,)])
def test_index_comes_before_the_pictures_and_bytes_repeat(
    tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    segments = [_segment(tmp_path / f"{n}.mp4", length) for n, length in enumerate(lengths)]
    targets = [tmp_path / name for name in ("x.mp4", "y.mp4")]
    for target in targets:
        join_segments(segments, target)
    data = targets[0].read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert data == targets[1].read_bytes()


def test_frame_times_do_not_drift(tmp_path: Path) -> None:
    """A list of 400 segments at 24000/1001: microsecond rounding alone would move late frames."""
    one = _segment(tmp_path / "one.mp4", 1, fps=23.976)
    five = _segment(tmp_path / "five.mp4", 5, fps=23.976)
    target = tmp_path / "joined.mp4"
    count = join_segments([one, five] * 200, target)
    assert _frame_times(target) == [1001 * number for number in range(count)]


def test_every_preset_keeps_its_frame_order(tmp_path: Path) -> None:
    for preset in ("ultrafast", "medium", "veryslow"):
        segments = [
            _segment(tmp_path / f"{preset}{n}.mp4", 20, encoder=EncoderConfig(preset=preset))
            for n in range(2)
        ]
        target = tmp_path / f"{preset}.mp4"
        join_segments(segments, target)
        expected = [frame for segment in segments for frame in read_video(segment)]
        np.testing.assert_array_equal(list(read_video(target)), expected)


def test_track_of_a_segment(tmp_path: Path) -> None:
    track = read_track(_segment(tmp_path / "a.mp4", 9, fps=23.976))
    assert track.num_frames == 9
    assert (track.timescale, track.ticks_per_frame) == (24000, 1001)
    assert track.decoder_settings[0] == 1  # avcC's version


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_in_a_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_file(path: Path) -> None:
    path.write_bytes(b"this is not a video at all, it only has its name" * 4)


@pytest.mark.parametrize("damage", [_cut, _cut_in_a_header, _empty, _other_file, Path.unlink])
def test_a_torn_segment_is_named(tmp_path: Path, damage) -> None:
    segments = [_segment(tmp_path / f"seg{number}.mp4", 6) for number in range(3)]
    damage(segments[1])
    with pytest.raises(MediaError, match=r"seg1\.mp4"):
        join_segments(segments, tmp_path / "joined.mp4")
    assert not (tmp_path / "joined.mp4").exists()


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"height": 64}, "another picture size or other settings"),
        ({"encoder": EncoderConfig(preset="ultrafast")}, "other settings"),
        ({"fps": 8}, r"another frame rate than .* \(8 and 4 a second\)"),
    ],
)
def test_segments_that_do_not_belong_together(tmp_path: Path, options: dict, phrase: str) -> None:
    segments = [_segment(tmp_path / "a.mp4", 6), _segment(tmp_path / "b.mp4", 6, **options)]
    with pytest.raises(MediaError, match=phrase) as caught:
        join_segments(segments, tmp_path / "joined.mp4")
    assert "b.mp4" in str(caught.value)


def test_nothing_to_join(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no segments"):
        join_segments([], tmp_path / "joined.mp4")


def test_failing_to_write_reports_ffmpegs_words(tmp_path: Path) -> None:
    segment = _segment(tmp_path / "a.mp4", 3)
    with pytest.raises(MediaError, match=r"joining .*No such file or directory"):
        join_segments([segment], tmp_path / "no folder" / "joined.mp4")
