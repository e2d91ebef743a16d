"""Stage: judge a committed video and put its scores beside it (CPU; one row, one video)."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from musev.config import ClipRequest
from musev.denoise.places import places_of
from musev.errors import MediaError, MusevError, RequestError, StorageError
from musev.media import fit_image, read_image, read_video
from musev.quality.drawn import drawn_clip_of, words_asked
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.rows import request_from_json
from pipelines.scores import Scored, write_scores

if TYPE_CHECKING:
    from musev.denoise.windows import Window
    from musev.quality.clip import Expected

STAGE = "judge"
VERSION = 2
"""Of the judges and of what is judged: raised when the same video would get other scores."""
READ = frozenset({"video", "condition", "reference", "keypoints"})
"""Names under which it is on record that something could not be read: it is tried again."""
JUDGED, FAILED = "judged", "failed"
MOST_BYTES = 2 * 2**30
"""A video that would need more is judged smaller: the frames, and where the person's parts are."""
_PIXEL_BYTES = 16
"""The most that judging takes: frames 3, parts of the person 10, masks and curves the rest (15.8 by
tracemalloc, for 240 frames of 128 pixels)."""
_LEAST_SIDE_PX = 64
_JPEG_QUALITY = 85

logger = logging.getLogger(__name__)


class JudgeClip:
    """Judge rows. Reads ``sample_id``, ``request``, ``media_digests`` (both JSON), ``video``,
    ``sha256``, ``fps``, ``num_frames``, ``height`` and ``width``.

    Leaves ``sample_id``, ``status`` (``judged`` or ``failed``) and ``reason``. A video that cannot
    be read, or a request that cannot be understood, costs its own row only, and is on record with
    its reason like any other score. Judging a row twice writes the same file twice.

    Args:
        ledger: Where videos lie and scores go.
        cache: Fetches pictures that the request named.
    """

    def __init__(self, *, ledger: Ledger, cache: MediaCache) -> None:
        import torch  # on the worker, never on the driver

        torch.set_num_threads(1)  # as many workers as CPUs; sums come out in one order
        self._ledger = ledger
        self._cache = cache

    def __call__(self, row: Row) -> Row:
        """Judge one row."""
        try:
            scored, pictures = self._judge(row)
        except StorageError:  # nobody's row's fault: the row vanishes and is started again
            raise
        except Exception as error:  # one bad row must not end the run
            if not isinstance(error, (MusevError, FileNotFoundError)):
                logger.error("sample %s: unexpected error", row["sample_id"], exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            scored, pictures = _refused(row, reason), {}
            return self._finish(row, scored, pictures, status=FAILED, reason=reason)
        return self._finish(row, scored, pictures, status=JUDGED, reason="")

    def _finish(
        self, row: Row, scored: Scored, pictures: dict[str, bytes], *, status: str, reason: str
    ) -> Row:
        write_scores(self._ledger.store, row["sample_id"], scored, pictures)
        return {"sample_id": row["sample_id"], "status": status, "reason": reason}

    def _judge(self, row: Row) -> tuple[Scored, dict[str, bytes]]:
        from musev.quality.clip import judge_clip
        from musev.quality.curves import curves_of
        from musev.quality.strips import frame_strip, seam_strip

        request = request_from_json(row["request"])
        frames_TYXC = self._read_frames(row)
        height, width = frames_TYXC.shape[1:3]
        digests = json.loads(row["media_digests"])
        expected, reasons = self._expect(request, digests, (len(frames_TYXC), height, width))
        judged = judge_clip(frames_TYXC, expected, fps=float(row["fps"]))
        pictures = {"frames": _jpeg(frame_strip(frames_TYXC))}
        if expected.windows is not None:
            seams = seam_strip(expected.generated(frames_TYXC), expected.windows)
            pictures |= {} if seams is None else {"seams": _jpeg(seams)}
        drawn = drawn_clip_of(request.extra)
        return (
            Scored(
                sha256=row["sha256"],
                version=VERSION,
                scores={name: score.value for name, score in judged.items() if score.known},
                reasons=reasons | {n: score.reason for n, score in judged.items() if score.reason},
                curves=curves_of(frames_TYXC, expected),
                kind="" if drawn is None else drawn.kind,
            ),
            pictures,
        )

    def _read_frames(self, row: Row) -> np.ndarray:
        shrink = _shrink_to_fit(row)
        with tempfile.TemporaryDirectory(prefix="musev-judge-") as folder:
            path = Path(folder) / "video.mp4"
            self._ledger.store.fetch(row["video"], path)
            frames = [shrink(frame) for frame in read_video(path)]
        if not frames:
            raise MediaError(f"{row['video']} holds no frames")
        return np.stack(frames)

    def _expect(
        self, request: ClipRequest, digests: dict[str, str], shape: tuple[int, int, int]
    ) -> tuple[Expected, dict[str, str]]:
        """What is known about a clip from its request, and what could not be found out."""
        from musev.quality.clip import Expected

        num_frames, height, width = shape
        asked = words_asked(request.prompt)
        drawn = drawn_clip_of(request.extra)
        given, windows = _last_windows(request, num_frames)
        known: dict[str, Any] = {"attributes": asked or {}, "given": given, "windows": windows}
        reasons: dict[str, str] = {}
        if drawn is not None and drawn.kind == "pose":
            size = {"height": height, "width": width}
            clip = drawn.draw(num_frames=num_frames, fps=request.fps, **size)
            known |= {"points_TJ2": clip.points_TJ2, "visible_TJ": clip.visible_TJ}
        elif asked is not None and request.keypoints is not None:
            try:
                known |= self._read_joints(request, digests, shape)
            except RequestError as error:
                reasons["pck_0.1"] = str(error)
            except MediaError as error:
                reasons["keypoints"] = str(error)
        wanted = []
        if not request.condition_index and not request.redraw:  # else frame 0 is another picture
            wanted.append("condition")
        if asked is not None:
            wanted.append("reference")
        for name in wanted:
            try:
                known[f"{name}_YXC"] = self._read_picture(
                    request, f"{name}_image", digests, height=height, width=width
                )
            except MediaError as error:
                reasons[name] = str(error)
        return Expected(**known), reasons

    def _read_picture(
        self, request: ClipRequest, column: str, digests: dict[str, str], **size: int
    ) -> np.ndarray | None:
        """The first picture of a column at the clip's size, as the clip was made with it."""
        uri = next(iter(request.pictures(column)), None)
        if uri is None:
            return None
        digest = digests.get(column)  # commit records of old have none
        content = self._cache.read(uri, digest) if digest else self._cache.fetch(uri)[1]
        exact = request.sampling.image_fit == "upstream"
        return fit_image(read_image(content, name=uri), **size, exact_upstream=exact)

    def _read_joints(
        self, request: ClipRequest, digests: dict[str, str], shape: tuple[int, int, int]
    ) -> dict[str, np.ndarray]:
        from musev.quality.keypoints import read_joints

        num_frames, height, width = shape
        uri = request.keypoints
        assert uri is not None
        if request.align is not None or request.condition_has_own_map:
            raise RequestError("the keypoints' people may stand elsewhere in the video")
        with self._cache.open_file(uri, digests.get("keypoints", "")) as (_, path):
            points, visible = read_joints(path, request, num_frames, height=height, width=width)
        return {"points_TJ2": points, "visible_TJ": visible}


def _last_windows(
    request: ClipRequest, num_frames: int
) -> tuple[tuple[int, ...], tuple[Window, ...] | None]:
    """Frames that were given, and the windows of the others' last step; None without others."""
    from musev.quality.seams import last_step_windows

    given = places_of(request.num_given, request.condition_index, num_frames).given
    if num_frames <= len(given):
        return given, None
    sampling = dataclasses.replace(request.sampling, num_steps=request.num_steps)
    if sampling.shots.num_frames is None:
        return given, last_step_windows(num_frames - len(given), sampling)
    from musev.shots import plan_shots

    drawn = not request.pictures("condition_image") and sampling.first_frame.origin == "drawn"
    shots = plan_shots(dataclasses.replace(request, num_frames=num_frames), len(given), drawn=drawn)
    return given, tuple(
        tuple(frame + shot.first - len(given) for frame in window)
        for shot in shots
        for window in last_step_windows(shot.stop - shot.first, sampling)
    )


def _shrink_to_fit(row: Row) -> Any:
    """A function that brings frames to the size in which the whole clip fits into memory."""
    height, width, num_frames = (int(row[name]) for name in ("height", "width", "num_frames"))
    share = (MOST_BYTES / (height * width * _PIXEL_BYTES * num_frames)) ** 0.5
    if share >= 1:
        return lambda frame: frame
    if min(height, width) * share < _LEAST_SIDE_PX:
        raise MediaError(
            f"{num_frames} frames of {width}x{height} are too much to judge at once; judge a cut "
            "of the video"
        )
    size = {"height": int(height * share), "width": int(width * share)}
    return lambda frame: fit_image(frame, **size)


def _refused(row: Row, reason: str) -> Scored:
    return Scored(sha256=row["sha256"], version=VERSION, scores={}, reasons={"video": reason})


def _jpeg(picture_YXC: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture_YXC).save(sink, "JPEG", quality=_JPEG_QUALITY)
    return sink.getvalue()
