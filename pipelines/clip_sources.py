"""Clips for a dataset, one at a time: drawn from a seed, or cut from a video that a row names."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from musev.errors import MediaError
from musev.media import fit_image, probe_video, read_video
from musev.media.resample import resample_frames
from musev.training.shard_files import DatasetClip
from pipelines.clip_table import ClipRow
from pipelines.dataset_plan import DatasetConfig
from pipelines.media_cache import MediaCache


class BadMediaError(MediaError):
    """What a column of a row names cannot be used; ``column`` and ``value`` say which."""

    column: str = ""
    value: str = ""


def drawn_clip(seed: int, index: int, config: DatasetConfig) -> DatasetClip:
    """Draw a clip of a person.

    Args:
        seed: Of the source.
        index: Which of its clips; becomes the key.
        config: Sizes.

    Returns:
        The clip with control drawing, reference, mask and keypoints.
    """
    from musev.synthetic.clips import draw_clip

    clip = draw_clip(
        seed,
        index,
        held_out=config.held_out,
        height=config.height,
        width=config.width,
        num_frames=config.num_frames,
        fps=config.fps,
    )
    return DatasetClip(
        key=f"{index:08d}",
        clip_id=f"{'held-out' if config.held_out else 'train'}-{seed}-{index}",
        caption=clip.caption,
        attributes=dataclasses.asdict(clip.attributes),
        frames_TYXC=clip.frames_TYXC,
        fps=config.fps,
        facts={"seed": seed, "index": index, "reference_framing": clip.reference_framing},
        control_TYXC=clip.control_TYXC,
        reference_YXC=clip.reference_YXC,
        mask_TYX=clip.mask_TYX,
        points_TJ2=clip.points_TJ2,
        visible_TJ=clip.visible_TJ,
    )


def real_clip(row: ClipRow, config: DatasetConfig, cache: MediaCache) -> DatasetClip:
    """Fetch a row's video and cut the clip: frame rate by choosing frames, middle by cropping.

    Args:
        row: A checked row.
        config: Sizes.
        cache: Fetches media.

    Returns:
        The clip, with control frames if the row names a video of them.

    Raises:
        MediaError: If a video cannot be fetched or read, is another than the row says, or is too
            short; always a :class:`BadMediaError`, which tells the column and its value.
    """
    with _naming("video", row.video):
        digest, content = cache.fetch(row.video)
        if row.sha256 is not None and digest != f"sha256:{row.sha256.lower()}":
            raise MediaError(
                f"its content is {digest}, the row says {row.sha256}. Fetch the right file, or "
                "correct the row."
            )
        frames_TYXC = cut_frames(content, row.start_s, config)
    control_TYXC = None
    if row.control is not None:
        with _naming("control", row.control):
            control_TYXC = cut_frames(cache.fetch(row.control)[1], row.start_s, config)
    facts: dict[str, Any] = {
        "source": row.video,
        "source_digest": digest,
        "start_s": row.start_s,
    }
    if row.licence is not None:
        facts["licence"] = row.licence
    return DatasetClip(
        key=f"{row.row:08d}",
        clip_id=row.clip_id,
        caption=row.caption,
        attributes=row.attributes,
        frames_TYXC=frames_TYXC,
        fps=config.fps,
        facts=facts,
        control_TYXC=control_TYXC,
    )


def cut_frames(content: bytes, start_s: float, config: DatasetConfig) -> np.ndarray:
    """Cut a clip from a video file's bytes.

    Args:
        content: Any video that ffmpeg reads.
        start_s: Where it begins.
        config: Length, rate and size.

    Returns:
        ``frames_TYXC``, uint8.

    Raises:
        MediaError: If it is no video or too short.
    """
    with tempfile.TemporaryDirectory(prefix="musev-cut-") as folder:
        path = Path(folder) / "video"
        path.write_bytes(content)
        try:
            info = probe_video(path)
            chosen = resample_frames(
                read_video(path),
                source_fps=info.fps,
                fps=config.fps,
                start_s=start_s,
                num_frames=config.num_frames,
            )
            size = {"width": config.width, "height": config.height}
            frames = [fit_image(frame, **size) for frame in chosen]
        except MediaError as error:
            raise MediaError(str(error).replace(f"{path}: ", "").replace(str(path), "it")) from None
    if len(frames) < config.num_frames:
        raise MediaError(
            f"it has {info.duration_s:.2f} s, which gives {len(frames)} frames at {config.fps:g} "
            f"frames a second from {start_s:g} s on; {config.num_frames} are needed. Give a longer "
            "video, an earlier start_s, fewer frames or a higher fps."
        )
    return np.stack(frames)


@contextmanager
def _naming(column: str, value: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        named = BadMediaError(str(error))
        named.column, named.value = column, value
        raise named from error
