"""Noise that depends on nothing but its own coordinates, and the original's noise for comparison.

Axes here: B clip, C channel, T frame, H W latent rows and columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from musev.config import NoiseKind
from musev.errors import ConfigError

COMMON_FRAME = 2**64 - 1  # the frame number under which the noise common to a clip is drawn


class NoiseStream(IntEnum):
    """Independent uses of noise within one clip; the numbers are part of the contract."""

    INITIAL = 0
    STEP = 1


def counter_noise(
    *,
    seed: int,
    stream: int,
    frames: Sequence[int],
    step: int,
    shape_CHW: tuple[int, int, int],
    w_ind_noise: float,
) -> Tensor:
    """Draw unit Gaussian noise that is a function of (seed, stream, frame, step) only.

    The definition is a contract: latents must not change with the machine, the number of workers or
    the length of the clip.

    * Philox4x64-10 with key ``(seed, stream)``. Block ``b`` = 1, 2, 3 ... is the output for the
      counter ``(b, 0, frame, step)``, lowest word first, and gives four 64-bit words.
    * Each word gives the uniforms ``u = (high half + 0.5) * 2**-32`` and ``v = low half * 2**-32``,
      and they two normals by Box and Muller, in float64 and then rounded to float32:
      ``r * c`` and ``r * s`` with ``r = sqrt(-2 log(u))``, ``c = cos(2 pi v)`` and the sine
      ``s = sqrt((1 - c) * (1 + c))``, negative for ``v > 0.5``.
    * Normals fill (C, H, W) in row-major order; one too many is dropped.
    * A frame's noise is ``sqrt(1 - w) * common + sqrt(w) * own`` in float32, where ``common`` is
      drawn under the frame number ``2**64 - 1``. Two frames correlate by ``1 - w``.

    Args:
        seed: The clip's seed, in ``[0, 2**64)``.
        stream: A :class:`NoiseStream`.
        frames: Frame numbers within the clip, in the order wanted.
        step: Step the noise is for; 0 for the initial noise.
        shape_CHW: Shape of one frame's latents.
        w_ind_noise: Share (of variance) of a frame's noise that is its own.

    Returns:
        ``noise_CTHW``: float32 on the CPU, T = ``len(frames)``.

    Raises:
        ConfigError: If seed, stream, frame or step lie outside their range, or w outside [0, 1].

    Source:
        Random123 (Salmon et al. 2011); the mixture is upstream's ``video_fusion`` noise
        (arXiv 2303.08320, equation 4).
    """
    _check_coordinates(seed, stream, step, w_ind_noise)
    noise_TCHW = np.empty((len(frames), *shape_CHW), dtype=np.float32)
    common = _common_normals(seed, stream, step, shape_CHW) if w_ind_noise < 1 else None
    of_common = np.float32(math.sqrt(1.0 - w_ind_noise))
    of_own = np.float32(math.sqrt(w_ind_noise))
    for row, frame in enumerate(frames):
        if not 0 <= frame < COMMON_FRAME:
            raise ConfigError(f"frame must be in [0, 2**64 - 1), got {frame}")
        if common is None:
            noise_TCHW[row] = _normals(seed, stream, frame, step, shape_CHW)
        elif w_ind_noise == 0:
            noise_TCHW[row] = common
        else:
            own = _normals(seed, stream, frame, step, shape_CHW)
            noise_TCHW[row] = of_common * common + of_own * own
    return torch.from_numpy(noise_TCHW).transpose(0, 1).contiguous()


@functools.lru_cache(maxsize=8)
def _common_normals(
    seed: int, stream: int, step: int, shape_CHW: tuple[int, int, int]
) -> np.ndarray:
    """A clip's common noise at one step; kept, since frames are often asked for one by one."""
    common = _normals(seed, stream, COMMON_FRAME, step, shape_CHW)
    common.setflags(write=False)
    return common


def _normals(
    seed: int, stream: int, frame: int, step: int, shape_CHW: tuple[int, int, int]
) -> np.ndarray:
    count = math.prod(shape_CHW)
    # Explicit words: numpy would hash a seed, and spreads a plain integer key over both words.
    philox = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64),
        counter=np.array([0, 0, frame, step], dtype=np.uint64),  # counted up before each block
    )
    words = philox.random_raw((count + 1) // 2)
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)) + 0.5) * 2.0**-32))
    turn = (words & np.uint64(2**32 - 1)) * 2.0**-32
    cosine = np.cos(turn * (2.0 * math.pi))
    sine = np.copysign(np.sqrt((1.0 - cosine) * (1.0 + cosine)), 0.5 - turn)  # faster than np.sin
    normals = np.empty(2 * len(words), dtype=np.float32)
    normals[0::2] = radius * cosine
    normals[1::2] = radius * sine
    return normals[:count].reshape(shape_CHW)


def _check_coordinates(seed: int, stream: int, step: int, w_ind_noise: float) -> None:
    for name, value in (("seed", seed), ("stream", stream), ("step", step)):
        if not 0 <= value < 2**64:
            raise ConfigError(f"{name} must be in [0, 2**64), got {value}")
    if not 0 <= w_ind_noise <= 1:
        raise ConfigError(f"w_ind_noise must be in [0, 1], got {w_ind_noise}")


def mix_noise(common: Tensor, individual: Tensor, w_ind_noise: float) -> Tensor:
    """Mix noise common to all frames with each frame's own, keeping unit variance.

    Args:
        common: One frame, broadcast over the frame axis.
        individual: One draw for each frame.
        w_ind_noise: Share (of variance) of the individual part.

    Returns:
        The mixture, shaped like ``individual``.
    """
    share = torch.tensor(w_ind_noise)  # roots in float32: upstream's last bits depend on it
    return torch.sqrt(1 - share) * common + torch.sqrt(share) * individual


def mix_condition(noise: Tensor, condition: Tensor, img_weight: float) -> Tensor:
    """Mix the mean of the clean condition latents into a clip's initial noise.

    Args:
        noise: ``noise_BCTHW``, unit Gaussian.
        condition: ``condition_BCTHW``, clean latents with any number of frames.
        img_weight: Share (of variance) of the condition.

    Returns:
        ``noise_BCTHW``: the mixture; ``noise`` itself is left as it was.
    """
    mean_BC1HW = condition.mean(dim=2, keepdim=True)
    return img_weight**0.5 * mean_BC1HW + (1 - img_weight) ** 0.5 * noise


@dataclass(frozen=True)
class UpstreamNoise:
    """The original's noise: whole tensors from torch generators, in the order it draws them.

    For parity only: a longer clip, another order of calls or another device gives other noise. With
    several generators each serves one clip of the batch. ``kind``: ``upstream_random`` (every frame
    on its own) or ``upstream_video_fusion`` (the common frame is drawn first, then the individual
    ones). Drawing advances the generators.
    """

    generators: torch.Generator | Sequence[torch.Generator]
    kind: NoiseKind
    w_ind_noise: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("upstream_random", "upstream_video_fusion"):
            raise ConfigError(
                f"upstream noise is upstream_random or upstream_video_fusion, got {self.kind!r}"
            )

    @property
    def state(self) -> Tensor:
        """State of the (first) generator: what has been drawn is behind it."""
        one = isinstance(self.generators, torch.Generator)
        return (self.generators if one else self.generators[0]).get_state()

    def draw(self, shape_BCTHW: Sequence[int], common: Tensor | None = None) -> Tensor:
        """Draw the next noise.

        Args:
            shape_BCTHW: Shape wanted.
            common: ``common_BC1HW`` to use for fusion noise instead of drawing it.

        Returns:
            ``noise_BCTHW``: float32 on the generators' device.

        Raises:
            ConfigError: If there are several generators, but not one for each clip.
        """
        if isinstance(self.generators, torch.Generator):
            return self._draw_from(self.generators, shape_BCTHW, common)
        if len(self.generators) != shape_BCTHW[0]:
            raise ConfigError(
                f"{len(self.generators)} generators for a batch of {shape_BCTHW[0]} clips; "
                "give one generator, or one for each clip"
            )
        shape = (1, *shape_BCTHW[1:])
        rows = [
            self._draw_from(generator, shape, None if common is None else common[row : row + 1])
            for row, generator in enumerate(self.generators)
        ]
        return torch.cat(rows)

    def _draw_from(
        self, generator: torch.Generator, shape_BCTHW: Sequence[int], common: Tensor | None
    ) -> Tensor:
        def randn(shape: Sequence[int]) -> Tensor:
            return torch.randn(tuple(shape), generator=generator, device=generator.device)

        if self.kind == "upstream_random":
            return randn(shape_BCTHW)
        if common is None:
            common = randn((*shape_BCTHW[:2], 1, *shape_BCTHW[3:]))
        return mix_noise(common, randn(shape_BCTHW), self.w_ind_noise)
