"""What a worker of the pool can do, and the engine of real networks.

A worker is told rows and arrays and knows no network; an engine does the work. Nothing here imports
torch at the top: a stand-in engine needs none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from musev.config import ClipRequest, Profile
from musev.media import VideoInfo

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
Media = dict[str, Any]
"""Manifest column to decoded picture or pictures, ``video`` to a file on this machine, and ``maps``
to the clip's :class:`~musev.control.clip_control.ControlMaps`; ``loras`` to its LoRA files."""


class Engine(Protocol):
    """Networks in use, or a stand-in; see :class:`musev.engine.ClipEngine` for what each does."""

    def render(
        self, request: ClipRequest, media: Media, target: Path, on_progress: OnProgress
    ) -> VideoInfo:
        """Render a whole clip to a file."""
        ...

    def condition(self, request: ClipRequest, media: Media) -> tuple[Any, Any]:
        """Compute a clip's conditions: any picklable value, and its ``ClipFacts``."""
        ...

    def open_clip(
        self, request: ClipRequest, conditions: Any, maps: Any, loras: Any = ()
    ) -> AbstractContextManager[Callable[..., Any]]:
        """Open a clip: ``(noisy_BCFHW, timestep, frames)`` to ``estimate_BCFHW``."""
        ...

    def write_segment(self, latents_BCTHW: Any, *, fps: float, target: Path) -> int:
        """Decode clean latents and encode them as a segment."""
        ...


LoadEngine = Callable[[Profile, str, Any], Engine]
"""Profile, device and a store of parts of conditions (or None) to an engine."""


def load_networks(profile: Profile, device: str, parts: Any = None) -> Engine:
    """Load a profile's networks.

    On the CPU one thread is used: sums come out in one order, so a clip's bytes depend neither on
    the machine's number of cores nor on the number of workers.

    Args:
        profile: Names the weights, the precision and the encoder.
        device: ``cpu`` or ``cuda``.
        parts: A :class:`musev.parts.PartStore` that keeps conditions; None computes all of them.

    Returns:
        The engine.
    """
    import torch  # on the worker, never on the driver

    from musev.engine import ClipEngine
    from musev.models.bundle import load_bundle

    if device == "cpu":
        torch.set_num_threads(1)
    bundle = load_bundle(profile.weights, device=device, precision=profile.precision)
    return _Networks(ClipEngine(bundle, profile.encoder, parts))


class _Networks:
    """A clip engine that takes media as the pipeline names them.

    An error that breaks the device's context ends the process: only a new one can go on.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def render(
        self, request: ClipRequest, media: Media, target: Path, on_progress: OnProgress
    ) -> VideoInfo:
        with _device_or_death(request.request_id):
            return self._engine.render(request, _clip_media(media), target, on_progress)

    def condition(self, request: ClipRequest, media: Media) -> tuple[Any, Any]:
        with _device_or_death(request.request_id):
            return self._engine.condition(request, _clip_media(media))

    @contextmanager
    def open_clip(
        self, request: ClipRequest, conditions: Any, maps: Any, loras: Any = ()
    ) -> Iterator[Callable[..., Any]]:
        with self._engine.open_clip(request, conditions, maps, loras) as denoise:

            def careful(*arguments: Any) -> Any:
                with _device_or_death(request.request_id):
                    return denoise(*arguments)

            yield careful

    def write_segment(self, latents_BCTHW: Any, *, fps: float, target: Path) -> int:
        with _device_or_death("of a segment"):
            return self._engine.write_segment(latents_BCTHW, fps=fps, target=target)


def _clip_media(media: Media) -> Any:
    from musev.conditions import ClipMedia

    return ClipMedia(**media)  # pyright: ignore[reportArgumentType]


@contextmanager
def _device_or_death(request_id: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.AcceleratorError:
        logger.exception("request %s broke the device", request_id)
        os._exit(70)
