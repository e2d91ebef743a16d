"""Frame ranges against a plain set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musev.denoise.ranges import FrameRanges


def listed(frames: set[int]) -> tuple[tuple[int, int], ...]:
    firsts = sorted(frame for frame in frames if frame - 1 not in frames)
    stops = sorted(frame + 1 for frame in frames if frame + 1 not in frames)
    return tuple(zip(firsts, stops, strict=True))


@given(
    order=st.permutations(range(24)),
    kept=st.integers(0, 24),
    cut=st.tuples(*[st.integers(0, 24)] * 2),
)
def test_ranges_are_those_of_a_set(order: list[int], kept: int, cut: tuple[int, int]) -> None:
    """Frames added in any order; then a range taken out, or refused if one of them is missing."""
    ranges, frames = FrameRanges(), set(order[:kept])
    ranges.add(order[:kept])
    assert ranges.sorted() == listed(frames)
    first, stop = cut
    wanted = set(range(first, stop))
    if wanted and wanted <= frames:
        ranges.remove(first, stop)
        assert ranges.sorted() == listed(frames - wanted)
    else:
        with pytest.raises(ValueError, match="not all there"):
            ranges.remove(first, stop)
        assert ranges.sorted() == listed(frames)
