"""The training job: its command line, then real runs in this process and on Ray workers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
import typer.main

from jobs.cli import app as musev_app
from jobs.train import app, main, make_run, train_on_ray
from musev.errors import ConfigError
from musev.settings import replace_settings
from musev.training.checkpoints import CheckpointStore
from musev.training.loop import run_steps
from musev.training.runs import RunConfig, prepare_run
from musev.training.stages import get_stage
from musev.training.starts import load_vae
from tests.job_flags import flags_of
from tests.musev.training.small import save_small_vae, small_run
from tests.real_ray import local_ray

SETTINGS = {
    "size_px": "32",
    "crop_px": "16",
    "num_crops": "2",
    "num_whole": "1",
    "whole_every": "2",
    "optimizer.warmup_steps": "0",
    "loop.num_steps": "4",
    "loop.save_every": "2",
    "loop.log_every": "2",
    "loop.evaluate_every": "4",
}
FLAGS = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]


def _vae_run(out: Path, **changes: str) -> RunConfig:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    stage = replace_settings(get_stage("mini-vae"), settings)
    return RunConfig(stage=stage, out=str(out), num_samples=0)


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    assert flags_of(app) == {
        "--stage",
        "--output",
        "--init",
        "--set",
        "--workers",
        "--gpu",
        "--strategy",
    }
    assert "train" in typer.main.get_command(musev_app).commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "mini-model"], "mini-vae-decoder"),
        (["--stage", "mini-vae", "--set", "loop.steps=3"], "num_steps"),
        (["--stage", "mini-vae", "--set", "loop.num_steps"], "KEY=VALUE"),
        (["--stage", "mini-vae", "--set", "loop.num_steps=many"], "many"),
        (["--stage", "mini-vae", "--set", "run.stepz=3"], "stepz"),
        (["--stage", "mini-vae", "--strategy", "pipeline"], "ddp or fsdp"),
        (["--stage", "mini-vae", "--strategy", "fsdp"], "--workers"),
        (["--stage", "mini-vae", "--gpu"], "--gpu needs --workers 1 or more"),
        (["--stage", "mini-vae", "--set", "run.data=/tmp"], "run.data"),
        (["--stage", "motion"], "--init"),
        (["--stage", "motion", "--init", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_commands_are_answered(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "motion"], "--init"),
        (["--stage", "mini-vae", "--strategy", "fsdp"], "--strategy ddp"),
        (["--stage", "mini-vae", "--set", "run.data=/tmp"], "run.data"),
        (["--stage", "mini-vae", "--set", "run.renew=vae"], "run.renew"),
    ],
)
def test_wrong_commands_never_reach_ray(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(**_: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert main([*arguments, "--output", str(tmp_path / "out"), "--workers", "2"]) == 2
    assert words in capsys.readouterr().err


def test_settings_reach_the_stage_and_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    changes = ["loop.num_steps=3", "run.seed=5", "run.data=clips", "run.latents=s3://b/latents"]
    run = make_run("motion", "out", "start", changes)
    assert (run.out, run.init) == ("/tmp/out", "/tmp/start")
    assert (run.data, run.latents, run.seed) == ("/tmp/clips", "s3://b/latents", 5)
    assert run.stage.loop.num_steps == 3
    assert get_stage("motion").loop.num_steps != 3
    assert make_run("motion", "memory://x", None, ["run.data=none"]).data is None


def test_a_run_here_leaves_all_its_records_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "vae"
    command = ["--stage", "mini-vae", "--output", str(out), *FLAGS, "--set", "run.num_samples=1"]
    assert main(command) == 0
    assert CheckpointStore(f"{out}/checkpoints").steps() == [2, 4]
    texts = [log.read_text().splitlines() for log in (out / "log").iterdir()]
    lines = [json.loads(line) for text in texts for line in text]
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert {"loss", "seconds_per_step", "psnr"} <= {name for line in lines for name in line}
    assert list((out / "tensorboard").glob("*tfevents*"))
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (out / "samples").iterdir()] == ["step-00000004.png"]
    assert load_vae(out / "export").config.scaling_factor == 1.0
    # Longer now: it goes on where it was, and ends where a run ends that was never stopped.
    longer = [*command, "--set", "loop.num_steps=6"]
    assert main(longer) == 0
    assert json.loads((out / "export" / "training.json").read_text())["step"] == 6
    assert len(list((out / "log").glob("*"))) in (1, 2)


@pytest.fixture(scope="module")
def ray_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with local_ray():
        yield tmp_path_factory.mktemp("ray")


def _first_moments(out: str) -> dict[int, torch.Tensor]:
    saved = CheckpointStore(f"{out}/checkpoints").load()
    assert saved is not None
    return {number: entry["exp_avg"] for number, entry in saved["optimizer"]["state"].items()}


@pytest.mark.slow
def test_two_workers_learn_what_one_does_from_both_their_batches(ray_folder: Path) -> None:
    """After one step the first moment is a tenth of the gradient: all of it is compared."""
    vae = save_small_vae(ray_folder)
    # Conditions are dropped, so that workers differ in which weights have gradients at all.
    runs = [
        (_vae_run(ray_folder / "vae-2", loop__num_steps="1"), {"accumulate": "2"}),
        (
            small_run("mini-reference", ray_folder, vae, accumulate="2", loop__num_steps="1"),
            {"accumulate": "4"},
        ),
    ]
    for run, whole in runs:
        train_on_ray(run, 2, gpu=False, strategy="ddp")
        alone = RunConfig(
            **{**vars(run), "stage": replace_settings(run.stage, whole), "out": f"{run.out}-1"}
        )
        prepared = prepare_run(alone)
        store = CheckpointStore(f"{alone.out}/checkpoints")
        run_steps(prepared.trainer, prepared.batches_of, alone.stage.loop, store=store)
        found, expected = _first_moments(run.out), _first_moments(alone.out)
        assert found.keys() == expected.keys()
        largest = max(value.abs().max() for value in expected.values())
        for number, value in expected.items():
            miss = (found[number] - value).norm()
            assert miss <= 1e-3 * value.norm() + 1e-6 * largest, (run.stage.name, number)
        assert (Path(run.out) / "export" / "training.json").is_file()


@pytest.mark.slow
def test_shards_on_ray_are_saved_whole_and_exported(ray_folder: Path) -> None:
    run = small_run("lora", ray_folder, save_small_vae(ray_folder), loop__num_steps="1")
    train_on_ray(run, 2, gpu=False, strategy="fsdp")
    assert CheckpointStore(f"{run.out}/checkpoints").steps() == [1]
    assert (Path(run.out) / "export" / "lora.safetensors").is_file()


@pytest.mark.slow
def test_what_a_worker_finds_wrong_ends_the_command(ray_folder: Path) -> None:
    """A checkpoint of another rank is seen by workers alone; trying again would not help."""
    vae = save_small_vae(ray_folder)
    before = small_run("lora", ray_folder / "rank", vae)
    prepared = prepare_run(before)
    store = CheckpointStore(f"{before.out}/checkpoints")
    store.save(1, prepared.trainer.state_dict())
    other = small_run("lora", ray_folder / "rank", vae, lora_rank="3")
    with pytest.raises(ConfigError, match="another LoRA rank"):
        train_on_ray(other, 2, gpu=False, strategy="ddp")


def _workers_of(folder: str) -> list[psutil.Process]:
    """Training workers of one Ray, told by its temporary folder; never another's."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            is_worker = "RayTrainWorker" in " ".join(process.cmdline())
            if is_worker and process.environ().get("RAY_TMPDIR") == folder:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(
    ray_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _vae_run(ray_folder / "killed", loop__num_steps="60", loop__evaluate_every="1000")
    store = CheckpointStore(f"{run.out}/checkpoints")
    errors: list[BaseException] = []

    def train() -> None:
        try:
            train_on_ray(run, 2, gpu=False, strategy="ddp")
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    deadline = time.monotonic() + 300
    # The log comes after the checkpoint: then both are there.
    while not any(Path(run.out).glob("log/*.jsonl")) and thread.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    victims = _workers_of(os.environ["RAY_TMPDIR"])
    assert len(victims) == 2
    os.kill(victims[0].pid, signal.SIGKILL)
    at = store.steps()[-1]
    thread.join(timeout=500)
    assert not thread.is_alive()
    assert errors == []
    saved = store.load()
    assert saved is not None
    assert saved["step"] == 60
    updates = {int(entry["step"]) for entry in saved["optimizer"]["state"].values()}
    assert updates == {60}, "every step was done once"
    assert [e["step"] for e in saved["history"] if "loss" in e] == list(range(2, 61, 2))
    logs = sorted((Path(run.out) / "log").glob("*.jsonl"))
    assert len(logs) == 2, "two processes wrote: the second went on"
    first = json.loads(logs[1].read_text().split("\n")[0])["step"]
    assert first > 2, "it did not start again from nothing"
    with capsys.disabled():
        print(f"\nkilled at checkpoint {at}; went on at {first - 2}")


def test_a_command_without_a_stage_is_refused() -> None:
    assert main(["--output", "/tmp/x"]) == 2
    with pytest.raises(ConfigError, match="no training stage"):
        make_run("nothing", "/tmp/x", None, ())
