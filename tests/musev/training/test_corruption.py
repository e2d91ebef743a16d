"""What chance does to a batch: always the same for a seed, and as often as it says."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch

from musev.errors import ConfigError
from musev.training.corruption import CorruptionConfig, corrupt
from musev.training.optimizer import Batch

EMPTY = torch.tensor([9, 9, 9])
NEVER = CorruptionConfig(
    drop_text=0,
    drop_text_with_reference=0,
    drop_image_prompt=0,
    drop_reference=0,
    no_condition_frame=0,
    first_condition_frame=1,
    short_window=0,
)


def _batch(num_clips: int = 2, num_frames: int = 6, *, everything: bool = False) -> Batch:
    frames = torch.arange(num_frames, dtype=torch.float32)
    batch = {
        "latents_BCTHW": frames[None, None, :, None, None].expand(num_clips, 4, -1, 2, 2).clone(),
        "person_BTHW": frames[None, :, None, None].expand(num_clips, -1, 2, 2).clone(),
        "ids_BL": torch.arange(3)[None].repeat(num_clips, 1),
    }
    if everything:
        batch["reference_BCTHW"] = torch.ones(num_clips, 4, 1, 2, 2)
        batch["image_prompt_BCYX"] = torch.ones(num_clips, 3, 4, 4)
        batch["control_BTCYX"] = frames[None, :, None, None, None].expand(num_clips, -1, 3, 16, 16)
    return batch


def _corrupt(batch: Batch, config: CorruptionConfig, seed: int) -> Batch:
    return corrupt(batch, config, seed=seed, step_seed=seed, empty_ids_L=EMPTY)


def test_the_same_seed_draws_the_same_and_another_another() -> None:
    config = CorruptionConfig(drop_control=0.5)
    for seed in range(5):
        first, again = (_corrupt(_batch(everything=True), config, seed) for _ in range(2))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)
    other = _corrupt(_batch(everything=True), NEVER, 0)["noise_BCTHW"]
    assert not torch.equal(other, _corrupt(_batch(everything=True), NEVER, 1)["noise_BCTHW"])


def test_the_given_batch_stays_as_it_was() -> None:
    batch = _batch(everything=True)
    before = {name: value.clone() for name, value in batch.items()}
    _corrupt(batch, CorruptionConfig(), 0)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_nothing_is_dropped_where_nothing_may_be() -> None:
    found = _corrupt(_batch(everything=True), NEVER, 3)
    assert found.keys() >= _batch(everything=True).keys()
    assert torch.equal(found["ids_BL"], _batch()["ids_BL"])
    assert found["keep_image_B"].all()
    assert found["condition_index"].tolist() == [0]
    assert found["latents_BCTHW"].shape[2] == 6


def test_shares_are_what_the_settings_say() -> None:
    config = CorruptionConfig(drop_control=0.25)
    counts: collections.Counter[str] = collections.Counter()
    rounds, clips = 600, 4
    for seed in range(rounds):
        found = _corrupt(_batch(clips, everything=True), config, seed)
        counts["no reference"] += "reference_BCTHW" not in found
        counts["no control"] += "control_BTCYX" not in found
        counts["short"] += found["latents_BCTHW"].shape[2] < 6
        index = found.get("condition_index")
        counts["no frame"] += index is None
        counts["first"] += index is not None and index.tolist() == [0]
        counts["no text"] += int((found["ids_BL"] == EMPTY).all(1).sum())
        counts["no image"] += int((~found["keep_image_B"]).sum())
    shares = {name: count / rounds for name, count in counts.items()}
    assert shares["no reference"] == pytest.approx(config.drop_reference, abs=0.05)
    assert shares["no control"] == pytest.approx(config.drop_control, abs=0.05)
    assert shares["short"] == pytest.approx(config.short_window, abs=0.06)
    assert shares["no frame"] == pytest.approx(config.no_condition_frame, abs=0.05)
    assert shares["first"] > config.first_condition_frame
    # The image prompt is always there, and shows as much as a reference; a frame shows more.
    alone = config.no_condition_frame
    text = alone * config.drop_text_with_reference + (1 - alone) * config.drop_text
    assert shares["no text"] / clips == pytest.approx(text, abs=0.04)
    assert shares["no image"] / clips == pytest.approx(config.drop_image_prompt, abs=0.03)


def test_pictures_go_together_and_the_text_then_stays() -> None:
    config = dataclasses.replace(
        NEVER, drop_pictures=0.4, drop_text_with_reference=1, no_condition_frame=1,
        first_condition_frame=0,
    )  # fmt: skip
    without = 0
    for seed in range(300):
        found = _corrupt(_batch(everything=True), config, seed)
        shown = "image_prompt_BCYX" in found
        assert shown == ("reference_BCTHW" in found) == ("keep_image_B" in found)
        assert bool((found["ids_BL"] == EMPTY).all()) == shown
        assert "control_BTCYX" in found
        without += not shown
    assert without / 300 == pytest.approx(0.4, abs=0.08)


def test_short_windows_cut_everything_that_has_frames_alike() -> None:
    config = dataclasses.replace(NEVER, short_window=1.0)
    lengths = set()
    for seed in range(40):
        found = _corrupt(_batch(everything=True), config, seed)
        latents, length = found["latents_BCTHW"], found["latents_BCTHW"].shape[2]
        lengths.add(length)
        assert found["noise_BCTHW"].shape == latents.shape
        assert torch.equal(found["person_BTHW"][:, :, 0, 0], latents[:, 0, :, 0, 0])
        assert torch.equal(found["control_BTCYX"][:, :, 0, 0, 0], latents[:, 0, :, 0, 0])
    assert lengths == {2, 3, 4, 5}


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
def test_frames_share_as_much_noise_as_they_should(own: float) -> None:
    config = dataclasses.replace(NEVER, w_ind_noise=own)
    batch = {"latents_BCTHW": torch.zeros(64, 4, 2, 8, 8), "ids_BL": torch.zeros(64, 3).long()}
    noise = _corrupt(batch, config, 0)["noise_BCTHW"]
    first, second = noise[:, :, 0].flatten(), noise[:, :, 1].flatten()
    assert float(first.var()) == pytest.approx(1, abs=0.03)
    assert float((first * second).mean()) == pytest.approx(1 - own, abs=0.03)


def test_single_frames_have_no_conditioning_frame_and_any_timestep() -> None:
    batch = {"latents_BCTHW": torch.zeros(500, 4, 1, 2, 2), "ids_BL": torch.zeros(500, 3).long()}
    found = _corrupt(batch, CorruptionConfig(), 0)
    assert "condition_index" not in found
    times = found["timesteps_B"]
    assert 0 <= int(times.min()) < 20
    assert 980 < int(times.max()) < 1000


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (-1.0, 0.5)])
def test_timesteps_can_lie_where_the_picture_is_decided(mean: float, spread: float) -> None:
    """The quartiles of a logit-normal distribution, and the rest of the batch as without it."""
    batch = {"latents_BCTHW": torch.zeros(4000, 4, 1, 1, 1), "ids_BL": torch.zeros(4000, 3).long()}
    config = CorruptionConfig(timestep_mean=mean, timestep_spread=spread)
    found = _corrupt(batch, config, 0)
    times = found["timesteps_B"]
    assert times.dtype == torch.int64
    assert 0 <= int(times.min()) < int(times.max()) < 1000
    quarters = torch.quantile(times.double(), torch.tensor([0.25, 0.5, 0.75]).double())
    logits = mean + spread * torch.tensor([-0.6745, 0, 0.6745])
    assert quarters.tolist() == pytest.approx((1000 * logits.sigmoid()).tolist(), abs=15)
    evenly = _corrupt(batch, CorruptionConfig(), 0)
    assert torch.equal(found["noise_BCTHW"], evenly["noise_BCTHW"])


def test_impossible_chances_are_refused() -> None:
    with pytest.raises(ConfigError, match="timestep_spread must be above 0"):
        CorruptionConfig(timestep_spread=0)
    with pytest.raises(ConfigError, match="give timestep_spread too"):
        CorruptionConfig(timestep_mean=-1.0)
    with pytest.raises(ConfigError, match="drop_text"):
        CorruptionConfig(drop_text=1.5)
    with pytest.raises(ConfigError, match="more than 1"):
        CorruptionConfig(no_condition_frame=0.6, first_condition_frame=0.6)
