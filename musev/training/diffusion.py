"""One training step of the video network and everything that conditions it, as a function.

The module's forward is that function: batch in, losses out, nothing random, no state. What a batch
holds decides what is computed: one frame or many, conditioning frames, reference, image prompt,
control.
"""

# Axes here: B clip, C channel, T frame, R clip and frame folded, H W latent rows and columns,
# L token, D embedding.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from musev.config import ScheduleConfig
from musev.denoise.schedule import make_schedule
from musev.errors import ConfigError
from musev.models.attachments import (
    ConditionFrames,
    ControlResiduals,
    FramePositions,
    ImagePrompt,
    TemporalOff,
)
from musev.training.losses import min_snr_weights
from musev.training.networks import Networks
from musev.training.optimizer import Batch, Losses

MOST_MOTION = 8.0
STILL = 0.03
"""Mean distance below which a clip counts as still: else the codec's noise would be its motion."""


@dataclass(frozen=True, kw_only=True)
class DiffusionLossConfig:
    """What the error is measured in, and how clips and places are weighted."""

    schedule: ScheduleConfig
    min_snr_gamma: float | None = None
    person: float = 3.0
    motion: float = 0.0
    """Extra weight of places that change over the clip, in clips: see :func:`motion_weights`."""
    motion_speed: float = 8.0
    """Frame positions are multiplied by it, as at inference."""


class DiffusionTraining(nn.Module):
    """The networks of a stage and their loss.

    Args:
        networks: ``unet`` and ``text_encoder``; the image networks where batches have image
            prompts, a ControlNet where they have control. A reference is read by a ReferenceNet if
            there is one.
        config: Diffusion and weights.

    Raises:
        ConfigError: If the diffusion cannot be learnt as it is asked for.
    """

    def __init__(self, networks: Networks, config: DiffusionLossConfig) -> None:
        super().__init__()
        if config.schedule.rescale_betas_zero_snr and (
            config.schedule.prediction_type == "epsilon"
        ):
            raise ConfigError(
                "with zero terminal SNR the last timestep is pure noise, of which epsilon says "
                "nothing; use v_prediction"
            )
        if config.schedule.rescale_betas_zero_snr and config.min_snr_gamma is not None:
            raise ConfigError(
                "with zero terminal SNR min-SNR weighting gives the last timestep, where sampling "
                f"starts, no weight (min_snr_gamma={config.min_snr_gamma}); give --set "
                "min_snr_gamma=none"
            )
        self.networks = networks
        self.config = config
        alphas = torch.tensor(make_schedule(config.schedule).alphas_cumprod)
        self.register_buffer("alphas_cumprod_S", alphas, persistent=False)

    def forward(self, batch: Batch) -> Losses:
        """Losses of one corrupted batch.

        Args:
            batch: From :func:`~musev.training.corruption.corrupt`.

        Returns:
            ``loss``, weighted, and ``mse``, plain; both over the frames that are generated.
        """
        clean, noise = batch["latents_BCTHW"], batch["noise_BCTHW"]
        alphas_B = self.alphas_cumprod_S[batch["timesteps_B"]]
        noisy, wanted = corrupted_and_wanted(
            clean, noise, alphas_B, self.config.schedule.prediction_type
        )
        index = batch.get("condition_index")
        if index is not None:
            noisy = noisy.index_copy(2, index, clean.index_select(2, index))
        estimate = self.estimate(noisy, batch)
        squared = (estimate - wanted) ** 2
        weight = self._place_weights(batch, squared.shape[2], index)
        mse_B = (squared * weight).flatten(1).sum(1) / (weight.expand_as(squared).flatten(1).sum(1))
        weights_B = min_snr_weights(
            alphas_B,
            gamma=self.config.min_snr_gamma,
            prediction_type=self.config.schedule.prediction_type,
        )
        return {"loss": (mse_B * weights_B).mean(), "mse": mse_B.detach().mean()}

    def estimate(self, noisy_BCTHW: Tensor, batch: Batch) -> Tensor:
        """Run the networks on noisy latents, with all that the batch holds attached."""
        nets = self.networks
        num_frames = noisy_BCTHW.shape[2]
        text_BLD = nets["text_encoder"](batch["ids_BL"]).last_hidden_state
        request: list[object] = []
        told_BLD = text_BLD
        if "image_prompt_BCYX" in batch:
            told_BLD = self._image_tokens(batch)
            request.append(ImagePrompt(told_BLD))
        if "reference_BCTHW" in batch and "referencenet" in nets:
            request.append(nets["referencenet"](batch["reference_BCTHW"], told_BLD, timestep=0))
        call: list[object] = [FramePositions(motion_speed=self.config.motion_speed)]
        if num_frames == 1:
            call = [TemporalOff()]
        if "condition_index" in batch:
            call.append(ConditionFrames(batch["condition_index"]))
        if "control_BTCYX" in batch:
            call.append(self._control(noisy_BCTHW, text_BLD, batch))
        conditioning = nets["unet"].prepare(text_BLD, tuple(request))
        return nets["unet"](noisy_BCTHW, batch["timesteps_B"], conditioning, tuple(call))

    def _image_tokens(self, batch: Batch) -> Tensor:
        embedding_BD = self.networks["image_encoder"](
            pixel_values=batch["image_prompt_BCYX"]
        ).image_embeds
        keep_B1 = batch["keep_image_B"][:, None].to(embedding_BD.dtype)
        return self.networks["image_projection"](embedding_BD * keep_B1)

    def _control(self, noisy_BCTHW: Tensor, text_BLD: Tensor, batch: Batch) -> ControlResiduals:
        net, num_frames = self.networks["controlnet"], noisy_BCTHW.shape[2]
        return net(
            noisy_BCTHW.transpose(1, 2).flatten(0, 1),
            batch["timesteps_B"].repeat_interleave(num_frames),
            text_BLD,
            net.embed_condition(batch["control_BTCYX"].flatten(0, 1)),
        )

    def _place_weights(self, batch: Batch, num_frames: int, index: Tensor | None) -> Tensor:
        """``[B, 1, T, H, W]``, or fewer places that broadcast; 0 on conditioning frames."""
        if "person_BTHW" in batch:
            weight = 1 + self.config.person * batch["person_BTHW"][:, None]
        else:
            weight = batch["latents_BCTHW"].new_ones((1, 1, num_frames, 1, 1))
        if self.config.motion and num_frames > 1:
            weight = weight + self.config.motion * motion_weights(batch["latents_BCTHW"])
        return weight if index is None else weight.index_fill(2, index, 0.0)


def motion_weights(latents_BCTHW: Tensor) -> Tensor:
    """How far each place is from its mean over the frames, relative to the clip's average place.

    What tells one action from another is hands and heads, a few places of a picture.

    Args:
        latents_BCTHW: Clean latents of mean 0 and deviation 1.

    Returns:
        ``_B1THW``, 0 to :data:`MOST_MOTION`; about 1 on average, less in clips that hardly move.
    """
    away = latents_BCTHW - latents_BCTHW.mean(dim=2, keepdim=True)
    distance_B1THW = away.square().mean(dim=1, keepdim=True).sqrt()
    average_B = distance_B1THW.flatten(1).mean(dim=1).clamp(min=STILL)
    return (distance_B1THW / average_B.reshape(-1, 1, 1, 1, 1)).clamp(max=MOST_MOTION)


def corrupted_and_wanted(
    clean: Tensor, noise: Tensor, alphas_cumprod_B: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Mix latents with noise, and say what the network should answer.

    Args:
        clean: Latents, first axis B.
        noise: As many.
        alphas_cumprod_B: Share of signal variance of every clip.
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``.

    Returns:
        ``(noisy, wanted)``; v = sqrt(abar) noise - sqrt(1 - abar) clean (arXiv 2202.00512).
    """
    shape = (-1, *[1] * (clean.ndim - 1))
    signal = alphas_cumprod_B.sqrt().reshape(shape)
    spread = (1 - alphas_cumprod_B).sqrt().reshape(shape)
    noisy = signal * clean + spread * noise
    answers = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - spread * clean}
    return noisy, answers[prediction_type]
