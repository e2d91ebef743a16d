"""The VAE stage: pixels to few latents and back.

Two phases. First encoder and decoder together, with a little pressure towards a normal posterior.
Then the encoder is frozen, its latents are normalised, and the decoder alone goes on: networks that
work on the latents can be trained meanwhile, because the latents no longer change.
"""

# Axes here: R image, C channel, H W latent rows and columns, Y X pixel rows and columns.
from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from musev.training.losses import gradient_loss, person_weight, weighted_mean
from musev.training.optimizer import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class VaeLossConfig:
    """Weights of the loss terms, and the noise that makes latents robust."""

    l1: float = 1.0
    gradient: float = 0.5
    mse: float = 2.0
    kl: float = 1e-4
    person: float = 3.0
    latent_noise: float = 0.04
    """Deviation of noise added to normalised latents while the decoder learns alone."""


class VaeTraining(nn.Module):
    """The VAE and its loss; the encoder is run without gradients where it is frozen.

    Args:
        vae: The network.
        config: Loss weights.
    """

    def __init__(self, vae: AutoencoderKL, config: VaeLossConfig) -> None:
        super().__init__()
        self.vae = vae
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        """Losses of one batch of ``pixels`` (-1..1), ``mask`` (0..1) and ``noise`` (latents').

        Args:
            batch: From :func:`~musev.training.frames.frame_batch` and :func:`add_latent_noise`.

        Returns:
            ``loss`` and its parts, and the mean squared error.
        """
        wanted = batch["pixels"]
        weight = person_weight(batch["mask"], extra=self.config.person)
        joint = any(p.requires_grad for p in self.vae.encoder.parameters())
        with torch.set_grad_enabled(joint and torch.is_grad_enabled()):
            posterior = self.vae.encode(wanted).latent_dist
        if joint:
            latents = posterior.mean + posterior.std * batch["noise"]
        else:
            scale = self.config.latent_noise / self.vae.config.scaling_factor
            latents = posterior.mean + scale * batch["noise"]
        found = self.vae.decode(latents).sample
        difference = found - wanted
        terms = {
            "l1": weighted_mean(difference.abs(), weight),
            "gradient": gradient_loss(found, wanted, weight),
            "mse": weighted_mean(difference**2, weight),
        }
        if joint:
            terms["kl"] = posterior.kl().mean() / latents[0].numel()
        total = sum(getattr(self.config, name) * value for name, value in terms.items())
        return {"loss": total, **terms, "plain_mse": (difference.detach() ** 2).mean()}


def add_latent_noise(batch: Batch, *, seed: int, factor: int = 8, channels: int = 4) -> Batch:
    """Return the batch with the noise its latents get; the same seed gives the same noise."""
    rows, _, height, width = batch["pixels"].shape
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, channels, height // factor, width // factor)
    return batch | {"noise": torch.randn(shape, generator=generator)}


@torch.no_grad()
def psnr(vae: AutoencoderKL, pixels_RCYX: Tensor, mask_R1YX: Tensor) -> dict[str, float]:
    """Signal-to-noise ratio of reconstructions in decibels, everywhere and on the person.

    Args:
        vae: Encodes to its mean and decodes.
        pixels_RCYX: Pictures, -1..1.
        mask_R1YX: 1 on the person.

    Returns:
        ``psnr`` and ``psnr_person``: of the mean squared error over all pictures, peak 2.
    """
    found = reconstruct(vae, pixels_RCYX)
    squared = (found - pixels_RCYX) ** 2
    person = (squared * mask_R1YX).sum() / (3 * mask_R1YX.sum())
    return {"psnr": _decibels(squared.mean()), "psnr_person": _decibels(person)}


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels_RCYX: Tensor) -> Tensor:
    """Encode to the mean and decode, one picture at a time; cut to -1..1."""
    parts = [vae.decode(vae.encode(row[None]).latent_dist.mean).sample for row in pixels_RCYX]
    return torch.cat(parts).clamp(-1, 1)


def _decibels(squared_error: Tensor) -> float:
    return float(10 * torch.log10(4 / squared_error))


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pixels_RCYX: Tensor) -> tuple[Tensor, Tensor]:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions at the bottleneck.

    What the VAE draws does not change. Afterwards latents have mean 0 and deviation 1 a channel
    over the given pictures, and ``scaling_factor`` is 1, so that the ordinary loader needs no list
    of numbers a channel.

    Args:
        vae: Changed in place.
        pixels_RCYX: Some hundred pictures, -1..1.

    Returns:
        Mean and deviation a channel before the change.
    """
    latents = torch.cat([vae.encode(row[None]).latent_dist.mean for row in pixels_RCYX])
    mean_C, std_C = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean_C)
    forth, back = vae.quant_conv, vae.post_quant_conv
    assert forth is not None
    assert forth.bias is not None
    assert back is not None
    assert back.bias is not None
    weight, bias = forth.weight, forth.bias
    weight[:channels] /= std_C[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean_C) / std_C
    bias[channels:] -= 2 * std_C.log()  # the posterior's log variance shrinks with it
    back.bias += (back.weight[:, :, 0, 0] * mean_C).sum(dim=1)
    back.weight *= std_C[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
    return mean_C, std_C


def make_vae(widths: tuple[int, ...], *, norm_num_groups: int = 8) -> AutoencoderKL:
    """Build an untrained VAE without attention; each width after the first halves the picture.

    Args:
        widths: Channels of each level.
        norm_num_groups: Divides every width.

    Returns:
        The network, trainable.
    """
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=norm_num_groups,
        latent_channels=4,
        sample_size=128,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    # Start with a posterior of deviation 0.05. With the usual 1, noise hides the signal of some
    # channels for good: one of four carried nothing after 150 steps, and colours were lost.
    assert vae.quant_conv is not None
    assert vae.quant_conv.bias is not None
    with torch.no_grad():
        log_variance = slice(vae.config.latent_channels, None)
        vae.quant_conv.weight[log_variance] = 0
        vae.quant_conv.bias[log_variance] = -6.0
    return vae
