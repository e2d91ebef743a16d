"""What the denoising loop asks of a network; nothing here knows one by name."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from musev.denoise.windows import Window


class Denoiser(Protocol):
    """A network with everything it was told about a clip already in place.

    The denoiser keeps the clip's conditioning (text, reference, condition frames, control), so that
    a step depends on latents, timestep and frame numbers alone, and a test can pass a formula.
    """

    def __call__(self, noisy_BCFHW: Tensor, timestep: float, window: Window) -> Tensor:
        """Estimate what the network was trained to predict for the frames of one window.

        Args:
            noisy_BCFHW: Latents of the window's frames as the solver scaled them; float32. Their
                batch is one row a clip, without the halves for guidance.
            timestep: The solver's timestep of this step.
            window: Number of each frame within the clip, in the order of the F axis.

        Returns:
            ``estimate_BCFHW``: the network's raw output (noise, sample or velocity). Its batch is
            ``[unconditional, conditional]`` halves with guidance, else only the conditional rows.
        """
        ...
