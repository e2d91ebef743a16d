"""Checkpoints of a clip: nothing written twice, the newest whole one counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musev.clip_front import open_front
from musev.denoise.wavefront import Wavefront
from pipelines.checkpoints import ClipStore
from pipelines.ledger import Ledger
from tests.pipelines.conducting import PROFILE, long_request
from tests.pipelines.stand_ins import ColourEngine

SAMPLE = "cd" * 32
CLIP = long_request(num_frames=120)


def front(**settings: object) -> Wavefront:
    _, facts = ColourEngine(PROFILE).condition(CLIP, {})
    return open_front(CLIP, facts, **settings)  # type: ignore[arg-type]


def advance(clip: Wavefront, num_tasks: int | None = None) -> Wavefront:
    with ColourEngine(PROFILE).open_clip(CLIP, 0.0, None) as denoise:
        while num_tasks != 0 and (work := clip.take_next()) is not None:
            clip.answer(work.task, denoise(work.noisy_BCFHW, work.timestep, work.task.frames))
            num_tasks = None if num_tasks is None else num_tasks - 1
    return clip


@pytest.fixture
def store(tmp_path: Path) -> ClipStore:
    return ClipStore(Ledger(str(tmp_path / "out")), SAMPLE)


def files(tmp_path: Path) -> dict[str, int]:
    folder = tmp_path / "out" / "work" / SAMPLE / "checkpoint"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_another_process_goes_on_to_the_same_bits(tmp_path: Path, store: ClipStore) -> None:
    half = advance(front(), 60)
    store.save(half.snapshot(range_frames=48))
    loaded = ClipStore(Ledger(str(tmp_path / "out")), SAMPLE).load()
    assert loaded is not None
    resumed = front(snapshot=loaded)
    assert resumed.count_answered() == half.count_answered() == 60
    wanted = advance(front()).release(0, 120)
    assert torch.equal(advance(resumed).release(0, 120), wanted)


def test_what_lies_there_is_not_written_again_and_what_is_old_goes(
    tmp_path: Path, store: ClipStore
) -> None:
    clip = front(ahead=40)
    store.save(advance(clip, 40).snapshot(range_frames=12))
    before = files(tmp_path)
    written = store.save(advance(clip, 2).snapshot(range_frames=12))
    after = files(tmp_path)
    kept = {name for name, at in before.items() if after.get(name) == at}
    assert kept, "ranges that did not move stay as they were"
    assert written == len(after) - len(kept) < len(after)
    assert len([name for name in after if name.startswith("index")]) == 1
    assert store.load() is not None
    assert ClipStore(store._ledger, "ef" * 32).load() is None


def test_a_damaged_or_torn_checkpoint_is_passed_over(tmp_path: Path, store: ClipStore) -> None:
    store.save(advance(front(), 30).snapshot())
    folder = tmp_path / "out" / "work" / SAMPLE / "checkpoint"
    (folder / "index-00000009.safetensors").write_bytes(b"not a checkpoint")
    found = store.load()
    assert found is not None
    assert list(found.steps()) == list(advance(front(), 30).snapshot().steps())
    store.save(advance(front(), 50).snapshot())
    assert (folder / "index-00000010.safetensors").exists(), "numbers go on after the damaged one"
    next(path for path in folder.iterdir() if not path.name.startswith("index")).unlink()
    assert store.load() is None


def test_released_frames_are_in_no_checkpoint(tmp_path: Path, store: ClipStore) -> None:
    clip = advance(front())
    clip.release(0, 48)
    store.save(clip.snapshot())
    loaded = store.load()
    assert loaded is not None
    assert [(part.first, part.stop, bool(part.states)) for part in loaded.ranges] == [
        (0, 48, False),
        (48, 96, True),
        (96, 120, True),
    ]
    assert "0-48-4.safetensors" not in files(tmp_path)


def test_segments_are_listed_by_number(tmp_path: Path, store: ClipStore) -> None:
    assert store.segments() == set()
    store._ledger.store.put(store.segment_name(3), b"video")
    assert store.segments() == {3}
    store.fetch_segment(3, tmp_path / "three.mp4")
    assert (tmp_path / "three.mp4").read_bytes() == b"video"
