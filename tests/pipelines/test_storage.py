from __future__ import annotations

import multiprocessing
import pickle
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from musev.errors import StorageError
from pipelines import storage
from pipelines.storage import TEMPORARY, Store
from tests.s3_server import Fault, S3Server

PLACES = ("local", "memory", "s3")
NUM_RACES = 50


def make_store(place: str, request: pytest.FixtureRequest, folder: str = "out") -> Store:
    if place == "local":
        return Store(f"{request.getfixturevalue('tmp_path')}/{folder}")
    if place == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/{folder}")
    uri = request.getfixturevalue("s3_uri")
    server = request.getfixturevalue("s3_server")
    return Store(f"{uri}/{folder}", server.storage_options)


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest) -> Store:
    return make_store(request.param, request)


@pytest.fixture
def s3_store(s3_uri: str, s3_server: S3Server) -> Store:
    return Store(f"{s3_uri}/out", s3_server.storage_options)


def test_objects_round_trip_and_are_listed(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"from a file")
    store.put("a/one.json", b"1")
    store.put("a/one.json", b"one")
    store.put("a/deep/two.bin", source)
    store.put("ab/other.json", b"")
    assert store.read("a/one.json") == b"one"
    assert store.list("a") == {"a/deep/two.bin": 11, "a/one.json": 3}
    assert store.read_many(["a/one.json", "a/gone", "a/deep/two.bin"]) == {
        "a/one.json": b"one",
        "a/deep/two.bin": b"from a file",
    }
    target = tmp_path / "target.bin"
    store.fetch("a/deep/two.bin", target)
    assert target.read_bytes() == b"from a file"
    assert store.digest("a/deep/two.bin") == storage.digest_stream(source.open("rb"))
    assert store.delete_folder("a") == 2
    assert store.list("a") == {}
    assert store.list("ab") == {"ab/other.json": 0}


def test_an_absent_object_is_told_apart_from_a_silent_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing/here")
    with pytest.raises(FileNotFoundError):
        store.digest("nothing/here")
    with pytest.raises(FileNotFoundError):
        store.fetch("nothing/here", tmp_path / "target")
    assert store.read_if_present("nothing/here") is None
    assert store.list("nothing") == {}
    store.delete(["nothing/here"])


def test_create_keeps_what_was_there_first(store: Store, tmp_path: Path) -> None:
    second = tmp_path / "second.bin"
    second.write_bytes(b"second")
    assert store.create("x/y.json", b"first") == b"first"
    assert store.create("x/y.json", b"second") == b"first"
    assert store.create_from_file("x/y.json", second) is False
    assert store.read("x/y.json") == b"first"
    assert store.create_from_file("x/z.json", second) is True
    assert store.read("x/z.json") == b"second"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "folder", ["with space", "ünï-🎬/日本", "a+b=c&d%20e", "dots.and[brackets]*"]
)
def test_odd_folder_names(place: str, folder: str, request: pytest.FixtureRequest) -> None:
    store = make_store(place, request, folder)
    store.check()
    store.create("commits/é [1].json", b"x")
    store.put("commits/b.json", b"y")
    assert set(store.list("commits")) == {"commits/é [1].json", "commits/b.json"}
    assert store.read("commits/é [1].json") == b"x"
    store.delete(["commits/é [1].json"])
    assert set(store.list("commits")) == {"commits/b.json"}


def test_a_slash_at_the_end_is_the_same_place(store: Store) -> None:
    store.put("a/b", b"1")
    again = Store(store.uri + "/", store._options)
    assert again.uri == store.uri
    assert again.read("a/b") == b"1"
    assert again.uri_of("a/b") == f"{store.uri}/a/b"


def test_another_writers_new_objects_are_listed(store: Store) -> None:
    assert store.list("a") == {}
    Store(store.uri, store._options).put("a/b", b"1")
    assert list(store.list("a")) == ["a/b"]


def test_a_used_store_travels_to_other_processes(store: Store) -> None:
    store.put("a/b", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a/b") == b"1"


def test_the_probe_passes_and_leaves_nothing(store: Store) -> None:
    store.check()
    assert store.list("work") == {}


def test_local_files_are_complete_before_they_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    seen: list[tuple[bytes, bool]] = []
    link = storage.os.link

    def spy(source: Path, target: Path) -> None:
        seen.append((source.read_bytes(), target.exists()))
        link(source, target)

    monkeypatch.setattr(storage.os, "link", spy)
    store.create("commits/a.json", b"whole")
    assert seen == [(b"whole", False)]
    assert list((tmp_path / TEMPORARY).iterdir()) == []


def test_a_folder_cleared_away_in_the_middle_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    link, cleared = storage.os.link, []

    def clear_first(source: Path, target: Path) -> None:
        if not cleared:
            cleared.append(target.parent.rmdir())
        link(source, target)

    monkeypatch.setattr(storage.os, "link", clear_first)
    assert store.create("work/a/attempts/1.json", b"x") == b"x"
    assert cleared
    assert store.read("work/a/attempts/1.json") == b"x"


# Races between processes --------------------------------------------------------------------------


def _race(uri: str, options: dict[str, Any], name: str, barrier: Any, answers: Any) -> None:
    store = Store(uri, options)
    store.list("races")  # connected before the start signal
    wins = []
    for index in range(NUM_RACES):
        mine = f"{name}-{index}".encode()
        barrier.wait(60)
        if store.create(f"races/{index}.json", mine) == mine:
            wins.append(index)
    answers.put((name, wins))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_two_processes_race_and_one_wins_each_time(
    place: str, request: pytest.FixtureRequest
) -> None:
    store = make_store(place, request)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    racers = [
        context.Process(target=_race, args=(store.uri, store._options, name, barrier, answers))
        for name in ("left", "right")
    ]
    for racer in racers:
        racer.start()
    try:
        wins = dict(answers.get(timeout=120) for _ in racers)
    finally:
        for racer in racers:
            racer.join(timeout=30)
            racer.kill()
    assert sorted(wins["left"] + wins["right"]) == list(range(NUM_RACES))
    for name, indices in wins.items():
        for index in indices:
            assert store.read(f"races/{index}.json") == f"{name}-{index}".encode()


def test_threads_race_in_memory() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}/out")
    won: list[int] = []

    def write(index: int) -> None:
        if store.create("races/one.json", str(index).encode()) == str(index).encode():
            won.append(index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


# A store that misbehaves --------------------------------------------------------------------------


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.001)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("times", [1, 100])
def test_a_put_that_arrived_without_an_answer_is_recognised_as_our_own(
    s3_store: Store, s3_server: S3Server, times: int
) -> None:
    # Once: the client below puts again and is told 412 by its own first try. Always: it gives up.
    fault = Fault("PUT", "/commits/", "500 Internal Server Error", "InternalError", True, times)
    s3_server.faults.append(fault)
    assert s3_store.create("commits/a.json", b"mine") == b"mine"
    assert fault.times < times
    s3_server.faults.clear()
    assert s3_store.read("commits/a.json") == b"mine"


@pytest.mark.usefixtures("no_pauses")
def test_a_put_without_an_answer_that_lost_is_recognised_as_lost(
    s3_store: Store, s3_server: S3Server
) -> None:
    s3_store.create("commits/a.json", b"theirs")
    fault = Fault("PUT", "/commits/", "500 Internal Server Error", "InternalError", True, 100)
    s3_server.faults.append(fault)
    assert s3_store.create("commits/a.json", b"mine") == b"theirs"


@pytest.mark.usefixtures("no_pauses")
def test_a_conflict_is_tried_again(s3_store: Store, s3_server: S3Server) -> None:
    fault = Fault("PUT", "/commits/", "409 Conflict", "ConditionalRequestConflict", False)
    s3_server.faults.append(fault)
    assert s3_store.create("commits/a.json", b"mine") == b"mine"
    assert fault.times == 0


@pytest.mark.usefixtures("no_pauses")
def test_a_precondition_failure_without_details_is_still_a_loss(
    s3_store: Store, s3_server: S3Server
) -> None:
    # Other servers than AWS leave out which condition failed; fsspec then raises a plain OSError.
    s3_store.create("commits/a.json", b"theirs")
    s3_server.faults.append(
        Fault("PUT", "/commits/", "412 Precondition Failed", "PreconditionFailed", False)
    )
    assert s3_store.create("commits/a.json", b"mine") == b"theirs"


@pytest.mark.usefixtures("no_pauses")
def test_a_timeout_after_the_put_is_read_back(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_put = s3_store._fs.pipe_file

    def put_and_time_out(*args: Any, **kwargs: Any) -> None:
        really_put(*args, **kwargs)
        raise TimeoutError("no answer")

    monkeypatch.setattr(s3_store._fs, "pipe_file", put_and_time_out)
    assert s3_store.create("commits/a.json", b"mine") == b"mine"
    assert s3_store.create("commits/a.json", b"other") == b"mine"


@pytest.mark.usefixtures("no_pauses")
def test_an_upload_without_an_answer_may_be_anybodys(
    s3_store: Store, s3_server: S3Server, tmp_path: Path
) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(b"video")
    s3_server.faults.append(
        Fault("PUT", "/videos/", "500 Internal Server Error", "InternalError", True, 100)
    )
    assert s3_store.create_from_file("videos/a.mp4", video) is False
    s3_server.faults.clear()
    assert s3_store.read("videos/a.mp4") == b"video"


@pytest.mark.usefixtures("no_pauses")
def test_short_outages_are_waited_out(s3_store: Store, s3_server: S3Server) -> None:
    s3_store.put("a/b", b"1")
    fault = Fault("GET", "/out/a/b", "503 Slow Down", "SlowDown", False, 4)
    s3_server.faults.append(fault)
    assert s3_store.read("a/b") == b"1"
    assert fault.times == 0


@pytest.mark.slow
def test_a_large_upload_is_conditional_too(s3_store: Store, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(bytes(101 * 2**20))  # above s3fs's limit for a single put
    assert s3_store.create_from_file("videos/a.mp4", video) is True
    video.write_bytes(b"\1" * (101 * 2**20))
    assert s3_store.create_from_file("videos/a.mp4", video) is False
    assert s3_store.read("videos/a.mp4")[:1] == b"\0"


def test_a_store_that_ignores_the_condition_is_refused(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = s3_store._fs.pipe_file
    monkeypatch.setattr(s3_store._fs, "pipe_file", lambda path, data, mode: put(path, data))
    with pytest.raises(StorageError, match="ignores the condition"):
        s3_store.check()


@pytest.mark.parametrize(
    ("uri", "phrase"),
    [
        ("http://example.org/out", "no create-if-absent"),
        ("simplecache::s3://bucket/out", "no create-if-absent"),
        ("s3://", "names no bucket"),
        ("", "names no bucket or folder"),
    ],
)
def test_places_that_cannot_be_used_are_named(uri: str, phrase: str) -> None:
    with pytest.raises(StorageError, match=phrase):
        Store(uri)


@pytest.mark.usefixtures("no_pauses")
def test_an_unreachable_store_is_a_clear_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{port}"}
    with pytest.raises(StorageError, match=r"cannot create s3://bucket/out.*Check the address"):
        Store("s3://bucket/out", options).check()


def test_a_missing_bucket_is_a_clear_error(s3_server: S3Server) -> None:
    store = Store("s3://no-such-bucket-here/out", s3_server.storage_options)
    with pytest.raises(StorageError, match="Create the bucket"):
        store.check()


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(StorageError, match="Check that the folder"):
        Store(f"{tmp_path}/out").check()


def test_a_disk_without_hard_links_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(storage.os, "link", refuse)
    with pytest.raises(StorageError, match="hard links"):
        Store(str(tmp_path)).check()


def test_its_errors_survive_pickling() -> None:
    with pytest.raises(StorageError) as caught:
        Store("ftp://host/out")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
