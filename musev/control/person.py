"""People as data: keypoints of body, hands and face, and the Parquet file of a video's people.

Axes here: K keypoint. The last axis of every array is (x, y, confidence): x and y are fractions of
the picture's width and height (a point outside the picture is below 0 or above 1), the confidence
is 0 to 1 and 0 where a point is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from musev.errors import MediaError, RequestError

NUM_BODY, NUM_HAND, NUM_FACE = 18, 21, 68

PARTS: Mapping[str, int] = {
    "body": NUM_BODY,
    "left_hand": NUM_HAND,
    "right_hand": NUM_HAND,
    "face": NUM_FACE,
}
"""Columns of the Parquet file and how many keypoints each holds. The body is OpenPose's 18
(``drawing.JOINTS``), hands are its 21, faces the usual 68; left and right are the person's own."""

ROWS_AT_ONCE = 1024
"""People written or read at a time: 1.5 MB, whatever the length of the video."""

_META_KEY = b"musev.poses"


@dataclass(frozen=True, eq=False)
class Person:
    """Keypoints of one person in one picture; see the module for what the numbers mean."""

    body_K3: np.ndarray
    """float32 ``[18, 3]``."""
    left_hand_K3: np.ndarray
    """float32 ``[21, 3]``: wrist, then four points of each finger from the thumb on."""
    right_hand_K3: np.ndarray
    """float32 ``[21, 3]``."""
    face_K3: np.ndarray
    """float32 ``[68, 3]``."""

    def __post_init__(self) -> None:
        for name, count in PARTS.items():
            points = getattr(self, f"{name}_K3")
            assert points.shape == (count, 3), f"{name} has shape {points.shape}"

    @classmethod
    def of(
        cls,
        body_K3: np.ndarray | None = None,
        *,
        left_hand_K3: np.ndarray | None = None,
        right_hand_K3: np.ndarray | None = None,
        face_K3: np.ndarray | None = None,
    ) -> Person:
        """Put a person together; parts not given are missing, points that are not finite as well.

        Args:
            body_K3: Any floating type.
            left_hand_K3: The person's own left.
            right_hand_K3: The person's own right.
            face_K3: 68 points.

        Returns:
            The person, float32.
        """
        return cls(
            body_K3=_tidy(body_K3, NUM_BODY),
            left_hand_K3=_tidy(left_hand_K3, NUM_HAND),
            right_hand_K3=_tidy(right_hand_K3, NUM_HAND),
            face_K3=_tidy(face_K3, NUM_FACE),
        )

    def part(self, name: str) -> np.ndarray:
        """Keypoints of one of :data:`PARTS`."""
        return getattr(self, f"{name}_K3")


FramePoses = tuple[Person, ...]
"""Everybody in one frame; empty where nobody was found."""


@dataclass(frozen=True, kw_only=True)
class PoseVideo:
    """What is known of the video that poses belong to; 0 where it is not known."""

    num_frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0

    @property
    def aspect(self) -> float:
        """Width over height, 1 if unknown: fractions become lengths only with it."""
        return self.width / self.height if self.width and self.height else 1.0


def _tidy(points_K3: np.ndarray | None, count: int) -> np.ndarray:
    if points_K3 is None:
        return np.zeros((count, 3), np.float32)
    points = np.array(points_K3, np.float32)
    points[~np.isfinite(points).all(axis=1)] = 0.0
    return points


def _schema() -> pa.Schema:
    point = pa.list_(pa.float32(), 3)
    parts = [pa.field(name, pa.list_(point)) for name in PARTS]
    return pa.schema([pa.field("frame", pa.int32()), pa.field("person", pa.int32()), *parts])


class PoseWriter:
    """Writes a video's people frame by frame: one row for each frame and person.

    A context manager. Memory does not grow with the video. How many frames there were, with or
    without people, is written at the end, so a file that was not closed is not readable.
    """

    def __init__(self, path: Path, video: PoseVideo) -> None:
        """Open the file.

        Args:
            path: Where; an existing file is replaced.
            video: Size and frame rate of the video; its number of frames is counted here instead.
        """
        self._video = video
        self._writer = pq.ParquetWriter(path, _schema(), compression="zstd")
        self._rows: list[tuple[int, int, Person]] = []
        self.num_frames = 0

    def __enter__(self) -> PoseWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, people: FramePoses) -> None:
        """Add the next frame."""
        self._rows.extend((self.num_frames, n, person) for n, person in enumerate(people))
        self.num_frames += 1
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Write what is left and the video's facts."""
        self._flush()
        facts = {
            "num_frames": self.num_frames,
            "width": self._video.width,
            "height": self._video.height,
            "fps": self._video.fps,
        }
        self._writer.add_key_value_metadata({_META_KEY: json.dumps(facts)})
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns: dict[str, pa.Array] = {
            "frame": pa.array([row[0] for row in self._rows], pa.int32()),
            "person": pa.array([row[1] for row in self._rows], pa.int32()),
        }
        for name, count in PARTS.items():
            flat = np.stack([person.part(name) for _, _, person in self._rows]).reshape(-1)
            points = pa.FixedSizeListArray.from_arrays(pa.array(flat), 3)
            ends = np.arange(len(self._rows) + 1, dtype=np.int32) * count
            columns[name] = pa.ListArray.from_arrays(pa.array(ends), points)
        self._writer.write_table(pa.table(columns, schema=_schema()))
        self._rows = []


def write_poses(path: Path, poses: list[FramePoses], video: PoseVideo) -> None:
    """Write a whole video's people; see :class:`PoseWriter`."""
    with PoseWriter(path, video) as writer:
        for people in poses:
            writer.write(people)


def scan_poses(path: Path) -> PoseVideo:
    """Read what a keypoint file says of its video, not the keypoints.

    A file not written here may lack it: its number of frames is then one more than the greatest in
    column ``frame``.

    Args:
        path: A Parquet file.

    Returns:
        The facts; 0 where the file does not say.

    Raises:
        MediaError: If it is no Parquet file.
        RequestError: If a column is missing.
    """
    file = _open(path)
    facts = (file.schema_arrow.metadata or {}).get(_META_KEY)
    if facts is None:
        facts = (file.metadata.metadata or {}).get(_META_KEY)
    if facts is not None:
        return PoseVideo(**json.loads(facts))
    last = -1
    for batch in file.iter_batches(columns=["frame"]):
        last = max([last, *batch.column(0).drop_null().to_pylist()])
    return PoseVideo(num_frames=last + 1)


def iter_poses(path: Path) -> Iterator[FramePoses]:
    """Read a video's people frame by frame, in constant memory.

    Any Parquet file with the columns ``frame`` and ``body`` will do, ``person``, ``left_hand``,
    ``right_hand`` and ``face`` may be missing: each cell is a list of ``[x, y, confidence]``.

    Args:
        path: Rows ordered by frame.

    Yields:
        Everybody in frame 0, 1, 2 and so on; frames that no row names are empty.

    Raises:
        MediaError: If it is no Parquet file.
        RequestError: If a column is missing or a row is wrong.
    """
    num_frames = scan_poses(path).num_frames
    file = _open(path)
    names = [name for name in PARTS if name in file.schema_arrow.names]
    frame, people, row = 0, [], 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=["frame", *names]):
        for cells in batch.to_pylist():
            here = _next_frame(cells["frame"], frame, f"{path}: row {row}")
            while frame < here:
                yield tuple(people)
                people, frame = [], frame + 1
            parts = {f"{n}_K3": _points(cells[n], n, f"{path}: row {row}") for n in names}
            people.append(Person.of(**parts))
            row += 1
    while frame < num_frames:
        yield tuple(people)
        people, frame = [], frame + 1


def read_poses(path: Path) -> list[FramePoses]:
    """Read a whole video's people; see :func:`iter_poses`."""
    return list(iter_poses(path))


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise MediaError(
            f"{path} is not a readable Parquet file ({error}). "
            f"Give keypoints as Parquet with the columns frame, person, {', '.join(PARTS)}."
        ) from error
    missing = {"frame", "body"} - set(file.schema_arrow.names)
    if missing:
        raise RequestError(
            f"{path}: column {min(missing)!r} is missing, found {file.schema_arrow.names}. "
            f"Keypoints need the columns frame and body; person, left_hand, right_hand and face "
            f"are optional."
        )
    return file


def _next_frame(found: int | None, frame: int, where: str) -> int:
    if found is None or found < frame:
        raise RequestError(
            f"{where}: frame is {found!r} after frame {frame}. "
            f"Give every row a frame, counted from 0, and sort the rows by frame."
        )
    return found


def _points(cell: object, name: str, where: str) -> np.ndarray | None:
    """One cell to points, or an error that says what is wrong with it."""
    if cell is None:
        return None
    count = PARTS[name]
    try:
        points = np.array(cell, np.float32)
    except (TypeError, ValueError):
        points = np.zeros(0, np.float32)
    if points.size == 0 and cell == []:
        return None
    if points.shape != (count, 3):
        raise RequestError(
            f"{where}: {name} has shape {list(points.shape)}, expected {count} points of "
            f"[x, y, confidence]. Leave the cell empty where the part is missing."
        )
    sure = points[:, 2]
    bad = ~((sure >= 0) & (sure <= 1)) | ((sure > 0) & ~np.isfinite(points).all(axis=1))
    if bad.any():
        k = int(np.argmax(bad))
        raise RequestError(
            f"{where}: point {k} of {name} is {points[k].tolist()}. Give x and y as fractions of "
            f"the picture and a confidence from 0 (missing) to 1."
        )
    return points
