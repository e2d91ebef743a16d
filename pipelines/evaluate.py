"""Graph: committed videos in, scores beside them and a page out.

    commits -> [driver: drop what is scored] -> judge (actors) -> [driver: results table, page]

Scores are written inside the stage, so a killed driver costs the videos in work and no other. A
video that vanishes with its worker is started again, and given up after some times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from musev.errors import MusevError
from pipelines.evaluation_page import PAGE, render_page
from pipelines.ledger import RESULTS, Ledger, Record
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.resources import (
    MAX_ATTEMPTS,
    ClusterShape,
    apply_stage,
    one_row_a_block,
    shard_args,
)
from pipelines.rounds import stream_patiently
from pipelines.rows import canonical_json
from pipelines.scores import Scored, read_scores, update_results
from pipelines.stages.judge import FAILED, READ, VERSION, JudgeClip

SILENCE_S = 900.0
"""Rows wait and none has come back for so long: start a new round."""


@dataclass(frozen=True, kw_only=True)
class EvaluationGraph:
    """What the graph needs to know besides the rows; picklable, workers get a copy."""

    ledger: Ledger
    cache: MediaCache
    shape: ClusterShape = field(default_factory=lambda: ClusterShape(num_cpus=1, num_gpus=0))
    num_workers: int = 1
    least_workers: int | None = None
    judge: type[JudgeClip] = JudgeClip
    silence_s: float = SILENCE_S


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Committed videos by what is to be done with them."""

    commits: dict[str, Record]
    to_judge: Sequence[Row]

    @property
    def num_there(self) -> int:
        """Videos whose scores are there already."""
        return len(self.commits) - len(self.to_judge)


OnRow = Callable[[Row], None]


def plan_evaluation(ledger: Ledger, *, only: set[str] | None = None) -> EvaluationPlan:
    """Look at what is committed and what is scored; writes nothing.

    Args:
        ledger: Of the run.
        only: Sample ids to look at; None for all.

    Returns:
        The plan. Scores of older judges, of other bytes, or of a video or other media that could
        not be read, are made again.

    Raises:
        MusevError: If nothing is committed below the output URL.
    """
    commits = ledger.committed()
    if only is not None:
        commits = {name: record for name, record in commits.items() if name in only}
    if not commits:
        raise MusevError(
            f"{ledger.out_uri} holds no committed videos; give the output of a run that has some"
        )
    scores = read_scores(ledger.store)
    rows = [
        _row(name, record)
        for name, record in commits.items()
        if not _is_current(scores.get(name), record)
    ]
    rows.sort(key=lambda row: -row["num_frames"])  # no worker is left with a long one at the end
    return EvaluationPlan(commits=commits, to_judge=rows)


def run_evaluation(
    graph: EvaluationGraph, plan: EvaluationPlan, *, title: str, on_row: OnRow
) -> dict[str, Scored]:
    """Judge what is not judged yet, fill the results table's ``metrics`` and write the page.

    Args:
        graph: Where and with what.
        plan: From :func:`plan_evaluation`.
        title: Heading of the page.
        on_row: Told of every row's end.

    Returns:
        Scores of all the plan's videos, by sample id.
    """
    for row in judge_rows(graph, plan.to_judge):
        on_row(row)
    return publish(graph.ledger, plan, title=title)


def publish(ledger: Ledger, plan: EvaluationPlan, *, title: str) -> dict[str, Scored]:
    """Fill the results table's ``metrics`` and write the page, from the scores on storage."""
    update_results(ledger.store, RESULTS)
    scores = read_scores(ledger.store)
    scores = {name: scores[name] for name in plan.commits if name in scores}
    page = render_page(ledger.store, plan.commits, scores, title=title)
    ledger.store.put(PAGE, page.encode())
    return scores


def judge_rows(graph: EvaluationGraph, rows: Sequence[Row]) -> Iterator[Row]:
    """Judge rows on a pool of CPU workers.

    Args:
        graph: Where and with what.
        rows: Rows of an :class:`EvaluationPlan`.

    Yields:
        One outcome a row: ``sample_id``, ``status``, ``reason``.
    """
    waiting = {row["sample_id"]: row for row in rows}
    yield from stream_patiently(
        functools.partial(_judge_dataset, graph=graph),
        waiting,
        key="sample_id",
        silence_s=graph.silence_s,
        doing="they were judged",
    )
    reason = f"the process that judges this video died or stood still {MAX_ATTEMPTS} times"
    for name in waiting:
        yield {"sample_id": name, "status": FAILED, "reason": reason}


def _judge_dataset(rows: list[Row], *, graph: EvaluationGraph) -> Any:
    args = shard_args(graph.shape, graph.num_workers, networks=False, least=graph.least_workers)
    return apply_stage(
        one_row_a_block(rows), graph.judge, args, ledger=graph.ledger, cache=graph.cache
    )


def _row(name: str, record: Record) -> Row:
    request = record["request"]
    return {
        "sample_id": name,
        "request": request if isinstance(request, str) else canonical_json(request),
        "video": record["video"],
        "sha256": record["sha256"],
        "media_digests": canonical_json(record.get("media_digests") or {}),
        **{key: record[key] for key in ("fps", "num_frames", "width", "height")},
    }


def _is_current(scored: Scored | None, record: Record) -> bool:
    return (
        scored is not None
        and scored.version == VERSION
        and scored.sha256 == record["sha256"]
        and not READ & set(scored.reasons)
    )
