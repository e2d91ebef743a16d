"""A clip as the files of a WebDataset sample, and samples as a tar shard: the format, both ways.

Nothing of a tar depends on when, where or by whom it was written: the same samples give the same
bytes. Knows no storage and no torch.
"""

# Axes here: T frame, J joint, Y X pixel rows and columns, C channel.
from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from musev.config import EncoderConfig
from musev.errors import MediaError
from musev.media import encode_png, read_image, read_video, write_segment

FORMAT = 1
"""Raised when the same clips would give other files by our own doing."""

FACTS, VIDEO, CONTROL = "json", "mp4", "control.mp4"
REFERENCE, MASK, LATENTS = "reference.png", "mask.png", "latents.safetensors"
MEMBERS: dict[str, str] = {
    FACTS: "key, clip_id, caption, attributes, num_frames, width, height, fps and, where known, "
    "seed, keypoints (x, y in pixels a frame and joint, OpenPose body 18) with their visibility, "
    "source, licence",
    VIDEO: "the clip, H.264, yuv420p",
    CONTROL: "the OpenPose drawing of every frame, H.264",
    REFERENCE: "the same person in another pose before a plain backdrop",
    MASK: "how much of a pixel the person covers, 0 to 255, frames below one another",
    LATENTS: "latents_CTHW and, where there is a mask, person_THW, where there is a reference, "
    "reference_CHW; text_LD, the caption's embeddings (float16)",
}
"""File suffix to what it holds; a sample has the first two and any of the others."""

_MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
INDEX_FIELDS: dict[str, tuple[pa.DataType, str]] = {
    "key": (pa.string(), "name of the clip's files inside its shard"),
    "clip_id": (pa.string(), "name of the clip in its source"),
    "shard": (pa.string(), "path of the tar file, relative to the dataset"),
    "offset": (pa.int64(), "first byte of the clip in the tar; from here it is a tar of its own"),
    "size": (pa.int64(), "bytes of the clip in the tar, headers included"),
    "members": (pa.list_(_MEMBER), "file suffix, first byte in the tar and bytes of every file"),
    "caption": (pa.string(), "what the clip shows"),
    "attributes": (pa.string(), "JSON object: what else is known"),
    "num_frames": (pa.int32(), "frames"),
    "width": (pa.int32(), "columns in pixels"),
    "height": (pa.int32(), "rows in pixels"),
    "fps": (pa.float64(), "frames a second"),
    "sha256": (pa.string(), "of the mp4 file"),
    "seed": (pa.int64(), "of a drawn clip"),
    "source": (pa.string(), "where a real clip was cut from"),
    "licence": (pa.string(), "of a real clip, where the table names one"),
}
"""Columns of ``index.parquet`` and what they mean."""
INDEX_SCHEMA = pa.schema([(name, kind) for name, (kind, _) in INDEX_FIELDS.items()])

_FROM_FACTS = ("clip_id", "caption", "num_frames", "width", "height", "fps")
_IF_KNOWN = ("seed", "source", "licence")


@dataclass(frozen=True, kw_only=True)
class DatasetClip:
    """One clip with what is known about it, drawn or real."""

    key: str
    """Digits; no dot or slash, or readers would split it."""
    clip_id: str
    caption: str
    attributes: Mapping[str, Any]
    frames_TYXC: np.ndarray
    fps: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    """More for the JSON file; ``seed``, ``source`` and ``licence`` also reach the index."""
    control_TYXC: np.ndarray | None = None
    reference_YXC: np.ndarray | None = None
    mask_TYX: np.ndarray | None = None
    points_TJ2: np.ndarray | None = None
    visible_TJ: np.ndarray | None = None


@dataclass(frozen=True)
class Entry:
    """Where one sample lies in a tar."""

    key: str
    offset: int
    size: int
    members: dict[str, tuple[int, int]]
    """File suffix to first byte and size of its content."""


def clip_files(
    clip: DatasetClip, encoder: EncoderConfig, extra: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Make the files of a clip.

    Args:
        clip: The clip.
        encoder: For both videos.
        extra: Files made elsewhere, by suffix.

    Returns:
        Suffix to content, in the order in which they go into the tar.
    """
    num_frames, height, width = clip.frames_TYXC.shape[:3]
    facts = {
        **clip.facts,
        "key": clip.key,
        "clip_id": clip.clip_id,
        "caption": clip.caption,
        "attributes": dict(clip.attributes),
        "num_frames": num_frames,
        "width": width,
        "height": height,
        "fps": clip.fps,
    }
    if clip.points_TJ2 is not None:
        facts["keypoints"] = np.round(clip.points_TJ2.astype(float), 2).tolist()
    if clip.visible_TJ is not None:
        facts["visible"] = clip.visible_TJ.astype(int).tolist()
    files = {
        FACTS: json.dumps(facts, ensure_ascii=False, sort_keys=True).encode(),
        VIDEO: encode_video(clip.frames_TYXC, clip.fps, encoder),
    }
    if clip.control_TYXC is not None:
        files[CONTROL] = encode_video(clip.control_TYXC, clip.fps, encoder)
    if clip.reference_YXC is not None:
        files[REFERENCE] = encode_png(clip.reference_YXC)
    if clip.mask_TYX is not None:
        files[MASK] = _encode_mask(clip.mask_TYX)
    return files | dict(extra or {})


def read_clip(files: Mapping[str, bytes]) -> DatasetClip:
    """Read a clip back from its files, those that are there.

    Args:
        files: Suffix to content; the JSON file and the video are needed.

    Returns:
        The clip; frames as the encoder left them.
    """
    facts = json.loads(files[FACTS])
    points, visible = facts.pop("keypoints", None), facts.pop("visible", None)
    mask = files.get(MASK)
    return DatasetClip(
        key=facts.pop("key"),
        clip_id=facts.pop("clip_id"),
        caption=facts.pop("caption"),
        attributes=facts.pop("attributes"),
        fps=facts.pop("fps"),
        frames_TYXC=decode_video(files[VIDEO]),
        control_TYXC=decode_video(files[CONTROL]) if CONTROL in files else None,
        reference_YXC=read_image(files[REFERENCE]) if REFERENCE in files else None,
        mask_TYX=None if mask is None else decode_mask(mask, facts["num_frames"]),
        points_TJ2=None if points is None else np.array(points, np.float32),
        visible_TJ=None if visible is None else np.array(visible, bool),
        facts=facts,
    )


def encode_video(frames_TYXC: np.ndarray, fps: float, encoder: EncoderConfig) -> bytes:
    """Encode frames as the bytes of an mp4 file."""
    with tempfile.TemporaryDirectory(prefix="musev-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        write_segment(path, frames_TYXC, fps=fps, encoder=encoder)
        return path.read_bytes()


def decode_video(data: bytes) -> np.ndarray:
    """Decode the bytes of a video file whole: ``frames_TYXC``, uint8."""
    with tempfile.TemporaryDirectory(prefix="musev-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(data)
        return np.stack(list(read_video(path)))


def _encode_mask(mask_TYX: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    rows = mask_TYX.reshape(-1, mask_TYX.shape[2])
    Image.fromarray(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_mask(data: bytes, num_frames: int) -> np.ndarray:
    """Masks of a mask file: ``mask_TYX``, uint8."""
    with Image.open(io.BytesIO(data)) as picture:
        rows = np.asarray(picture.convert("L"))
    if len(rows) % num_frames:
        raise MediaError(f"a mask of {len(rows)} rows does not hold {num_frames} frames")
    return rows.reshape(num_frames, -1, rows.shape[1])


def write_tar(target: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[Entry]:
    """Write samples as a tar file, one after the other, in memory of one sample.

    Args:
        target: An open file at its start.
        samples: Key and files of each.

    Returns:
        Where each lies.
    """
    entries = []
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples:
            start, members = tar.offset, {}
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mode = len(data), 0o644  # times, owners and names stay 0 and empty
                members[suffix] = (tar.offset + tarfile.BLOCKSIZE, len(data))
                tar.addfile(info, io.BytesIO(data))
            entries.append(Entry(key, start, tar.offset - start, members))
    return entries


def describe_tar(source: BinaryIO) -> list[tuple[Entry, dict[str, Any]]]:
    """Find the samples of a tar file.

    Args:
        source: An open file.

    Returns:
        Place of every sample and its index row without the shard, in order.
    """
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(fileobj=source, mode="r:") as tar:
        for info in tar:
            key, _, suffix = info.name.partition(".")
            found.setdefault(key, {})[suffix] = info
        described = []
        for key, infos in found.items():
            members = {suffix: (info.offset_data, info.size) for suffix, info in infos.items()}
            first = min(info.offset for info in infos.values())
            last = max(_padded(info.offset_data + info.size) for info in infos.values())
            entry = Entry(key, first, last - first, members)
            wanted = {suffix: tar.extractfile(infos[suffix]) for suffix in (FACTS, VIDEO)}
            contents = {suffix: file.read() for suffix, file in wanted.items() if file}
            described.append((entry, index_row(entry, contents)))
    return described


def index_row(entry: Entry, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Make a clip's row of the index, without the shard's path.

    Args:
        entry: Where it lies.
        files: At least the JSON file and the video.

    Returns:
        Plain values by the names of :data:`INDEX_FIELDS`.
    """
    facts = json.loads(files[FACTS])
    return {
        "key": entry.key,
        "offset": entry.offset,
        "size": entry.size,
        "members": [
            {"name": name, "offset": offset, "size": size}
            for name, (offset, size) in entry.members.items()
        ],
        **{name: facts[name] for name in _FROM_FACTS},
        **{name: facts.get(name) for name in _IF_KNOWN},
        "attributes": json.dumps(facts["attributes"], ensure_ascii=False, sort_keys=True),
        "sha256": hashlib.sha256(files[VIDEO]).hexdigest(),
    }


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
