from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest

from musev.errors import ConfigError, MediaError
from musev.training import shards as module
from musev.training.shards import ShardDataset, ShardStream
from tests.musev.training.dataset_folder import plain_files, write_dataset

SIZES = (3, 5, 1, 4, 2, 5)
NUM_CLIPS = sum(SIZES)


def make(folder: Path, sizes: Sequence[int] = SIZES) -> str:
    numbers = itertools.count()
    clips = [[plain_files(next(numbers)) for _ in range(size)] for size in sizes]
    return write_dataset(folder / "data", clips)


@pytest.fixture
def dataset(tmp_path: Path) -> ShardDataset:
    return ShardDataset(make(tmp_path))


def take(stream: ShardStream, count: int) -> list[int]:
    found = []
    for number, files in itertools.islice(stream, count):
        assert files["mp4"] == b"video %d" % number
        found.append(number)
    return found


def test_the_index_says_what_there_is(dataset: ShardDataset) -> None:
    assert dataset.num_clips == NUM_CLIPS
    assert [len(shard) for shard in dataset.shards] == list(SIZES)
    assert dataset.caption(7) == "caption 7"
    assert dataset.row(7)["clip_id"] == "clip 7"
    assert dataset.has("mp4")
    assert not dataset.has("latents.safetensors")


def test_a_file_that_some_clips_lack_is_not_had(tmp_path: Path) -> None:
    files = plain_files(0)
    uri = write_dataset(tmp_path / "d", [[{**files, "control.mp4": b"x"}, files]])
    mixed = ShardDataset(uri)
    assert (mixed.count("control.mp4"), mixed.count("mp4")) == (1, 2)
    assert mixed.has("mp4")
    assert not mixed.has("control.mp4")


def test_clips_are_read_by_number_in_the_order_asked_for(dataset: ShardDataset) -> None:
    found = dataset.read([9, 0, 9])
    assert found == [plain_files(9), plain_files(0), plain_files(9)]
    assert dataset.read([4], ["mp4", "no.such"]) == [{"mp4": b"video 4"}]
    assert dataset.read([]) == []


def test_reading_by_number_touches_only_the_bytes_it_needs(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = dataset._files.cat_ranges

    def cat_ranges(paths: list[str], starts: list[int], ends: list[int], **rest: object) -> list:
        seen.extend(zip(starts, ends, strict=True))
        return inner(paths, starts, ends, **rest)

    monkeypatch.setattr(dataset._files, "cat_ranges", cat_ranges)
    dataset.read([5], ["mp4"])
    assert sum(end - start for start, end in seen) == len(b"video 5")


def test_a_round_gives_every_clip_once_and_rounds_differ(dataset: ShardDataset) -> None:
    found = take(ShardStream(dataset, seed=1, buffer_shards=2), 2 * NUM_CLIPS)
    first, second = found[:NUM_CLIPS], found[NUM_CLIPS:]
    assert sorted(first) == sorted(second) == list(range(NUM_CLIPS))
    assert first != second
    assert first != list(range(NUM_CLIPS))
    assert take(ShardStream(dataset, seed=1, buffer_shards=2), NUM_CLIPS) == first
    assert take(ShardStream(dataset, seed=2, buffer_shards=2), NUM_CLIPS) != first


@pytest.mark.parametrize("num_workers", [2, 3, 6])
def test_workers_share_a_round_without_overlap(dataset: ShardDataset, num_workers: int) -> None:
    parts = []
    for worker in range(num_workers):
        stream = ShardStream(dataset, seed=5, worker=worker, num_workers=num_workers)
        size = sum(len(clips) for _, clips in stream.order(0))
        parts.append(take(stream, size))
        assert stream.state_dict() == {"round": 0, "position": size}
    together = [number for part in parts for number in part]
    assert sorted(together) == list(range(NUM_CLIPS))


@pytest.mark.parametrize("place", [0, 1, 7, NUM_CLIPS - 1, NUM_CLIPS, NUM_CLIPS + 6])
def test_a_stream_goes_on_from_any_place_with_the_same_order(
    dataset: ShardDataset, place: int
) -> None:
    calm = take(ShardStream(dataset, seed=3, buffer_shards=2), 3 * NUM_CLIPS)
    broken_off = ShardStream(dataset, seed=3, buffer_shards=2)
    take(broken_off, place)
    state = json.loads(json.dumps(broken_off.state_dict()))
    assert all(type(value) is int for value in state.values())
    again = ShardStream(dataset, seed=3, buffer_shards=2)
    again.load_state_dict(state)
    assert take(again, 3 * NUM_CLIPS - place) == calm[place:]


def test_no_more_than_the_buffer_is_held(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[range] = []
    inner = dataset.read_shard
    monkeypatch.setattr(
        dataset, "read_shard", lambda shard, *rest: loads.append(shard) or inner(shard, *rest)
    )
    stream = iter(ShardStream(dataset, seed=0, buffer_shards=2))
    next(stream)
    assert len(loads) == 2
    held = sum(len(shard) for shard in loads)
    list(itertools.islice(stream, held - 1))
    assert len(loads) == 2
    next(stream)
    assert len(loads) == 4


def test_a_wide_buffer_mixes_clips_of_different_shards(dataset: ShardDataset) -> None:
    of_shard = {n: place for place, shard in enumerate(dataset.shards) for n in shard}
    found = take(ShardStream(dataset, seed=0, buffer_shards=len(SIZES)), NUM_CLIPS)
    changes = sum(of_shard[a] != of_shard[b] for a, b in itertools.pairwise(found))
    assert changes > len(SIZES)


def test_files_can_be_chosen(dataset: ShardDataset) -> None:
    _, files = next(iter(ShardStream(dataset, seed=0, suffixes=["json"])))
    assert set(files) == {"json"}


def test_another_file_system_gives_the_same(tmp_path: Path, dataset: ShardDataset) -> None:
    make(tmp_path / "again")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "again" / "data"), "/shards-test", recursive=True)
    other = ShardDataset("memory://shards-test")
    try:
        assert other.read([3, 8]) == dataset.read([3, 8])
        assert take(ShardStream(other, seed=1), 30) == take(ShardStream(dataset, seed=1), 30)
    finally:
        memory.rm("/shards-test", recursive=True)


def test_more_readers_than_shards_are_refused(dataset: ShardDataset) -> None:
    with pytest.raises(ConfigError, match="smaller clips_per_shard"):
        ShardStream(dataset, seed=0, num_workers=7)
    with pytest.raises(ConfigError, match="worker must be"):
        ShardStream(dataset, seed=0, worker=2, num_workers=2)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no dataset at"):
        ShardDataset(str(tmp_path))
    uri = make(tmp_path)
    (tmp_path / "data" / module.CARD).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 99"):
        ShardDataset(uri)


def test_damaged_shards_are_named(tmp_path: Path, dataset: ShardDataset) -> None:
    tar = tmp_path / "data" / "shards" / "0001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"0001\.tar is cut short"):
        dataset.read([7])
    shutil.rmtree(tmp_path / "data" / "shards")
    with pytest.raises(MediaError, match="is gone"):
        dataset.read_shard(dataset.shards[0])
