"""Segments to one MP4 by copying packets: no frame is decoded or encoded again.

Owns the little that must be known about MP4 boxes to refuse segments that do not belong together.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from musev.errors import MediaError
from musev.media.ffmpeg import LOCAL_ONLY, check_file, input_name, run_ffmpeg
from musev.media.video import whole_file

_REORDER_FRAMES = 2
"""Largest distance between decoding and showing in libx264 (B-frames kept as references)."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """What the index of an MP4 says about its video track."""

    num_frames: int
    ticks_per_frame: int
    timescale: int
    decoder_settings: bytes
    """The ``avcC`` box: picture size, profile and coding tools, byte for byte."""


def join_segments(paths: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> int:
    """Join segments into one MP4 whose index comes first, so it plays while it loads.

    Every frame keeps its bits, frame times are exact at any length, and the same segments give the
    same bytes every time. The file appears whole or not at all.

    Args:
        paths: Segments from :func:`~musev.media.video.write_segment`, in order.
        target: MP4 file to write.

    Returns:
        The number of frames in ``target``.

    Raises:
        MediaError: If there are no segments, one is missing, cut short or encoded with other
            settings than the first, or ffmpeg fails.
    """
    sources, final = [Path(path) for path in paths], Path(target)
    if not sources:
        raise MediaError(f"{final}: there are no segments to join")
    tracks = [read_track(source) for source in sources]
    for source, track in zip(sources, tracks, strict=True):
        _check_same(source, track, sources[0], tracks[0])
    listing = "".join(f"file '{_quoted(source)}'\n" for source in sources)
    span = tracks[0].ticks_per_frame
    # The list's clock counts microseconds, which drifts at rates like 24000/1001, and segments of
    # one frame have no reordering; so both time stamps are put back on whole frames.
    times = f"setts=pts=round(PTS/{span})*{span}:dts=(N-{_REORDER_FRAMES})*{span}"
    with whole_file(final) as partial:
        arguments = (
            *("-v", "error", *LOCAL_ONLY, "-f", "concat", "-safe", "0", "-i", "pipe:0"),
            *("-map", "0:v:0", "-c", "copy", "-bsf:v", times, "-map_metadata", "-1"),
            *("-video_track_timescale", str(tracks[0].timescale), "-fflags", "+bitexact"),
            *("-movflags", "+faststart", "-f", "mp4", input_name(partial)),
        )
        run_ffmpeg(arguments, what=f"joining {final}", stdin=listing.encode())
        count, wanted = read_track(partial).num_frames, sum(track.num_frames for track in tracks)
        if count != wanted:
            raise MediaError(
                f"joining {final}: {count} frames came out of segments with {wanted}. "
                "A segment is damaged; render them again."
            )
    return count


def read_track(path: Path) -> Track:
    """Read the index of an MP4 with one H.264 track.

    Args:
        path: File from :func:`~musev.media.video.write_segment` or :func:`join_segments`.

    Returns:
        What the index says.

    Raises:
        MediaError: If the file is missing, empty, cut short, or another kind of file.
    """
    check_file(path)
    try:
        moov = _find_index(path)
        media = _child(_child(moov, b"trak"), b"mdia")
        table = _child(_child(media, b"minf"), b"stbl")
        header = _child(media, b"mdhd")
        timescale = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)[0]
        durations = _child(table, b"stts")
        span = struct.unpack_from(">I", durations, 12)[0]
        num_frames = struct.unpack_from(">I", _child(table, b"stsz"), 8)[0]
        # stsd: 8 bytes, then the entry's own 8-byte head and 78 bytes of fixed fields.
        settings = _child(_child(table, b"stsd")[8 + 8 + 78 :], b"avcC")
    except (LookupError, struct.error) as error:
        raise MediaError(
            f"{path}: not a whole H.264 MP4 file ({error}). Render or copy it again."
        ) from error
    return Track(
        num_frames=num_frames,
        ticks_per_frame=span,
        timescale=timescale,
        decoder_settings=settings,
    )


def _find_index(path: Path) -> bytes:
    """Find the content of ``moov`` among a file's boxes, without reading its pictures."""
    size = path.stat().st_size
    index = None
    with path.open("rb") as file:
        while (start := file.tell()) < size:
            length, name = struct.unpack(">I4s", file.read(8))
            head = 8
            if length == 1:
                length, head = struct.unpack(">Q", file.read(8))[0], 16
            if length < head or start + length > size:
                raise LookupError(f"box {name!r} reaches past the end of the file")
            if name == b"moov":
                index = file.read(length - head)
            file.seek(start + length)
    if index is None:
        raise LookupError("no index")
    return index


def _child(box: bytes, wanted: bytes) -> bytes:
    start = 0
    while start + 8 <= len(box):
        length, name = struct.unpack_from(">I4s", box, start)
        if name == wanted:
            return box[start + 8 : start + length]
        if length < 8:
            break
        start += length
    raise LookupError(f"no {wanted.decode()} box")


def _check_same(source: Path, track: Track, first_source: Path, first: Track) -> None:
    ours, theirs = (Fraction(item.timescale, item.ticks_per_frame) for item in (track, first))
    if ours != theirs:
        raise MediaError(
            f"{source}: another frame rate than {first_source} "
            f"({float(ours):g} and {float(theirs):g} a second). Render them again."
        )
    if track.decoder_settings != first.decoder_settings or track.timescale != first.timescale:
        raise MediaError(
            f"{source}: encoded with another picture size or other settings than {first_source}; "
            "segments of one video need one setting. Render them again."
        )


def _quoted(path: Path) -> str:
    """Quote a path for ffmpeg's list of files."""
    if "\n" in str(path):
        raise MediaError(f"{path}: a segment's path must not hold a line break")
    return input_name(path).replace("'", "'\\''")
