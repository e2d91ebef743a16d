"""What one clip draws from its seed: the initial noise and the solver's noise during the steps.

Axes here: B clip, C channel, T frame, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from musev.config import SamplingConfig
from musev.denoise.noise import NoiseStream, UpstreamNoise, counter_noise
from musev.denoise.solvers import Solver
from musev.errors import ConfigError, ShapeError


class NoiseSource(Protocol):
    """The draws of one clip.

    ``frames`` are the numbers of the frames wanted, in the order of T; without them it is frames 0
    to T. Where ``draws_whole_steps`` says so, a step's noise can only be drawn for the whole clip.
    """

    def initial(self, shape_BCTHW: Sequence[int], frames: Sequence[int] | None = None) -> Tensor:
        """Draw the noise a clip starts from; float32, unit variance."""
        ...

    def during(
        self,
        solver: Solver,
        step: int,
        shape_BCTHW: Sequence[int],
        frames: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Draw what the solver needs to leave ``step``; None when it needs nothing."""
        ...

    def draws_whole_steps(self, solver: Solver, step: int) -> bool:
        """Whether all frames have to leave ``step`` together, steps in order."""
        ...

    @property
    def state(self) -> Tensor | None:
        """What a later source of the same clip needs to go on from here; None for nothing."""
        ...


class CounterSource:
    """Noise as a function of (seed, frame, step) only; see :func:`counter_noise`.

    The order of calls does not matter, nor does the clip's length: frame 7 of a long clip has the
    noise of frame 7 of a short one. The clips of a batch get neighbouring streams.
    """

    def __init__(self, seed: int, *, w_ind_noise: float, first_frame: int = 0) -> None:
        self._seed = seed
        self._w_ind_noise = w_ind_noise
        self._first_frame = first_frame

    def initial(self, shape_BCTHW: Sequence[int], frames: Sequence[int] | None = None) -> Tensor:
        """Draw the noise a clip starts from; float32, unit variance."""
        return self._draw(NoiseStream.INITIAL, 0, shape_BCTHW, frames)

    def during(
        self,
        solver: Solver,
        step: int,
        shape_BCTHW: Sequence[int],
        frames: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Draw the noise of one step where the solver's formula has a noise term."""
        if not solver.needs_noise(step):
            return None
        return self._draw(NoiseStream.STEP, step, shape_BCTHW, frames)

    def draws_whole_steps(self, solver: Solver, step: int) -> bool:
        """Never: every frame's noise stands for itself."""
        return False

    @property
    def state(self) -> Tensor | None:
        """None: nothing is drawn in order."""
        return None

    def _draw(
        self, stream: int, step: int, shape_BCTHW: Sequence[int], frames: Sequence[int] | None
    ) -> Tensor:
        num_clips, channels, num_frames, height, width = shape_BCTHW
        wanted = range(num_frames) if frames is None else frames
        if len(wanted) != num_frames:
            raise ShapeError(f"noise for {len(wanted)} frames cannot have shape {shape_BCTHW}")
        frames = [self._first_frame + frame for frame in wanted]
        return torch.stack(
            [
                counter_noise(
                    seed=self._seed,
                    stream=len(NoiseStream) * clip + stream,
                    frames=frames,
                    step=step,
                    shape_CHW=(channels, height, width),
                    w_ind_noise=self._w_ind_noise,
                )
                for clip in range(num_clips)
            ]
        )


class UpstreamSource:
    """The original's draws, in its order, from torch's CPU generator: for parity only.

    Every step that the original draws for consumes a draw, whether it is used or not (its Euler
    solver discards one a step), because later draws depend on it.
    """

    def __init__(self, noise: UpstreamNoise) -> None:
        self._noise = noise

    def initial(self, shape_BCTHW: Sequence[int], frames: Sequence[int] | None = None) -> Tensor:
        """Draw the next initial noise from the generator."""
        _refuse_some_frames(frames)
        return self._noise.draw(tuple(shape_BCTHW))

    def during(
        self,
        solver: Solver,
        step: int,
        shape_BCTHW: Sequence[int],
        frames: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Draw where the original draws; hand the draw on only where it is used."""
        if not solver.upstream_draws(step):
            return None
        _refuse_some_frames(frames)
        drawn = self._noise.draw(tuple(shape_BCTHW))
        return drawn if solver.needs_noise(step) else None

    def draws_whole_steps(self, solver: Solver, step: int) -> bool:
        """Wherever the original draws."""
        return solver.upstream_draws(step)

    @property
    def state(self) -> Tensor:
        """Of the generator; a source made with it goes on where this one stands."""
        return self._noise.state


def _refuse_some_frames(frames: Sequence[int] | None) -> None:
    if frames is not None:
        raise ConfigError(
            "upstream noise is drawn for whole clips, not for some frames; set noise to counter"
        )


def make_noise_source(
    sampling: SamplingConfig, seed: int, *, first_frame: int = 0, state: Tensor | None = None
) -> NoiseSource:
    """Build the noise source that a clip's sampling asks for.

    Args:
        sampling: Its ``noise`` and ``w_ind_noise``.
        seed: The clip's seed.
        first_frame: Frame number in the video of the first frame that is denoised.
        state: Of another source of the same clip, which this one goes on from: see
            :attr:`UpstreamSource.state`.

    Returns:
        A source; the upstream kinds keep a generator's state and must be used in order.
    """
    if sampling.noise == "counter":
        return CounterSource(seed, w_ind_noise=sampling.w_ind_noise, first_frame=first_frame)
    generator = torch.Generator("cpu").manual_seed(seed)
    if state is not None:
        generator.set_state(state)
    return UpstreamSource(UpstreamNoise(generator, sampling.noise, sampling.w_ind_noise))
