from __future__ import annotations

import dataclasses
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from musev.config import ClipRequest, EncoderConfig, SamplingConfig, to_plain
from musev.errors import StorageError
from pipelines import storage
from pipelines.ledger import FORGIVEN_ATTEMPTS, Ledger, sample_id, video_path
from pipelines.rows import RESULTS_SCHEMA
from tests.s3_server import Fault, S3Server

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("local", "memory", "s3")
NAME = "ab" * 32
OTHER = "cd" * 32
FAILURE = {"status": "failed", "error_class": "MediaError", "error_message": "no such picture"}


def make_ledger(place: str, request: pytest.FixtureRequest) -> Ledger:
    if place == "local":
        return Ledger(f"{request.getfixturevalue('tmp_path')}/out")
    if place == "memory":
        return Ledger(f"memory://{uuid.uuid4().hex}/out")
    server = request.getfixturevalue("s3_server")
    return Ledger(f"{request.getfixturevalue('s3_uri')}/some/où t", server.storage_options)


@pytest.fixture(params=PLACES)
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return make_ledger(request.param, request)


@pytest.fixture(params=["local", "s3"])
def shared_ledger(request: pytest.FixtureRequest) -> Ledger:
    """A ledger that other processes see too."""
    return make_ledger(request.param, request)


@pytest.fixture
def s3_ledger(s3_uri: str, s3_server: S3Server) -> Ledger:
    return Ledger(f"{s3_uri}/out", s3_server.storage_options)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "rendered.mp4"
    path.write_bytes(b"all frames")
    return path


def next_run(ledger: Ledger) -> Ledger:
    """The same output, opened by the driver of a later run."""
    return Ledger(ledger.out_uri, ledger.store._options)


# Names of samples


def make_request(**changes: Any) -> dict[str, Any]:
    request = ClipRequest(
        request_id="first",
        prompt="a person, smiling",
        condition_image="file:///pictures/a.png",
        num_frames=13,
        fps=8.0,
        width=64,
        height=64,
        seed=7,
        profile="mini",
        sampling=SamplingConfig(),
    )
    return to_plain(dataclasses.replace(request, **changes))


DIGESTS = {"condition_image": "sha256:aa"}
MODELS = {"unet": "sha256:bb"}
ENCODER = to_plain(EncoderConfig())


def name_of(**changes: Any) -> str:
    return sample_id(make_request(**changes), DIGESTS, MODELS, ENCODER)


def test_a_sample_id_is_stable_across_processes_and_versions() -> None:
    # A changed value here means that every finished video of every user would be rendered again.
    plain = {"prompt": "é", "seed": 1, "fps": 4.0, "sampling": {"windows": (12, 4)}}
    name = sample_id(plain, {"video": "v"}, {"unet": "u"}, {"crf": 18}, format_version=1)
    text = (
        '{"encoder":{"crf":18},"format":1,"media":{"video":"v"},"models":{"unet":"u"},'
        '"request":{"fps":4,"prompt":"é","sampling":{"windows":[12,4]},"seed":1},"settings":{}}'
    )
    assert name == hashlib.sha256(text.encode()).hexdigest()


def test_what_a_request_does_not_ask_for_does_not_name_its_sample() -> None:
    """So a column that is new renames no finished video."""
    plain = make_request()
    for nothing in (None, False, (), []):
        assert sample_id({**plain, "new": nothing}, DIGESTS, MODELS, ENCODER) == name_of()
    for something in (0, "", True, 0.5, ["x"]):
        assert sample_id({**plain, "new": something}, DIGESTS, MODELS, ENCODER) != name_of()


def test_addresses_and_request_ids_do_not_name_a_sample() -> None:
    moved = name_of(request_id="second", condition_image="s3://elsewhere/b.png")
    assert moved == name_of()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"prompt": "a person, smiling "},
        {"num_frames": 14},
        {"sampling": SamplingConfig(num_steps=11)},
        {"profile": "musev"},
        {"condition_image": None},
        {"reference_image": "file:///pictures/a.png"},
    ],
)
def test_what_decides_the_bytes_names_the_sample(changes: dict[str, Any]) -> None:
    media = {
        name: "sha256:aa"
        for name, uri in make_request(**changes).items()
        if "image" in name and uri
    }
    assert sample_id(make_request(**changes), media, MODELS, ENCODER) != name_of()


def test_digests_encoder_settings_and_format_name_the_sample() -> None:
    plain = make_request()
    names = {
        name_of(),
        sample_id(plain, {"condition_image": "sha256:ab"}, MODELS, ENCODER),
        sample_id(plain, DIGESTS, {"unet": "sha256:bc"}, ENCODER),
        sample_id(plain, DIGESTS, MODELS, {**ENCODER, "crf": 19}),
        sample_id(plain, DIGESTS, MODELS, ENCODER, settings={"precision": "float16"}),
        sample_id(plain, DIGESTS, MODELS, ENCODER, format_version=2),
    }
    assert len(names) == 6


def test_whole_numbers_have_one_spelling() -> None:
    assert name_of(fps=8) == name_of(fps=8.0)
    assert name_of(fps=8.5) != name_of(fps=8.0)


def test_media_without_a_digest_has_no_name() -> None:
    with pytest.raises(AssertionError, match="condition_image"):
        sample_id(make_request(), {}, MODELS, ENCODER)


# Commits


def test_a_commit_puts_the_video_then_the_record(ledger: Ledger, video: Path) -> None:
    attempt = ledger.begin_attempt(NAME)
    outcome = ledger.commit(NAME, attempt.id, video, {"prompt": "日本 🎬", "width": 64})
    assert outcome.status == "committed"
    assert ledger.store.read(video_path(NAME)) == b"all frames"
    assert ledger.committed() == {NAME: outcome.record}
    assert ledger.committed_ids() == {NAME}
    assert outcome.record["prompt"] == "日本 🎬"
    assert outcome.record["bytes"] == 10
    assert outcome.record["sha256"] == hashlib.sha256(b"all frames").hexdigest()
    assert ledger.store.list("work") == {}
    assert video.exists()


def test_another_kind_of_file_has_a_place_of_its_own(ledger: Ledger, video: Path) -> None:
    attempt, _ = ledger.begin_attempt("a-shard")
    record = ledger.commit("a-shard", attempt, video, {}, target="shards/a-shard.tar").record
    assert record["video"] == "shards/a-shard.tar"
    assert ledger.store.read("shards/a-shard.tar") == b"all frames"
    assert not ledger.store.list("videos")


def test_committing_again_changes_nothing(ledger: Ledger, video: Path) -> None:
    first = ledger.begin_attempt(NAME)
    record = ledger.commit(NAME, first.id, video, {"width": 64}).record
    assert ledger.commit(NAME, first.id, video, {"width": 65}).status == "committed"
    second = ledger.begin_attempt(NAME)
    video.write_bytes(b"other frames")
    outcome = next_run(ledger).commit(NAME, second.id, video, {"width": 66})
    assert outcome.status == "already_committed"
    assert outcome.record == record
    assert ledger.store.read(video_path(NAME)) == b"all frames"


def _commit_and_die(ledger: Ledger, video: Path, moment: str) -> None:
    create = storage.Store.create

    def die_at_the_record(store: storage.Store, path: str, data: bytes) -> bytes:
        if not path.startswith("commits/"):
            return create(store, path, data)
        if moment == "after":
            create(store, path, data)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    storage.Store.create = die_at_the_record  # type: ignore[method-assign]
    ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, {"width": 64})


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_killed_round_its_commit_record(
    shared_ledger: Ledger, video: Path, moment: str
) -> None:
    worker = multiprocessing.get_context("spawn").Process(
        target=_commit_and_die, args=(shared_ledger, video, moment)
    )
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert shared_ledger.store.read(video_path(NAME)) == b"all frames"
    assert bool(shared_ledger.committed_ids()) == (moment == "after")

    ledger = next_run(shared_ledger)
    outcome = ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, {"width": 64})
    assert outcome.status == ("committed" if moment == "before" else "already_committed")
    assert list(ledger.committed()) == [NAME]
    assert ledger.store.list("work") == {}
    assert list(ledger.store.list("videos")) == [video_path(NAME)]


def test_an_orphaned_video_is_adopted_with_the_bytes_that_lie_there(
    ledger: Ledger, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.store.put(video_path(NAME), b"an earlier attempt's frames")
    outcome = ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, {})
    sha256, size = ledger.store.digest(video_path(NAME))
    assert (outcome.record["sha256"], outcome.record["bytes"]) == (sha256, size)
    assert ledger.store.read(video_path(NAME)) == b"an earlier attempt's frames"
    assert "differ from those an earlier one left" in caplog.text


def _commit_often(ledger: Ledger, folder: Path, name: str, barrier: Any, answers: Any) -> None:
    video = folder / f"{name}.mp4"
    video.write_bytes(name.encode())
    won = []
    for index in range(8):
        sample = f"{index:064x}"
        attempt = ledger.begin_attempt(sample)
        barrier.wait(60)
        if ledger.commit(sample, attempt.id, video, {"by": name}).status == "committed":
            won.append(sample)
    answers.put((name, won))


def test_two_processes_commit_the_same_rows(shared_ledger: Ledger, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [
        context.Process(
            target=_commit_often, args=(shared_ledger, tmp_path, name, barrier, answers)
        )
        for name in ("left", "right")
    ]
    for worker in workers:
        worker.start()
    try:
        won = dict(answers.get(timeout=120) for _ in workers)
    finally:
        for worker in workers:
            worker.join(30)
            worker.kill()
    assert sorted(won["left"] + won["right"]) == [f"{index:064x}" for index in range(8)]
    for sample, record in shared_ledger.committed().items():
        assert sample in won[record["by"]]
        # Whoever's video arrived first stays, and the record describes exactly those bytes.
        assert shared_ledger.store.digest(record["video"]) == (record["sha256"], record["bytes"])


@pytest.mark.parametrize("times", [1, 100])
def test_a_commit_whose_answer_was_lost_is_ours(
    s3_ledger: Ledger,
    s3_server: S3Server,
    video: Path,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.001)
    attempt = s3_ledger.begin_attempt(NAME)
    s3_server.faults.append(
        Fault("PUT", "/commits/", "500 Internal Server Error", "InternalError", True, times)
    )
    assert s3_ledger.commit(NAME, attempt.id, video, {}).status == "committed"


def test_an_empty_video_is_not_committed(ledger: Ledger, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(StorageError, match="is empty"):
        ledger.commit(NAME, ledger.begin_attempt(NAME).id, empty, {})
    assert ledger.committed_ids() == set()
    assert ledger.store.list("videos") == {}


@pytest.mark.parametrize(
    "content", [b"", b'{"sha256": "a', b"[]", b'{"status": "committed"}', b"\xff"]
)
def test_a_damaged_commit_record_is_named_and_can_be_mended(
    ledger: Ledger, video: Path, content: bytes
) -> None:
    ledger.commit(OTHER, ledger.begin_attempt(OTHER).id, video, {})
    ledger.store.put(f"commits/{NAME}.json", content)
    with pytest.raises(StorageError, match=f"commits/{NAME}.json.*Delete them"):
        ledger.committed()
    attempt = ledger.begin_attempt(NAME)
    with pytest.raises(StorageError, match="damaged"):
        ledger.commit(NAME, attempt.id, video, {})
    ledger.store.delete([f"commits/{NAME}.json"])
    assert ledger.commit(NAME, attempt.id, video, {}).status == "committed"
    assert set(ledger.committed()) == {NAME, OTHER}


def test_an_empty_commit_record_is_seen_in_the_listing(ledger: Ledger) -> None:
    ledger.store.put(f"commits/{NAME}.json", b"")
    with pytest.raises(StorageError, match=f"commits/{NAME}.json"):
        ledger.committed_ids()


def test_the_end_of_a_run_never_hides_its_reason(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    Ledger(f"{tmp_path}/out").end_run("finished")


def test_a_ledger_that_was_used_travels(ledger: Ledger, video: Path) -> None:
    ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, {})
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy.committed_ids() == {NAME}
    assert copy.run_id == ledger.run_id


# Attempts and failures


def test_attempts_of_a_run_count_up_per_row(ledger: Ledger) -> None:
    attempts = [ledger.begin_attempt(NAME) for _ in range(4)]
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 4]
    assert len({attempt.id for attempt in attempts}) == 4
    assert ledger.begin_attempt(OTHER).number == 1


def test_interrupted_runs_are_held_against_no_row(ledger: Ledger) -> None:
    for _ in range(FORGIVEN_ATTEMPTS + 5):
        run = next_run(ledger)
        assert run.begin_attempt(NAME).number == 1
        run.end_run("interrupted")


def test_runs_that_vanish_count_only_after_many(ledger: Ledger) -> None:
    numbers = [next_run(ledger).begin_attempt(NAME).number for _ in range(FORGIVEN_ATTEMPTS + 4)]
    assert numbers == [1] * (FORGIVEN_ATTEMPTS + 1) + [2, 3, 4]


def test_a_row_that_kills_its_worker_counts_afresh_in_the_next_run(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.begin_attempt(NAME)
    assert next_run(ledger).begin_attempt(NAME).number == 1


def test_a_released_attempt_does_not_count(ledger: Ledger) -> None:
    attempt = ledger.begin_attempt(NAME)
    ledger.release_attempt(NAME, attempt.id)
    assert ledger.begin_attempt(NAME).number == 1


def _begin_often(ledger: Ledger, barrier: Any, answers: Any) -> None:
    barrier.wait(60)
    answers.put([tuple(ledger.begin_attempt(NAME)) for _ in range(4)])


def test_attempts_from_two_processes_are_all_recorded(shared_ledger: Ledger) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_begin_often, args=(shared_ledger, barrier, answers))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    try:
        begun = [attempt for _ in workers for attempt in answers.get(timeout=60)]
    finally:
        for worker in workers:
            worker.join(30)
            worker.kill()
    places = sorted(int(attempt_id.partition("-")[0]) for attempt_id, _ in begun)
    assert places == list(range(1, 9))


def test_a_failure_stays_over_runs_until_it_is_cleared(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.begin_attempt(NAME)
    written = ledger.fail(NAME, {**FAILURE, "status": "quarantined", "attempts": 3})
    again = next_run(ledger)
    assert again.failures() == {NAME: written}
    assert again.find_failure(NAME) == written
    assert again.store.list("work") == {}
    assert again.clear_failure(NAME) is True
    assert again.clear_failure(NAME) is False
    assert again.failures() == {}
    assert again.begin_attempt(NAME).number == 1


def test_the_first_failure_of_a_run_stands_and_a_later_run_replaces_it(ledger: Ledger) -> None:
    ledger.fail(NAME, {**FAILURE, "error_message": "first"})
    assert ledger.fail(NAME, {**FAILURE, "error_message": "second"})["error_message"] == "first"
    next_run(ledger).fail(NAME, {**FAILURE, "error_message": "third"})
    assert ledger.failures()[NAME]["error_message"] == "third"


def test_a_commit_beats_a_failure(ledger: Ledger, video: Path) -> None:
    attempt = ledger.begin_attempt(NAME)
    ledger.fail(NAME, FAILURE)
    record = ledger.commit(NAME, attempt.id, video, {}).record
    assert ledger.failures() == {}
    assert ledger.find_failure(NAME) is None
    assert ledger.fail(NAME, FAILURE) == record


# Unfinished work


def test_work_is_kept_over_attempts_and_cleared_by_the_commit(
    ledger: Ledger, video: Path, tmp_path: Path
) -> None:
    first = ledger.begin_attempt(NAME)
    ledger.put_work(NAME, first.id, "segments/000.mp4", video)
    ledger.put_work(NAME, first.id, "state.json", b"1")
    ledger.put_work(NAME, first.id, "state.json", b"2")
    again = next_run(ledger)
    second = again.begin_attempt(NAME)
    assert again.list_work(NAME) == [(first.id, "segments/000.mp4"), (first.id, "state.json")]
    assert again.get_work(NAME, first.id, "state.json") == b"2"
    target = tmp_path / "segment.mp4"
    again.fetch_work(NAME, first.id, "segments/000.mp4", target)
    assert target.read_bytes() == b"all frames"
    again.commit(NAME, second.id, video, {})
    assert again.list_work(NAME) == []
    with pytest.raises(FileNotFoundError):
        again.get_work(NAME, first.id, "state.json")


def test_a_new_run_clears_what_slow_workers_left_of_settled_rows(
    ledger: Ledger, video: Path
) -> None:
    slow = ledger.begin_attempt(NAME)
    ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, {})
    ledger.put_work(NAME, slow.id, "late.mp4", b"late")
    ledger.end_run("finished")
    ledger.put_work(OTHER, "1-x", "wanted.mp4", b"wanted")
    again = next_run(ledger)
    assert again.clear_settled_work() == 1
    assert again.list_work(NAME) == []
    assert again.list_work(OTHER) == [("1-x", "wanted.mp4")]
    assert list(again.store.list("work/runs")) != []


# Results


def test_results_come_from_commits_and_failures_only(ledger: Ledger, video: Path) -> None:
    record = {
        "request": make_request(),
        "width": 64,
        "fps": 8.0,
        "model_digests": {"unet": "sha256:bb"},
        "stage_seconds": {"denoise": 1.5},
        "attempts": 2,
    }
    ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, record)
    ledger.fail(OTHER, {**FAILURE, "error_stage": "load_inputs"})
    rows = ledger.write_results(
        [
            ("first", NAME, {}),
            ("twin", NAME, {"extra": '{"shot": 2}'}),
            ("broken", OTHER, {"prompt": "never drawn"}),
            ("unsettled", "ef" * 32, {}),
        ],
        extra_rows=[{"request_id": "row-7", "status": "failed", "error_message": "fps is -1"}],
    )
    table = pq.read_table(io.BytesIO(ledger.store.read("results.parquet")))
    assert table.schema.names == RESULTS_SCHEMA.names
    found = {row["request_id"]: row for row in table.to_pylist()}
    assert list(found) == ["first", "twin", "broken", "row-7"]
    assert [row["request_id"] for row in rows] == list(found)
    assert found["first"]["prompt"] == "a person, smiling"
    assert found["first"]["model_digests"] == [("unet", "sha256:bb")]
    assert found["twin"]["sample_id"] == found["first"]["sample_id"] == NAME
    assert found["twin"]["extra"] == '{"shot": 2}'
    assert found["twin"]["sha256"] == found["first"]["sha256"]
    assert found["first"]["video_uri"] == f"{ledger.out_uri}/{video_path(NAME)}"
    assert found["broken"]["status"] == "failed"
    assert found["broken"]["error_message"] == "no such picture"
    assert found["broken"]["video_uri"] is None
    assert found["row-7"]["sample_id"] is None


def test_writing_results_again_replaces_them(ledger: Ledger, video: Path) -> None:
    ledger.fail(NAME, FAILURE)
    ledger.write_results([("a", NAME, {})])
    ledger.commit(NAME, ledger.begin_attempt(NAME).id, video, {})
    ledger.write_results([("a", NAME, {})])
    table = pq.read_table(io.BytesIO(ledger.store.read("results.parquet")))
    assert table["status"].to_pylist() == ["committed"]


def test_an_empty_run_has_an_empty_table(ledger: Ledger) -> None:
    assert ledger.write_results([]) == []
    assert pq.read_table(io.BytesIO(ledger.store.read("results.parquet"))).num_rows == 0


def test_the_driver_needs_neither_torch_nor_a_client_for_a_ledger() -> None:
    code = (
        "import sys, pipelines.ledger\n"
        "pipelines.ledger.Ledger('s3://bucket/out')\n"
        "print([name for name in ('torch', 'ray', 's3fs', 'botocore') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
