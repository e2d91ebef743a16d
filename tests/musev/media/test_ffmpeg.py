"""Starting ffmpeg: failures carry its last words, nothing is left running, paths stay paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from musev.errors import MediaError
from musev.media.ffmpeg import check_file, input_name, run_ffmpeg, stream_ffmpeg

NOISE = ("-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48", "-f", "rawvideo", "pipe:1")


def _read_all(arguments: list[str]) -> bytes:
    with stream_ffmpeg(arguments, what="reading", feed=False) as process:
        assert process.stdout is not None
        return process.stdout.read()


def _feed(arguments: list[str], data: bytes) -> None:
    with stream_ffmpeg(arguments, what="writing", feed=True) as process:
        assert process.stdin is not None
        process.stdin.write(data)


def test_output_and_messages_are_returned() -> None:
    arguments = ["-f", "lavfi", "-i", "testsrc=duration=0.2:rate=10", "-f", "framecrc", "-"]
    output, messages = run_ffmpeg(arguments, what="test")
    assert sum(not line.startswith("#") for line in output.splitlines()) == 2
    assert "Video: rawvideo" in messages


def test_failure_carries_the_last_lines(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"counting: ffmpeg failed .*No such file"):
        run_ffmpeg(["-i", str(tmp_path / "gone")], what="counting")
    with pytest.raises(MediaError, match=r"reading: ffmpeg failed .*No such file"):
        _read_all(["-i", str(tmp_path / "gone")])


def test_a_long_message_is_shortened_to_its_end() -> None:
    arguments = ["-v", "trace", "-f", "lavfi", "-i", "nosuchfilter"]
    with pytest.raises(MediaError) as caught:
        run_ffmpeg(arguments, what="test")
    assert len(str(caught.value)) < 2000
    assert "nosuchfilter" in str(caught.value)


def test_program_ends_with_the_body() -> None:
    with pytest.raises(KeyError), stream_ffmpeg(NOISE, what="endless", feed=False) as process:
        raise KeyError
    assert process.returncode is not None


def test_program_that_stops_reading_is_reported_by_its_status() -> None:
    arguments = ["-f", "rawvideo", "-video_size", "64x48", "-i", "pipe:0", "-c:v", "nosuchcodec"]
    with pytest.raises(MediaError, match="nosuchcodec"):
        _feed([*arguments, "-f", "null", "-"], bytes(8 << 20))


@pytest.mark.parametrize("name", ["-y.mp4", "a%03d.mp4", "concat:a|b", "http:x.mp4"])
def test_odd_names_stay_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["-f", "lavfi", "-i", "testsrc=duration=0.1:rate=10:size=16x16"]
    run_ffmpeg([*arguments, "-f", "nut", input_name(Path(name))], what="test")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_check_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        check_file(tmp_path / "gone")
    with pytest.raises(MediaError, match="no such file"):
        check_file(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(MediaError, match=r"0 bytes"):
        check_file(tmp_path / "empty")
