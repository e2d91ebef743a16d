"""Pose engines behind one interface: frames in, people as data out.

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from musev.control.person import FramePoses
from musev.errors import ConfigError

ENGINES = ("embedded", "mmpose", "controlnet_aux")
ANNOTATORS = "annotators"
"""Key of the weights' place that serves every engine without one of its own."""


class PoseEngine(Protocol):
    """Finds people. Made once for a worker and held for its life."""

    def find(self, frames_TYXC: np.ndarray) -> list[FramePoses]:
        """Find everybody in every frame, each frame by itself.

        Args:
            frames_TYXC: uint8 RGB.

        Returns:
            The people of each frame; coordinates are fractions of the picture.
        """
        ...


def open_pose_engine(name: str, weights: Mapping[str, str], *, device: str = "cpu") -> PoseEngine:
    """Load a pose engine.

    Args:
        name: One of :data:`ENGINES`.
        weights: Name to a folder or URL; the engine's own name counts before ``annotators``.
        device: Where its networks run; ``embedded`` runs on the CPU whatever it says.

    Returns:
        The engine.

    Raises:
        ConfigError: If there is no such engine. Missing weights or packages raise a WeightsError
            that says what to put where.
    """
    place = weights.get(name, weights.get(ANNOTATORS))
    if name == "embedded":
        from musev.control.pose_embedded import EmbeddedEngine

        return EmbeddedEngine(weights.get(name))
    if name == "mmpose":
        from musev.control.pose_mmpose import MmposeEngine

        return MmposeEngine(place, device=device)
    if name == "controlnet_aux":
        from musev.control.pose_controlnet_aux import ControlnetAuxEngine

        return ControlnetAuxEngine(place, device=device)
    raise ConfigError(f"no pose engine {name!r}. Choose one of {', '.join(ENGINES)}.")
