"""Frames to H.264 segments, and video files to frames, one frame in memory at a time.

Axes here: T frame, Y X pixel rows and columns, C channel (red, green, blue).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from musev.config import EncoderConfig
from musev.errors import MediaError
from musev.media.ffmpeg import (
    LOCAL_ONLY,
    SCALER_FLAGS,
    check_file,
    input_name,
    run_ffmpeg,
    stream_ffmpeg,
)

_MAX_FPS = 1000
_DECODE = ("-xerror", "-threads", "1")
"""Stop at the first damaged packet: silently shorter videos would break every count after it."""
EVERY_FRAME = (("-fps_mode", "passthrough"), ("-enc_time_base", "demux"))
"""List every frame that a decoder gives, once, at its own time."""
_DISCARDED = 0x4
_NO_STAMP = -(2**62)
OVER_DAMAGE = ("-err_detect", "explode", "-threads", "1")
"""Leave out every damaged packet: what decoders make up for one is no frame of the video."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds, measured by decoding it."""

    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float
    codec: str


def frame_rate(fps: float) -> Fraction:
    """Turn a frame rate into the exact fraction meant: 23.976 is 24000/1001.

    Args:
        fps: Frames a second.

    Returns:
        The rate; NTSC rates as multiples of 1000/1001.

    Raises:
        MediaError: If the rate is not a positive number of at most 1000 frames a second.
    """
    if not (math.isfinite(fps) and 0 < fps <= _MAX_FPS):
        raise MediaError(f"frame rate must be above 0 and at most {_MAX_FPS}, got {fps}")
    film = Fraction(round(fps * 1.001) * 1000, 1001)
    if fps != round(fps) and film and abs(fps - film) < 0.005:
        return film
    return Fraction(fps).limit_denominator(1000) or Fraction(1, 1000)


def write_segment(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    *,
    fps: float,
    encoder: EncoderConfig | None = None,
) -> int:
    """Encode frames as one H.264 file that other segments can be joined to by packet copy.

    Closed groups of pictures, yuv420p, BT.709 colours, no dates; the number of encoder threads is
    fixed because it changes the bytes. The same frames give the same bytes every time. The file
    appears whole or not at all.

    Args:
        path: MP4 file to write.
        frames: ``frames_TYXC`` or any iterable of ``image_YXC``; uint8, all of one even size.
        fps: Frames a second.
        encoder: Encoder settings, the same for all segments of a run.

    Returns:
        The number of frames written.

    Raises:
        MediaError: If there is no frame, a frame has another size or type or an odd side, or ffmpeg
            fails.
    """
    settings, rate = encoder or EncoderConfig(), frame_rate(fps)

    def arguments(shape: tuple[int, ...], target: Path) -> tuple[str, ...]:
        return _encode_arguments(shape, rate, settings, target)

    return feed_frames(Path(path), frames, arguments, even=True)


def feed_frames(
    target: Path,
    frames: Iterable[np.ndarray],
    arguments: Callable[[tuple[int, ...], Path], Sequence[str]],
    *,
    even: bool = False,
) -> int:
    """Feed frames to an encoder, whose file appears whole or not at all.

    Args:
        target: The file.
        frames: ``image_YXC``, uint8, all of one size.
        arguments: Shape of a frame and a path to ffmpeg's arguments.
        even: Whether the encoder takes even sizes only.

    Returns:
        The number of frames written.

    Raises:
        MediaError: If there is no frame, a frame has another size or type, or ffmpeg fails.
    """
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise MediaError(f"{target}: there are no frames to encode")
    _check_frame(first, None, target, even=even)
    count = 0
    with (
        whole_file(target) as partial,
        stream_ffmpeg(
            arguments(first.shape, partial), what=f"encoding {target}", feed=True
        ) as process,
    ):
        assert process.stdin is not None
        frame: np.ndarray | None = first
        while frame is not None:
            _check_frame(frame, first.shape, target)
            process.stdin.write(np.ascontiguousarray(frame).data)
            count += 1
            frame = next(remaining, None)
    return count


def read_video(
    path: str | os.PathLike[str], *, start_s: float = 0.0, over_damage: bool = False
) -> Generator[np.ndarray]:
    """Decode a video frame by frame; memory does not grow with its length.

    Every coded frame comes out exactly once, whatever its time stamp; rotation marks are obeyed.

    Args:
        path: Any file that ffmpeg reads.
        start_s: Frames shown before this moment are left out; found by the file's index, so what
            lies before costs next to nothing.
        over_damage: Leave out what is damaged instead of ending with an error.

    Yields:
        ``image_YXC``: uint8.

    Raises:
        MediaError: If the file is missing, empty, damaged, or holds no video.
    """
    source = Path(path)
    check_file(source)
    arguments = (
        *("-v", "error", *LOCAL_ONLY, *(OVER_DAMAGE if over_damage else _DECODE)),
        *(*seek_to(start_s), "-i", input_name(source)),
        *("-map", "0:v:0", "-fps_mode", "passthrough"),
        *("-vf", f"scale=flags={SCALER_FLAGS},format=rgb24"),
        # Each PPM picture carries its size, so nothing has to be guessed from ffmpeg's messages.
        *("-f", "image2pipe", "-c:v", "ppm", "pipe:1"),
    )
    with stream_ffmpeg(arguments, what=_reading(source), feed=False) as process:
        assert process.stdout is not None
        while (frame := _read_ppm(process.stdout)) is not None:
            yield frame


def seek_to(start_s: float) -> tuple[str, ...]:
    """Options before an input that leave out the frames shown before a moment."""
    return ("-ss", f"{start_s:.6f}") if start_s else ()


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Measure a video by decoding all of it, so the counts are what a reader will see.

    Args:
        path: Any file that ffmpeg reads.

    Returns:
        Size (upright), exact number of frames, mean frame rate, duration and codec.

    Raises:
        MediaError: If the file is missing, empty, damaged, or holds no video.
    """
    return _measure(tabulate(Path(path), _DECODE, *EVERY_FRAME))


def scan_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Measure a video by its packets, and decode only the first frame: fast, and nearly as sure.

    A file that is cut short or was no video is found out; a frame damaged inside is not.

    Args:
        path: Any file that ffmpeg reads.

    Returns:
        As :func:`probe_video`.

    Raises:
        MediaError: If the file is missing, empty, cut short, or holds no video.
    """
    info = _measure(list_packets(Path(path)))
    with contextlib.closing(read_video(path)) as frames:
        first_YXC = next(frames, None)
    if first_YXC is None:
        raise MediaError(f"{path}: no frame of the video can be decoded. Export it again.")
    height, width = first_YXC.shape[:2]  # packets tell the coded size, which a mark may turn
    return dataclasses.replace(info, width=width, height=height)


def _measure(table: PacketTable) -> VideoInfo:
    duration = table.num_ticks * table.tick_s
    num_frames = len(table.ticks)
    return VideoInfo(
        width=table.width,
        height=table.height,
        num_frames=num_frames,
        fps=float(num_frames / duration) if duration else 0.0,
        duration_s=float(duration),
        codec=table.codec,
    )


def list_packets(source: Path, *, over_damage: bool = False) -> PacketTable:
    """List the packets of a video; where they carry no time stamps, its frames.

    Args:
        source: Any file that ffmpeg reads.
        over_damage: Leave out what is damaged instead of ending with an error.

    Returns:
        The table.

    Raises:
        MediaError: If the file is missing, empty, unreadable, damaged, or holds no video.
    """
    table = tabulate(source, () if over_damage else ("-xerror",), ("-c", "copy"))
    if min(table.ticks) > _NO_STAMP:
        return table
    return tabulate(source, OVER_DAMAGE if over_damage else _DECODE, *EVERY_FRAME)


@dataclass(frozen=True, kw_only=True)
class PacketTable:
    """What ffmpeg says of each packet or frame of a video, in the order in which it came."""

    width: int
    height: int
    codec: str
    tick_s: Fraction
    ticks: Sequence[int]
    """When each is shown."""
    end_tick: int
    """When the last one ends."""

    @property
    def num_ticks(self) -> int:
        """From the first frame's beginning to the last one's end."""
        return self.end_tick - min(self.ticks)


def tabulate(source: Path, reading: Sequence[str], *writing: Sequence[str]) -> PacketTable:
    """List the packets of a video, or its frames.

    Args:
        source: Any file that ffmpeg reads.
        reading: How to read: options before the input.
        *writing: What to list: options after it.

    Returns:
        At least one line.

    Raises:
        MediaError: If the file is missing, empty, unreadable, or holds no video.
    """
    check_file(source)
    arguments = (
        *("-v", "info", *LOCAL_ONLY, *reading, "-i", input_name(source), "-map", "0:v:0"),
        *itertools.chain(*writing),
        *("-f", "framecrc", "-bitexact", "pipe:1"),
    )
    table, messages = run_ffmpeg(arguments, what=_reading(source))
    header = dict(re.findall(r"^#(\w+) 0: (\S+)", table, flags=re.MULTILINE))
    lines = [line for line in table.splitlines() if line and not line.startswith("#")]
    rows = [line.split(",") for line in lines if not _is_discarded(line)]
    codec = re.search(r"Stream #0:\d+.*?: Video: (\w+)", messages)
    if not rows or codec is None:
        raise MediaError(f"{source}: the file holds no video frames. Export it again.")
    width, height = map(int, header["dimensions"].split("x"))
    return PacketTable(
        width=width,
        height=height,
        codec=codec[1],
        tick_s=Fraction(header["tb"]),
        ticks=[int(row[2]) for row in rows],
        end_tick=max(int(row[2]) + int(row[3]) for row in rows),
    )


def _is_discarded(line: str) -> bool:
    """Whether a packet is decoded but never shown: cutting a file without encoding it leaves some.

    Their flag is AV_PKT_FLAG_DISCARD of ffmpeg's libavcodec/packet.h.
    """
    flags = re.search(r"\bF=0x([0-9A-Fa-f]+)", line)
    return flags is not None and bool(int(flags[1], 16) & _DISCARDED)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a name beside ``target``; rename to it on success, remove it on failure."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _encode_arguments(
    shape: tuple[int, ...], rate: Fraction, encoder: EncoderConfig, target: Path
) -> tuple[str, ...]:
    height, width = shape[:2]
    # A whole number of ticks a frame, at least 10,000 ticks a second (players round coarser ones).
    timescale = rate.numerator * math.ceil(10_000 / rate.numerator)
    return (
        *("-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}"),
        *("-framerate", str(rate), "-i", "pipe:0", "-an", "-fps_mode", "passthrough"),
        "-vf",
        f"scale=out_color_matrix=bt709:out_range=tv:flags={SCALER_FLAGS},format=yuv420p,"
        "setparams=color_primaries=bt709:color_trc=bt709",
        *("-c:v", "libx264", "-preset", encoder.preset, "-crf", str(encoder.crf)),
        *("-threads", str(encoder.num_threads), "-x264-params", "cpu-independent=1:open-gop=0"),
        *("-flags", "+cgop+bitexact", "-fflags", "+bitexact", "-map_metadata", "-1"),
        *("-video_track_timescale", str(timescale), "-f", "mp4", input_name(target)),
    )


def _check_frame(
    frame: np.ndarray, shape: tuple[int, ...] | None, target: Path, *, even: bool = False
) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise MediaError(
            f"{target}: a frame must be uint8 with rows, columns and three channels, "
            f"got {frame.dtype} {frame.shape}"
        )
    if 0 in frame.shape or (even and (frame.shape[0] % 2 or frame.shape[1] % 2)):
        raise MediaError(
            f"{target}: H.264 in yuv420p needs an even width and height, "
            f"got {frame.shape[1]} x {frame.shape[0]}. Ask for an even size."
        )
    if shape is not None and frame.shape != shape:
        raise MediaError(
            f"{target}: frames differ in size: {frame.shape[1]} x {frame.shape[0]} "
            f"after {shape[1]} x {shape[0]}"
        )


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """Read one picture of a PPM stream; None at its end, which ffmpeg's status may call early."""
    if not stream.readline():
        return None
    columns, rows = map(int, stream.readline().split())
    stream.readline()
    data = stream.read(columns * rows * 3)
    if len(data) < columns * rows * 3:
        return None
    return np.frombuffer(data, np.uint8).reshape(rows, columns, 3).copy()


def _reading(source: Path) -> str:
    return (
        f"{source}: cannot be read as a video; it may be damaged, cut short, or no video. Copy or "
        "export it again"
    )
