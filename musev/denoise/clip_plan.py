"""The windows of every step of a clip, without a list of windows times steps.

Numbers only: the wavefront, a simulation and a cost estimate share it.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from musev.config import WindowConfig
from musev.denoise.windows import Cover, Window, covering_windows, plan_windows

Key = tuple[int, int]


@dataclass(frozen=True, order=True)
class Task:
    """One window at one step; sorts by step, then by the window's number in its step."""

    step: int
    number: int
    frames: Window

    @property
    def key(self) -> Key:
        """Step and number: what identifies the task within its clip."""
        return self.step, self.number


class _StepWindows(Protocol):
    """The windows of one step."""

    def __len__(self) -> int: ...

    def window(self, number: int) -> Window: ...

    def covers(self, frame: int) -> Cover: ...


class _Runs:
    """Windows of consecutive frames in the order of their starts: one number a window is kept."""

    def __init__(self, windows: Sequence[Window], num_frames: int, size: int) -> None:
        self._starts = array("q", (window[0] for window in windows))
        self._num_frames = num_frames
        self._size = size

    def __len__(self) -> int:
        return len(self._starts)

    def window(self, number: int) -> Window:
        start = self._starts[number]
        return tuple(range(start, min(start + self._size, self._num_frames)))

    def covers(self, frame: int) -> Cover:
        first = bisect_right(self._starts, frame - self._size)
        stop = bisect_right(self._starts, frame)
        return tuple((number, frame - self._starts[number]) for number in range(first, stop))


class _Listed:
    """Any windows, kept as they are: those of ``upstream_uniform`` run past the end."""

    def __init__(self, windows: tuple[Window, ...], num_frames: int) -> None:
        self._windows = windows
        self._covers = covering_windows(windows, num_frames)

    def __len__(self) -> int:
        return len(self._windows)

    def window(self, number: int) -> Window:
        return self._windows[number]

    def covers(self, frame: int) -> Cover:
        return self._covers[frame]


class ClipPlan:
    """The windows of every step of a clip, worked out when a step is first asked about.

    Steps with the same windows share them; a window of consecutive frames costs eight bytes.
    """

    def __init__(
        self, num_frames: int, windows: WindowConfig, *, num_steps: int, seed: int = 0
    ) -> None:
        self.num_frames = num_frames
        self.num_steps = num_steps
        self._config = windows
        self._seed = seed
        self._steps: dict[int, _StepWindows] = {}

    @property
    def num_tasks(self) -> int:
        """Windows of all steps together."""
        return sum(self.num_windows(step) for step in range(self.num_steps))

    def count_lengths(self) -> dict[int, int]:
        """Count the windows of all steps by their number of frames."""
        steps = [self._at(step) for step in range(self.num_steps)]
        times = Counter(map(id, steps))
        counts: Counter[int] = Counter()
        for windows in {id(windows): windows for windows in steps}.values():
            for number in range(len(windows)):
                counts[len(windows.window(number))] += times[id(windows)]
        return dict(counts)

    def num_windows(self, step: int) -> int:
        """Count the windows of one step."""
        return len(self._at(step))

    def task(self, step: int, number: int) -> Task:
        """Describe one task."""
        return Task(step, number, self._at(step).window(number))

    def num_distinct(self, step: int, number: int) -> int:
        """Count the frames of a window, each once: a dilated window can hold one twice."""
        return len(set(self._at(step).window(number)))

    def is_ordered(self, step: int) -> bool:
        """Tell whether the windows are runs of frames in the order of their starts and ends."""
        return isinstance(self._at(step), _Runs)

    def covers(self, step: int, frame: int) -> Cover:
        """List the windows that hold a frame, as (number, position), in window order."""
        return self._at(step).covers(frame)

    def _at(self, step: int) -> _StepWindows:
        config = self._config
        rotates = config.layout == "rotating" and step < self.num_steps - config.settle_steps
        shared = step if rotates else self.num_steps - 1
        if shared not in self._steps:
            windows = plan_windows(
                self.num_frames, config, step=shared, num_steps=self.num_steps, seed=self._seed
            )
            self._steps[shared] = _compact(windows, self.num_frames, config.num_frames)
        return self._steps[shared]


def _compact(windows: tuple[Window, ...], num_frames: int, size: int) -> _StepWindows:
    runs = _Runs(windows, num_frames, size)
    ordered = all(one[0] < other[0] for one, other in itertools.pairwise(windows))
    if ordered and all(runs.window(number) == window for number, window in enumerate(windows)):
        return runs
    return _Listed(windows, num_frames)
