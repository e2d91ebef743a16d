"""The VAE stage: what learns, what its losses say, and that normalising changes no picture."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL

from musev.training.frames import frame_batch
from musev.training.frozen import freeze_except
from musev.training.stages import get_stage
from musev.training.vae import (
    VaeLossConfig,
    VaeTraining,
    add_latent_noise,
    make_vae,
    normalise_latents,
    psnr,
    reconstruct,
)
from tests.musev.training.small import changed, weights_of


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return make_vae((8, 8, 8, 8))


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return add_latent_noise(frame_batch(0, 0, num_images=3, size_px=32), seed=1)


def _step(vae: AutoencoderKL, batch: dict[str, torch.Tensor], stage: str) -> set[str]:
    module = VaeTraining(vae, VaeLossConfig())
    freeze_except(module, get_stage(stage).trained)
    before = weights_of(module)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module(batch)["loss"].backward()
    optimizer.step()
    return changed(module, before)


def test_jointly_everything_learns(vae: AutoencoderKL, batch: dict[str, torch.Tensor]) -> None:
    moved = _step(vae, batch, "mini-vae")
    assert {name.split(".")[1] for name in moved} == {
        "encoder",
        "decoder",
        "quant_conv",
        "post_quant_conv",
    }


def test_the_decoder_learns_alone(vae: AutoencoderKL, batch: dict[str, torch.Tensor]) -> None:
    moved = _step(vae, batch, "mini-vae-decoder")
    assert moved
    assert {name.split(".")[1] for name in moved} == {"decoder", "post_quant_conv"}


def test_the_loss_is_the_weighted_sum_of_its_terms(
    vae: AutoencoderKL, batch: dict[str, torch.Tensor]
) -> None:
    config = VaeLossConfig(l1=1, gradient=2, mse=3, kl=4)
    found = VaeTraining(vae, config)(batch)
    total = sum(getattr(config, name) * found[name] for name in ("l1", "gradient", "mse", "kl"))
    torch.testing.assert_close(found["loss"], total)
    flat = VaeTraining(vae, VaeLossConfig(person=0))(batch)
    found, flat = ({k: v.detach() for k, v in each.items()} for each in (found, flat))
    assert float(flat["mse"]) == pytest.approx(float(flat["plain_mse"]), rel=1e-5)
    assert float(found["mse"]) != pytest.approx(float(flat["mse"]), rel=1e-4), "the person counts"


def test_latent_noise_is_the_posteriors_jointly_and_small_alone(
    vae: AutoencoderKL, batch: dict[str, torch.Tensor]
) -> None:
    module = VaeTraining(vae, VaeLossConfig())
    loud = batch | {"noise": 100 * batch["noise"]}
    assert module(batch)["loss"] != module(loud)["loss"]
    vae.encoder.requires_grad_(False)
    silent = VaeTraining(vae, VaeLossConfig(latent_noise=0))
    assert torch.equal(silent(batch)["loss"], silent(loud)["loss"])
    assert module(batch)["loss"] != module(loud)["loss"]


def test_noise_is_a_function_of_its_seed(batch: dict[str, torch.Tensor]) -> None:
    draws = [add_latent_noise(batch, seed=seed)["noise"] for seed in (1, 1, 2)]
    assert draws[0].shape == (3, 4, 4, 4)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_normalising_changes_latents_and_no_picture(
    vae: AutoencoderKL, batch: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():  # give the channels levels and sizes of their own
        vae.quant_conv.weight[:4] *= torch.tensor([1.0, 5.0, 20.0, 0.5])[:, None, None, None]
        vae.quant_conv.bias[:4] += torch.tensor([3.0, 0.0, -2.0, 0.1])
    pixels = batch["pixels"]
    before, posterior = reconstruct(vae, pixels), vae.encode(pixels).latent_dist
    mean_C, std_C = normalise_latents(vae, pixels)
    after = vae.encode(pixels).latent_dist
    torch.testing.assert_close(reconstruct(vae, pixels), before, atol=2e-5, rtol=0)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    shape = (1, 4, 1, 1)
    torch.testing.assert_close(
        after.mean,
        (posterior.mean - mean_C.reshape(shape)) / std_C.reshape(shape),
        atol=1e-3,
        rtol=1e-3,
    )
    torch.testing.assert_close(
        after.std, posterior.std / std_C.reshape(shape), atol=1e-4, rtol=1e-3
    )
    assert vae.config.scaling_factor == 1.0


def test_psnr_is_the_mean_errors_in_decibels(
    vae: AutoencoderKL, batch: dict[str, torch.Tensor]
) -> None:
    pixels, mask = batch["pixels"], batch["mask"]
    error = (reconstruct(vae, pixels) - pixels) ** 2
    found = psnr(vae, pixels, mask)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / float(error.mean())))
    person = float((error * mask).sum() / (3 * mask.sum()))
    assert found["psnr_person"] == pytest.approx(10 * math.log10(4 / person))


def test_a_new_vae_halves_the_picture_and_starts_with_little_noise(vae: AutoencoderKL) -> None:
    posterior = vae.encode(torch.zeros(1, 3, 64, 32)).latent_dist
    assert posterior.mean.shape == (1, 4, 8, 4)
    torch.testing.assert_close(posterior.std, torch.full((1, 4, 8, 4), math.exp(-3)))
