"""Rounds: one Ray dataset after another over the rows that wait, until every row has come back.

Workers say on a board that they live. A dataset that stands still, a row that vanishes with its
worker, a worker lost: each costs a new round over the rows that still wait. What cannot get better
by trying again ends the run with its reason.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from musev.errors import MusevError
from pipelines.outcomes import Row
from pipelines.progress import Board, BoardView
from pipelines.resources import MAX_ATTEMPTS, on_this_machine, stream_rows

logger = logging.getLogger(__name__)

SILENCE_S = 300.0
"""Rows wait and no worker has been seen loading or working for so long: start a new round."""
_MAX_FRUITLESS_STARTS = 3

OnRow = Callable[[Row | None, BoardView], None]
"""Told every row's outcome, and None about once a second."""


class WorkersFailError(MusevError):
    """Workers do not get as far as working, or rows never come back."""


class StalledError(Exception):
    """A dataset stands still although rows wait."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What is run again and again."""

    build: Callable[..., Any]
    """``(rows, board=...)`` to a dataset whose workers report to the board; runs in a Ray task."""
    key: str
    """Column of an outcome that names its row."""
    num_workers: int
    loads: str
    """What workers load before they work, for the error."""
    silence_s: float = SILENCE_S


class RemoteSigns:
    """Passes signs on to a board that is a Ray actor.

    Only a start is waited for: loading may take the process down at once, and a sign on its way
    with it. Starts that nobody counts would go on for ever.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def worker(self, name: str, state: str) -> None:
        """Tell what a worker does."""
        import ray

        if not ray.is_initialized():  # a call would start another Ray
            return
        sent = self._board.worker.remote(name, state)
        if state == "starting":
            ray.get(sent)

    def row(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Tell how far a row is."""
        self._board.row.remote(sample_id, stage, done, total)


def run_rounds(rounds: Rounds, waiting: dict[str, Row], on_row: OnRow) -> None:
    """Run rounds until no row waits.

    Args:
        rounds: What is run.
        waiting: Rows by name, in the order in which they start; emptied as they come back.
        on_row: Follows the outcomes.

    Raises:
        WorkersFailError: If workers cannot load, or rows keep vanishing.
    """
    from ray.exceptions import RayError

    idle_rounds = 0
    while waiting:
        num_waiting = len(waiting)
        try:
            _run_round(rounds, waiting, on_row)
        except (StalledError, RayError) as problem:
            logger.warning("the workers have to be started again: %s", problem)
        idle_rounds = idle_rounds + 1 if len(waiting) == num_waiting else 0
        if idle_rounds > MAX_ATTEMPTS:
            raise WorkersFailError(
                f"{num_waiting} rows were started {idle_rounds} times and none came back. Look at "
                "the workers' logs, then run the same command again."
            )


def _run_round(rounds: Rounds, waiting: dict[str, Row], on_row: OnRow) -> None:
    """One dataset over the rows that wait; rows that vanish in it go on waiting."""
    import ray
    from ray.exceptions import RayError

    board = ray.remote(Board).options(**on_this_machine()).remote()

    def watch(outcome: Row | None = None) -> None:
        view: BoardView = ray.get(board.view.remote())
        _refuse_hopeless(rounds, view)
        on_row(outcome, view)
        if view.silent_s is not None and view.silent_s > rounds.silence_s:
            raise StalledError(f"nobody has worked for {view.silent_s:.0f} s")

    build = functools.partial(rounds.build, board=board)
    try:
        for outcome in stream_rows(build, list(waiting.values()), watch=watch):
            name = outcome[rounds.key]
            if waiting.pop(name, None) is not None:
                board.row.remote(name, "finished", 1, 1)
                watch(outcome)
    except RayError:
        watch()  # a worker that could not load has said why
        raise


def _refuse_hopeless(rounds: Rounds, view: BoardView) -> None:
    if view.load_error:
        raise WorkersFailError(f"a worker could not load {rounds.loads}: {view.load_error}")
    limit = _MAX_FRUITLESS_STARTS * rounds.num_workers
    if view.workers_ready == 0 and view.fruitless_starts > limit:
        raise WorkersFailError(
            f"workers died {view.fruitless_starts} times while loading {rounds.loads}. Most often "
            "memory is short: give the machines more, use fewer workers, or a smaller precision."
        )


def stream_patiently(
    build: Callable[[list[Row]], Any],
    waiting: dict[str, Row],
    *,
    key: str,
    silence_s: float,
    doing: str,
) -> Iterator[Row]:
    """Run a dataset again over the rows that vanished in it, for short rows without a board.

    Args:
        build: Rows to a dataset.
        waiting: Rows by name; emptied as they come back. What is left at the end never did.
        key: Column of an outcome that names its row.
        silence_s: Rows wait and none has come back for so long: start a new round.
        doing: What happened to the rows meanwhile, for the log.

    Yields:
        One outcome a row.
    """
    from ray.exceptions import RayError

    for _ in range(MAX_ATTEMPTS):
        try:
            watch = _Silence(silence_s)
            for outcome in stream_rows(build, list(waiting.values()), watch=watch.check):
                watch.heard()
                if waiting.pop(outcome[key], None) is not None:
                    yield outcome
        except (StalledError, RayError) as problem:
            logger.warning("the workers have to be started again: %s", problem)
        if not waiting:
            return
        logger.warning("%d rows vanished while %s; trying again", len(waiting), doing)


class _Silence:
    """Raises when nothing was heard for too long."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.heard()

    def heard(self) -> None:
        self._since = time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self._since > self._limit_s:
            raise StalledError(f"no row has come back for {self._limit_s:.0f} s")
