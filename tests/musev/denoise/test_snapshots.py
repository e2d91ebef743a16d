"""Snapshots as tensors: a round trip through a file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musev.denoise.snapshots import FrameRange, Snapshot
from musev.denoise.solvers import SolverState
from musev.errors import ShapeError


def state(value: float, num_past: int) -> SolverState:
    frame = torch.full((1, 2, 3, 3), value)
    return SolverState(frame, tuple(frame + age for age in range(1, num_past + 1)))


def example() -> Snapshot:
    """Released, done, half way with history, and not begun frames; two of them wait."""
    ranges = (
        FrameRange(0, 2, 5, ()),
        FrameRange(2, 4, 5, (state(2, 0), state(3, 0))),
        FrameRange(4, 7, 2, tuple(state(value, 2) for value in (4, 5, 6))),
        FrameRange(7, 9, 0, ()),
    )
    waiting = {5: {1: torch.ones(2, 2, 3, 3).half()}, 8: {1: torch.zeros(2, 2, 3, 3).half()}}
    return Snapshot(9, 5, ranges, waiting)


def test_a_snapshot_survives_a_file(tmp_path: Path) -> None:
    """Every step, latent, history and kept estimate comes back, in its precision."""
    snapshot = example()
    save_file(snapshot.tensors(), tmp_path / "clip.safetensors")
    found = Snapshot.from_tensors(load_file(tmp_path / "clip.safetensors"))
    assert list(found.steps()) == [5, 5, 5, 5, 2, 2, 2, 0, 0]
    for one, other in zip(found.ranges, snapshot.ranges, strict=True):
        assert (one.first, one.stop, one.step) == (other.first, other.stop, other.step)
        for mine, yours in zip(one.states, other.states, strict=True):
            assert torch.equal(mine.latents, yours.latents)
            assert len(mine.history) == len(yours.history)
            assert all(map(torch.equal, mine.history, yours.history))
    assert {frame: list(kept) for frame, kept in found.answers.items()} == {5: [1], 8: [1]}
    assert found.answers[5][1].dtype == torch.float16
    assert torch.equal(found.answers[5][1], snapshot.answers[5][1])


def test_a_snapshot_without_anything_in_it_survives() -> None:
    """A clip that has not begun."""
    found = Snapshot.from_tensors(Snapshot(3, 2, (FrameRange(0, 3, 0, ()),), {}).tensors())
    assert list(found.steps()) == [0, 0, 0]
    assert found.answers == {}


@pytest.mark.parametrize(("rows", "complaint"), [([0, 1, 3], "frame 4"), ([0, 1, 2], "ends at")])
def test_gaps_are_refused(rows: list[int], complaint: str) -> None:
    """A range that got lost is named, in the middle and at the end."""
    tensors = example().tensors()
    with pytest.raises(ShapeError, match=complaint):
        Snapshot.from_tensors({**tensors, "ranges": tensors["ranges"][rows]})
