"""How long clips take on a pool of workers, and who does what when: discrete events, no tensors.

The rules are the real ones: :class:`TaskGraph` says what is ready, the oldest clip goes first, an
idle worker takes the next task, and a second one ahead of time only while more tasks are ready than
there are workers. A clip that fits one window is one task that runs all steps. For comparison there
is the lock-step way, in which every worker owns a span of the clip and waits for all after a step.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from musev.denoise.clip_plan import ClipPlan, Task
from musev.denoise.tasks import TaskGraph
from musev.errors import ConfigError

Kind = Literal["condition", "denoise", "decode"]
Prefetch = Literal["careful", "never", "blind"]

_MOST_HELD = 2  # jobs that a worker is given before it has answered any of them
_SHORTEST = 0.05  # a task with a large spread still takes this share of its mean


@dataclass(frozen=True, kw_only=True)
class PoolModel:
    """Workers, and what they lose time to; by default nothing."""

    num_workers: int
    slowdown: tuple[float, ...] = ()
    """How many times longer the first workers take; the others take 1."""
    spread: float = 0.0
    """Standard deviation of a task's seconds, as a share of their mean."""
    latency_s: float = 0.0
    """From handing a task out to its start, and from its end to the answer, together."""
    conductor_s: float = 0.0
    """A clip's conductor takes in one answer after the other, each in so long."""
    prefetch: Prefetch = "careful"
    """When a busy worker gets a second task: ``careful`` while more tasks are ready than there are
    workers, ``never``, or ``blind``: every worker takes two as long as there are any."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"a pool needs at least 1 worker, got {self.num_workers}")
        if len(self.slowdown) > self.num_workers or any(factor <= 0 for factor in self.slowdown):
            raise ConfigError(
                f"slowdown needs positive numbers, one a worker at most, got {self.slowdown}"
            )
        if min(self.spread, self.latency_s, self.conductor_s) < 0:
            raise ConfigError("spread, latency_s and conductor_s must not be negative")

    @property
    def slowdowns(self) -> tuple[float, ...]:
        """One number a worker."""
        return self.slowdown + (1.0,) * (self.num_workers - len(self.slowdown))

    @property
    def capacity(self) -> float:
        """What the pool can do at once, in full-speed workers."""
        return sum(1 / factor for factor in self.slowdowns)


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """A clip and what its parts take on a full-speed worker."""

    plan: ClipPlan
    task_s: float
    """Of the longest window; a shorter one takes its share."""
    condition_s: float = 0.0
    """One task before all others."""
    decode_frame_s: float = 0.0
    segment_frames: int = 48
    waits_for_all: Callable[[int], bool] = lambda step: False
    """As :class:`TaskGraph` takes it."""

    @functools.cached_property
    def fits_one_window(self) -> bool:
        """Whether the clip is one task that runs all steps."""
        return all(self.plan.num_windows(step) == 1 for step in range(self.plan.num_steps))

    @property
    def segments(self) -> tuple[range, ...]:
        """Frames that are decoded together; none if decoding costs nothing."""
        if not self.decode_frame_s:
            return ()
        num_frames = self.plan.num_frames
        return tuple(
            range(first, min(first + self.segment_frames, num_frames))
            for first in range(0, num_frames, self.segment_frames)
        )

    @property
    def num_tasks(self) -> int:
        """Tasks of denoising."""
        return 1 if self.fits_one_window else self.plan.num_tasks

    @property
    def work_s(self) -> float:
        """Everything there is to do, on one full-speed worker."""
        tasks_s = sum(
            self.window_s(length) * count for length, count in self.plan.count_lengths().items()
        )
        return self.condition_s + tasks_s + self.decode_frame_s * self.plan.num_frames

    def window_s(self, num_frames: int) -> float:
        """Seconds of a window of so many frames."""
        return self.task_s * min(num_frames / self._longest, 1.0)

    @functools.cached_property
    def _longest(self) -> int:
        return len(self.plan.task(0, 0).frames)

    def denoise_jobs(self) -> Iterator[Job]:
        """List the tasks step by step."""
        if self.fits_one_window:
            yield self.denoise_job(self.plan.task(0, 0))
            return
        for step in range(self.plan.num_steps):
            for number in range(self.plan.num_windows(step)):
                yield self.denoise_job(self.plan.task(step, number))

    def denoise_job(self, task: Task) -> Job:
        """Say what a task takes."""
        if self.fits_one_window:
            num_steps = self.plan.num_steps
            return Job("denoise", self.task_s * num_steps, task, num_steps=num_steps)
        return Job("denoise", self.window_s(len(task.frames)), task)

    def decode_job(self, number: int, frames: range) -> Job:
        """Say what decoding a segment takes."""
        return Job("decode", self.decode_frame_s * len(frames), Task(0, number, tuple(frames)))

    @property
    def chain_s(self) -> float:
        """Seconds below which no number of workers comes: what has to be done one by one."""
        last = self.decode_frame_s * min(self.segment_frames, self.plan.num_frames)
        return self.condition_s + self.task_s * self.plan.num_steps + last


@dataclass(frozen=True)
class Job:
    """Something one worker does."""

    kind: Kind
    work_s: float
    """On a full-speed worker, before chance changes it."""
    task: Task | None = None
    """The window, or for ``decode`` the segment as number and frames."""
    num_steps: int = 1


@dataclass(frozen=True)
class Run:
    """A job as it was done."""

    clip: int
    job: Job
    worker: int
    start_s: float
    stop_s: float
    work_s: float
    """On a full-speed worker."""


@dataclass(frozen=True)
class Timeline:
    """What a pool did."""

    pool: PoolModel
    runs: tuple[Run, ...]
    """In the order in which they were handed out."""
    total_s: float
    """Until the last answer was taken in."""

    @property
    def work_s(self) -> float:
        """Seconds of work on a full-speed worker."""
        return sum(run.work_s for run in self.runs)

    @property
    def efficiency(self) -> float:
        """Work done over what the workers could have done in the time; 1 is perfect."""
        return self.work_s / (self.pool.capacity * self.total_s) if self.total_s else 1.0

    def clip_end_s(self, clip: int) -> float:
        """When the last job of a clip ended."""
        return max(run.stop_s for run in self.runs if run.clip == clip)


def simulate(clips: Sequence[ClipModel], pool: PoolModel) -> Timeline:
    """Let a pool do some clips by the wavefront's rules.

    Args:
        clips: Oldest first.
        pool: The workers. Equal seeds give every task equal chance, whatever the pool.

    Returns:
        What was done when; takes about 20 microseconds a task.
    """
    return _Simulation(clips, pool).run()


def simulate_lockstep(clips: Sequence[ClipModel], pool: PoolModel) -> Timeline:
    """Let a pool do the same in lock-step: static spans of windows, a barrier after every step.

    Clips follow one another. A step takes as long as the worker with the longest span, and one
    ``latency_s`` for the exchange; there is no conductor.

    Args:
        clips: In their order.
        pool: The workers.

    Returns:
        What was done when.
    """
    runs: list[Run] = []
    now_s = 0.0
    for number, clip in enumerate(clips):
        for stage in _stages(clip):
            ends = []
            for worker, span in enumerate(_spans(stage, pool.num_workers)):
                at_s = now_s
                for job in span:
                    run = _run(pool, number, job, worker, at_s)
                    runs.append(run)
                    at_s = run.stop_s
                ends.append(at_s)
            now_s = max(ends, default=now_s) + pool.latency_s
    return Timeline(pool, tuple(runs), now_s)


def least_s(clips: Sequence[ClipModel], pool: PoolModel) -> float:
    """Seconds that no schedule can go below, from sums alone.

    Args:
        clips: Any number.
        pool: Only its capacity counts.

    Returns:
        The larger of all work shared evenly and the longest chain of tasks that wait for another.
    """
    work_s = sum(clip.work_s for clip in clips)
    fastest = min(pool.slowdowns)
    return max(work_s / pool.capacity, max(clip.chain_s for clip in clips) * fastest)


def _stages(clip: ClipModel) -> Iterator[list[Job]]:
    if clip.condition_s:
        yield [Job("condition", clip.condition_s)]
    for _, group in itertools.groupby(clip.denoise_jobs(), key=_step_of):
        yield list(group)
    if clip.segments:
        yield [clip.decode_job(number, frames) for number, frames in enumerate(clip.segments)]


def _step_of(job: Job) -> int:
    return -1 if job.task is None else job.task.step


def _spans(jobs: Sequence[Job], num_workers: int) -> Iterator[Sequence[Job]]:
    """Neighbouring jobs for each worker, as evenly as their number allows."""
    each, more = divmod(len(jobs), num_workers)
    first = 0
    for worker in range(num_workers):
        stop = first + each + (worker < more)
        yield jobs[first:stop]
        first = stop


def _run(pool: PoolModel, clip: int, job: Job, worker: int, start_s: float) -> Run:
    factor = 1.0
    if pool.spread:
        number = (job.task.step, job.task.number) if job.task is not None else ()
        chance = random.Random(f"{pool.seed}:{clip}:{job.kind}:{number}").gauss(0.0, 1.0)
        spread = pool.spread / math.sqrt(job.num_steps)  # of a sum: chance evens out
        factor = max(1.0 + spread * chance, _SHORTEST)
    work_s = job.work_s * factor
    stop_s = start_s + work_s * pool.slowdowns[worker]
    return Run(clip, job, worker, start_s, stop_s, work_s)


class _Clip:
    """One clip under way: which of its jobs can be handed out."""

    def __init__(self, clip: ClipModel) -> None:
        self._clip = clip
        self._conditioned = not clip.condition_s
        self._condition_given = self._conditioned
        self._graph: TaskGraph | None = None
        self._given = False  # of a clip that is one task
        self._segments = clip.segments
        self._left = [len(frames) for frames in self._segments]  # frames not done, a segment
        self._to_decode: list[int] = []
        # Jobs without their answer.
        self.num_open = bool(clip.condition_s) + clip.num_tasks + len(self._segments)
        self.conductor_free_s = 0.0

    @property
    def num_ready(self) -> int:
        """Jobs that could be handed out now."""
        if not self._conditioned:
            return int(not self._condition_given)
        if self._clip.fits_one_window:
            return int(not self._given) + len(self._to_decode)
        return self._tasks.num_ready + len(self._to_decode)

    def next(self) -> Job | None:
        """Hand out the next job: decoding first, so that finished frames need not be kept."""
        if not self._conditioned:
            given, self._condition_given = self._condition_given, True
            return None if given else Job("condition", self._clip.condition_s)
        if self._to_decode:
            number = self._to_decode.pop(0)
            return self._clip.decode_job(number, self._segments[number])
        if self._clip.fits_one_window:
            given, self._given = self._given, True
            return None if given else next(self._clip.denoise_jobs())
        task = self._tasks.take_next()
        return None if task is None else self._clip.denoise_job(task)

    def answer(self, job: Job) -> None:
        """Take in that a job is done."""
        self.num_open -= 1
        if job.kind == "condition":
            self._conditioned = True
        if job.kind != "denoise":
            return
        assert job.task is not None
        plan = self._clip.plan
        if self._clip.fits_one_window:
            self._finish(range(plan.num_frames))
            return
        moved = self._tasks.answer(job.task)
        if job.task.step + 1 == plan.num_steps:
            self._finish(moved)

    @property
    def _tasks(self) -> TaskGraph:
        if self._graph is None:  # late, because a thousand clips may wait
            self._graph = TaskGraph(self._clip.plan, waits_for_all=self._clip.waits_for_all)
        return self._graph

    def _finish(self, frames: Sequence[int]) -> None:
        if not self._segments:
            return
        for frame in frames:
            number = frame // self._clip.segment_frames
            self._left[number] -= 1
            if not self._left[number]:
                self._to_decode.append(number)


class _Simulation:
    def __init__(self, clips: Sequence[ClipModel], pool: PoolModel) -> None:
        self._pool = pool
        self._clips = [_Clip(clip) for clip in clips]
        self._oldest = 0  # first clip that is not finished
        self._held = [0] * pool.num_workers  # jobs handed to a worker whose answers are not in
        self._free_s = [0.0] * pool.num_workers  # when a worker has done all it was given
        self._events: list[tuple[float, int, Run, bool]] = []
        self._order = itertools.count()
        self._runs: list[Run] = []

    def run(self) -> Timeline:
        now_s = 0.0
        self._hand_out(now_s)
        while self._events:
            now_s, _, run, taken_in = heapq.heappop(self._events)
            clip = self._clips[run.clip]
            if not taken_in:
                clip.conductor_free_s = max(now_s, clip.conductor_free_s) + self._pool.conductor_s
                self._push(clip.conductor_free_s, run, True)
                continue
            clip.answer(run.job)
            self._held[run.worker] -= 1
            self._hand_out(now_s)
        return Timeline(self._pool, tuple(self._runs), now_s)

    def _push(self, at_s: float, run: Run, taken_in: bool) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), run, taken_in))

    def _hand_out(self, now_s: float) -> None:
        half_s = self._pool.latency_s / 2
        while (worker := self._worker()) is not None:
            found = self._next_job()
            if found is None:
                return
            clip, job = found
            start_s = max(now_s + half_s, self._free_s[worker])
            run = _run(self._pool, clip, job, worker, start_s)
            self._runs.append(run)
            self._held[worker] += 1
            self._free_s[worker] = run.stop_s
            self._push(run.stop_s + half_s, run, False)

    def _worker(self) -> int | None:
        """Choose who gets the next job: an idle worker; a busy one only where prefetching."""
        workers = range(self._pool.num_workers)
        if self._pool.prefetch == "blind":
            free = [worker for worker in workers if self._held[worker] < _MOST_HELD]
            # Each fills its own hands before the next is served.
            return min(free, key=lambda one: (-self._held[one], self._free_s[one]), default=None)
        least = min(self._held)
        if least == 0 or (least < _MOST_HELD and self._may_prefetch()):
            free = [worker for worker in workers if self._held[worker] == least]
            return min(free, key=lambda one: self._free_s[one])
        return None

    def _may_prefetch(self) -> bool:
        if self._pool.prefetch == "never":
            return False
        count = 0
        for clip in itertools.islice(self._clips, self._oldest, None):
            count += clip.num_ready
            if count > self._pool.num_workers:
                return True
        return False

    def _next_job(self) -> tuple[int, Job] | None:
        while self._oldest < len(self._clips) and not self._clips[self._oldest].num_open:
            self._oldest += 1
        for number in range(self._oldest, len(self._clips)):
            job = self._clips[number].next()
            if job is not None:
                return number, job
        return None
