"""The wavefront: denoise one clip window by window, in any order, with the same bits.

Axes here: B clip, C channel, F frame of a window or of some frames, H W latent rows and columns.
Owns the latents of a clip and the order of operations that leads from the estimates of windows to
the next step of frames. Knows no network, no process and no clock: a loop or a cluster drives it.

    front = Wavefront(frames_of(latents_BCTHW), num_frames=..., solver=..., sampling=..., noise=...)
    while (work := front.take_next()) is not None:
        front.answer(work.task, denoiser(work.noisy_BCFHW, work.timestep, work.task.frames))
    latents_BCTHW = front.latents(0, num_frames)

Latents depend on the request alone: not on the order of answers, on how many tasks are in flight,
on tasks given back, answered twice or started again from a :class:`Snapshot`. That is so because
answers are kept apart until a frame has all of them and are then summed in window order, and
because solvers move any subset of frames to the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.config import SamplingConfig
from musev.denoise.clip_plan import ClipPlan, Task
from musev.denoise.guidance import guidance_scales, guide
from musev.denoise.ranges import FrameRanges
from musev.denoise.smoothing import ShotSmoother
from musev.denoise.snapshots import FrameRange, Snapshot
from musev.denoise.solvers import Solver, SolverState
from musev.denoise.sources import NoiseSource
from musev.denoise.tasks import TaskGraph
from musev.denoise.windows import blend_frame, window_weights
from musev.errors import ShapeError

StartLatents = Callable[[Sequence[int]], Tensor]
"""Frame numbers to ``latents_BCFHW`` at the solver's initial scale: float32, always the same."""


@dataclass(frozen=True)
class Work:
    """What a worker needs for one task, besides the clip's conditioning."""

    task: Task
    noisy_BCFHW: Tensor
    """Scaled as the solver wants it; without the halves for guidance."""
    timestep: float


class Wavefront:
    """One clip on its way from noise to clean latents."""

    def __init__(
        self,
        start: StartLatents,
        *,
        num_frames: int,
        solver: Solver,
        sampling: SamplingConfig,
        noise: NoiseSource,
        smoother: ShotSmoother | None = None,
        snapshot: Snapshot | None = None,
        ahead: int | None = None,
    ) -> None:
        """Begin a clip, or go on where a snapshot of it was taken.

        Args:
            start: Gives the latents of frames that are first looked at; see :func:`frames_of`.
            num_frames: Frames of the clip.
            solver: Moves the frames.
            sampling: Windows and guidance.
            noise: What the solver draws on the way. After a snapshot, a source as it was when the
                clip began (its initial noise drawn): draws of complete steps are repeated.
            smoother: Mixes the clip with a shot before it; such a clip has no snapshots.
            snapshot: Taken from a wavefront of the same clip.
            ahead: How many frames beyond the first unfinished one may be begun; None for all. With
                it and :meth:`release`, memory does not grow with the clip. See :class:`TaskGraph`.

        Raises:
            ShapeError: If the snapshot is of another clip.
        """
        self.plan = ClipPlan(num_frames, sampling.windows, num_steps=solver.num_steps)
        self._start = start
        self._solver = solver
        self._noise = noise
        self._smoother = smoother
        self._windows = sampling.windows
        self._halves = 2 if sampling.guidance.active else 1
        self._scales = guidance_scales(sampling.guidance, solver.num_steps)
        self._weights: dict[int, list[float]] = {}  # by length of the window
        self._states: dict[int, SolverState] = {}  # of frames looked at and not released
        self._answers: dict[int, dict[int, Tensor]] = {}  # frame -> window number -> estimate_BCHW
        self._done = FrameRanges()
        self.num_duplicates = 0
        if snapshot is not None:
            self._restore(snapshot)
        self._graph = TaskGraph(
            self.plan,
            waits_for_all=lambda step: noise.draws_whole_steps(solver, step),
            steps=None if snapshot is None else snapshot.steps(),
            answers=self._answers,
            ahead=ahead,
        )
        for frame in self._answers:
            self._state(frame)
        for step in range(self._graph.complete_steps if snapshot is not None else 0):
            if noise.draws_whole_steps(solver, step):
                noise.during(solver, step, self._clip_shape())

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.plan.num_frames

    @property
    def num_steps(self) -> int:
        """Steps from noise to clean."""
        return self.plan.num_steps

    @property
    def num_ready(self) -> int:
        """Tasks that could be taken now."""
        return self._graph.num_ready

    @property
    def num_in_flight(self) -> int:
        """Tasks taken, not answered and not given back."""
        return self._graph.num_in_flight

    @property
    def complete_steps(self) -> int:
        """Steps that every frame has behind it."""
        return self._graph.complete_steps

    @property
    def finished(self) -> bool:
        """Whether every frame is done."""
        return self._graph.finished

    @property
    def num_buffered(self) -> int:
        """Estimates of single frames kept because another window has not answered yet."""
        return sum(len(estimates) for estimates in self._answers.values())

    def count_answered(self) -> int:
        """Count the tasks that have their answer; looks at all of them."""
        return self._graph.count_answered()

    def step_of(self, frame: int) -> int:
        """Tell the step a frame has reached; ``num_steps`` when it is done."""
        return self._graph.step_of(frame)

    def ready(self) -> tuple[Task, ...]:
        """List the tasks that could be taken now, lowest step first."""
        return self._graph.ready()

    def take_next(self) -> Work | None:
        """Take the task to compute next: the lowest step, then the first window; None if none is.

        None means that answers are awaited or that the clip is finished.
        """
        task = self._graph.take_next()
        return None if task is None else self.work(task)

    def take(self, task: Task) -> Work:
        """Take one task of :meth:`ready`; ValueError if it is not ready."""
        return self.work(self._graph.take(task))

    def work(self, task: Task) -> Work:
        """Put together what a task needs, for example for a second worker.

        Args:
            task: Ready or in flight: until it is answered its frames stay at its step.

        Returns:
            The same values every time.

        Raises:
            ValueError: If it is neither.
        """
        self._graph.check_open(task)
        latents_BCFHW = torch.stack([self._state(frame).latents for frame in task.frames], dim=2)
        noisy_BCFHW = self._solver.scale_input(latents_BCFHW, task.step)
        return Work(task, noisy_BCFHW, self._solver.timesteps[task.step])

    def answer(self, task: Task, estimate_BCFHW: Tensor) -> tuple[int, ...]:
        """Take in a window's estimate and move the frames that now have all of theirs.

        Args:
            task: What was computed.
            estimate_BCFHW: The network's output, ``[unconditional, conditional]`` along B with
                guidance; any float dtype and device. It is copied where it has to be kept.

        Returns:
            Frames that went one step on, in ascending order. A second answer to a task changes
            nothing and moves no frame.

        Raises:
            ShapeError: If the estimate does not belong to the window; the task stays open.
            ValueError: If the task's frames have not reached its step.
        """
        if self._graph.is_answered(task):
            self.num_duplicates += 1
            return ()
        self._graph.check_open(task)
        self._check_shape(task, estimate_BCFHW)
        positions = {frame: position for position, frame in enumerate(task.frames)}
        for frame, position in positions.items():
            self._state(frame)
            self._answers.setdefault(frame, {})[task.number] = estimate_BCFHW[:, :, position]
        moved = self._graph.answer(task)
        if moved:
            self._move(moved, task.step)
        for frame, position in positions.items():
            if frame in self._answers:  # it waits: a slice would keep the whole window alive
                self._answers[frame][task.number] = estimate_BCFHW[:, :, position].clone()
        return moved

    def give_back(self, task: Task) -> bool:
        """Make a task ready again that no worker computes any more.

        Args:
            task: Its worker was lost.

        Returns:
            Whether it was in flight; False if somebody answered it already. A late answer of the
            lost worker is as good as any.
        """
        return self._graph.give_back(task)

    def done_ranges(self) -> tuple[tuple[int, int], ...]:
        """List the ranges [first, stop) of frames that are clean and not yet released."""
        return self._done.sorted()

    def latents(self, first: int, stop: int) -> Tensor:
        """Stack the latents of some frames, whatever step they are at.

        Args:
            first: First frame.
            stop: Frame after the last.

        Returns:
            ``latents_BCFHW``: float32, a copy.
        """
        return torch.stack([self._state(frame).latents for frame in range(first, stop)], dim=2)

    def release(self, first: int, stop: int) -> Tensor:
        """Hand over the clean latents of some frames and forget them.

        Args:
            first: First frame.
            stop: Frame after the last.

        Returns:
            ``latents_BCFHW``: float32.

        Raises:
            ValueError: If one of the frames is not done, or was released before.
        """
        self._done.remove(first, stop)
        latents_BCFHW = self.latents(first, stop)
        for frame in range(first, stop):
            del self._states[frame]
        return latents_BCFHW

    def snapshot(self, *, range_frames: int = 48) -> Snapshot:
        """Describe the whole clip at this moment; going back to it loses the tasks in flight.

        Costs a few references a frame: latents are shared with the wavefront, which never writes to
        them. Estimates that wait for a neighbour are part of it: frames beside them have moved on,
        so they could not be computed again.

        Args:
            range_frames: Longest range of frames described together.

        Returns:
            The state; goes through :meth:`Snapshot.tensors` to storage.
        """

        def kind(frame: int) -> tuple[int, int, bool]:
            step = self.step_of(frame)
            return frame // range_frames, step, step > 0 and frame in self._states

        ranges = []
        for (_, step, kept), group in itertools.groupby(range(self.num_frames), key=kind):
            frames = list(group)
            states = tuple(self._states[frame] for frame in frames) if kept else ()
            ranges.append(FrameRange(frames[0], frames[-1] + 1, step, states))
        answers = {frame: dict(estimates) for frame, estimates in self._answers.items()}
        return Snapshot(self.num_frames, self.num_steps, tuple(ranges), answers)

    def _restore(self, snapshot: Snapshot) -> None:
        if (snapshot.num_frames, snapshot.num_steps) != (self.num_frames, self.num_steps):
            raise ShapeError(
                f"a snapshot of {snapshot.num_frames} frames and {snapshot.num_steps} steps cannot "
                f"go on as {self.num_frames} frames and {self.num_steps} steps"
            )
        for part in snapshot.ranges:
            self._states.update(zip(range(part.first, part.stop), part.states, strict=False))
            if part.step == self.num_steps and part.states:
                self._done.add(range(part.first, part.stop))
        self._answers = {frame: dict(found) for frame, found in snapshot.answers.items()}

    def _move(self, frames: Sequence[int], step: int) -> None:
        """Blend, guide and advance frames that have all their estimates; all stand at ``step``."""
        blended = [self._blend(frame, step) for frame in frames]
        if self._smoother is not None:
            blended = [
                self._smoother.estimate(step, frame, estimate)
                for frame, estimate in zip(frames, blended, strict=True)
            ]
        state = _stack([self._state(frame) for frame in frames])
        estimate_BCFHW = torch.stack(blended, dim=2).to(state.latents.device)
        if self._halves == 2:
            uncond_BCFHW, cond_BCFHW = estimate_BCFHW.chunk(2)
            estimate_BCFHW = guide(uncond_BCFHW, cond_BCFHW, self._scales[step])
        whole = self._noise.draws_whole_steps(self._solver, step)
        drawn = self._noise.during(
            self._solver, step, state.latents.shape, None if whole else frames
        )
        if drawn is not None:
            drawn = drawn.to(state.latents.device)
        moved = self._solver.advance(state, estimate_BCFHW, step, drawn)
        for index, frame in enumerate(frames):
            state = _copy_frame(moved, index, last=step + 1 == self.num_steps)
            self._states[frame] = self._smoothed(state, frame, step + 1)
        if step + 1 == self.num_steps:
            self._done.add(frames)

    def _blend(self, frame: int, step: int) -> Tensor:
        estimates = self._answers.pop(frame)
        cover = self.plan.covers(step, frame)
        weights = [
            self._weigh(len(self.plan.task(step, number).frames))[position]
            for number, position in cover
        ]
        return blend_frame([estimates[number] for number, _ in cover], weights)

    def _weigh(self, size: int) -> list[float]:
        if size not in self._weights:
            self._weights[size] = window_weights(self._windows, size).tolist()
        return self._weights[size]

    def _state(self, frame: int) -> SolverState:
        if frame not in self._states:
            if self.step_of(frame):
                raise ValueError(f"the latents of frame {frame} were released")
            state = SolverState(self._start([frame])[:, :, 0])
            self._states[frame] = self._smoothed(state, frame, 0)
        return self._states[frame]

    def _smoothed(self, state: SolverState, frame: int, step: int) -> SolverState:
        if self._smoother is None:
            return state
        return SolverState(self._smoother.latents(step, frame, state.latents), state.history)

    def _clip_shape(self) -> tuple[int, ...]:
        clips, channels, _, height, width = self._start([0]).shape
        return clips, channels, self.num_frames, height, width

    def _check_shape(self, task: Task, estimate_BCFHW: Tensor) -> None:
        clips, *frame_shape = self._state(task.frames[0]).latents.shape
        wanted = (self._halves * clips, frame_shape[0], len(task.frames), *frame_shape[1:])
        if tuple(estimate_BCFHW.shape) != wanted:
            raise ShapeError(
                f"the estimate of step {task.step}, window {task.number} has shape "
                f"{tuple(estimate_BCFHW.shape)}, not {wanted}"
            )


def frames_of(latents_BCTHW: Tensor) -> StartLatents:
    """Start from latents that exist as one tensor; it is kept and never written to."""
    return lambda frames: latents_BCTHW[:, :, list(frames)]


def _stack(states: Sequence[SolverState]) -> SolverState:
    """Put states of single frames side by side along dim 2."""
    pasts = zip(*(state.history for state in states), strict=True)
    return SolverState(
        torch.stack([state.latents for state in states], dim=2),
        tuple(torch.stack(past, dim=2) for past in pasts),
    )


def _copy_frame(state: SolverState, index: int, *, last: bool) -> SolverState:
    """Copy one frame out, so that it does not keep its neighbours alive; no history at the end."""
    history = () if last else tuple(past[:, :, index].clone() for past in state.history)
    return SolverState(state.latents[:, :, index].clone(), history)
