"""Stage: judge a committed video and put its scores beside it (CPU; one row, one video)."""

from __future__ import annotations

import io
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from musev.config import ClipRequest
from musev.errors import MediaError, MusevError, StorageError
from musev.media import fit_image, read_image, read_video
from musev.quality.drawn import drawn_clip_of, words_asked
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.rows import request_from_json
from pipelines.scores import Scored, write_scores

if TYPE_CHECKING:
    from musev.quality.clip import Expected

STAGE = "judge"
VERSION = 1
"""Of the judges and of what is judged: raised when the same video would get other scores."""
JUDGED, FAILED = "judged", "failed"
MOST_BYTES = 2 * 2**30
"""A video that would need more is judged smaller: the frames, and where the person's parts are."""
_PIXEL_BYTES = 3 + 2 * 5
_LEAST_SIDE_PX = 64
_JPEG_QUALITY = 85

logger = logging.getLogger(__name__)


class JudgeClip:
    """Judge rows. Reads ``sample_id``, ``request``, ``video``, ``sha256``, ``fps``, ``num_frames``.

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
        expected, reasons = self._expect(request, len(frames_TYXC), height=height, width=width)
        judged = judge_clip(frames_TYXC, expected, fps=float(row["fps"]))
        pictures = {"frames": _jpeg(frame_strip(frames_TYXC))}
        if expected.windows is not None:
            seams = seam_strip(frames_TYXC[expected.num_given :], expected.windows)
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
        self, request: ClipRequest, num_frames: int, *, height: int, width: int
    ) -> tuple[Expected, dict[str, str]]:
        """What is known about a clip from its request, and what could not be found out."""
        from musev.quality.clip import Expected
        from musev.quality.seams import last_step_windows

        reasons: dict[str, str] = {}
        asked = words_asked(request.prompt)
        drawn = drawn_clip_of(request.extra)
        known: dict[str, Any] = {"attributes": asked or {}}
        size = {"height": height, "width": width}
        if drawn is not None and drawn.kind == "pose":
            clip = drawn.draw(num_frames=num_frames, fps=request.fps, **size)
            known |= {"points_TJ2": clip.points_TJ2, "visible_TJ": clip.visible_TJ}
        wanted = {}
        if not request.condition_index and not request.redraw:  # else frame 0 is another picture
            wanted["condition_YXC"] = next(iter(request.pictures("condition_image")), None)
        if asked is not None:
            wanted["reference_YXC"] = next(iter(request.pictures("reference_image")), None)
        for name, uri in wanted.items():
            if uri is None:
                continue
            try:
                picture_YXC = read_image(self._cache.fetch(uri)[1], name=uri)
            except MediaError as error:
                reasons[name.removesuffix("_YXC")] = str(error)
                continue
            exact = request.sampling.image_fit == "upstream"
            known[name] = fit_image(picture_YXC, **size, exact_upstream=exact)
        num_given = request.num_given
        if num_frames > num_given:
            known["windows"] = last_step_windows(num_frames - num_given, request.sampling)
        return Expected(**known, num_given=num_given), reasons


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
