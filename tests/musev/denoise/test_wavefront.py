"""The wavefront against the plain loop: whatever happens on the way, the same bits come out.

The plain loop below is written for reading: all windows of a step, blended whole, one solver step.
"""

from __future__ import annotations

import dataclasses
import random
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musev.config import GuidanceConfig, SamplingConfig, ScheduleConfig, WindowConfig
from musev.denoise.guidance import guidance_scales, guide
from musev.denoise.loop import denoise_clip
from musev.denoise.noise import NoiseStream, counter_noise
from musev.denoise.snapshots import Snapshot
from musev.denoise.solvers import SolverState, make_solver
from musev.denoise.sources import make_noise_source
from musev.denoise.tasks import Task
from musev.denoise.wavefront import Wavefront, frames_of
from musev.denoise.windows import blend_windows, plan_windows, window_weights
from musev.errors import ShapeError

SOLVERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "euler": ({"solver": "euler"}, {}),
    "euler churn": ({"solver": "euler"}, {"s_churn": 2.0}),
    "ancestral": ({"solver": "euler_ancestral"}, {}),
    "ddim": ({"solver": "ddim"}, {}),
    "ddim eta": ({"solver": "ddim", "eta": 0.7}, {}),
    "ddpm": ({"solver": "ddpm"}, {}),
    "lcm": ({"solver": "lcm"}, {}),
    "dpmpp": ({"solver": "dpmpp"}, {}),
    "dpmpp 3": ({"solver": "dpmpp"}, {"solver_order": 3, "solver_type": "heun"}),
}
LAYOUTS = ("musev", "upstream", "upstream_uniform", "rotating")
BLENDS = ("flat", "linear", "pyramid", "gaussian")
NOISES = ("counter", "counter", "upstream_random", "upstream_video_fusion")
SHAPE_CHW = (3, 2, 3)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip to denoise; makes everything a run needs, anew each time."""

    num_frames: int
    solver_name: str
    sampling: SamplingConfig
    seed: int = 5
    half_precision: bool = False

    def solver(self) -> Any:
        return make_solver(self.sampling, ScheduleConfig(), **SOLVERS[self.solver_name][1])

    def begin(self) -> tuple[Any, Any, Tensor]:
        """Solver, noise source and latents at the start."""
        solver = self.solver()
        source = make_noise_source(self.sampling, self.seed)
        shape = (2, SHAPE_CHW[0], self.num_frames, *SHAPE_CHW[1:])
        return solver, source, source.initial(shape) * solver.initial_scale

    def front(self, snapshot: Snapshot | None = None, ahead: int | None = None) -> Wavefront:
        solver, source, start = self.begin()
        return Wavefront(
            frames_of(start),
            num_frames=self.num_frames,
            solver=solver,
            sampling=self.sampling,
            noise=source,
            snapshot=snapshot,
            ahead=ahead,
        )

    def denoise(self, noisy: Tensor, timestep: float, window: tuple[int, ...]) -> Tensor:
        """A network in miniature: depends on neighbours, position, frame numbers and timestep."""
        numbers = torch.tensor(window, dtype=torch.float32)[:, None, None]
        mixed = noisy + 0.4 * noisy.mean(dim=2, keepdim=True) - 0.3 * noisy[:, :, :1]
        cond = torch.tanh(mixed + 0.01 * numbers) + 1e-3 * timestep
        both = torch.cat([0.5 * cond + 0.1, cond]) if self.sampling.guidance.active else cond
        return both.half() if self.half_precision else both


def plain_loop(clip: Clip) -> Tensor:
    """What upstream's order of operations gives, one whole step after the other."""
    solver, source, latents = clip.begin()
    sampling, state = clip.sampling, SolverState(latents)
    scales = guidance_scales(sampling.guidance, solver.num_steps)
    for step in range(solver.num_steps):
        windows = plan_windows(
            clip.num_frames, sampling.windows, step=step, num_steps=solver.num_steps
        )
        noisy = solver.scale_input(state.latents, step)
        estimates = [
            clip.denoise(noisy[:, :, list(window)], solver.timesteps[step], window).float()
            for window in windows
        ]
        weights = [window_weights(sampling.windows, len(window)) for window in windows]
        estimate = blend_windows(estimates, windows, weights, clip.num_frames)
        if sampling.guidance.active:
            estimate = guide(*estimate.chunk(2), scales[step])
        drawn = source.during(solver, step, latents.shape)
        state = solver.advance(state, estimate, step, drawn)
    return state.latents


@st.composite
def clips(draw: Any, noises: tuple[str, ...] = NOISES) -> Clip:
    size = draw(st.integers(1, 8))
    solver_name = draw(st.sampled_from(sorted(SOLVERS)))
    windows = WindowConfig(
        num_frames=size,
        overlap=draw(st.integers(0, size - 1)),
        layout=draw(st.sampled_from(LAYOUTS)),
        blend=draw(st.sampled_from(BLENDS)),
        stride=draw(st.integers(1, 2)),
        settle_steps=draw(st.integers(0, 2)),
    )
    sampling = SamplingConfig(
        num_steps=draw(st.integers(1, 5)),
        windows=windows,
        guidance=GuidanceConfig(scale=draw(st.sampled_from([1.0, 4.0])), scale_end=2.0),
        noise=draw(st.sampled_from(noises)),
        **SOLVERS[solver_name][0],
    )
    return Clip(
        draw(st.integers(1, 24)),
        solver_name,
        sampling,
        draw(st.integers(0, 99)),
        draw(st.booleans()),
    )


class Adversary:
    """Drives a wavefront with everything that can happen on a cluster, in an order drawn by lot."""

    def __init__(self, clip: Clip, seed: int, ahead: int | None = None) -> None:
        self.clip, self.ahead = clip, ahead
        self.chance = random.Random(seed)
        self.front = clip.front(ahead=ahead)
        self.in_flight: list[tuple[Task, Tensor]] = []
        self.answered: list[tuple[Task, Tensor]] = []
        self.saved: list[dict[str, Tensor]] = []
        self.restarts_left = 3
        self.released: dict[int, Tensor] = {}

    def run(self) -> Tensor:
        """Come to the end and put the released and remaining frames together."""
        usual = [self.take, self.answer]
        events = [*usual * 2, self.lose, self.repeat, self.save, self.restart, self.release]
        while not self.front.finished:
            self.chance.choice(events)()
        for first, stop in self.front.done_ranges():
            self.keep(first, stop, self.front.release(first, stop))
        assert sorted(self.released) == list(range(self.clip.num_frames))
        return torch.stack([self.released[frame] for frame in sorted(self.released)], dim=2)

    def pick(self, items: list[Any]) -> Any:
        return items.pop(self.chance.randrange(len(items)))

    def take(self) -> None:
        ready = self.front.ready()
        work = self.front.take(self.chance.choice(ready)) if ready else self.front.take_next()
        if work is not None:
            again = self.front.work(work.task)  # a second worker gets the same
            assert torch.equal(again.noisy_BCFHW, work.noisy_BCFHW)
            self.in_flight.append(
                (work.task, self.clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames))
            )

    def answer(self) -> None:
        if self.in_flight:
            task, estimate = self.pick(self.in_flight)
            handed_over = estimate.clone()
            self.front.answer(task, handed_over)
            handed_over.fill_(torch.nan)  # the message's memory is used for something else
            self.answered.append((task, estimate))

    def lose(self) -> None:
        if self.in_flight:
            task, estimate = self.pick(self.in_flight)
            assert self.front.give_back(task)
            if self.chance.random() < 0.3:  # it was only slow, and answers before anybody else
                self.front.answer(task, estimate)
                self.answered.append((task, estimate))

    def repeat(self) -> None:
        if self.answered:
            task, estimate = self.chance.choice(self.answered)
            before = self.front.num_duplicates
            assert self.front.answer(task, torch.full_like(estimate, torch.nan)) == ()
            assert self.front.num_duplicates == before + 1

    def save(self) -> None:
        tensors = self.front.snapshot(range_frames=self.chance.choice([1, 4, 48])).tensors()
        self.saved.append({name: tensor.clone() for name, tensor in tensors.items()})

    def restart(self) -> None:
        if self.saved and self.restarts_left:
            self.restarts_left -= 1
            snapshot = Snapshot.from_tensors(self.chance.choice(self.saved))
            self.front = self.clip.front(snapshot, self.ahead)
            self.in_flight, self.answered = [], []

    def release(self) -> None:
        ranges = self.front.done_ranges()
        if ranges:
            first, stop = self.chance.choice(ranges)
            stop = self.chance.randint(first + 1, stop)
            self.keep(first, stop, self.front.release(first, stop))

    def keep(self, first: int, stop: int, latents: Tensor) -> None:
        for frame in range(first, stop):
            found = latents[:, :, frame - first]
            assert torch.equal(found, self.released.setdefault(frame, found))


@settings(max_examples=80, deadline=None)
@given(clip=clips(), seed=st.integers(0, 2**32), ahead=st.none() | st.integers(0, 12))
def test_no_order_of_events_changes_a_bit(clip: Clip, seed: int, ahead: int | None) -> None:
    """Shuffled, lost, late and repeated answers, restarts and releases: equal to the plain loop."""
    assert torch.equal(Adversary(clip, seed, ahead).run(), plain_loop(clip))


@pytest.mark.parametrize("solver_name", sorted(SOLVERS))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_solver_and_layout(solver_name: str, layout: str) -> None:
    """No combination is left to chance: shuffled with restarts, and one process, both exact."""
    sampling = SamplingConfig(
        num_steps=4,
        windows=WindowConfig(
            num_frames=6, overlap=2, layout=layout, blend="linear", settle_steps=1
        ),
        **SOLVERS[solver_name][0],
    )
    clip = Clip(21, solver_name, sampling)
    wanted = plain_loop(clip)
    assert torch.isfinite(wanted).all()
    assert torch.equal(Adversary(clip, seed=3).run(), wanted)
    solver, source, start = clip.begin()
    found = denoise_clip(clip.denoise, start, solver=solver, sampling=sampling, noise=source)
    assert torch.equal(found, wanted)


def long_clip(num_frames: int, **changes: Any) -> Clip:
    sampling = SamplingConfig(solver="euler_ancestral", num_steps=6, **changes)
    return Clip(num_frames, "ancestral", sampling)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_buffers_stay_small(num_workers: int) -> None:
    """Whoever is in flight, at most the overlaps beside unanswered windows wait, each once."""
    clip = long_clip(150)
    overlap = clip.sampling.windows.overlap
    front = clip.front()
    chance = random.Random(num_workers)
    in_flight: list[Any] = []
    widest = 0
    while not front.finished:
        while len(in_flight) < num_workers and (work := front.take_next()) is not None:
            in_flight.append(work)
        work = in_flight.pop(chance.randrange(len(in_flight)))
        front.answer(work.task, clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames))
        widest = max(widest, front.num_buffered)
        # A frame in an overlap waits for one window; each open window holds back two overlaps.
        assert front.num_buffered <= 2 * overlap * (front.num_in_flight + front.num_ready + 1)
    assert 0 < widest <= 2 * overlap * (num_workers + 1)
    assert front.num_buffered == 0


@pytest.mark.parametrize("num_done", [0, 1, 7, 20])
def test_answered_tasks_are_counted_after_a_snapshot_too(num_done: int) -> None:
    """Those whose frames still wait for a neighbour included."""
    clip = long_clip(40)
    front, chance = clip.front(), random.Random(num_done)
    for _ in range(num_done):
        work = front.take(chance.choice(front.ready()))
        front.answer(work.task, clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames))
    assert front.count_answered() == num_done
    assert clip.front(snapshot=front.snapshot()).count_answered() == num_done


def test_messages_and_released_latents_are_let_go() -> None:
    """Nothing keeps a window's estimate alive after its answer, nor a frame after its release."""
    clip = long_clip(40)
    front = clip.front()
    while (work := front.take_next()) is not None:
        estimate = clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames)
        message = weakref.ref(estimate.untyped_storage())
        front.answer(work.task, estimate)
        del estimate
        assert message() is None
    ((first, stop),) = front.done_ranges()
    assert (first, stop) == (0, 40)
    assert front.release(4, 10).shape[2] == 6
    assert front.done_ranges() == ((0, 4), (10, 40))
    with pytest.raises(ValueError, match="not all there"):
        front.release(3, 5)
    with pytest.raises(ValueError, match="released"):
        front.latents(9, 12)
    sizes = [len(part.states) for part in front.snapshot().ranges]
    assert sum(sizes) == 34


def test_latents_of_single_frames_own_their_memory() -> None:
    """A frame that is kept must not keep the window it came with, not even in its history."""
    clip = Clip(40, "dpmpp 3", SamplingConfig(solver="dpmpp", num_steps=4))
    front = clip.front()
    for _ in range(8):
        work = front.take_next()
        front.answer(work.task, clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames))
    states = [state for part in front.snapshot().ranges for state in part.states]
    assert any(state.history for state in states)
    for state in states:
        for tensor in (state.latents, *state.history):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4


def test_a_limited_lead_bounds_the_latents_of_a_long_clip() -> None:
    """With a lead and releases, the frames held do not grow with the clip."""
    held = []
    for num_frames in (300, 500):
        clip = long_clip(num_frames)
        front = clip.front(ahead=100)
        most = 0
        while (work := front.take_next()) is not None:
            front.answer(work.task, clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames))
            for first, stop in front.done_ranges():
                front.release(first, stop)
            most = max(most, len(front._states))
        assert front.finished
        held.append(most)
    assert held[0] == held[1] <= 100 + 12


def test_start_noise_is_drawn_when_a_frame_is_first_needed() -> None:
    """A lazy start is asked frame by frame, and the frames are those of a whole draw."""
    clip = long_clip(200)
    solver, source, whole = clip.begin()
    asked: list[int] = []

    def start(frames: Any) -> Tensor:
        asked.extend(frames)
        shape = (2, SHAPE_CHW[0], len(frames), *SHAPE_CHW[1:])
        return source.initial(shape, frames) * solver.initial_scale

    front = Wavefront(start, num_frames=200, solver=solver, sampling=clip.sampling, noise=source)
    assert asked == []
    work = front.take_next()
    assert asked == list(range(12))
    assert torch.equal(work.noisy_BCFHW, solver.scale_input(whole[:, :, :12], 0))


def test_noise_of_the_first_frames_does_not_depend_on_the_length() -> None:
    """Step noise too: frame-wise networks give equal frames in clips of any length."""
    windows = WindowConfig(num_frames=8, overlap=0)
    short, long = (long_clip(count, windows=windows) for count in (8, 32))
    drawn = []
    for clip in (short, long):
        front = clip.front()
        while (work := front.take_next()) is not None:
            noisy = work.noisy_BCFHW
            front.answer(work.task, torch.cat([noisy * 0.5, noisy]))
        drawn.append(front.latents(0, 8))
    assert torch.equal(*drawn)
    by_hand = counter_noise(
        seed=5, stream=NoiseStream.STEP, frames=[3], step=2, shape_CHW=SHAPE_CHW, w_ind_noise=0.5
    )
    solver, source, _ = long.begin()
    found = source.during(solver, 2, (1, SHAPE_CHW[0], 2, *SHAPE_CHW[1:]), [7, 3])
    assert torch.equal(found[0, :, 1:], by_hand)


def test_an_estimate_of_another_shape_is_refused_and_the_task_stays_open() -> None:
    """A half-batch, a short window: named in the error; the right answer still counts."""
    clip = long_clip(20)
    front = clip.front()
    work = front.take_next()
    good = clip.denoise(work.noisy_BCFHW, work.timestep, work.task.frames)
    for bad in (good[:1], good[:, :, :-1], good[..., :1]):
        with pytest.raises(ShapeError, match="step 0, window 0 has shape"):
            front.answer(work.task, bad)
    assert front.num_in_flight == 1
    assert len(front.answer(work.task, good)) == 8
    with pytest.raises(ValueError, match="step 1, window 0 is not open"):
        front.answer(front.plan.task(1, 0), good)


def test_a_snapshot_of_another_clip_is_refused() -> None:
    """Other length or other number of steps."""
    snapshot = long_clip(20).front().snapshot()
    with pytest.raises(ShapeError, match="20 frames and 6 steps cannot go on as 21 frames"):
        long_clip(21).front(snapshot)


def test_the_loop_reports_whole_steps_in_order() -> None:
    """Called once a step, with the latents as they are between two steps."""
    clip = long_clip(30)
    solver, source, start = clip.begin()
    seen: list[tuple[int, Tensor]] = []
    found = denoise_clip(
        clip.denoise,
        start,
        solver=solver,
        sampling=clip.sampling,
        noise=source,
        on_step=lambda step, latents: seen.append((step, latents)),
    )
    assert [step for step, _ in seen] == list(range(6))
    assert torch.equal(seen[-1][1], found)
    one_step = dataclasses.replace(clip.sampling, num_steps=1)
    assert seen[0][1].shape == start.shape
    assert not torch.equal(seen[0][1], plain_loop(dataclasses.replace(clip, sampling=one_step)))
