"""Frames by time and by number: uneven rates, ways into the middle, broken tails."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from musev.errors import MediaError
from musev.media import count_resampled, read_video, resample_frames, scan_video, write_segment
from musev.media.ffmpeg import run_ffmpeg
from musev.media.frame_times import FrameTimes, pick_frames, read_frames, time_frames
from tests.musev.media.test_video import moving_frames

NUM_FRAMES = 130


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("even") / "even.mp4"
    write_segment(path, moving_frames(NUM_FRAMES), fps=23.976)
    return path


def _convert(source: Path, target: Path, *options: str) -> Path:
    run_ffmpeg(["-v", "error", "-i", str(source), *options, str(target)], what="test")
    return target


UNEVEN = ("-vf", "select='not(between(mod(n,10),3,6))'", "-fps_mode", "vfr")


@pytest.mark.parametrize("fps", [4, 7.3, 12, 23.976, 24, 30, 60])
def test_even_frames_are_chosen_as_by_their_rate(even: Path, fps: float) -> None:
    times, rate = time_frames(even), scan_video(even).fps
    assert times.num_frames == NUM_FRAMES
    assert times.fps == pytest.approx(rate)
    expected = list(resample_frames(range(NUM_FRAMES), source_fps=rate, fps=fps))
    assert pick_frames(times, fps=fps).tolist() == expected
    assert len(expected) == count_resampled(NUM_FRAMES, source_fps=rate, fps=fps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_of_uneven_frames_the_one_on_screen_is_chosen(
    even: Path, tmp_path: Path, suffix: str
) -> None:
    path = _convert(even, tmp_path / f"uneven.{suffix}", *UNEVEN)
    kept = [number for number in range(NUM_FRAMES) if not 3 <= number % 10 <= 6]
    picked = pick_frames(time_frames(path), fps=23.976).tolist()
    on_screen = [max(n for n, shown in enumerate(kept) if shown <= at) for at in range(kept[-1])]
    assert picked[: kept[-1]] == on_screen
    # By the mean rate alone, frame 50 would be seven frames off.
    assert kept[picked[50]] == 50


def test_every_so_manieth_frame(even: Path) -> None:
    times = time_frames(even)
    assert pick_frames(times, fps=4, sample_rate=3).tolist() == list(range(0, NUM_FRAMES, 3))
    assert len(pick_frames(times, fps=4, sample_rate=1)) == NUM_FRAMES


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_useless_rates_are_refused(even: Path, fps: float) -> None:
    with pytest.raises(MediaError, match="above 0"):
        pick_frames(time_frames(even), fps=fps)


def test_a_picture_of_one_frame(tmp_path: Path) -> None:
    write_segment(tmp_path / "one.mp4", moving_frames(1), fps=8)
    _convert(tmp_path / "one.mp4", tmp_path / "one.gif")
    for name in ("one.mp4", "one.gif"):
        times = time_frames(tmp_path / name)
        assert pick_frames(times, fps=24).tolist() == [0]
        assert len(list(read_frames(tmp_path / name, times, [0, 0]))) == 2


FORMATS = {
    "uneven.mp4": UNEVEN,
    "uneven.mkv": UNEVEN,
    "b-frames.mp4": ("-c:v", "libx264", "-g", "40", "-x264-params", "bframes=3:open-gop=1"),
    "late.mov": ("-c:v", "libx264", "-output_ts_offset", "3"),
    "no-stamps.avi": ("-c:v", "mpeg4", "-bf", "2", "-g", "40"),
    "no-index.ts": ("-c:v", "libx264", "-g", "40"),
    "stream.h264": ("-c:v", "libx264", "-g", "40"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_from_the_middle_come_the_frames_that_a_whole_decode_gives(
    even: Path, tmp_path: Path, name: str
) -> None:
    path = _convert(even, tmp_path / name, *FORMATS[name])
    all_TYXC = np.stack(list(read_video(path)))
    times = time_frames(path)
    assert times.num_frames == len(all_TYXC)
    assert times.fps == pytest.approx(23.976, rel=0.45)
    numbers = [66, 67, 67, 70, len(all_TYXC) - 1]
    got_TYXC = np.stack(list(read_frames(path, times, numbers)))
    np.testing.assert_array_equal(got_TYXC, all_TYXC[numbers])


def test_a_way_in_is_used_and_a_wrong_one_is_noticed(
    even: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = time_frames(even)
    with caplog.at_level(logging.WARNING):
        list(read_frames(even, times, [100]))
    assert not caplog.records
    ticks_T = times.ticks_T.copy()
    ticks_T[60:] += 40 * 1001 + 480
    lying = FrameTimes(ticks_T=ticks_T, end_tick=times.end_tick, tick_s=times.tick_s)
    with caplog.at_level(logging.WARNING):
        got = next(iter(read_frames(even, lying, [80])))
    assert "reading from the start" in caplog.text
    np.testing.assert_array_equal(got, list(read_video(even))[80])


@pytest.mark.parametrize("start_s", [0.4, 1.0, 2.6])
def test_what_a_trimmed_file_hides_is_not_counted(
    even: Path, tmp_path: Path, start_s: float
) -> None:
    """Cut without encoding, packets from the key frame before the cut stay in the file, unseen."""
    path = tmp_path / "trimmed.mp4"
    copy = ("-ss", str(start_s), "-i", str(even), "-c", "copy", str(path))
    run_ffmpeg(copy, what="trimming")
    all_TYXC = np.stack(list(read_video(path)))
    times = time_frames(path)
    assert times.num_frames == scan_video(path).num_frames == len(all_TYXC)
    numbers = [0, 30, len(all_TYXC) - 2, len(all_TYXC) - 1]
    got_TYXC = np.stack(list(read_frames(path, times, numbers)))
    np.testing.assert_array_equal(got_TYXC, all_TYXC[numbers])
    assert time_frames(path, may_be_cut=True).num_frames == len(all_TYXC)


def _cut(source: Path, target: Path) -> Path:
    whole = _convert(
        source, target.with_suffix(".whole.mp4"), "-c", "copy", "-movflags", "faststart"
    )
    data = whole.read_bytes()
    target.write_bytes(data[: len(data) * 2 // 3])
    return target


def test_a_broken_tail_is_left_out_only_where_that_is_allowed(even: Path, tmp_path: Path) -> None:
    path = _cut(even, tmp_path / "cut.mp4")
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        time_frames(path)
    times = time_frames(path, may_be_cut=True)
    assert times.damaged
    assert 40 < times.num_frames < NUM_FRAMES
    got_TYXC = np.stack(list(read_frames(path, times, range(times.num_frames))))
    np.testing.assert_array_equal(got_TYXC, np.stack(list(read_video(even)))[: times.num_frames])


def test_damage_in_the_middle_ends_a_video_there(even: Path, tmp_path: Path) -> None:
    path = tmp_path / "holed.mp4"
    data = bytearray(even.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    times = time_frames(path, may_be_cut=True)
    assert times.damaged
    assert 0 < times.num_frames < NUM_FRAMES
    got_TYXC = np.stack(list(read_frames(path, times, range(times.num_frames))))
    np.testing.assert_array_equal(got_TYXC, np.stack(list(read_video(even)))[: times.num_frames])


def test_a_whole_video_is_not_shortened_by_the_permission(even: Path) -> None:
    times = time_frames(even, may_be_cut=True)
    assert (times.num_frames, times.damaged) == (NUM_FRAMES, False)


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(5000)])
def test_what_is_no_video_stays_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    for may_be_cut in (False, True):
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            time_frames(path, may_be_cut=may_be_cut)
