from __future__ import annotations

import pytest

from tests.benchmarks.ray_script import run_script


@pytest.mark.timeout(240)
def test_every_clip_is_committed_and_the_ratio_is_of_equal_work() -> None:
    options = ["--workers", "2", "--clips", "4", "--clip-seconds", "1", "--bare-clips", "1"]
    report = run_script("short_videos", *options)
    assert report["bare_clip_s"] >= 1
    assert report["graph_s"] >= 2 * 1  # two clips, one after the other, on each worker
    assert report["ratio"] == pytest.approx(2 * report["bare_clip_s"] / report["graph_s"])
    assert report["most_at_once"] == 2
    assert report["overhead_s_a_clip"] * 2 == pytest.approx(
        report["graph_s"] - 2 * report["bare_clip_s"]
    )
