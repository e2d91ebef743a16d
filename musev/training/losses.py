"""Loss terms: pixels of the VAE, and the weights of the diffusion loss."""

# Axes here: R image, C channel, Y X pixel rows and columns, B clip.
from __future__ import annotations

from torch import Tensor


def weighted_mean(error_RCYX: Tensor, weight_R1YX: Tensor) -> Tensor:
    """Mean over everything, where places count by their weight within their own picture.

    Each picture counts alike, so that a batch in two halves has the mean gradient of the halves.

    Args:
        error_RCYX: Errors.
        weight_R1YX: Relative weights, not all 0.

    Returns:
        A scalar.
    """
    weight = weight_R1YX.expand_as(error_RCYX)
    return ((error_RCYX * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()


def person_weight(mask_R1YX: Tensor, *, extra: float = 3.0) -> Tensor:
    """Weight 1 outside the person and ``1 + extra`` inside; the mask is 0..1."""
    return 1 + extra * mask_R1YX


def gradient_loss(found_RCYX: Tensor, wanted_RCYX: Tensor, weight_R1YX: Tensor) -> Tensor:
    """Absolute difference of the steps between neighbouring pixels, both ways: keeps edges sharp.

    Args:
        found_RCYX: What the network drew.
        wanted_RCYX: What it should have drawn.
        weight_R1YX: Weight of every pixel.

    Returns:
        A scalar.
    """
    difference = found_RCYX - wanted_RCYX
    rows = (difference[:, :, 1:] - difference[:, :, :-1]).abs()
    columns = (difference[..., 1:] - difference[..., :-1]).abs()
    return (
        weighted_mean(rows, weight_R1YX[:, :, 1:]) + weighted_mean(columns, weight_R1YX[..., 1:])
    ) / 2


def min_snr_weights(
    alphas_cumprod_B: Tensor, *, gamma: float | None, prediction_type: str
) -> Tensor:
    """Weight of every clip's loss by its signal-to-noise ratio.

    Args:
        alphas_cumprod_B: Share of signal variance at the clip's timestep.
        gamma: Ratios above it count as it; None: all weights are 1.
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``: what the error is measured in.

    Returns:
        ``weights_B``. At ratio 0, as with zero terminal SNR, epsilon has weight 1 and the others 0:
        nothing is learnt there, which is why ``DiffusionTraining`` refuses both together.

    Source:
        arXiv 2303.09556, section 3.4: min(SNR, gamma) for the clean sample, divided by SNR for the
        noise and by SNR + 1 for v.
    """
    if gamma is None:
        return alphas_cumprod_B.new_ones(alphas_cumprod_B.shape)
    snr = alphas_cumprod_B / (1 - alphas_cumprod_B).clamp(min=1e-12)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "sample":
        return clipped
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return (gamma / snr.clamp(min=1e-12)).clamp(max=1.0)
