"""Rows over the pool: short ones are one task of one worker, long ones get a conductor.

A stage of the dataset, but one that computes nothing: each actor of it drives many rows at a time,
one thread a row. What is computed is computed by the pool's workers.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from pipelines.clip_worker import WorkerSetup
from pipelines.conductor import PoolLostError
from pipelines.outcomes import Row
from pipelines.pool import Lease, Wish
from pipelines.progress import keep_telling
from pipelines.rows import request_from_json
from pipelines.stages.conduct import ConductClip

logger = logging.getLogger(__name__)


class DriveClips:
    """Bring rows to their end.

    Args:
        setup: As of the workers.
        broker: Handle of the pool's broker.
        board: Actor that is told how far rows are.
        num_workers: Most workers of the pool.
        settings: Changes to :class:`pipelines.conductor.ConductorConfig`.
    """

    def __init__(
        self,
        *,
        setup: WorkerSetup,
        broker: Any,
        board: Any,
        num_workers: int,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._broker = broker
        self._board = board
        self._conduct = ConductClip(
            broker=broker,
            ledger=setup.ledger,
            encoder=setup.profile.encoder,
            num_workers=num_workers,
            device=setup.device,
            tell=self._tell,
            settings=settings,
        )
        self._commit = setup.commit()

    def __call__(self, row: Row) -> Row:
        """Bring one row to its end; called from several threads."""
        if request_from_json(row["request"]).spreads:
            return self._commit_long(self._conduct(row))
        return self._render(row)

    def _commit_long(self, row: Row) -> Row:
        """Commit a conducted row: a long film is hashed and uploaded for minutes."""
        with keep_telling(functools.partial(self._tell, row["sample_id"], "commit", 0, 1)):
            return self._commit(row)

    def _render(self, row: Row) -> Row:
        """Give a short row to a worker, and to another one if that dies; storage counts."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        while True:
            wish = Wish(order=(row["order"], 0), owner=row["sample_id"], queues=True)
            lease = self._lease(wish)
            try:
                return ray.get(lease.worker.clip.remote(row))
            except RayTaskError as error:
                raise (error.cause or error) from error
            except RayError as error:  # died, or was ended because memory ran out
                logger.warning("the worker of row %s was lost: %s", row["sample_id"], error)
                self._broker.lost.remote(lease)
            finally:
                self._broker.hand_back.remote(lease)

    def _lease(self, wish: Wish) -> Lease:
        import ray
        from ray.exceptions import RayActorError

        try:
            return ray.get(self._broker.lease.remote(wish))
        except RayActorError as error:
            raise PoolLostError(f"the broker of the workers is gone: {error}") from error

    def _tell(self, sample_id: str, stage: str, done: int, total: int) -> None:
        self._board.row.remote(sample_id, stage, done, total)
