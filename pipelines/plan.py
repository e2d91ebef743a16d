"""What a run will do, decided before it starts: bad rows, settled rows, rows to render."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from musev.config import ClipRequest, WindowConfig
from pipelines.outcomes import FAILED, Row
from pipelines.rows import RowFailure, request_from_json


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Every row of a manifest, sorted by what is to be done with it."""

    requests: Sequence[ClipRequest]
    refused: Sequence[RowFailure]
    """Rows of the manifest that make no request."""
    unreadable: Sequence[Row]
    """Rows whose media failed the check."""
    committed: Sequence[Row]
    failed_before: Sequence[Row]
    """Rows that failed in an earlier run and are left alone."""
    to_render: Sequence[Row]
    """Each sample once, however many requests share it."""

    def request_of(self, row: Row) -> ClipRequest:
        """The request a row was made from."""
        return self.requests[row["row"]]

    @property
    def num_rows(self) -> int:
        """Rows of the manifest."""
        return len(self.requests) + len(self.refused)

    @property
    def num_frames(self) -> dict[str, int]:
        """Sample id to frames, of every row to render."""
        return {row["sample_id"]: self.request_of(row).num_frames for row in self.to_render}

    @property
    def problems(self) -> list[tuple[str, str, str, str]]:
        """Request id, stage, error class and message of every bad row."""
        refused = [(f.request_id, f.stage, f.error_class, f.message) for f in self.refused]
        unreadable = [
            (
                self.request_of(row).request_id,
                row["error_stage"],
                row["error_class"],
                row["error_message"],
            )
            for row in self.unreadable
        ]
        return refused + unreadable

    def _maps(self) -> Iterator[tuple[Any, ...]]:
        """What tells map videos that rows need from one another."""
        for row in self.to_render:
            request = self.request_of(row)
            if column := request.maps_made_of:
                digest = json.loads(row["media_digests"])[column]
                size = (request.width, request.height, request.fps, request.sample_rate)
                yield from ((name, digest, *size) for name in request.control)

    def lines(self) -> list[str]:
        """Say it for people."""
        requests = [self.request_of(row) for row in self.to_render]
        frames = sum(request.num_frames for request in requests)
        windows = sum(map(count_windows, requests))
        calls = sum(count_windows(request) * request.num_steps for request in requests)
        lines = [
            f"rows           {self.num_rows}",
            f"bad            {len(self.problems)}",
            f"already there  {len(self.committed)}",
            f"failed before  {len(self.failed_before)}",
            f"to render      {len(requests)} clips, {frames} frames, {windows} windows, "
            f"{calls} network calls",
        ]
        if maps := set(self._maps()):
            lines.append(f"control maps   of {len(maps)} videos, found now or before")
        if self.failed_before:
            lines[3] += " (left alone; --retry-failed tries them again)"
        shared = sum(len(part) for part in (self.unreadable, self.committed, self.failed_before))
        twins = len(self.requests) - shared - len(self.to_render)
        if twins:
            lines.append(f"same video     {twins} rows ask for a clip that another row asks for")
        for name, stage, kind, message in self.problems:
            lines.append(f"bad row {name}: {kind} in {stage}: {message}")
        return lines


def measured_requests(requests: Sequence[ClipRequest], checked: Sequence[Row]) -> list[ClipRequest]:
    """Take over what the check found out: lengths that a video decides.

    Args:
        requests: Resolved requests, in manifest order.
        checked: One row a request from the input stage, in any order.

    Returns:
        The requests in the same order; those whose video could not be read are as they were.
    """
    found = list(requests)
    for row in checked:
        if found[row["row"]].num_frames == 0:
            found[row["row"]] = request_from_json(row["request"])
    return found


def plan_run(
    requests: Sequence[ClipRequest],
    refused: Sequence[RowFailure],
    checked: Sequence[Row],
    *,
    committed: Collection[str],
    failed: Collection[str],
    retry_failed: bool = False,
) -> RunPlan:
    """Decide what to do with every row.

    Args:
        requests: Resolved requests, in manifest order.
        refused: Rows that make no request.
        checked: One row a request from the input stage, in any order.
        committed: Sample ids that are done.
        failed: Sample ids with a failure on record.
        retry_failed: Render those again.

    Returns:
        The plan, its rows in manifest order.
    """
    unreadable: list[Row] = []
    done: list[Row] = []
    failed_before: list[Row] = []
    to_render: dict[str, Row] = {}
    for row in sorted(checked, key=lambda row: row["row"]):
        name = row["sample_id"]
        if row["status"] == FAILED:
            unreadable.append(row)
        elif name in committed:
            done.append(row)
        elif name in failed and not retry_failed:
            failed_before.append(row)
        else:
            to_render.setdefault(name, row)
    return RunPlan(
        requests=requests,
        refused=refused,
        unreadable=unreadable,
        committed=done,
        failed_before=failed_before,
        to_render=list(to_render.values()),
    )


def count_windows(request: ClipRequest) -> int:
    """Number of windows denoised at one step of a clip.

    Counted here, not planned, because planning needs torch; layouts differ by one at most.

    Args:
        request: A resolved request.

    Returns:
        At least 1.
    """
    config: WindowConfig = request.sampling.windows
    frames = request.num_frames - len(request.pictures("condition_image"))
    if frames <= config.num_frames:
        return 1
    if config.layout == "rotating":
        return math.ceil(frames / config.num_frames)
    return math.ceil((frames - config.overlap) / (config.num_frames - config.overlap))
