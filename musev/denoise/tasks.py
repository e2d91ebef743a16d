"""Which windows of a clip can be computed now: the rules of the wavefront, without any tensors.

A task is one window at one step. It is ready when every frame it holds has reached that step; a
frame moves to the next step when all windows that hold it have answered. No step waits for the
whole clip, except where the noise asks for it. Numbers only, so a simulation can run on it.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Mapping

from musev.denoise.clip_plan import ClipPlan, Key, Task


class TaskGraph:
    """Follow which step every frame has reached, and which tasks that makes ready.

    An answer costs as much as its window has frames, whatever the clip's length: nothing looks at
    all frames or all windows after the start.
    """

    def __init__(
        self,
        plan: ClipPlan,
        *,
        waits_for_all: Callable[[int], bool] = lambda step: False,
        steps: Iterable[int] | None = None,
        answers: Mapping[int, Iterable[int]] | None = None,
        ahead: int | None = None,
    ) -> None:
        """Start at step 0, or where an earlier run of the same plan stood.

        Args:
            plan: The windows.
            waits_for_all: Whether no frame may leave a step before all can.
            steps: Step each frame has reached.
            answers: For frames that wait, the numbers of the windows that have answered.
            ahead: Hold windows of step 0 back that end this many frames or more after the first
                frame that is not done, so that the start of a long clip is done early. Raised to
                what the steps need to go on; not for windows that run past the end or noise that
                waits for all, where the first frame needs the last one.
        """
        self.plan = plan
        self._waits_for_all = waits_for_all
        self._step = array("i", steps if steps is not None else [0] * plan.num_frames)
        self._answers = {frame: set(numbers) for frame, numbers in (answers or {}).items()}
        self._missing: dict[Key, int] = {}  # frames of a window that are not at its step yet
        self._ready: set[Key] = set()
        self._queue: list[Key] = []  # heap; entries that are not in _ready any more are skipped
        self._in_flight: set[Key] = set()
        self._population = [0] * (plan.num_steps + 1)  # frames at each step
        for step in self._step:
            self._population[step] += 1
        self._complete_steps = 0
        self._complete_frames = 0  # frames with all answers that wait for the others
        self._num_opened = 0  # windows of step 0
        self._first_not_done = 0
        self._ahead = self._possible_lead(ahead)
        self._look_at_everything()

    @property
    def num_ready(self) -> int:
        """Tasks that could be taken now."""
        return len(self._ready)

    @property
    def num_in_flight(self) -> int:
        """Tasks taken and not answered."""
        return len(self._in_flight)

    @property
    def complete_steps(self) -> int:
        """Steps that every frame has behind it."""
        return self._complete_steps

    @property
    def finished(self) -> bool:
        """Whether every frame has reached the end."""
        return self._complete_steps == self.plan.num_steps

    def step_of(self, frame: int) -> int:
        """Tell the step a frame has reached; the number of steps when it is done."""
        return self._step[frame]

    def ready(self) -> tuple[Task, ...]:
        """List the tasks that could be taken now, in the order of :meth:`take_next`."""
        return tuple(self.plan.task(*key) for key in sorted(self._ready))

    def take_next(self) -> Task | None:
        """Take the ready task of the lowest step and, there, of the first window."""
        while self._queue:
            key = heapq.heappop(self._queue)
            if key in self._ready:
                return self.take(self.plan.task(*key))
        return None

    def take(self, task: Task) -> Task:
        """Mark a ready task as being computed.

        Args:
            task: One of :meth:`ready`.

        Returns:
            The same task.

        Raises:
            ValueError: If it is not ready.
        """
        if task.key not in self._ready:
            raise ValueError(f"step {task.step}, window {task.number} is not ready")
        self._ready.remove(task.key)
        self._in_flight.add(task.key)
        return task

    def give_back(self, task: Task) -> bool:
        """Make a task ready again whose worker was lost.

        Args:
            task: A task that nobody computes any more.

        Returns:
            Whether it was in flight; if it was answered meanwhile, nothing happens.
        """
        if task.key not in self._in_flight:
            return False
        self._in_flight.remove(task.key)
        self._push(task.key)
        return True

    def is_answered(self, task: Task) -> bool:
        """Tell whether a task has its answer; looks at one frame."""
        frame = task.frames[0]
        if self._step[frame] != task.step:
            return self._step[frame] > task.step
        return task.number in self._answers.get(frame, ())

    def count_answered(self) -> int:
        """Count the tasks that have their answer; looks at all of them."""
        plan = self.plan
        return sum(
            self.is_answered(plan.task(step, number))
            for step in range(plan.num_steps)
            for number in range(plan.num_windows(step))
        )

    def check_open(self, task: Task) -> None:
        """Make sure that a task is ready or in flight.

        Args:
            task: Any task of the plan.

        Raises:
            ValueError: If its frames have not reached its step, or it is answered.
        """
        if task.key not in self._in_flight and task.key not in self._ready:
            raise ValueError(f"step {task.step}, window {task.number} is not open")

    def answer(self, task: Task) -> tuple[int, ...]:
        """Count a task as answered and move the frames for which it was the last one missing.

        Args:
            task: In flight, or given back and ready: the answer of a worker thought lost counts.

        Returns:
            Frames that go on to the next step now, in ascending order.
        """
        self.check_open(task)
        self._in_flight.discard(task.key)
        self._ready.discard(task.key)
        complete = []
        for frame in sorted(set(task.frames)):
            answers = self._answers.setdefault(frame, set())
            answers.add(task.number)
            if len(answers) == len(self.plan.covers(task.step, frame)):
                complete.append(frame)
        if self._waits_for_all(task.step):
            self._complete_frames += len(complete)
            if self._complete_frames < self.plan.num_frames:
                return ()
            self._complete_frames = 0
            complete = list(range(self.plan.num_frames))
        for frame in complete:
            del self._answers[frame]
            self._reach(frame, task.step + 1)
        return tuple(complete)

    def _reach(self, frame: int, step: int) -> None:
        self._step[frame] = step
        self._population[step - 1] -= 1
        self._population[step] += 1
        self._count_complete_steps()
        if step == self.plan.num_steps:
            self._open_windows()
            return
        for number, _ in self.plan.covers(step, frame):
            key = (step, number)
            missing = self._missing.pop(key, 0) or self.plan.num_distinct(step, number)
            if missing == 1:
                self._push(key)
            else:
                self._missing[key] = missing - 1

    def _push(self, key: Key) -> None:
        self._ready.add(key)
        heapq.heappush(self._queue, key)

    def _count_complete_steps(self) -> None:
        while (
            self._complete_steps < self.plan.num_steps
            and not (self._population[self._complete_steps])
        ):
            self._complete_steps += 1

    def _possible_lead(self, ahead: int | None) -> int:
        plan = self.plan
        everything = plan.num_frames
        if ahead is None or not plan.is_ordered(0):
            return everything
        if any(self._waits_for_all(step) for step in range(plan.num_steps)):
            return everything
        # To be done, a frame needs at most a window more to its right for every step before.
        return max(ahead, len(plan.task(0, 0).frames) * (plan.num_steps + 1))

    def _open_windows(self) -> None:
        """Begin the windows of step 0 that are not too far ahead."""
        plan = self.plan
        while (
            self._first_not_done < plan.num_frames
            and self._step[self._first_not_done] == plan.num_steps
        ):
            self._first_not_done += 1
        limit = self._first_not_done + self._ahead
        while self._num_opened < plan.num_windows(0):
            task = plan.task(0, self._num_opened)
            if max(task.frames) >= limit and limit < plan.num_frames:
                return
            self._num_opened += 1
            if not self.is_answered(task):
                self._push(task.key)

    def _look_at_everything(self) -> None:
        """Find out what is ready or answered, from the step of each frame alone."""
        self._count_complete_steps()
        self._open_windows()
        seen: set[Key] = set()
        for frame, step in enumerate(self._step):
            if step == self.plan.num_steps:
                continue
            cover = self.plan.covers(step, frame)
            if len(self._answers.get(frame, ())) == len(cover):
                self._complete_frames += 1
            if step:
                seen.update((step, number) for number, _ in cover)
        for step, number in seen:
            task = self.plan.task(step, number)
            if any(self._step[frame] > step for frame in task.frames) or self.is_answered(task):
                continue
            missing = sum(self._step[frame] < step for frame in set(task.frames))
            if missing:
                self._missing[task.key] = missing
            else:
                self._push(task.key)
