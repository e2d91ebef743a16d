"""The state of a half-denoised clip, and its form as plain tensors for storage.

Axes here: B clip, C channel, F frame, H W latent rows and columns. Keyed by frame ranges, never by
workers: anybody can go on from a snapshot, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.denoise.solvers import SolverState
from musev.errors import ShapeError


@dataclass(frozen=True)
class FrameRange:
    """Frames [first, stop) that stand at the same step.

    ``states`` holds one state a frame. It is empty at step 0, where latents come from the clip's
    noise, and at the last step for frames that were released.

    The contents follow from (first, stop, step): what a request denoises to at a step never
    changes. A store that holds that key already has nothing to write.
    """

    first: int
    stop: int
    step: int
    states: tuple[SolverState, ...]

    def tensors(self) -> dict[str, Tensor]:
        """Stack the states: ``latents``, and ``history.0`` and so on for a multistep solver."""
        if not self.states:
            return {}
        stacked = {"latents": torch.stack([state.latents for state in self.states], dim=2)}
        pasts = zip(*(state.history for state in self.states), strict=True)
        return stacked | {
            f"history.{age}": torch.stack(past, dim=2) for age, past in enumerate(pasts)
        }


@dataclass(frozen=True)
class Snapshot:
    """A whole clip at one moment.

    ``answers``: for every frame that waits for a window, the estimates (``BCHW``) of the others by
    window number. The parts are consistent only together: ranges of two moments do not mix.
    """

    num_frames: int
    num_steps: int
    ranges: tuple[FrameRange, ...]
    answers: Mapping[int, Mapping[int, Tensor]]

    def steps(self) -> Iterator[int]:
        """Tell the step of every frame, in order."""
        for part in self.ranges:
            yield from [part.step] * (part.stop - part.first)

    def tensors(self) -> dict[str, Tensor]:
        """Flatten to named tensors, for example for a safetensors file.

        Returns:
            ``clip``: frames and steps; ``ranges``: first, stop and step of each; the states of a
            range under ``<first>-<stop>.<name>``; ``waiting``: frame and window number of each
            kept estimate; ``estimates``: those, stacked.
        """
        ranges = [[part.first, part.stop, part.step] for part in self.ranges]
        found = [(f, n, e) for f, kept in self.answers.items() for n, e in kept.items()]
        tensors = {
            "clip": torch.tensor([self.num_frames, self.num_steps]),
            "ranges": torch.tensor(ranges, dtype=torch.int64).reshape(-1, 3),
            "waiting": torch.tensor([item[:2] for item in found], dtype=torch.int64).reshape(-1, 2),
        }
        if found:
            tensors["estimates"] = torch.stack([item[2] for item in found])
        for part in self.ranges:
            for name, tensor in part.tensors().items():
                tensors[f"{part.first}-{part.stop}.{name}"] = tensor
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Snapshot:
        """Read what :meth:`tensors` wrote.

        Args:
            tensors: By name.

        Returns:
            The snapshot.

        Raises:
            ShapeError: If the ranges do not cover the clip.
        """
        num_frames, num_steps = tensors["clip"].tolist()
        ranges, reached = [], 0
        for first, stop, step in tensors["ranges"].tolist():
            if first != reached:
                raise ShapeError(f"a snapshot has no range that begins at frame {reached}")
            ranges.append(FrameRange(first, stop, step, _unstack(tensors, f"{first}-{stop}.")))
            reached = stop
        if reached != num_frames:
            raise ShapeError(f"a snapshot of {num_frames} frames ends at frame {reached}")
        answers: dict[int, dict[int, Tensor]] = {}
        for index, (frame, number) in enumerate(tensors["waiting"].tolist()):
            answers.setdefault(frame, {})[number] = tensors["estimates"][index].clone()
        return cls(num_frames, num_steps, tuple(ranges), answers)


def _unstack(tensors: Mapping[str, Tensor], prefix: str) -> tuple[SolverState, ...]:
    if f"{prefix}latents" not in tensors:
        return ()
    latents_BCFHW = tensors[f"{prefix}latents"]
    pasts = []
    while f"{prefix}history.{len(pasts)}" in tensors:
        pasts.append(tensors[f"{prefix}history.{len(pasts)}"])
    return tuple(
        SolverState(
            latents_BCFHW[:, :, index].clone(), tuple(past[:, :, index].clone() for past in pasts)
        )
        for index in range(latents_BCFHW.shape[2])
    )
