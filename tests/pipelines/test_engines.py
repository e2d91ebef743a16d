"""The engine of real networks, as a worker loads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from musev.config import ClipRequest, Profile, SamplingConfig, WeightsConfig, WindowConfig
from musev.parts import RecentParts
from pipelines.engines import load_networks

PROFILE = Profile(name="t", weights=WeightsConfig(random_seed=0), width=64, height=64)
CLIP = ClipRequest(
    request_id="r",
    num_frames=8,
    fps=8,
    width=64,
    height=64,
    seed=1,
    profile="t",
    sampling=SamplingConfig(num_steps=1, windows=WindowConfig(num_frames=4, overlap=1)),
)


def test_media_by_column_reach_the_networks_and_parts_are_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    class Beyond:
        def find(self, key: str, make: object, *, shared: bool = True) -> object:
            asked.append(key.split("-")[0])
            return make()  # type: ignore[operator]

    engine = load_networks(PROFILE, "cpu", RecentParts(Beyond()))
    assert torch.get_num_threads() == 1
    media = {"condition_image": np.full((64, 64, 3), 80, np.uint8)}
    conditions, facts = engine.condition(CLIP, media)
    assert facts.num_given == 1
    assert set(asked) == {"text", "image prompt", "reference", "condition frames"}
    info = engine.render(CLIP, media, tmp_path / "a.mp4", lambda *_: None)
    assert info.num_frames == 8
    assert len(asked) == 4, "what this process has is not asked for again"
    with engine.open_clip(CLIP, conditions, None) as denoise:
        estimate = denoise(torch.zeros(1, 4, 3, 8, 8), 500.0, (0, 1, 2))
    assert estimate.shape == (2, 4, 3, 8, 8)
    assert engine.write_segment(torch.zeros(1, 4, 2, 8, 8), fps=8, target=tmp_path / "s.mp4") == 2
    other = dataclasses.replace(CLIP, prompt="another")
    engine.condition(other, media)
    assert asked[4:] == ["text"]
