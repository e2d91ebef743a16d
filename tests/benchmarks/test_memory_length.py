from __future__ import annotations

import os

import pytest

from benchmarks.memory_length import KINDS, compare, read_memory
from tests.benchmarks.ray_script import run_script


@pytest.mark.timeout(240)
def test_a_clip_is_driven_to_its_video_under_watch() -> None:
    report = run_script("memory_length", "--alone", "--frames", "100", "--workers", "1")
    (clip,) = report["clips"]
    assert clip["frames_in_video"] == clip["frames"] == 100
    assert clip["tasks"] == 2 * 12  # 100 frames in windows of 12 that start 8 apart
    for who in ("driver", "worker"):
        memory = clip[who]
        assert set(memory) == set(KINDS)
        assert memory["rss_own"] == memory["peak_rss"] - memory["rss_store"] > 50e6
        assert 50e6 < memory["private"] <= memory["pss"] <= memory["peak_rss"], who


def test_memory_that_is_taken_is_seen() -> None:
    before = read_memory(os.getpid())
    taken = bytearray(os.urandom(1 << 20) * 32)
    after = read_memory(os.getpid())
    assert after["private"] - before["private"] > 0.9 * len(taken)
    assert after["peak_rss"] >= after["private"]


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert read_memory(2**22 + 1) == {}


def test_the_longest_clip_is_set_against_the_shortest() -> None:
    def clip(size: int) -> dict:
        return {who: dict.fromkeys(KINDS, size) for who in ("driver", "worker")}

    ratios = compare([clip(100), clip(400), clip(150)])
    assert ratios["driver"] == dict.fromkeys(KINDS, 1.5)
