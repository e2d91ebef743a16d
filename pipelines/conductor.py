"""One long clip over the pool: its wavefront on this side, its windows on whatever worker is free.

The conductor holds the clip's latents and the order of operations, never a network. It asks the
broker for a worker for every task that is ready, sends it the window's latents, and merges what
comes back. Finished frames become segments on the workers while the rest still denoises. Every few
tasks the state goes to storage, so a conductor that dies costs what came after.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from musev.clip_front import ClipFacts, count_generated, open_front
from musev.config import ClipRequest
from musev.denoise.clip_plan import Task
from musev.denoise.snapshots import Snapshot
from musev.denoise.wavefront import Wavefront, Work
from musev.errors import MusevError
from musev.parts import PartUses
from pipelines.checkpoints import RANGE_FRAMES, ClipStore
from pipelines.outcomes import Row, worker_lost
from pipelines.pool import Lease, Wish
from pipelines.segments import Segments
from pipelines.wire import PackedTensor, pack, unpack

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""A task at which workers die this often ends its row."""
CHECKPOINT_TASKS = 2_000
"""Longest stretch between two checkpoints, in tasks; a short clip's is two steps."""
TICK_S = 1.0
LATE_S = 120.0
"""A task is never called late before this."""
LATE_FACTOR = 8.0
"""A task is late after this many times the median; a second worker then gets it too."""
_CONDITION, _DECODE, _DENOISE = -1, 0, 1
_NAMES = {_CONDITION: "condition", _DECODE: "decode", _DENOISE: "denoise"}


class PoolLostError(MusevError):
    """The broker is gone; the row is not to blame."""


@dataclass(frozen=True, kw_only=True)
class ConductorConfig:
    """How a clip is driven."""

    segment_frames: int
    num_workers: int
    """Most workers there can be."""
    checkpoint_tasks: int | None = None
    """Tasks between two checkpoints; None: two steps of the clip."""
    late_s: float = LATE_S
    tell_every_s: float = 1.0
    """Progress on windows is told at most this often."""


@dataclass
class ConductorCounts:
    """What was done for a clip."""

    tasks: int = 0
    late: int = 0
    lost: int = 0
    duplicates: int = 0
    checkpoints: int = 0
    resumed_tasks: int = 0
    """Tasks that a checkpoint saved."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds of workers by kind of task."""
    conditions: PartUses = field(default_factory=dict)
    """Parts of the clip's conditions that were computed, and that were there already."""


@dataclass(frozen=True)
class _Sent:
    """A task in a worker's hands."""

    what: Task | int | None
    """A window, the number of a segment, or None for the conditions."""
    lease: Lease
    at: float
    others: tuple[Any, ...] = ()
    """References beside the one that is waited for: of conditions."""

    @property
    def kind(self) -> int:
        """Kind of the task."""
        if self.what is None:
            return _CONDITION
        return _DECODE if isinstance(self.what, int) else _DENOISE


class Conductor:
    """Drives one clip.

    Args:
        broker: Handle of the pool's broker.
        row: Ready row of the clip; goes to the workers as it is.
        request: The clip.
        order: Number of the video: lower ones are served first.
        store: Its checkpoints and segments.
        config: How to drive.
        on_progress: Called with (stage, done, total).
    """

    def __init__(
        self,
        broker: Any,
        *,
        row: Row,
        request: ClipRequest,
        order: int,
        store: ClipStore,
        config: ConductorConfig,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self._broker = broker
        self._row = row
        self._request = request
        self._order = order
        self._store = store
        self._config = config
        self._on_progress = on_progress
        self._owner = f"{row['sample_id']}:{row['attempt_id']}"
        self._wishes: dict[Any, int] = {}  # reference -> kind
        self._sent: dict[Any, _Sent] = {}
        self._deaths: Counter[object] = Counter()
        self._late: set[Any] = set()
        self._seconds: dict[int, deque[float]] = {kind: deque(maxlen=200) for kind in _NAMES}
        self._clip: list[Any] = []  # references to the row and its conditions
        self._since_checkpoint = 0
        self._told_at = 0.0
        self._saving: Future[int] | None = None
        self.counts = ConductorCounts()

    def run(self) -> int:
        """Bring the clip to its segments.

        What a worker raises over the row is raised here, and a ``WorkerLostError`` if a task takes
        its workers down again and again.

        Returns:
            How many segments lie in storage.

        Raises:
            PoolLostError: If the pool is gone.
        """
        from ray.exceptions import RayActorError

        try:
            with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as self._writer:
                return self._run()
        except RayActorError as error:
            raise PoolLostError(f"the broker of the workers is gone: {error}") from error
        finally:
            self._let_go()

    def _run(self) -> int:
        facts = self._condition()
        self._segments = Segments(self._request.num_frames, self._config.segment_frames, facts)
        if count_generated(self._request, facts) == 0:
            front = None
        else:
            front = self._open_front(facts)
            self._segments.start(front)
        while not self._segments.finished:
            self._ask(front)
            self._send_again_what_is_late(front)
            for reference in self._wait():
                if reference in self._wishes:
                    self._use(front, facts, reference)
                else:
                    self._take_in(front, reference)
            if front is not None:
                self._save_if_due(front)
        if self._saving is not None:
            self._saving.result()
        return self._segments.count

    def _condition(self) -> ClipFacts:
        """Have the conditions computed on some worker, and keep them in this machine's store.

        Not in that worker's: what lies there goes with its machine, and every window needs them.
        """
        self._wish(_CONDITION)
        while True:
            self._send_again_what_is_late(None)
            for reference in self._wait():
                if reference in self._wishes:
                    self._send_row(reference)
                elif (facts := self._take_in_conditions(reference)) is not None:
                    return facts

    def _send_row(self, reference: Any) -> None:
        """A worker is free: have it compute the conditions."""
        import ray

        self._wishes.pop(reference)
        lease: Lease = ray.get(reference)
        condition = lease.worker.condition.options(num_returns=4)
        packed, facts, seconds, uses = condition.remote(self._row)
        self._sent[facts] = _Sent(None, lease, time.monotonic(), (packed, seconds, uses))

    def _take_in_conditions(self, reference: Any) -> ClipFacts | None:
        """A worker has computed the conditions, or is lost: then another one has to."""
        import ray

        sent = self._sent.pop(reference)
        self._late.discard(reference)
        try:
            facts: ClipFacts = _get(reference)
            packed, seconds, uses = map(_get, sent.others)
        except _Lost as lost:
            self._note_death(None, sent.lease, lost)
            if not self._is_sent(None):
                self._ask_for_conditions_again()
            return None
        except Exception:  # the row's fault: the worker is free again
            self._broker.hand_back.remote(sent.lease)
            raise
        self._broker.hand_back.remote(sent.lease)
        self._add_seconds(_CONDITION, seconds)
        self.counts.conditions.update(uses)
        self._clip = [ray.put(self._row), ray.put(packed)]
        return facts

    def _open_front(self, facts: ClipFacts) -> Wavefront:
        windows = self._request.sampling.windows
        stride = max(1, windows.num_frames - windows.overlap)
        # Enough begun frames for every worker to find a task at some step, and for the segments.
        ahead = max(
            4 * self._config.num_workers * windows.num_frames,
            2 * self._config.segment_frames + 2 * stride,
        )
        snapshot = self._load_checkpoint(facts)
        front = open_front(self._request, facts, snapshot=snapshot, ahead=ahead)
        self._interval = self._config.checkpoint_tasks or min(
            CHECKPOINT_TASKS, 2 * front.plan.num_windows(0)
        )
        self._total = front.plan.num_tasks
        if snapshot is not None:
            self.counts.resumed_tasks = front.count_answered()
            logger.info("%s goes on from a checkpoint", self._request.request_id)
        return front

    def _load_checkpoint(self, facts: ClipFacts) -> Snapshot | None:
        """The newest checkpoint whose forgotten frames are all in stored segments."""
        snapshot = self._store.load()
        if snapshot is None:
            return None
        stored = self._store.segments()
        for part in snapshot.ranges:
            if part.step < snapshot.num_steps or part.states:
                continue
            size, given = self._config.segment_frames, facts.num_given
            needed = range((part.first + given) // size, (part.stop - 1 + given) // size + 1)
            if not stored.issuperset(needed):
                logger.warning("segments of %s are missing: it starts anew", self._owner)
                return None
        return snapshot

    def _ask(self, front: Wavefront | None) -> None:
        """Wish for as many workers as there are tasks for them."""
        windows = 0 if front is None else front.num_ready
        most = 2 * self._config.num_workers + 2
        for kind, wanted in ((_DECODE, self._segments.num_waiting), (_DENOISE, windows)):
            waiting = sum(other == kind for other in self._wishes.values())
            for _ in range(min(wanted, most) - waiting):
                self._wish(kind)

    def _wish(self, kind: int) -> None:
        wish = Wish(order=(self._order, kind), owner=self._owner, queues=kind != _CONDITION)
        self._wishes[self._broker.lease.remote(wish)] = kind

    def _wait(self) -> list[Any]:
        import ray

        references = [*self._wishes, *self._sent]
        assert references, "a clip that is not finished has something to do or to wait for"
        ready, rest = ray.wait(references, num_returns=1, timeout=TICK_S, fetch_local=True)
        if ready and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
            ready += more
        return ready

    def _use(self, front: Wavefront | None, facts: ClipFacts, reference: Any) -> None:
        """A worker is free: give it a segment, else a window, else nothing."""
        import ray

        self._wishes.pop(reference)
        lease: Lease = ray.get(reference)
        if (number := self._segments.take_next()) is not None:
            self._send_segment(front, facts, number, lease)
        elif front is not None and (work := front.take_next()) is not None:
            self._send_window(work, facts.wire_dtype, lease)
        else:
            self._broker.hand_back.remote(lease)

    def _send_window(self, work: Work, dtype: torch.dtype, lease: Lease) -> None:
        noisy = pack(work.noisy_BCFHW.to(dtype))
        answer = lease.worker.denoise.remote(
            self._owner, self._clip, noisy, work.timestep, work.task.frames
        )
        self._sent[answer] = _Sent(work.task, lease, time.monotonic())

    def _send_segment(
        self, front: Wavefront | None, facts: ClipFacts, number: int, lease: Lease
    ) -> None:
        latents = []
        first, stop = self._segments.generated(number)
        if first < 0 and facts.given_BCTHW is not None:
            given_first = first + facts.num_given
            latents.append(facts.given_BCTHW[:, :, given_first : min(0, stop) + facts.num_given])
        if front is not None and stop > max(first, 0):
            latents.append(front.latents(max(first, 0), stop))
        answer = lease.worker.decode.remote(
            self._request.fps, pack(torch.cat(latents, dim=2)), self._store.segment_name(number)
        )
        self._sent[answer] = _Sent(number, lease, time.monotonic())

    def _take_in(self, front: Wavefront | None, reference: Any) -> None:
        """A worker has answered, or is lost."""
        sent = self._sent.pop(reference)
        self._late.discard(reference)
        try:
            found = _get(reference)
        except _Lost as lost:
            if isinstance(sent.what, int):
                self._segments.give_back(sent.what)
            elif front is not None and sent.what is not None and not self._is_sent(sent.what):
                front.give_back(sent.what)
            self._note_death(sent.what, sent.lease, lost)
            return
        except Exception:  # the row's fault: the worker is free again
            self._broker.hand_back.remote(sent.lease)
            if sent.what is None:
                return
            raise
        self._broker.hand_back.remote(sent.lease)
        if sent.what is None:  # conditions that another worker had sooner
            return
        answer, seconds = found
        if isinstance(sent.what, int):
            self._add_seconds(_DECODE, seconds)
            first, stop = self._segments.generated(sent.what)
            if self._segments.store(sent.what) and front is not None and stop > max(first, 0):
                front.release(max(first, 0), stop)
            self._on_progress("decode", self._segments.num_stored, self._segments.count)
            return
        assert front is not None
        assert isinstance(sent.what, Task)
        self._merge(front, sent.what, answer, seconds)

    def _merge(self, front: Wavefront, task: Task, answer: PackedTensor, seconds: float) -> None:
        duplicates = front.num_duplicates
        moved = front.answer(task, unpack(answer).float())
        self.counts.duplicates += front.num_duplicates - duplicates
        self.counts.tasks += front.num_duplicates == duplicates
        self._since_checkpoint += 1
        self._add_seconds(_DENOISE, seconds)
        if task.step + 1 == front.num_steps:
            self._segments.complete(moved)
        done = self.counts.tasks + self.counts.resumed_tasks
        if time.monotonic() - self._told_at >= self._config.tell_every_s:
            self._told_at = time.monotonic()
            self._on_progress("denoise", done, self._total)

    def _send_again_what_is_late(self, front: Wavefront | None) -> None:
        """Wish for a second worker for every task past its deadline; the first answer wins."""
        now = time.monotonic()
        patience_s = {kind: self._patience_s(kind) for kind in _NAMES}
        for reference, sent in self._sent.items():
            deadline_s, end_s = patience_s[sent.kind]
            since_s = now - sent.at
            if since_s > end_s:
                self._broker.end.remote(sent.lease)  # its tasks then count as lost
            if since_s <= deadline_s or reference in self._late:
                continue
            self._late.add(reference)
            self.counts.late += 1
            logger.warning("a task is late after %.0f s: another worker gets it too", since_s)
            if isinstance(sent.what, int):
                self._segments.give_back(sent.what)
            elif sent.what is None:
                self._ask_for_conditions_again()
            elif front is not None:
                front.give_back(sent.what)

    def _patience_s(self, kind: int) -> tuple[float, float]:
        """After how long a kind of task is late, and after how long its worker is ended.

        Without an answer of that kind there is nothing to judge by: a slow machine must not be
        taken for a dead one. Only conditions are computed twice early: nothing else can be done.
        """
        late_s, seconds = self._config.late_s, self._seconds[kind]
        if seconds:
            late_s = max(late_s, LATE_FACTOR * statistics.median(seconds))
            return late_s, 2 * late_s
        long_s = LATE_FACTOR * late_s
        return late_s if kind == _CONDITION else long_s, 2 * long_s

    def _ask_for_conditions_again(self) -> None:
        if not self._clip and _CONDITION not in self._wishes.values():
            self._wish(_CONDITION)

    def _is_sent(self, what: Task | int | None) -> bool:
        return any(sent.what == what for sent in self._sent.values())

    def _note_death(self, what: object, lease: Lease, lost: _Lost) -> None:
        import ray

        key = what.key if isinstance(what, Task) else what
        self._deaths[key] += ray.get(self._broker.lost.remote(lease))
        self.counts.lost += 1
        logger.warning("a worker was lost with a task of %s: %s", self._owner, lost)
        if self._deaths[key] >= MAX_DEATHS:
            raise worker_lost(MAX_DEATHS)

    def _add_seconds(self, kind: int, seconds: float) -> None:
        self._seconds[kind].append(seconds)
        name = _NAMES[kind]
        self.counts.busy_s[name] = self.counts.busy_s.get(name, 0.0) + seconds

    def _save_if_due(self, front: Wavefront) -> None:
        """Hand a snapshot to the writing thread, unless it still writes the one before."""
        if self._since_checkpoint < self._interval or front.finished:
            return
        if self._saving is not None:
            if not self._saving.done():
                return
            self._saving.result()
        self._since_checkpoint = 0
        snapshot = front.snapshot(range_frames=RANGE_FRAMES)
        self._saving = self._writer.submit(self._store.save, snapshot)
        self.counts.checkpoints += 1

    def _let_go(self) -> None:
        """Withdraw what was wished for; workers that still compute come back by themselves."""
        if self._wishes:
            self._broker.withdraw.remote(self._owner)
            self._broker_takes_back()
        now = time.monotonic()
        for reference, sent in self._sent.items():
            _, end_s = self._patience_s(sent.kind)
            limit_s = max(0.0, sent.at + end_s - now)
            self._broker.hand_back_after.remote(sent.lease, [reference], limit_s)

    def _broker_takes_back(self) -> None:
        """Return leases that were granted before the wish could be withdrawn."""
        import ray
        from ray.exceptions import RayError

        for reference in self._wishes:
            try:
                lease = ray.get(reference, timeout=10)
            except RayError:
                continue
            if lease is not None:
                self._broker.hand_back.remote(lease)


class _Lost(Exception):
    """A worker, or what it answered, is gone."""


def _get(reference: Any) -> Any:
    """Fetch an answer; what the worker raised is raised here as it was."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RayError):  # what the worker needed is gone
            raise _Lost(_first_line(error.cause)) from error
        raise (error.cause or error) from error
    except RayError as error:
        raise _Lost(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
