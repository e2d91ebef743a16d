"""One attempt at a row: counted before any work is done, and brought to an end whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.ledger import Ledger
from pipelines.outcomes import FAILED, QUARANTINED, Row, WorkerLostError, fail_row, worker_lost
from pipelines.resources import MAX_ATTEMPTS

Work = Callable[[Row, Path], Row]
"""A row and the file to write to the columns that the work adds."""


def attempt_row(
    row: Row,
    work: Work,
    *,
    stage: str,
    ledger: Ledger,
    folder: Path,
    forgiven: tuple[type[Exception], ...] = (),
) -> Row:
    """Do a stage's work on a row; one bad row must not end the run.

    The attempt is on record before any work is done, so a row that takes its worker down is known
    even though it left no message.

    Args:
        row: Ready.
        work: Gets the row with ``attempt_id`` and ``attempts``; what it puts into that row stays
            there even if it fails.
        stage: Name of the stage, for the reason.
        ledger: Counts attempts.
        folder: Where the file is written.
        forgiven: Errors that are nobody's row's fault: they are raised, the attempt is taken back.

    Returns:
        The row with ``video_path`` and what the work has added; or marked failed, or quarantined
        after too many attempts.

    Raises:
        forgiven: Those errors.
    """
    attempt_id, number = ledger.begin_attempt(row["sample_id"])
    row = {**row, "attempt_id": attempt_id, "attempts": number}
    if number > MAX_ATTEMPTS:
        return fail_row(row, stage=stage, error=worker_lost(MAX_ATTEMPTS), status=QUARANTINED)
    target = folder / f"{row['sample_id']}.mp4"
    try:
        added = work(row, target)
    except forgiven:
        target.unlink(missing_ok=True)
        ledger.release_attempt(row["sample_id"], attempt_id)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, the other rows go on
        target.unlink(missing_ok=True)
        status = QUARANTINED if isinstance(error, WorkerLostError) else FAILED
        return fail_row(row, stage=stage, error=error, status=status)
    return {**row, "video_path": str(target), **added}
