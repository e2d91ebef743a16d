"""Checkpoints: whole or passed over, the newest kept, on every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from musev.errors import WeightsError
from musev.training.checkpoints import CheckpointStore
from tests.s3_server import S3Server, s3_server, s3_uri

__all__ = ["s3_server", "s3_uri"]


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    """An empty store of each kind."""
    if request.param == "file":
        yield CheckpointStore(str(tmp_path / "run" / "checkpoints"))
    elif request.param == "memory":
        yield CheckpointStore(f"memory://{tmp_path.name}/checkpoints")
    else:
        uri: str = request.getfixturevalue("s3_uri")
        server: S3Server = request.getfixturevalue("s3_server")
        yield CheckpointStore(f"{uri}/run/checkpoints", **server.storage_options)


def _state(value: float) -> dict:
    return {"weights": {"w": torch.full((2,), value)}, "history": [{"step": 1, "loss": value}]}


def test_states_come_back_and_the_oldest_go(store: CheckpointStore) -> None:
    assert store.load() is None
    for step in (5, 10, 15):
        store.save(step, _state(float(step)))
    assert store.steps() == [10, 15]
    newest, older = store.load(), store.load(10)
    assert newest is not None
    assert older is not None
    assert (newest["step"], older["step"]) == (15, 10)
    assert torch.equal(newest["weights"]["w"], torch.full((2,), 15.0))
    assert older["history"] == [{"step": 1, "loss": 10.0}]


def test_a_damaged_newest_is_passed_over(store: CheckpointStore) -> None:
    store.save(1, _state(1.0))
    store.save(2, _state(2.0))
    store.put_bytes("step-00000002.pt", b"half a checkp")
    found = store.load()
    assert found is not None
    assert found["step"] == 1
    with pytest.raises(WeightsError, match="tried steps"):
        store.load(2)
    store.put_bytes("step-00000001.pt", b"")
    with pytest.raises(WeightsError, match="no readable checkpoint"):
        store.load()


def test_a_store_that_does_not_answer_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would go back to an older checkpoint, and the newest be overwritten."""
    store = CheckpointStore(str(tmp_path))
    store.save(1, _state(1.0))
    store.save(2, _state(2.0))
    read = store._files.cat_file

    def cat_file(path: str) -> bytes:
        if path.endswith("2.pt"):
            raise TimeoutError("the store is busy")
        return read(path)

    monkeypatch.setattr(store._files, "cat_file", cat_file)
    with pytest.raises(TimeoutError, match="busy"):
        store.load()
    monkeypatch.undo()
    with pytest.raises(WeightsError, match=r"tried steps \[7\]"):
        store.load(7)


def test_other_files_lie_beside(store: CheckpointStore) -> None:
    store.put_bytes("../log/1.jsonl", b"{}")
    store.put_bytes("notes.txt", b"mine")
    assert store.steps() == []
    store.save(3, _state(0.0))
    assert store.steps() == [3]


def test_records_land_one_folder_up(tmp_path: Path) -> None:
    CheckpointStore(str(tmp_path / "run" / "checkpoints")).put_bytes("../log/1.jsonl", b"{}")
    assert (tmp_path / "run" / "log" / "1.jsonl").read_bytes() == b"{}"


def test_a_writer_that_dies_leaves_no_name_that_counts(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(1, _state(1.0))
    fsspec.filesystem("file").pipe_file(f"{tmp_path}/step-00000002.pt.part", b"half")
    assert store.steps() == [1]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(1, _state(1.0))
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "step-00000002.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    found = store.load()
    assert found is not None
    assert found["step"] == 1
    assert not (tmp_path / "ran").exists()
