"""One diffusion step as a function: what it mixes, what it wants, what counts, what is attached."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from musev.config import ScheduleConfig
from musev.denoise.schedule import make_schedule
from musev.errors import ConfigError
from musev.training.diffusion import (
    DiffusionLossConfig,
    DiffusionTraining,
    corrupted_and_wanted,
    motion_weights,
)
from musev.training.losses import min_snr_weights
from musev.training.networks import Networks, build_networks, get_sizes
from musev.training.optimizer import Batch
from musev.training.stages import MINI_SCHEDULE, SD15_SCHEDULE

SAMPLE = dataclasses.replace(SD15_SCHEDULE, prediction_type="sample")
PARTS = ("unet", "text_encoder", "referencenet", "image_encoder", "image_projection", "controlnet")


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _batch(num_clips: int = 2, num_frames: int = 3) -> Batch:
    shape = (num_clips, 4, num_frames, 4, 4)
    return {
        "latents_BCTHW": _draw(*shape),
        "noise_BCTHW": _draw(*shape, seed=1),
        "timesteps_B": torch.tensor([100, 900])[:num_clips],
        "ids_BL": torch.ones(num_clips, 32, dtype=torch.int64),
    }


class _Answer(DiffusionTraining):
    """A network that answers with a given tensor, to look at the loss alone."""

    answer: Tensor
    seen: Tensor

    def estimate(self, noisy_BCTHW: Tensor, batch: Batch) -> Tensor:
        self.seen = noisy_BCTHW
        return self.answer


def _loss(schedule: ScheduleConfig, batch: Batch, answer: Tensor, **changes: float) -> _Answer:
    module = _Answer(Networks(), DiffusionLossConfig(schedule=schedule, **changes))
    module.answer = answer
    return module


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_right_answer_leads_back_to_the_clean_sample(kind: str) -> None:
    clean, noise = _draw(2, 4, 1, 4, 4), _draw(2, 4, 1, 4, 4, seed=1)
    alphas = torch.tensor([0.9, 0.2])
    noisy, wanted = corrupted_and_wanted(clean, noise, alphas, kind)
    a, s = (x.reshape(2, 1, 1, 1, 1) for x in (alphas.sqrt(), (1 - alphas).sqrt()))
    torch.testing.assert_close(noisy, a * clean + s * noise)
    back = {
        "epsilon": (noisy - s * wanted) / a,
        "v_prediction": a * noisy - s * wanted,
        "sample": wanted,
    }
    torch.testing.assert_close(back[kind], clean, atol=1e-5, rtol=1e-5)


def test_the_last_timestep_is_pure_noise_with_zero_terminal_snr() -> None:
    clean, noise = _draw(1, 4, 1, 4, 4), _draw(1, 4, 1, 4, 4, seed=1)
    last = torch.tensor(make_schedule(MINI_SCHEDULE).alphas_cumprod)[[-1]]
    noisy, wanted = corrupted_and_wanted(clean, noise, last, "v_prediction")
    assert torch.equal(noisy, noise)
    torch.testing.assert_close(wanted, -clean)
    last = torch.tensor(make_schedule(SD15_SCHEDULE).alphas_cumprod)[[-1]]
    assert not torch.equal(corrupted_and_wanted(clean, noise, last, "epsilon")[0], noise)


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    schedule = dataclasses.replace(MINI_SCHEDULE, prediction_type="epsilon")
    with pytest.raises(ConfigError, match="v_prediction"):
        DiffusionTraining(Networks(), DiffusionLossConfig(schedule=schedule))


def test_the_loss_is_the_weighted_mean_of_squares() -> None:
    batch = _batch() | {"person_BTHW": torch.rand(2, 3, 4, 4)}
    answer = _draw(2, 4, 3, 4, 4, seed=5)
    module = _loss(SAMPLE, batch, answer, min_snr_gamma=5.0, person=3.0)
    found = module(batch)
    weight = (1 + 3 * batch["person_BTHW"])[:, None].expand(2, 4, 3, 4, 4)
    squares = (answer - batch["latents_BCTHW"]) ** 2
    mse_B = torch.stack([(squares[b] * weight[b]).sum() / weight[b].sum() for b in range(2)])
    snr_weights = min_snr_weights(
        module.alphas_cumprod_S[batch["timesteps_B"]], gamma=5.0, prediction_type="sample"
    )
    torch.testing.assert_close(found["mse"], mse_B.mean())
    torch.testing.assert_close(found["loss"], (mse_B * snr_weights).mean())
    assert found["loss"].dtype == torch.float32


def test_conditioning_frames_are_clean_and_do_not_count() -> None:
    batch = _batch() | {"condition_index": torch.tensor([1])}
    answer = batch["latents_BCTHW"].clone()
    answer[:, :, 1] += 100
    module = _loss(SAMPLE, batch, answer)
    assert float(module(batch)["loss"]) == 0
    assert torch.equal(module.seen[:, :, 1], batch["latents_BCTHW"][:, :, 1])
    assert not torch.equal(module.seen[:, :, 0], batch["latents_BCTHW"][:, :, 0])
    answer[:, :, 0] += 1
    assert float(module(batch)["loss"]) == pytest.approx(1 / 2), "of the two generated frames"


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    networks = build_networks(get_sizes("narrow"), PARTS, vocab_size=50).eval()
    for parameter in networks.parameters():  # bring the zero layers to life
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return networks


def _full_batch() -> Batch:
    return _batch(1, 2) | {
        "condition_index": torch.tensor([0]),
        "reference_BCTHW": _draw(1, 4, 1, 8, 8, seed=2),
        "image_prompt_BCYX": _draw(1, 3, 32, 32, seed=3),
        "keep_image_B": torch.tensor([True]),
        "control_BTCYX": torch.rand(1, 2, 3, 64, 64),
    }


@torch.no_grad()
def test_everything_a_batch_holds_is_read(networks: Networks) -> None:
    module = DiffusionTraining(networks, DiffusionLossConfig(schedule=SD15_SCHEDULE))
    batch = _full_batch()
    noisy = _draw(1, 4, 2, 8, 8, seed=7)
    whole = module.estimate(noisy, batch)
    assert whole.shape == noisy.shape
    other = {
        "condition_index": torch.tensor([1]),
        "reference_BCTHW": batch["reference_BCTHW"] + 1,
        "image_prompt_BCYX": batch["image_prompt_BCYX"] + 1,
        "keep_image_B": torch.tensor([False]),
        "control_BTCYX": 1 - batch["control_BTCYX"],
        "ids_BL": batch["ids_BL"] + 1,
        "timesteps_B": batch["timesteps_B"] + 50,
    }
    for name, value in other.items():
        moved = module.estimate(noisy, batch | {name: value})
        assert not torch.allclose(moved, whole, atol=1e-6), name


@torch.no_grad()
def test_a_dropped_image_prompt_is_the_projection_of_nothing(networks: Networks) -> None:
    module = DiffusionTraining(networks, DiffusionLossConfig(schedule=SD15_SCHEDULE))
    batch = _full_batch() | {"keep_image_B": torch.tensor([False])}
    tokens = module._image_tokens(batch)
    torch.testing.assert_close(tokens, networks["image_projection"](torch.zeros(1, 32)))


@torch.no_grad()
def test_temporal_layers_are_left_out_of_single_frames(networks: Networks) -> None:
    module = DiffusionTraining(networks, DiffusionLossConfig(schedule=SD15_SCHEDULE))
    batch = _batch(2, 1)
    noisy = _draw(2, 4, 1, 4, 4, seed=7)
    before = module.estimate(noisy, batch)
    video = module.estimate(noisy.repeat(1, 1, 2, 1, 1), batch)
    assert not torch.allclose(video[:, :, :1], before, atol=1e-6)
    names = [n for n, _ in networks["unet"].named_parameters() if "temp_convs" in n]
    kept = {n: networks["unet"].get_parameter(n).clone() for n in names}
    for name in names:
        networks["unet"].get_parameter(name).mul_(2)
    assert torch.equal(module.estimate(noisy, batch), before)
    for name, value in kept.items():
        networks["unet"].get_parameter(name).copy_(value)


def test_places_that_move_weigh_more_and_a_still_clip_is_no_motion() -> None:
    still = _draw(2, 4, 1, 4, 4).expand(2, 4, 5, 4, 4).clone()
    assert motion_weights(still).abs().max() < 1e-3
    moving = still.clone()
    moving[0, :, ::2, 1, 2] += 1.0
    weights = motion_weights(moving)
    assert weights.shape == (2, 1, 5, 4, 4)
    assert weights[0, 0, :, 1, 2].min() > 5
    assert weights[1].max() < 1e-3
    quick, slow = _draw(1, 4, 5, 4, 4), 0.5 * _draw(1, 4, 5, 4, 4)
    torch.testing.assert_close(motion_weights(quick), motion_weights(slow))
    assert motion_weights(quick).mean() == pytest.approx(1, abs=0.01)


def test_an_error_where_something_moves_counts_more() -> None:
    batch = _batch()
    batch["latents_BCTHW"] = batch["latents_BCTHW"][:, :, :1].repeat(1, 1, 3, 1, 1)
    batch["latents_BCTHW"][:, :, 1, 2, 3] += 1.0
    alphas = torch.tensor(make_schedule(MINI_SCHEDULE).alphas_cumprod)[batch["timesteps_B"]]
    wanted = corrupted_and_wanted(
        batch["latents_BCTHW"], batch["noise_BCTHW"], alphas, "v_prediction"
    )[1]

    def loss(row: int, motion: float) -> float:
        wrong = wanted.clone()
        wrong[:, :, 1, row, 3] += 1.0
        module = _loss(MINI_SCHEDULE, batch, wrong, motion=motion)
        return float(module(batch)["loss"])

    assert loss(2, 0.0) == pytest.approx(loss(0, 0.0))
    assert loss(2, 1.0) > 3 * loss(0, 1.0)
    batch["condition_index"] = torch.tensor([1])
    assert loss(2, 1.0) == pytest.approx(0, abs=1e-6), "a given frame does not count"


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_min_snr_weights_with_zero_terminal_snr_are_refused(kind: str) -> None:
    """The last timestep, where sampling starts, would weigh nothing."""
    schedule = dataclasses.replace(MINI_SCHEDULE, prediction_type=kind)
    last = torch.tensor(make_schedule(schedule).alphas_cumprod)[[-1]]
    assert float(min_snr_weights(last, gamma=5.0, prediction_type=kind)) == 0
    with pytest.raises(ConfigError, match="--set min_snr_gamma=none"):
        DiffusionTraining(Networks(), DiffusionLossConfig(schedule=schedule, min_snr_gamma=5.0))
    DiffusionTraining(Networks(), DiffusionLossConfig(schedule=schedule))
