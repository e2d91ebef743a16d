from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from musev.errors import ConfigError
from pipelines.clip_table import ClipRow, ClipTable
from pipelines.dataset_plan import (
    DatasetConfig,
    Shard,
    Source,
    dataset_settings,
    differences,
    earlier_rounds,
    in_round,
    newest_committed,
    newest_rounds,
    plan_shards,
    shard_from_json,
)

SMALL = DatasetConfig(clips_per_shard=4)


def row(number: int, **changes: Any) -> ClipRow:
    values = {"clip_id": f"c{number}", "video": f"/v/{number}.mp4", "caption": "x", **changes}
    return ClipRow(row=number, **values)


def table_of(*rows: ClipRow, num_rows: int) -> Source:
    table = ClipTable(uri="t.csv", rows=rows, failures=[], num_rows=num_rows)
    return Source(num_clips=num_rows, table=table)


def plan(source: Source, config: DatasetConfig = SMALL, **models: str) -> list[Shard]:
    return plan_shards(dataset_settings(config, source, models), source)


def names(source: Source, config: DatasetConfig = SMALL, **models: str) -> list[str]:
    return [shard.name for shard in plan(source, config, **models)]


def drawn(num_clips: int, seed: int = 0) -> Source:
    return Source(num_clips=num_clips, seed=seed)


@pytest.mark.parametrize(("clips", "sizes"), [(8, [4, 4]), (9, [4, 4, 1]), (3, [3]), (0, [])])
def test_shards_cover_every_clip_once(clips: int, sizes: list[int]) -> None:
    shards = plan(drawn(clips))
    assert [shard.num_clips for shard in shards] == sizes
    covered = [number for shard in shards for number in range(shard.first, shard.end)]
    assert covered == list(range(clips))


def test_more_clips_leave_full_shards_as_they_are() -> None:
    assert names(drawn(10))[:2] == names(drawn(30))[:2]
    assert names(drawn(10))[2] != names(drawn(30))[2]


@pytest.mark.parametrize(
    "change",
    [
        {"width": 64},
        {"height": 64},
        {"num_frames": 4},
        {"fps": 4.0},
        {"held_out": True},
        {"encoder": dataclasses.replace(SMALL.encoder, crf=30)},
    ],
)
def test_whatever_decides_bytes_decides_names(change: dict[str, Any]) -> None:
    assert names(drawn(4), dataclasses.replace(SMALL, **change)) != names(drawn(4))


def test_seed_and_networks_decide_names_and_the_licence_does_not() -> None:
    assert names(drawn(4, seed=1)) != names(drawn(4))
    assert names(drawn(4), vae="sha256:1") != names(drawn(4))
    assert names(drawn(4), dataclasses.replace(SMALL, licence="MIT")) == names(drawn(4))


def test_a_row_put_right_changes_its_own_shard_only() -> None:
    rows = [row(n) for n in range(12) if n != 5]
    before = names(table_of(*rows, num_rows=12))
    after = names(table_of(*rows, row(5), num_rows=12))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    changed = names(table_of(row(0, caption="y"), *rows[1:], num_rows=12))
    assert [a == b for a, b in zip(before, changed, strict=True)] == [False, True, True]


def test_a_shard_without_a_good_row_is_none() -> None:
    shards = plan(table_of(row(0), row(9), num_rows=12))
    assert [(shard.first, shard.num_clips) for shard in shards] == [(0, 1), (8, 1)]


def test_a_shard_travels_as_text() -> None:
    for shard in (*plan(drawn(5)), *plan(table_of(row(1, attributes={"a": 1}), num_rows=2))):
        again = in_round(shard, 3)
        assert shard_from_json(again.to_json()) == again


def test_rounds_follow_what_is_committed() -> None:
    first, second = plan(drawn(8))
    committed = {first.name, in_round(first, 1).name, in_round(first, 2).name}
    newest = newest_rounds([first, second], committed)
    assert [shard.round for shard in newest] == [2, 0]
    assert newest[0].name == f"{first.name}-r2"
    assert [old.round for old in earlier_rounds(newest[0], committed)] == [0, 1]
    assert earlier_rounds(second, committed) == []


def test_a_round_that_is_not_committed_gives_way_to_the_one_before() -> None:
    first, second = plan(drawn(8))
    committed = {first.name, in_round(first, 1).name}
    tried = [in_round(first, 2), second]
    assert newest_committed(tried, committed) == [in_round(first, 1), second]
    assert newest_committed(tried, {in_round(first, 2).name}) == tried


def test_differences_are_named() -> None:
    old = dataset_settings(SMALL, drawn(4), {})
    assert differences(old, old) == []
    new = dataset_settings(dataclasses.replace(SMALL, fps=4.0), drawn(9, seed=7), {})
    assert differences(old, new) == [
        "seed: 0 there, 7 asked for",
        "fps: 8.0 there, 4.0 asked for",
    ]


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"width": 33}, "even"),
        ({"height": 0}, "even"),
        ({"num_frames": 0}, "num_frames"),
        ({"clips_per_shard": 0}, "clips_per_shard"),
        ({"fps": 0.0}, "fps"),
        ({"columns": "film=x"}, "OURS=THEIRS"),
    ],
)
def test_useless_settings_are_refused(change: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        DatasetConfig(**change)
