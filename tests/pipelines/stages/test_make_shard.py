from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors

from musev.errors import ConfigError, StorageError
from musev.training.latents import mark_of
from pipelines.dataset_plan import DatasetConfig, Shard, Source, dataset_settings, plan_shards
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.resources import MAX_ATTEMPTS
from pipelines.stages.make_shard import MakeShard, load_encoder
from tests.pipelines.dataset_parts import MINI, SMALL, Silent, drawn, fake_networks, row, video


def shards_of(source: Source, config: DatasetConfig = SMALL) -> list[Shard]:
    return plan_shards(dataset_settings(config, source, {}), source)


def stage(folder: Path, *, seed: int | None = 4, **changes: Any) -> MakeShard:
    values: dict[str, Any] = {
        "config": SMALL,
        "seed": seed,
        "ledger": Ledger(str(folder / "out")),
        "cache": MediaCache(run_id="test", folder=str(folder / "cache")),
        "pulse": Silent(),
        **changes,
    }
    return MakeShard(**values)


def real_shard(*rows: Any) -> Shard:
    return Shard(first=0, end=10, digest="0" * 64, rows=rows)


def members(folder: Path, shard: Shard) -> dict[str, bytes]:
    data = (folder / "out" / shard.path).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def test_a_shard_of_drawn_clips_is_committed_with_its_index(tmp_path: Path) -> None:
    make = stage(tmp_path)
    _, second = shards_of(drawn(5))
    outcome = make({"shard": second.to_json()})
    assert outcome == {
        "name": second.name,
        "status": "committed",
        "num_clips": 2,
        "num_failed": 0,
    }
    record = make._ledger.find_commit(second.name)
    assert [clip["key"] for clip in record["clips"]] == ["00000003", "00000004"]
    assert {clip["shard"] for clip in record["clips"]} == {second.path}
    assert set(members(tmp_path, second)) == {
        f"{key}.{suffix}"
        for key in ("00000003", "00000004")
        for suffix in ("json", "mp4", "control.mp4", "reference.png", "mask.png")
    }
    assert record["clips_of"] == record["sha256"]


def test_making_a_shard_again_changes_nothing(tmp_path: Path) -> None:
    (shard,) = shards_of(drawn(2))
    stage(tmp_path)({"shard": shard.to_json()})
    before = (tmp_path / "out" / shard.path).read_bytes()
    record = (tmp_path / "out" / "commits" / f"{shard.name}.json").read_bytes()
    assert stage(tmp_path)({"shard": shard.to_json()})["status"] == "committed"
    assert (tmp_path / "out" / shard.path).read_bytes() == before
    assert (tmp_path / "out" / "commits" / f"{shard.name}.json").read_bytes() == record
    stage(tmp_path / "other")({"shard": shard.to_json()})
    assert (tmp_path / "other" / "out" / shard.path).read_bytes() == before


def test_a_bad_row_costs_no_other_clip(tmp_path: Path) -> None:
    good = str(tmp_path / video(tmp_path / "good.mp4"))
    (tmp_path / "empty.mp4").touch()
    shard = real_shard(
        row(0, good),
        row(1, str(tmp_path / "missing.mp4")),
        row(2, str(tmp_path / "empty.mp4")),
        row(3, good, start_s=60.0),
        row(4, good),
    )
    make = stage(tmp_path, seed=None)
    outcome = make({"shard": shard.to_json()})
    assert (outcome["num_clips"], outcome["num_failed"]) == (2, 3)
    record = make._ledger.find_commit(shard.name)
    assert [clip["clip_id"] for clip in record["clips"]] == ["c0", "c4"]
    failed = record["failed"]
    assert [failure["row"] for failure in failed] == [1, 2, 3]
    assert {failure["column"] for failure in failed} == {"video"}
    assert failed[0]["value"] == str(tmp_path / "missing.mp4")
    assert "no file at" in failed[0]["message"]
    assert "Give a longer video" in failed[2]["message"]


def test_a_shard_of_bad_rows_only_is_an_empty_tar(tmp_path: Path) -> None:
    shard = real_shard(row(0, str(tmp_path / "missing.mp4")))
    assert stage(tmp_path, seed=None)({"shard": shard.to_json()})["num_failed"] == 1
    assert members(tmp_path, shard) == {}


def test_networks_add_a_file(tmp_path: Path) -> None:
    (shard,) = shards_of(drawn(1))
    make = stage(tmp_path, profile=MINI, load_networks=fake_networks)
    make({"shard": shard.to_json()})
    assert members(tmp_path, shard)["00000000.latents.safetensors"].startswith(b"mini on cpu: ")
    assert make._ledger.find_commit(shard.name)["vae_mark"] == "mark"


def test_real_networks_give_latents_that_name_their_encoder(tmp_path: Path) -> None:
    from musev.models.bundle import load_bundle

    (shard,) = shards_of(drawn(1))
    make = stage(tmp_path, profile=MINI)
    make({"shard": shard.to_json()})
    tensors = load_tensors(members(tmp_path, shard)["00000000.latents.safetensors"])
    bundle = load_bundle(MINI.weights)
    assert make._ledger.find_commit(shard.name)["vae_mark"] == mark_of(bundle.vae)
    assert tensors["latents_CTHW"].shape[1] == SMALL.num_frames
    assert tensors["latents_CTHW"].dtype == torch.float16


def test_a_size_the_networks_cannot_take_stops_the_run(tmp_path: Path) -> None:
    config = DatasetConfig(width=34, height=32, num_frames=1)
    (shard,) = shards_of(drawn(1), config)
    encode, _ = load_encoder(MINI, "cpu")
    with pytest.raises(ConfigError, match="in multiples of"):
        stage(tmp_path, config=config, profile=MINI, load_networks=lambda *_: (encode, "mark"))(
            {"shard": shard.to_json()}
        )


def test_a_shard_that_killed_its_workers_is_given_up(tmp_path: Path) -> None:
    make = stage(tmp_path, seed=None)
    shard = real_shard(row(0, "a.mp4"), row(3, "b.mp4"))
    for _ in range(MAX_ATTEMPTS):
        make._ledger.begin_attempt(shard.name)
    outcome = make({"shard": shard.to_json()})
    assert (outcome["status"], outcome["num_failed"]) == ("quarantined", 2)
    record = make._ledger.failures()[shard.name]
    assert record["rows"] == [[0, "c0"], [3, "c3"]]
    assert "--retry-failed" in record["error_message"]


def die_at(number: int) -> Any:
    """Networks that leave the stage at one caption, as a killed process would."""

    def encode(clip: Any) -> bytes:
        if clip.clip_id == f"c{number}":
            raise KeyboardInterrupt
        return b"latents"

    return lambda *_: (encode, "mark")


def test_a_row_that_killed_its_worker_twice_fails_alone(tmp_path: Path) -> None:
    good = str(tmp_path / video(tmp_path / "good.mp4"))
    shard = real_shard(*(row(number, good) for number in range(4)))
    ledger = Ledger(str(tmp_path / "out"))
    make = stage(tmp_path, seed=None, ledger=ledger, profile=MINI, load_networks=die_at(1))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make({"shard": shard.to_json()})
    assert make({"shard": shard.to_json()})["num_failed"] == 1
    record = ledger.find_commit(shard.name)
    assert [clip["clip_id"] for clip in record["clips"]] == ["c0", "c2", "c3"]
    (failure,) = record["failed"]
    assert (failure["row"], failure["error_class"]) == (1, "WorkerLostError")
    assert ledger.store.list("work") == {}


def test_what_another_run_had_in_hand_is_held_against_no_row(tmp_path: Path) -> None:
    good = str(tmp_path / video(tmp_path / "good.mp4"))
    shard = real_shard(row(0, good), row(1, good))
    out = str(tmp_path / "out")
    make = stage(tmp_path, seed=None, ledger=Ledger(out), profile=MINI, load_networks=die_at(1))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make({"shard": shard.to_json()})
    calm = stage(tmp_path, seed=None, ledger=Ledger(out), profile=MINI, load_networks=fake_networks)
    assert calm({"shard": shard.to_json()})["num_failed"] == 0


def test_silent_storage_is_held_against_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = stage(tmp_path)
    (shard,) = shards_of(drawn(1))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise StorageError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(make._ledger, "commit", refuse)
        for _ in range(MAX_ATTEMPTS + 2):
            with pytest.raises(StorageError):
                make({"shard": shard.to_json()})
    assert make({"shard": shard.to_json()})["status"] == "committed"
