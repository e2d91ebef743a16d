"""What is asked of a run is checked before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from musev.errors import ConfigError
from musev.training.run_config import RunConfig, check_run
from musev.training.stages import STAGES, get_stage


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("mini-vae-decoder", {}, "give --init FOLDER of a VAE"),
        ("mini-vision", {}, "mini-image's export/bundle"),
        ("motion", {}, "works on latents; give --init"),
        ("mini-vae", {"renew": ("vae",)}, "leave run.renew out"),
        ("text-to-pose", {"renew": ("net",)}, "leave run.renew out"),
        ("mini-vae", {"data": "/clips"}, "leave run.data out"),
        ("mini-vision", {"data": "/clips", "init": "/start"}, "leave run.data out"),
    ],
)
def test_what_a_stage_cannot_do_is_refused(
    name: str, settings: dict, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_run(RunConfig(stage=get_stage(name), out=str(tmp_path), **settings))


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_runs_with_a_start(name: str, tmp_path: Path) -> None:
    check_run(RunConfig(stage=get_stage(name), out=str(tmp_path), init="/start"))


@pytest.mark.parametrize("name", ["mini-vae", "mini-vision", "text-to-pose"])
def test_only_diffusion_is_sharded(name: str, tmp_path: Path) -> None:
    run = RunConfig(stage=get_stage(name), out=str(tmp_path), init="/start")
    with pytest.raises(ConfigError, match="--strategy ddp"):
        check_run(run, "fsdp")
    check_run(RunConfig(stage=get_stage("lora"), out=str(tmp_path), init="/start"), "fsdp")


@pytest.mark.parametrize("wrong", [{"size": "xl"}, {"num_clips": 0}, {"num_samples": -1}])
def test_impossible_runs_are_refused(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        RunConfig(stage=get_stage("motion"), out=str(tmp_path), **wrong)
