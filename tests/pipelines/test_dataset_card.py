from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from musev.training.shard_files import INDEX_FIELDS, INDEX_SCHEMA
from musev.training.shards import ShardDataset
from pipelines.clip_table import ClipFailure
from pipelines.dataset_card import DatasetState, card_page, make_card, read_state, write_card
from pipelines.dataset_plan import DatasetConfig, Shard, Source, dataset_settings, plan_shards
from pipelines.ledger import Ledger
from pipelines.make_dataset import plan_dataset
from pipelines.resources import MAX_ATTEMPTS
from pipelines.stages.make_shard import MakeShard
from tests.pipelines.dataset_parts import (
    SMALL,
    Silent,
    drawn,
    graph,
    of_table,
    video,
    write_table,
)


def clip(number: int, **attributes: Any) -> dict[str, Any]:
    members = [{"name": name, "offset": 0, "size": 1} for name in ("json", "mp4")]
    return {"num_frames": 13, "members": members, "attributes": json.dumps(attributes)}


def state(*clips: dict[str, Any], failures: tuple[ClipFailure, ...] = ()) -> DatasetState:
    return DatasetState(
        clips=pa.Table.from_pylist(list(clips), schema=INDEX_SCHEMA),
        failures=failures,
        lost=(),
        num_bytes=10240,
        paths=["shards/a.tar"],
        vae_mark=None,
    )


def failure(row: int) -> ClipFailure:
    return ClipFailure(
        row=row,
        clip_id=f"c{row}",
        column="video",
        value="a|b.mp4",
        error_class="MediaError",
        stage="make_shard",
        message="no file. Check the name.",
    )


def card_of(source: Source, found: DatasetState, config: DatasetConfig = SMALL) -> dict[str, Any]:
    settings = dataset_settings(config, source, {})
    return make_card(found, config=config, source=source, settings=settings)


def made(folder: Path, source: Source, seed: int | None = None) -> tuple[Ledger, list[Shard]]:
    """Make all shards of a source without Ray."""
    wired = graph(folder, source)
    shards = plan_shards(wired.settings, source)
    stage = MakeShard(
        config=SMALL, seed=seed, ledger=wired.ledger, cache=wired.cache, pulse=Silent()
    )
    for shard in shards:
        stage({"shard": shard.to_json()})
    return wired.ledger, shards


def test_the_card_counts_what_is_there() -> None:
    card = card_of(drawn(5, seed=9), state(clip(0, a="x", n=1), clip(1, a="y"), clip(2, a="x")))
    assert card["counts"] == {
        "asked_for": 5,
        "clips": 3,
        "failed": 2,
        "frames": 39,
        "seconds": 4.875,
        "shards": 1,
        "bytes": 10240,
    }
    assert card["seeds"] == [9]
    assert card["attributes"] == {"a": {"x": 2, "y": 1}, "n": {"1": 1}}
    assert {name: facts["clips"] for name, facts in card["files"].items()} == {"json": 3, "mp4": 3}
    assert set(card["index"]) == set(INDEX_FIELDS)
    json.dumps(card)


def test_licences(tmp_path: Path) -> None:
    table = of_table(write_table(tmp_path, 1))
    assert card_of(drawn(1), state())["licence"] == "MIT"
    assert card_of(table, state())["licence"].startswith("unknown")
    assert card_of(table, state(), DatasetConfig(licence="CC-BY-4.0"))["licence"] == "CC-BY-4.0"


def test_the_page_says_the_same_and_names_failures(tmp_path: Path) -> None:
    source = of_table(write_table(tmp_path, 2))
    card = card_of(source, state(clip(0, mood="glad|sad"), failures=(failure(1),)))
    page = card_page(card, [failure(1)])
    assert "1 clips of 2 frames, 32 x 32 pixels, 8 frames a second" in page
    assert "1 of 2 clips failed; see `failures.jsonl`" in page
    assert "- row 2 ('c1'), column 'video', value a|b.mp4: no file. Check the name." in page
    assert "glad\\|sad 1" in page
    assert all(f"`{name}`" in page for name in INDEX_FIELDS)
    many = card_page(card, [failure(n) for n in range(60)])
    assert "... and 10 more" in many


def test_index_card_and_failures_are_written(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", 5, bad={1: "missing.mp4", 3: "../x.mp4"})
    source = of_table(table)
    ledger, shards = made(tmp_path, source)
    found = read_state(ledger, shards, source)
    assert [item.row for item in found.failures] == [1, 3]
    assert not found.whole
    settings = dataset_settings(SMALL, source, {})
    card = write_card(ledger, found, config=SMALL, source=source, settings=settings)
    rows = pq.read_table(io.BytesIO(ledger.store.read("index.parquet"))).to_pylist()
    assert [row["clip_id"] for row in rows] == ["c0", "c2", "c4"]
    lines = ledger.store.read("failures.jsonl").decode().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 3]
    assert json.loads(ledger.store.read("dataset.json")) == card
    dataset = ShardDataset(ledger.out_uri)
    assert json.loads(dataset.read([1])[0]["json"])["clip_id"] == "c2"


def test_a_shard_that_was_given_up_loses_its_rows_by_name(tmp_path: Path) -> None:
    source = of_table(write_table(tmp_path / "in", 2))
    wired = graph(tmp_path, source)
    (shard,) = plan_shards(wired.settings, source)
    record = {
        "status": "quarantined",
        "error_class": "WorkerLostError",
        "error_stage": "make_shard",
        "error_message": "the worker died",
        "rows": [[0, "c0"], [1, "c1"]],
    }
    wired.ledger.fail(shard.name, record)
    found = read_state(wired.ledger, [shard], source)
    assert found.lost == [shard.name]
    assert [(item.row, item.clip_id, item.message) for item in found.failures] == [
        (0, "c0", "the worker died"),
        (1, "c1", "the worker died"),
    ]


def test_a_tar_that_was_there_already_is_described_as_it_lies_there(tmp_path: Path) -> None:
    source = drawn(2)
    wired = graph(tmp_path, source)
    (shard,) = plan_shards(wired.settings, source)
    ledger, (other,) = made(tmp_path / "other", drawn(2, seed=77), seed=77)
    planted = ledger.store.read(other.path)
    wired.ledger.store.create(shard.path, planted)
    made(tmp_path, source, seed=4)
    assert wired.ledger.store.read(shard.path) == planted
    found = read_state(wired.ledger, [shard], source)
    assert [row["seed"] for row in found.clips.to_pylist()] == [77, 77]
    for row in found.clips.to_pylist():
        offset, size = next((m["offset"], m["size"]) for m in row["members"] if m["name"] == "json")
        assert json.loads(planted[offset : offset + size])["key"] == row["key"]
        assert row["shard"] == shard.path


def test_clips_that_an_adopted_tar_lacks_are_told_and_tried_again(tmp_path: Path) -> None:
    """Its attempt ended between tar file and record; the next one could make other rows."""
    source = of_table(write_table(tmp_path, 4, bad={1: "late.mp4", 2: "early.mp4"}))
    wired = graph(tmp_path, source)
    shard = plan_shards(wired.settings, source)[0]
    video(tmp_path / "early.mp4", grey=60)
    made(tmp_path, source)
    (tmp_path / "out" / "commits" / f"{shard.name}.json").unlink()
    (tmp_path / "early.mp4").unlink()
    video(tmp_path / "late.mp4", grey=30)
    cache = dataclasses.replace(wired.cache, run_id="b", folder=str(tmp_path / "cache2"))
    stage = MakeShard(config=SMALL, seed=None, ledger=wired.ledger, cache=cache, pulse=Silent())
    stage({"shard": shard.to_json()})
    found = read_state(wired.ledger, [shard], source)
    assert [row["clip_id"] for row in found.clips.to_pylist()] == ["c0", "c2"]
    (left_out,) = found.failures
    assert (left_out.row, left_out.clip_id) == (1, "c1")
    assert "--retry-failed" in left_out.message
    (again,) = (each for each in plan_dataset(wired, retry_failed=True).to_make if each.round)
    assert again.first == shard.first


def test_a_drawn_shard_that_was_given_up_names_its_clips(tmp_path: Path) -> None:
    wired = graph(tmp_path, drawn(5))
    _, shard = plan_shards(wired.settings, drawn(5))
    stage = MakeShard(config=SMALL, seed=4, ledger=wired.ledger, cache=wired.cache, pulse=Silent())
    for _ in range(MAX_ATTEMPTS):
        wired.ledger.begin_attempt(shard.name)
    stage({"shard": shard.to_json()})
    found = read_state(wired.ledger, [shard], drawn(5))
    assert [item.row for item in found.failures] == [3, 4]
    assert "--retry-failed" in found.failures[0].message
