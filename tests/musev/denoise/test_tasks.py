"""The rules of the wavefront against their definition, spelled out over all frames and windows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.config import WindowConfig
from musev.denoise.clip_plan import ClipPlan, Task
from musev.denoise.tasks import TaskGraph

STEPS = 4


class Definition:
    """The rules of DESIGN.md 3 as they are written, with no regard to cost."""

    def __init__(self, plan: ClipPlan, waits_for_all: Any) -> None:
        self.plan = plan
        self.waits_for_all = waits_for_all
        self.answered: set[tuple[int, int]] = set()
        self.reached = [0] * plan.num_frames

    def answer(self, task: Task) -> None:
        self.answered.add(task.key)
        complete = [
            frame
            for frame, step in enumerate(self.reached)
            if step == task.step
            and all((step, number) in self.answered for number, _ in self.plan.covers(step, frame))
        ]
        if self.waits_for_all(task.step) and len(complete) < self.plan.num_frames:
            return
        for frame in complete:
            self.reached[frame] += 1

    def open_tasks(self) -> Iterator[Task]:
        for step in range(STEPS):
            for number in range(self.plan.num_windows(step)):
                task = self.plan.task(step, number)
                if task.key not in self.answered and all(
                    self.reached[frame] == step for frame in task.frames
                ):
                    yield task


@st.composite
def plans(draw: Any) -> ClipPlan:
    size = draw(st.integers(1, 8))
    config = WindowConfig(
        num_frames=size,
        overlap=draw(st.integers(0, size - 1)),
        layout=draw(st.sampled_from(("musev", "upstream", "upstream_uniform", "rotating"))),
        stride=draw(st.integers(1, 2)),
        settle_steps=draw(st.integers(0, 2)),
    )
    return ClipPlan(draw(st.integers(1, 30)), config, num_steps=STEPS)


@settings(max_examples=80, deadline=None)
@given(plan=plans(), barriers=st.sets(st.integers(0, STEPS - 1)), seed=st.integers(0, 2**32))
def test_ready_is_what_the_definition_says(plan: ClipPlan, barriers: set[int], seed: int) -> None:
    """After every event: ready = open and not in flight; steps of frames, and the end, agree."""
    chance = random.Random(seed)
    graph = TaskGraph(plan, waits_for_all=barriers.__contains__)
    truth = Definition(plan, barriers.__contains__)
    in_flight: list[Task] = []
    while not graph.finished:
        wanted = tuple(task for task in truth.open_tasks() if task not in in_flight)
        assert graph.ready() == wanted
        assert graph.num_ready == len(wanted)
        assert graph.num_in_flight == len(in_flight)
        assert [graph.step_of(frame) for frame in range(plan.num_frames)] == truth.reached
        assert graph.complete_steps == min(truth.reached)
        if wanted and (not in_flight or chance.random() < 0.5):
            if chance.random() < 0.5:
                assert graph.take_next() == wanted[0]
                in_flight.append(wanted[0])
            else:
                in_flight.append(graph.take(chance.choice(wanted)))
            continue
        task = in_flight.pop(chance.randrange(len(in_flight)))
        if chance.random() < 0.2:
            assert graph.give_back(task)
            continue
        before = list(truth.reached)
        truth.answer(task)
        moved = [f for f, step in enumerate(truth.reached) if step != before[f]]
        assert list(graph.answer(task)) == moved
        assert graph.is_answered(task)
        assert not graph.give_back(task)
    assert min(truth.reached) == STEPS
    assert graph.take_next() is None


@settings(max_examples=60, deadline=None)
@given(plan=plans(), ahead=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_a_limited_lead_never_stops_the_clip(plan: ClipPlan, ahead: int, seed: int) -> None:
    """Any order of answers comes to the end, and no frame begins further ahead than allowed."""
    chance = random.Random(seed)
    graph = TaskGraph(plan, ahead=ahead)
    limit = max(ahead, len(plan.task(0, 0).frames) * (STEPS + 1))
    in_flight: list[Task] = []
    answered = 0
    while not graph.finished:
        in_flight += [graph.take(task) for task in graph.ready()]
        task = in_flight.pop(chance.randrange(len(in_flight)))
        done = [graph.step_of(frame) == STEPS for frame in range(plan.num_frames)]
        if plan.is_ordered(0):
            assert max(task.frames) < done.index(False) + limit
        graph.answer(task)
        answered += 1
    assert answered == plan.num_tasks


def test_a_limited_lead_finishes_the_start_early() -> None:
    """The first segment of a long clip is done long before its last window is begun."""
    plan = ClipPlan(2000, WindowConfig(), num_steps=STEPS)
    graph = TaskGraph(plan, ahead=200)
    answered = 0
    while graph.step_of(47) < STEPS:
        task = graph.take_next()
        assert task is not None
        graph.answer(task)
        answered += 1
    assert answered < 0.15 * plan.num_tasks


def test_lowest_step_first() -> None:
    """A task that becomes ready again goes before all later steps."""
    graph = TaskGraph(ClipPlan(36, WindowConfig(overlap=0), num_steps=3))
    first, second, third = (graph.take_next() for _ in range(3))
    assert graph.take_next() is None
    graph.answer(third)
    graph.give_back(second)
    assert graph.take_next() == second
    assert graph.take_next().key == (1, 2)
    graph.answer(first)
    assert [task.key for task in graph.ready()] == [(1, 0)]


def test_what_is_not_open_is_refused() -> None:
    """Tasks of the future, taken twice, or answered twice."""
    plan = ClipPlan(20, WindowConfig(), num_steps=2)
    graph = TaskGraph(plan)
    task = graph.take_next()
    with pytest.raises(ValueError, match="step 0, window 0 is not ready"):
        graph.take(task)
    with pytest.raises(ValueError, match="step 1, window 0 is not open"):
        graph.answer(plan.task(1, 0))
    graph.answer(task)
    with pytest.raises(ValueError, match="not open"):
        graph.answer(task)


class CountingPlan(ClipPlan):
    """A plan that counts how often it is asked."""

    asked = 0

    def covers(self, step: int, frame: int) -> Any:
        self.asked += 1
        return super().covers(step, frame)


def test_an_answer_costs_the_same_in_a_clip_of_any_length() -> None:
    """Questions to the plan for the same 200 answers: equal at 1,000 and at 100,000 frames."""
    asked = []
    for num_frames in (1_000, 100_000):
        plan = CountingPlan(num_frames, WindowConfig(), num_steps=20)
        graph = TaskGraph(plan)
        plan.asked = 0
        for _ in range(100):
            graph.answer(graph.take_next())
        asked.append(plan.asked)
    assert asked[0] == asked[1] > 0
