"""The graph on a real local Ray: shards of drawn and real clips, deaths, retries, storage."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from musev.errors import ConfigError
from musev.training.shards import ShardDataset
from pipelines.dataset_card import DatasetState
from pipelines.dataset_plan import DatasetConfig
from pipelines.ledger import Ledger
from pipelines.make_dataset import (
    DatasetGraph,
    plan_dataset,
    run_make_dataset,
)
from pipelines.rounds import WorkersFailError
from tests.pipelines.dataset_parts import (
    MINI,
    SMALL,
    broken_networks,
    deadly_networks,
    drawn,
    files_of,
    graph,
    of_table,
    video,
    write_table,
)
from tests.real_ray import local_ray
from tests.s3_server import S3Server

pytestmark = pytest.mark.timeout(240)

GIVEN_UP = {
    "status": "quarantined",
    "error_class": "WorkerLostError",
    "error_stage": "make_shard",
    "error_message": "it killed its worker",
    "rows": [],
}


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


def make(
    wired: DatasetGraph, *, retry_failed: bool = False
) -> tuple[DatasetState, dict[str, Any], list[str]]:
    """Plan and run; also the names of shards that were made."""
    names: list[str] = []
    state, card = run_make_dataset(
        wired,
        plan_dataset(wired, retry_failed=retry_failed),
        on_shard=lambda outcome, view: names.append(outcome["name"]) if outcome else None,
    )
    return state, card, names


def test_bytes_do_not_depend_on_the_number_of_workers_and_a_second_run_makes_nothing(
    folder: Path,
) -> None:
    source = drawn(8)
    _, card, names = make(graph(folder / "two", source))
    assert len(names) == 3
    assert card["counts"]["clips"] == 8
    make(graph(folder / "one", source, num_workers=1))
    assert files_of(folder / "one") == files_of(folder / "two")
    assert make(graph(folder / "two", source))[2] == []
    assert files_of(folder / "one") == files_of(folder / "two")
    dataset = ShardDataset(str(folder / "two" / "out"))
    facts = [json.loads(files["json"]) for files in dataset.read(range(8), ["json"])]
    assert [fact["index"] for fact in facts] == list(range(8))
    for path in (folder / "two" / "out" / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) % 5 == 0


def test_more_clips_go_on_where_fewer_ended(folder: Path) -> None:
    make(graph(folder, drawn(4)))
    _, card, names = make(graph(folder, drawn(7)))
    assert len(names) == 2  # the full shard stays, the short one is made anew
    assert card["counts"]["clips"] == 7
    assert ShardDataset(str(folder / "out")).num_clips == 7


def test_bad_rows_fail_alone_and_are_tried_again_when_asked(folder: Path) -> None:
    bad = {1: "late.mp4", 4: "nowhere.mp4", 5: "../outside.mp4"}
    source = of_table(write_table(folder, 7, bad=bad))
    state, card, _ = make(graph(folder, source))
    assert [failure.row for failure in state.failures] == [1, 4, 5]
    assert (card["counts"]["clips"], card["counts"]["failed"]) == (4, 3)
    before = {name for name in files_of(folder) if name.endswith(".tar")}

    video(folder / "late.mp4", grey=30)
    later = graph(
        folder, source, cache=dataclasses.replace(graph(folder, source).cache, run_id="b")
    )
    assert make(later)[2] == []
    state, card, names = make(later, retry_failed=True)
    assert [failure.row for failure in state.failures] == [4, 5]
    assert len(names) == 2  # of three shards two lacked a clip that had been tried
    rows = pq.read_table(io.BytesIO((folder / "out" / "index.parquet").read_bytes())).to_pylist()
    assert [row["clip_id"] for row in rows] == ["c0", "c1", "c2", "c3", "c6"]
    after = {name for name in files_of(folder) if name.endswith(".tar")}
    assert len(after) == len(before) == 3
    assert len(after - before) == 2
    assert make(later)[2] == []


def test_a_retry_that_is_given_up_costs_no_clip(folder: Path) -> None:
    """The shard of the first try stays, with the reason that it had for the row it lacks."""
    source = of_table(write_table(folder, 3, bad={1: "nowhere.mp4"}))
    make(graph(folder, source))
    before = files_of(folder)
    wired = graph(folder, source)
    plan = plan_dataset(wired, retry_failed=True)
    (again,) = plan.to_make
    wired.ledger.fail(again.name, GIVEN_UP)
    given_up = dataclasses.replace(plan, to_make=[])
    state, card = run_make_dataset(wired, given_up, on_shard=lambda *_: None)
    assert card["counts"]["clips"] == 2
    assert [(item.row, item.column) for item in state.failures] == [(1, "video")]
    tried = {name: data for name, data in files_of(folder).items() if "failures/" not in name}
    assert tried == before
    assert len(plan_dataset(graph(folder, source), retry_failed=True).to_make) == 1


def test_a_row_that_kills_its_worker_fails_alone(folder: Path) -> None:
    table = write_table(folder, 4)
    rows = [dataclasses.replace(row, caption="die") if row.row == 1 else row for row in table.rows]
    source = of_table(dataclasses.replace(table, rows=rows))
    wired = graph(folder, source, profile=MINI, load_networks=deadly_networks)
    state, card, _ = make(wired)
    assert [(item.row, item.error_class) for item in state.failures] == [(1, "WorkerLostError")]
    assert (card["counts"]["clips"], card["vae_mark"]) == (3, "mark")


def test_a_shard_that_was_given_up_is_left_alone_until_asked(folder: Path) -> None:
    wired = graph(folder, drawn(4))
    first, second = plan_dataset(wired).shards
    wired.ledger.fail(first.name, GIVEN_UP)
    plan = plan_dataset(wired)
    assert plan.to_make == [second]
    assert plan.failed_before == [first]
    assert "given up       1 shards" in plan.lines()[-1]
    assert list(plan_dataset(wired, retry_failed=True).to_make) == [first, second]


def test_what_keeps_workers_from_starting_ends_the_run_with_its_reason(folder: Path) -> None:
    wired = graph(folder, drawn(1), profile=MINI, load_networks=broken_networks)
    with pytest.raises(WorkersFailError, match="not what they seem"):
        make(wired)


def test_an_output_holds_one_dataset(folder: Path) -> None:
    settings = graph(folder, drawn(2)).settings
    graph(folder, drawn(2)).ledger.store.create("settings.json", json.dumps(settings).encode())
    plan_dataset(graph(folder, drawn(9)))
    for other in (
        graph(folder, drawn(2, seed=5)),
        graph(folder, drawn(2), config=dataclasses.replace(SMALL, fps=4.0)),
        graph(folder, of_table(write_table(folder, 1))),
    ):
        with pytest.raises(ConfigError, match="other settings"):
            plan_dataset(other)


def test_all_that_decides_latents_is_in_the_settings(folder: Path) -> None:
    digests = {"t2i_file": "a", "tokenizer": "b", "unet": "c", "vae": "d", "text_encoder": "e"}
    wired = graph(folder, drawn(1), profile=MINI, model_digests=digests)
    kept = {name: digest for name, digest in digests.items() if name != "unet"}
    assert wired.settings["models"] == {**kept, "precision": "float32"}
    assert graph(folder, drawn(1), model_digests=digests).settings["models"] == {}


def test_on_s3(folder: Path, s3_uri: str, s3_server: S3Server) -> None:
    options = s3_server.storage_options
    ledger = Ledger(f"{s3_uri}/some/data", options)
    source = drawn(4)
    state, _, names = make(graph(folder, source, ledger=ledger))
    assert (state.clips.num_rows, len(names)) == (4, 2)
    assert make(graph(folder, source, ledger=ledger))[2] == []
    make(graph(folder, source, num_workers=1))
    local = files_of(folder)
    assert {name: ledger.store.read(name) for name in local} == local
    remote = ShardDataset(ledger.out_uri, **options)
    assert remote.read([3, 0]) == ShardDataset(str(folder / "out")).read([3, 0])


def test_the_plan_says_what_will_be_made(folder: Path) -> None:
    wired = graph(folder, drawn(7), config=DatasetConfig(clips_per_shard=3))
    plan = plan_dataset(wired)
    assert plan.lines() == [
        "shards         3",
        "already there  0",
        "to make        3 shards, 7 clips",
    ]
    assert not (folder / "out").exists()
