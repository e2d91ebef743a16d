"""Poses for the prompts of a manifest, as the jobs that make and that render them share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs._cli import Settings
from jobs._console import Teller
from musev.config import ClipRequest
from musev.errors import ManifestError
from pipelines.manifest import resolve_rows
from pipelines.resources import WorkerRange, connect, measure_cluster, plan_shard_workers
from pipelines.storage import Store
from pipelines.text_to_pose import PosePlan, PoseSettings, make_poses, plan_poses, posed_rows


@dataclass(frozen=True, kw_only=True)
class Poses:
    """What rows of a manifest are to follow."""

    settings: PoseSettings
    plan: PosePlan
    store: Store
    """Where the files lie."""
    rows: Sequence[Mapping[str, Any]]
    """All of the manifest, those that follow poses naming them."""
    requests: Sequence[ClipRequest]
    """Of the good ones among them."""

    def lines(self, num_rows: int, failed: Mapping[str, str]) -> list[str]:
        """Say how many rows have poses, and why the others have none.

        Args:
            num_rows: Of the manifest.
            failed: Files that could not be made.

        Returns:
            Lines for a person.
        """
        posed = sum(task.path not in failed for task in self.plan.tasks.values())
        reasons = Counter(self.plan.left.values()).most_common()
        return [
            f"poses          {posed} of {num_rows} rows",
            *(f"as they were   {count}, because the row {reason}" for reason, count in reasons),
        ]


def give_poses(
    rows: Sequence[Mapping[str, Any]],
    requests: Sequence[ClipRequest],
    settings: PoseSettings,
    store: Store,
    *,
    chosen: Settings,
    base_uri: str,
) -> Poses:
    """Decide which rows get poses; nothing is made yet.

    Args:
        rows: As they were read.
        requests: Of the good ones among them.
        settings: With what.
        store: Where the files are to lie.
        chosen: Settings that the rows are rendered with.
        base_uri: Where relative media paths of the rows start.

    Returns:
        The poses.

    Raises:
        ManifestError: If a row could not follow poses.
    """
    plan = plan_poses(rows, requests, settings)
    posed = posed_rows(rows, plan, {}, store=store, old_base=base_uri, new_base=base_uri)
    found, refused = resolve_rows(posed, chosen.profile, base_uri, find_profile=chosen.find_profile)
    unled = plan.tasks.keys() - {request.request_id for request in found}
    if unled:
        first = next(failure for failure in refused if failure.request_id in unled)
        raise ManifestError(f"{len(unled)} rows could not follow poses, the first: {first.message}")
    return Poses(settings=settings, plan=plan, store=store, rows=posed, requests=found)


def make(poses: Poses, workers: WorkerRange | None, teller: Teller) -> dict[str, str]:
    """Make the files that are not there, on the cluster.

    Args:
        poses: From :func:`give_poses`.
        workers: How many; None for one a CPU.
        teller: Told how far it is, and what could not be made.

    Returns:
        Path to reason, of files that could not be made.
    """
    if not poses.plan.tasks:
        return {}
    connect()
    shape = measure_cluster()
    most = min(plan_shard_workers(shape, workers, networks=False).most, len(poses.plan.tasks))

    def on_row(done: int, total: int) -> None:
        if teller.wants_progress(last=done == total):
            teller.progress(f"{done} of {total} files of poses", last=done == total)

    failed = make_poses(
        poses.store, poses.plan, poses.settings, shape=shape, num_workers=most, on_row=on_row
    )
    for reason, count in Counter(failed.values()).items():
        teller.say(f"{count} files of poses could not be made: {reason}")
    return failed
