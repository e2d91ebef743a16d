"""Parts that a config names: where they lie, what they digest to."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from musev.config import ClipRequest, SamplingConfig, WeightsConfig
from musev.errors import WeightsError
from musev.weight_parts import (
    BUNDLE_FILE,
    bundle_folder,
    controlnet_names,
    digest_text_to_pose,
    digest_weights,
    digests_in_use,
    text_to_pose_folder,
)


def _published(root: Path) -> WeightsConfig:
    for part in ("t2i/unet", "t2i/text_encoder", "t2i/vae", "motion/unet"):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text("{}")
        save_file({"a": torch.ones(2)}, root / part / "model.safetensors")
    for part in ("t2i/tokenizer/vocab.json", "t2i/scheduler/scheduler_config.json"):
        (root / part).parent.mkdir(parents=True)
        (root / part).write_text("{}")
    return WeightsConfig(t2i=str(root / "t2i"), motion=str(root / "motion"))


def test_digests_follow_content_not_place(tmp_path: Path) -> None:
    here, there = _published(tmp_path / "here"), _published(tmp_path / "there")
    digests = digest_weights(here)
    assert digests == digest_weights(there)
    assert set(digests) == {
        "unet", "t2i_unet", "vae", "text_encoder", "tokenizer", "scheduler", "settings"
    }  # fmt: skip
    assert all(len(digest) == 71 for name, digest in digests.items() if name != "settings")
    file = tmp_path / "there" / "motion" / "unet" / "model.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    os.utime(file, ns=(1, 1))
    changed = digest_weights(there)
    assert {name for name in digests if digests[name] != changed[name]} == {"unet"}


def test_digests_follow_settings_that_change_the_arithmetic(tmp_path: Path) -> None:
    config = _published(tmp_path)
    other = WeightsConfig(t2i=config.t2i, motion=config.motion, layer_norm_eps=1e-5)
    assert digest_weights(config) != digest_weights(other)


def test_a_seed_digests_to_itself() -> None:
    assert digest_weights(WeightsConfig(random_seed=0)) == {"random": "tiny-1:seed=0"}
    assert digest_weights(WeightsConfig(random_seed=3)) == {"random": "tiny-1:seed=3"}


def _bundle(folder: Path, *parts: str) -> WeightsConfig:
    for part in parts:
        (folder / part).mkdir(parents=True)
        save_file({"a": torch.ones(2)}, folder / part / "model.safetensors")
    index = {"format": 1, "schedule": {}, "parts": {part: {} for part in parts}}
    (folder / BUNDLE_FILE).write_text(json.dumps(index))
    return WeightsConfig(bundle=str(folder))


def _request(**changes: Any) -> ClipRequest:
    values = {"request_id": "r", "num_frames": 3, "fps": 8, "width": 64, "height": 64, "seed": 0}
    values |= {"profile": "p", "sampling": SamplingConfig()}
    return ClipRequest(**(values | changes))


def test_a_controlnet_renames_only_the_videos_that_use_it(tmp_path: Path) -> None:
    without = _bundle(tmp_path / "a", "unet")
    config = _bundle(tmp_path / "b", "unet", "controlnets/openpose", "controlnets/depth")
    assert controlnet_names(config) == ("depth", "openpose")
    digests = digest_weights(config)
    assert digests_in_use(digests, _request()) == digest_weights(without)
    used = digests_in_use(digests, _request(video="v.mp4", control=("openpose",)))
    assert set(used) == {"index", "unet", "settings", "controlnets/openpose"}

    named = dataclasses.replace(without, controlnets={"openpose": str(tmp_path / "a" / "unet")})
    assert controlnet_names(named) == ("openpose",)
    assert digest_weights(named) == used
    seeded = WeightsConfig(random_seed=0, controlnets={"depth": str(tmp_path / "a" / "unet")})
    assert controlnet_names(seeded) == ("depth", "openpose")
    assert set(digest_weights(seeded)) == {"random", "controlnets/depth"}
    with pytest.raises(WeightsError, match=r"controlnets/depth: .* is missing"):
        digest_weights(dataclasses.replace(seeded, controlnets={"depth": str(tmp_path / "no")}))


def test_the_schedule_of_a_bundle_is_digested(tmp_path: Path) -> None:
    config = _bundle(tmp_path, "unet")
    before = digest_weights(config)
    index = json.loads((tmp_path / BUNDLE_FILE).read_text())
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(index | {"schedule": {"steps_offset": 0}}))
    after = digest_weights(config)
    assert {name for name in before if before[name] != after[name]} == {"index"}


def test_bundles_of_the_package_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musev.weight_parts._SHIPPED", tmp_path)
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / BUNDLE_FILE).write_text("{}")
    assert bundle_folder("package:mini") == tmp_path / "mini"
    assert bundle_folder("s/mini") == Path("s/mini")
    for wrong in ("package:maxi", "package:"):
        with pytest.raises(WeightsError, match="ships: mini"):
            bundle_folder(wrong)


def test_networks_of_text_to_pose_have_names_and_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tmp_path / "poses"
    net.mkdir()
    (net / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, net / "model.safetensors")
    monkeypatch.setattr("musev.weight_parts._SHIPPED", tmp_path)
    assert text_to_pose_folder("package:poses") == net
    assert text_to_pose_folder(str(net)) == net
    assert text_to_pose_folder(f"file://{net}") == net
    with pytest.raises(WeightsError, match="ships: poses"):
        text_to_pose_folder("package:nobody")
    before = digest_text_to_pose(net)
    assert digest_text_to_pose(net) == before
    (net / "config.json").write_text('{"words": []}')
    assert digest_text_to_pose(net) != before


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    config = _published(tmp_path)
    (tmp_path / "t2i" / "vae" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="vae"):
        digest_weights(config)
    with pytest.raises(WeightsError, match=r"musev_bundle\.json is missing"):
        digest_weights(WeightsConfig(bundle=str(tmp_path)))
    lonely = WeightsConfig(t2i=config.t2i, motion=config.motion, image_encoder="x")
    with pytest.raises(WeightsError, match="together"):
        digest_weights(lonely)
