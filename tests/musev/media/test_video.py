"""Videos: frame counts are exact, colours survive, equal frames give equal bytes."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from musev.config import EncoderConfig
from musev.errors import MediaError
from musev.media import video
from musev.media.ffmpeg import run_ffmpeg
from musev.media.video import (
    frame_rate,
    probe_video,
    read_video,
    scan_video,
    whole_file,
    write_segment,
)


def moving_frames(num_frames: int, *, width: int = 64, height: int = 48) -> Iterator[np.ndarray]:
    rows, columns = np.mgrid[:height, :width]
    for number in range(num_frames):
        channels = (columns * 3 + 5 * number, rows * 4 + 3 * number, rows + columns + 7 * number)
        yield (np.stack(channels, axis=-1) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (4, Fraction(4)),
        (24, Fraction(24)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
    ],
)
def test_frame_rate_is_the_fraction_meant(fps: float, expected: Fraction) -> None:
    assert frame_rate(fps) == expected


@pytest.mark.parametrize("fps", [0, -4, float("nan"), float("inf"), 5000])
def test_frame_rate_refuses_nonsense(fps: float) -> None:
    with pytest.raises(MediaError, match="frame rate must be"):
        frame_rate(fps)


@pytest.mark.parametrize("num_frames", [1, 2, 33])
@pytest.mark.parametrize("fps", [4.0, 23.976])
def test_what_is_written_is_what_is_measured(tmp_path: Path, num_frames: int, fps: float) -> None:
    path = tmp_path / "it's 100% fine.mp4"
    assert write_segment(path, moving_frames(num_frames), fps=fps) == num_frames
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames) == (64, 48, num_frames)
    assert info.codec == "h264"
    assert info.fps == pytest.approx(float(frame_rate(fps)))
    assert info.duration_s == pytest.approx(num_frames / float(frame_rate(fps)))
    assert len(list(read_video(path))) == num_frames


def test_frames_survive_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    greys = [20, 60, 100, 140, 180, 220]
    frames = [np.full((16, 16, 3), grey, np.uint8) for grey in greys]
    write_segment(path, frames, fps=8)
    back = [frame.mean() for frame in read_video(path)]
    np.testing.assert_allclose(back, greys, atol=2)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 120)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Wrong or missing colour marks would shift saturated colours by 20 and more."""
    path = tmp_path / "a.mp4"
    write_segment(path, [np.full((32, 32, 3), colour, np.uint8)], fps=8)
    frame = next(read_video(path))
    np.testing.assert_allclose(frame.mean(axis=(0, 1)), colour, atol=3)


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in paths:
        write_segment(path, moving_frames(30), fps=24)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    # The time of writing is what usually differs: its two fields in the index must be zero.
    data = paths[0].read_bytes()
    start = data.index(b"mvhd") + 8
    assert data[start : start + 8] == bytes(8)


def test_encoder_settings_reach_the_encoder(tmp_path: Path) -> None:
    sizes = []
    noise_TYXC = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    for crf in (10, 40):
        path = tmp_path / f"{crf}.mp4"
        write_segment(path, noise_TYXC, fps=8, encoder=EncoderConfig(crf=crf))
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0] / 2


def test_pixels_are_yuv420p(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_segment(path, moving_frames(2), fps=8)
    _, messages = run_ffmpeg(["-i", str(path), "-f", "null", "-"], what="test")
    assert "yuv420p(tv, bt709" in messages


def _frame(*shape: int, kind: type = np.uint8) -> np.ndarray:
    return np.zeros(shape, kind)


@pytest.mark.parametrize(
    ("frames", "phrase"),
    [
        ([], "no frames"),
        ([_frame(15, 16, 3)], "even width and height, got 16 x 15"),
        ([_frame(16, 17, 3)], "even width and height"),
        ([_frame(16, 16, 3, kind=np.float32)], "must be uint8"),
        ([_frame(16, 16)], "three channels"),
        ([_frame(16, 16, 4)], "three channels"),
        ([_frame(16, 16, 3), _frame(16, 32, 3)], "differ in size: 32 x 16 after 16 x 16"),
    ],
)
def test_bad_frames_are_refused_and_leave_no_file(
    tmp_path: Path, frames: list[np.ndarray], phrase: str
) -> None:
    with pytest.raises(MediaError, match=phrase):
        write_segment(tmp_path / "a.mp4", frames, fps=8)
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_frames_are_made_leaves_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from moving_frames(3)
        raise RuntimeError("the decoder died")

    with pytest.raises(RuntimeError, match="the decoder died"):
        write_segment(tmp_path / "a.mp4", frames(), fps=8)
    assert list(tmp_path.iterdir()) == []


def test_ffmpegs_own_words_reach_the_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"ffmpeg failed with status.*No such file or directory"):
        write_segment(tmp_path / "no folder" / "a.mp4", moving_frames(200), fps=8)
    wrong = EncoderConfig(preset="no such")
    with pytest.raises(MediaError, match=r"encoding .*preset"):
        write_segment(tmp_path / "a.mp4", moving_frames(3), fps=8, encoder=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``/dev/full`` stands in for the disk: it accepts opening and refuses every byte."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr(video, "whole_file", lambda target: contextlib.nullcontext(full))
    with pytest.raises(MediaError, match=r"ffmpeg failed .*No space left on device"):
        write_segment(tmp_path / "a.mp4", moving_frames(3), fps=8)


def test_reading_stops_ffmpeg_when_the_reader_stops(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_segment(path, moving_frames(60), fps=8)
    frames = read_video(path)
    next(frames)
    frames.close()


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    num_frames, frame_bytes = 400, 64 * 48 * 3
    tracemalloc.start()
    try:
        write_segment(path, moving_frames(num_frames), fps=8)
        assert sum(1 for _ in read_video(path)) == num_frames
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < num_frames * frame_bytes / 4


def test_rotation_marks_are_obeyed(tmp_path: Path) -> None:
    plain, turned = tmp_path / "a.mp4", tmp_path / "turned.mp4"
    write_segment(plain, moving_frames(3), fps=8)
    arguments = ["-display_rotation", "90", "-i", str(plain), "-c", "copy", str(turned)]
    run_ffmpeg(arguments, what="test")
    info = probe_video(turned)
    assert (info.width, info.height) == (48, 64)
    assert next(read_video(turned)).shape == (64, 48, 3)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _scribble(path: Path) -> None:
    """Overwrite the coded pictures, keep the index (which lies behind them)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start + 40 : end] = b"\xff" * (end - start - 40)
    path.write_bytes(bytes(data))


def _sound(path: Path) -> None:
    arguments = ["-f", "lavfi", "-i", "sine=duration=0.1", "-f", "wav", str(path)]
    run_ffmpeg(arguments, what="test")


@pytest.mark.parametrize("damage", [_cut, _empty, _scribble, _sound, Path.unlink])
@pytest.mark.parametrize("read", [probe_video, lambda path: list(read_video(path))])
def test_bad_video_is_named(tmp_path: Path, damage, read) -> None:
    path = tmp_path / "driving 1.mp4"
    write_segment(path, moving_frames(12), fps=8)
    damage(path)
    with pytest.raises(MediaError, match=r"driving 1\.mp4"):
        read(path)


def test_a_faststart_video_that_is_cut_short_is_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_segment(whole, moving_frames(60), fps=8)
    arguments = ["-i", str(whole), "-c", "copy", "-movflags", "+faststart", str(cut)]
    run_ffmpeg(arguments, what="test")
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        probe_video(cut)
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        list(read_video(cut))


def test_whole_file_appears_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"

    def fail() -> None:
        with whole_file(target) as partial:
            partial.write_bytes(b"half")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_file(target) as partial:
        partial.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"


def test_a_scan_measures_what_a_full_decode_measures(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_segment(path, moving_frames(33), fps=23.976)
    assert scan_video(path) == probe_video(path)


def test_a_scan_tells_the_size_that_is_shown(tmp_path: Path) -> None:
    write_segment(tmp_path / "a.mp4", moving_frames(3), fps=8)
    turned = ("-display_rotation", "90", "-i", str(tmp_path / "a.mp4"), "-c", "copy")
    run_ffmpeg((*turned, str(tmp_path / "turned.mp4")), what="turning")
    info = scan_video(tmp_path / "turned.mp4")
    assert (info.width, info.height) == (48, 64)
    assert next(read_video(tmp_path / "turned.mp4")).shape == (64, 48, 3)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.8])
def test_a_scan_finds_files_that_are_cut_short(tmp_path: Path, share: float) -> None:
    """With the index in front too: then packets are missing, not the index."""
    write_segment(tmp_path / "a.mp4", moving_frames(33), fps=8)
    copy = ("-c", "copy", "-movflags", "+faststart", str(tmp_path / "front.mp4"))
    run_ffmpeg(("-i", str(tmp_path / "a.mp4"), *copy), what="moving the index")
    for name in ("a.mp4", "front.mp4"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(MediaError, match=r"cut\.mp4"):
            scan_video(tmp_path / "cut.mp4")
    (tmp_path / "cut.mp4").write_bytes(whole[:-1])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        scan_video(tmp_path / "cut.mp4")


def test_a_scan_decodes_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_segment(path, moving_frames(3), fps=8)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 600] = bytes(600)
    path.write_bytes(bytes(content))
    with pytest.raises(MediaError, match=r"a\.mp4"):
        scan_video(path)
