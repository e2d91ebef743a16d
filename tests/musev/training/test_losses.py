"""Loss terms against the formulas of their sources."""

from __future__ import annotations

import pytest
import torch

from musev.training.losses import gradient_loss, min_snr_weights, person_weight, weighted_mean

ALPHAS = torch.tensor([0.999, 0.9, 0.5, 0.1, 1e-3])


def test_min_snr_weights_are_those_of_the_paper() -> None:
    """arXiv 2303.09556: min(SNR, 5), over SNR for the noise, over SNR + 1 for v."""
    gamma = 5.0
    snr = ALPHAS / (1 - ALPHAS)
    clipped = torch.minimum(snr, torch.tensor(gamma))
    assert clipped[0] == gamma, "the first ratio is above gamma, or nothing is tested"
    assert clipped[-1] == snr[-1]
    expected = {"sample": clipped, "epsilon": clipped / snr, "v_prediction": clipped / (snr + 1)}
    for kind, weights in expected.items():
        found = min_snr_weights(ALPHAS, gamma=gamma, prediction_type=kind)
        torch.testing.assert_close(found, weights)


def test_all_kinds_weigh_the_error_of_the_clean_sample_alike() -> None:
    """One estimate, written as sample, noise or v, has one weighted error."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, miss = (torch.randn(5, generator=generator) for _ in range(3))
    signal, spread = ALPHAS.sqrt(), (1 - ALPHAS).sqrt()
    noisy = signal * clean + spread * noise
    guess = clean + miss
    noise_guess = (noisy - signal * guess) / spread
    errors = {
        "sample": guess - clean,
        "epsilon": noise_guess - noise,
        "v_prediction": signal * (noise_guess - noise) - spread * (guess - clean),
    }
    totals = [
        min_snr_weights(ALPHAS, gamma=5.0, prediction_type=kind) * error**2
        for kind, error in errors.items()
    ]
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(totals[2], totals[0], rtol=1e-3, atol=1e-5)


def test_without_gamma_all_weights_are_one() -> None:
    found = min_snr_weights(ALPHAS, gamma=None, prediction_type="epsilon")
    assert torch.equal(found, torch.ones(5))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_are_finite_without_any_signal(kind: str) -> None:
    ends = torch.tensor([0.0, 1.0])
    assert min_snr_weights(ends, gamma=5.0, prediction_type=kind).isfinite().all()


def test_the_person_counts_four_times() -> None:
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0] = 1
    error = torch.zeros(1, 3, 2, 2)
    error[..., 0] = 1.0
    assert weighted_mean(error, person_weight(mask, extra=3.0)) == pytest.approx(4 / 5)
    assert weighted_mean(error, person_weight(mask, extra=0.0)) == pytest.approx(1 / 2)


def test_every_picture_counts_alike_whatever_its_mask() -> None:
    mask = torch.zeros(2, 1, 2, 2)
    mask[0] = 1
    error = torch.zeros(2, 3, 2, 2)
    error[1] = 1.0
    assert weighted_mean(error, person_weight(mask)) == pytest.approx(0.5)


def test_gradients_see_edges_and_not_levels() -> None:
    wanted, weight = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert gradient_loss(wanted + 5, wanted, weight) == 0
    edge = wanted.clone()
    edge[..., 2:] = 1  # one of three column steps, none of the row steps
    assert gradient_loss(edge, wanted, weight) == pytest.approx((1 / 3) / 2)
    assert gradient_loss(edge.mT, wanted, weight) == pytest.approx((1 / 3) / 2)
