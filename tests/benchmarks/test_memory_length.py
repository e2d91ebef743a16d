from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_length import KINDS, compare, find_below, read_memory
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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_real_job_is_watched_from_outside(tmp_path: Path) -> None:
    arguments = ("--job", "--workers", "1", "--steps", "1", "--output", str(tmp_path))
    report = run_script("memory_length", "--frames", "25", *arguments)
    (clip,) = report["clips"]
    assert clip["frames_in_video"] == 25
    assert clip["tasks"] == 3  # of 24 frames: 0 to 12, 8 to 20 and 12 to 24
    assert Path(clip["video"]).stat().st_size > 1000
    for who in ("driver", "worker", "job"):
        assert set(clip[who]) == set(KINDS), who
    assert clip["worker"]["private"] > clip["job"]["private"], "networks lie in the worker"
    assert report["ratios"]["worker"] == dict.fromkeys(KINDS, 1.0)


def test_processes_are_known_by_what_they_call_themselves() -> None:
    def start(title: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([title, "-c", "input()"], executable=sys.executable, stdin=-1)

    titles = ("ray::ClipWorker.denoise", "ray::MapWorker(Map(DriveRows))", "ray::IDLE", "python")
    started = [start(title) for title in titles]
    try:
        found = find_below(os.getpid())
    finally:
        for process in started:
            process.communicate(b"\n")
    worker, driver, *_ = started
    assert sorted(found) == sorted(
        [("job", os.getpid()), ("worker", worker.pid), ("driver", driver.pid)]
    )


def test_the_longest_clip_is_set_against_the_shortest() -> None:
    def clip(size: int) -> dict:
        return {who: dict.fromkeys(KINDS, size) for who in ("driver", "worker")}

    ratios = compare([clip(100), clip(400), clip(150)])
    assert ratios["driver"] == dict.fromkeys(KINDS, 1.5)
