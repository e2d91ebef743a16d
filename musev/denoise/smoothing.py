"""Mix the beginning of a shot a little with the end of the shot before, while it is denoised.

Axes here: B clip (or guidance half), C channel, H W latent rows and columns.

Source: upstream's ``record_mid_video_latents`` and ``record_mid_video_noises`` (ALGORITHM.md 8.6).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from musev.config import ShotConfig

OLD_LATENTS = 0.1
OLD_ESTIMATES = 0.01
LATENT_STEPS = 2
"""Latents are mixed at the start and after so many steps."""

Touch = Callable[[int, int, Tensor], Tensor]
"""Step, frame and its latents or estimate to what takes their place."""


class ShotSmoother:
    """What one shot leaves to the next; a wavefront asks it about every frame.

    Latents are numbered by the steps they have behind them: 0 at the start.

    Args:
        config: How many frames, and what is mixed.
    """

    def __init__(self, config: ShotConfig) -> None:
        self._config = config
        self._old: dict[tuple[str, int, int], Tensor] = {}
        self._new: dict[tuple[str, int, int], Tensor] = {}
        self._num_frames = self._num_steps = 0

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self._config.smoothed_frames > 0

    def begin(self, num_frames: int, num_steps: int) -> None:
        """Begin the next shot; what the last one recorded is what it is mixed with.

        Args:
            num_frames: Generated frames of the shot.
            num_steps: Steps that are run.
        """
        self._old, self._new = self._new, {}
        self._num_frames, self._num_steps = num_frames, num_steps

    def latents(self, step: int, frame: int, latents_BCHW: Tensor) -> Tensor:
        """Mix and record the latents of a frame that has ``step`` steps behind it."""
        if self._config.smooth_latents and step <= LATENT_STEPS:
            latents_BCHW = self._mix("latents", step, frame, frame, latents_BCHW, OLD_LATENTS)
        self._record("latents", step, frame, latents_BCHW)
        return latents_BCHW

    def estimate(self, step: int, frame: int, estimate_BCHW: Tensor) -> Tensor:
        """Mix and record the blended estimate of a frame at ``step``, both guidance halves."""
        if self._config.smooth_estimates and step <= self._num_steps // 2:
            estimate_BCHW = self._mix(
                "estimate", step, frame, frame - 1, estimate_BCHW, OLD_ESTIMATES
            )
        self._record("estimate", step, frame, estimate_BCHW)
        return estimate_BCHW

    def _mix(
        self, kind: str, step: int, frame: int, place: int, new_BCHW: Tensor, share: float
    ) -> Tensor:
        old_BCHW = self._old.get((kind, step, place))
        if old_BCHW is None:
            return new_BCHW
        return share * old_BCHW + (1 - share) * new_BCHW

    def _record(self, kind: str, step: int, frame: int, value_BCHW: Tensor) -> None:
        place = frame - (self._num_frames - self._config.smoothed_frames)
        if 0 <= place:
            self._new[kind, step, place] = value_BCHW
