"""Videos as what other programs want: animations, and folders of pictures.

Frames are decoded one after the other and pictures written at once. An animation is held as a
whole, three bytes a pixel, because Pillow gathers its frames before it encodes: for short ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from musev.errors import MediaError
from musev.media.images import encode_png
from musev.media.video import read_video, whole_file

ExportKind = Literal["gif", "webp", "images"]
EXPORT_KINDS: tuple[ExportKind, ...] = get_args(ExportKind)


def export_video(video: Path, target: Path, kind: ExportKind, *, fps: float) -> None:
    """Write a video in another form; whole, or not at all.

    Args:
        video: File to read.
        target: File to write; for ``images`` a folder of ``0000.png``, ``0001.png`` and so on.
        kind: ``gif`` (256 colours, endless), ``webp`` (lossless, endless) or ``images``.
        fps: Frames a second of an animation.

    Raises:
        MediaError: If the video cannot be read or holds no frame.

    Source:
        Durations and settings: upstream's save_videos_grid (ALGORITHM.md 12.3).
    """
    if kind == "images":
        _write_pictures(video, target)
        return
    pictures = (Image.fromarray(frame_YXC) for frame_YXC in read_video(video))
    first = next(pictures, None)
    if first is None:
        raise MediaError(f"{video} holds no frame. Render it again.")
    settings = {"lossless": True} if kind == "webp" else {}
    with whole_file(target) as partial:
        first.save(
            partial,
            format=kind,
            save_all=True,
            append_images=pictures,
            duration=int(1000 / fps),
            loop=0,
            **settings,
        )


def _write_pictures(video: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for number, frame_YXC in enumerate(read_video(video)):
            (partial / f"{number:04d}.png").write_bytes(encode_png(frame_YXC))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
