from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from benchmarks.wavefront_ray import Pickled, split_evenly
from tests.benchmarks.ray_script import ROOT, run_script


@pytest.mark.timeout(240)
def test_both_ways_run_over_real_actors_and_the_report_adds_up() -> None:
    options = ["--workers", "2", "--frames", "36", "--steps", "2", "--task-seconds", "0.05"]
    report = run_script("wavefront_ray", *options, "--slow-workers", "1")
    assert report["windows"] == 4  # 36 frames in windows of 12 that start 8 apart
    assert report["tasks"] == 8
    # One worker can do the work of one, the other that of half a one.
    work_s = 8 * 0.05 / 1.5
    for way in ("", "barrier_"):
        assert report[f"{way}efficiency"] == pytest.approx(work_s / report[f"{way}seconds"])
        assert 0 < report[f"{way}efficiency"] <= 1
    # In lock-step the slow worker does two of a step's four windows, one after the other.
    assert report["barrier_seconds"] >= 2 * 2 * 0.1
    assert report["bytes_sent"] == 4 * 12 * 4 * 64 * 64
    assert report["tasks_a_second"] > 0
    assert 0 < report["conductor_cpu_s_a_task"] <= report["process_cpu_s_a_task"]


def test_spans_cover_all_windows_and_differ_by_one() -> None:
    spans = split_evenly(range(37), 8)
    assert [number for span in spans for number in span] == list(range(37))
    assert sorted(map(len, spans)) == [4, 4, 4, 5, 5, 5, 5, 5]


def test_a_value_is_passed_on_without_its_modules() -> None:
    once = pickle.dumps(Pickled(pickle.dumps({"seen": 1})))
    assert pickle.loads(once) == {"seen": 1}


def test_arrays_on_the_wire_need_no_torch_where_they_are_unpacked_by_numpy() -> None:
    """32 sleeping workers would otherwise take eight gigabytes."""
    code = "import sys, pipelines.wire; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
