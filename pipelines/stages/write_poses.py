"""Stage: make a row's poses from its prompt and put them to storage (CPU; one network for life).

Axes here: T frame, K joint.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from musev.control.person import Person, PoseVideo, PoseWriter
from musev.errors import MusevError, StorageError
from pipelines.outcomes import FAILED, READY, Row
from pipelines.scratch import scratch_folder
from pipelines.storage import Store

logger = logging.getLogger(__name__)


class WritePoses:
    """Make poses. Reads the columns of :class:`pipelines.text_to_pose.PoseTask`.

    Leaves ``path``, ``status`` (``ready`` or ``failed``) and ``reason``. Who writes first wins; a
    file that is there is not made again.

    Args:
        store: Where files go.
        weights: Folder of the network, or ``package:NAME``.
    """

    def __init__(self, *, store: Store, weights: str) -> None:
        import torch  # on the worker, never on the driver

        from musev.models.text_to_pose import load_text_to_pose
        from musev.weight_parts import text_to_pose_folder

        torch.set_num_threads(1)  # as many workers as CPUs; sums come out in one order
        self._store = store
        self._net = load_text_to_pose(text_to_pose_folder(weights))
        self._folder = scratch_folder()

    def __call__(self, row: Row) -> Row:
        """Bring one row to its file."""
        local = self._folder / f"{Path(row['path']).stem}.parquet"
        try:
            self._write(row, local)
        except StorageError:  # nobody's row's fault: the row vanishes and is started again
            raise
        except Exception as error:  # one bad row must not end the run
            if not isinstance(error, MusevError):
                logger.error("%s: unexpected error", row["request_id"], exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            return {"path": row["path"], "status": FAILED, "reason": reason}
        finally:
            local.unlink(missing_ok=True)
        return {"path": row["path"], "status": READY, "reason": ""}

    def _write(self, row: Row, local: Path) -> None:
        from musev.text_to_pose import make_poses

        points_TK3 = make_poses(
            self._net,
            row["prompt"],
            num_frames=row["num_frames"],
            fps=row["fps"],
            seed=row["seed"],
            num_steps=row["num_steps"],
            guidance=row["guidance"],
        )
        width, height = row["width"], row["height"]
        video = PoseVideo(width=width, height=height, fps=row["fps"])
        with PoseWriter(local, video) as writer:
            for body_K3 in place_in_picture(points_TK3, width=width, height=height):
                writer.write((Person.of(body_K3),))
        self._store.create_from_file(row["path"], local)


def place_in_picture(points_TK3: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Place joints of a square picture in one of another shape: in its middle, on its lower edge.

    Args:
        points_TK3: x and y as shares of the square.
        width: Of the picture.
        height: Of the picture.

    Returns:
        The same as shares of the picture; joints that are not seen are all zero.
    """
    side = min(width, height)
    points = points_TK3.copy()
    points[..., 0] = 0.5 + (points[..., 0] - 0.5) * (side / width)
    points[..., 1] = 1 - (1 - points[..., 1]) * (side / height)
    return points * points_TK3[..., 2:]
