"""Stand-ins for machines: an engine that needs no networks and misbehaves on request."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musev.config import ClipRequest, Profile, SamplingConfig, WeightsConfig
from musev.media import VideoInfo, encode_png, probe_video, read_video, write_segment
from pipelines.resources import ClusterShape
from pipelines.text_to_video import Graph

LAPTOP = ClusterShape(num_cpus=2, num_gpus=0)
MINI = Profile(name="mini", weights=WeightsConfig(random_seed=0), width=32, height=32)


class ColourEngine:
    """Plain frames whose colour is the seed's; long clips by a formula in the networks' place.

    Prompts of the form ``!word`` misbehave, in long clips at the windows.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def render(
        self,
        request: ClipRequest,
        media: dict[str, Any],
        target: Path,
        on_progress: Callable[[str, int, int], None],
    ) -> VideoInfo:
        misbehave(request.prompt)
        shape_TYXC = (request.num_frames, request.height, request.width, 3)
        frames_TYXC = np.full(shape_TYXC, request.seed % 200, dtype=np.uint8)
        for name, item in media.items():
            if name == "maps":
                from musev.control.clip_control import MapReader

                with MapReader(request, request.control[0], item) as maps:
                    for number, frame_YXC in enumerate(frames_TYXC):
                        frame_YXC[:] = maps.read(number).mean()
            elif isinstance(item, Path):
                for frame_YXC, control_YXC in zip(frames_TYXC, read_video(item), strict=False):
                    frame_YXC[:] = control_YXC.mean()
            else:
                frames_TYXC[0] = item[: request.height, : request.width]
        on_progress("denoise", 1, 1)
        write_segment(target, frames_TYXC, fps=request.fps, encoder=self._profile.encoder)
        on_progress("decode", request.num_frames, request.num_frames)
        return probe_video(target)

    def condition(self, request: ClipRequest, media: dict[str, Any]) -> Any:
        """Conditions: the brightness of each picture. A condition image gives frame 0."""
        import torch

        from musev.clip_front import ClipFacts
        from musev.config import ScheduleConfig

        pictures = {name: x for name, x in media.items() if isinstance(x, np.ndarray)}
        tones = {name: float(np.mean(x)) for name, x in pictures.items()}
        size = (request.height // 8, request.width // 8)
        given = None
        if "condition_image" in tones:
            given = torch.full((1, 4, 1, *size), tones["condition_image"] / 255)
        facts = ClipFacts(
            schedule=ScheduleConfig(),
            latent_height=size[0],
            latent_width=size[1],
            given_BCTHW=given,
        )
        return sum(tones.values()), facts

    @contextmanager
    def open_clip(
        self, request: ClipRequest, conditions: float, video: Path | None
    ) -> Iterator[Callable[..., Any]]:
        import torch

        halves = 2 if request.sampling.guidance.active else 1

        def denoise(noisy_BCFHW: Any, timestep: float, frames: tuple[int, ...]) -> Any:
            misbehave(request.prompt)
            mixed = noisy_BCFHW.mean(dim=2, keepdim=True) * 0.3 + noisy_BCFHW * 0.6
            places = torch.tensor(frames, dtype=torch.float32)[None, None, :, None, None]
            estimate = mixed + torch.sin(places * 0.37 + timestep) * 0.05 + conditions * 1e-4
            return torch.cat([estimate * (1 + 0.1 * half) for half in range(halves)])

        yield denoise

    def write_segment(self, latents_BCTHW: Any, *, fps: float, target: Path) -> int:
        tones_TYX = latents_BCTHW[0, 0].clamp(-3, 3).numpy() * 40 + 128
        frames_TYX = np.kron(tones_TYX.astype(np.uint8), np.ones((1, 8, 8), np.uint8))
        frames_TYXC = np.repeat(frames_TYX[..., None], 3, axis=3)
        return write_segment(target, frames_TYXC, fps=fps, encoder=self._profile.encoder)


def colour_engine(profile: Profile, device: str, parts: Any = None) -> ColourEngine:
    """Load nothing."""
    return ColourEngine(profile)


def misbehave(prompt: str) -> None:
    """Do what a prompt of the form ``!word`` asks for."""
    if prompt == "!die":
        os._exit(9)
    if prompt == "!leave":
        sys.exit(0)
    if prompt == "!raise":
        raise ValueError("no such thing as this")
    if prompt.startswith("!sleep"):
        time.sleep(float(prompt.split()[1]))


@dataclass(frozen=True)
class GpuEngine:
    """Notes which GPU its worker was given, in a file that all workers share."""

    notes: Path

    def __call__(self, profile: Profile, device: str, parts: Any = None) -> ColourEngine:
        assert device == "cuda", device
        with self.notes.open("a") as notes:
            notes.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\n")
        return colour_engine(profile, device)


def broken_engine(profile: Profile, device: str, parts: Any = None) -> ColourEngine:
    """An engine that cannot be built."""
    raise ValueError("the weights are not what they seem")


def dying_engine(profile: Profile, device: str, parts: Any = None) -> ColourEngine:
    """An engine that takes its process down while it is built."""
    os._exit(9)


def request(name: str, *, prompt: str = "a person", **columns: object) -> ClipRequest:
    """A small resolved request; its seed follows from its name."""
    values: dict[str, object] = {
        "num_frames": 3,
        "fps": 4.0,
        "width": 32,
        "height": 32,
        "seed": sum(name.encode()),
        "profile": "mini",
        "sampling": SamplingConfig(num_steps=1),
        **columns,
    }
    return ClipRequest(request_id=name, prompt=prompt, **values)  # type: ignore[arg-type]


def picture(path: Path, colour: int = 100, side: int = 40) -> str:
    """Write a PNG and return its path."""
    path.write_bytes(encode_png(np.full((side, side, 3), colour, dtype=np.uint8)))
    return str(path)


def film(path: Path, num_frames: int = 6, *, fps: float = 4, colour: int = 100) -> str:
    """Write a plain video whose frames grow brighter, and return its path."""
    frames = (np.full((32, 32, 3), min(colour + 5 * n, 255), np.uint8) for n in range(num_frames))
    write_segment(path, frames, fps=fps)
    return str(path)


def graph(folder: Path, **settings: object) -> Graph:
    """A graph over a folder, with the colour engine unless told otherwise."""
    from pipelines.ledger import Ledger
    from pipelines.media_cache import MediaCache

    values: dict[str, object] = {
        "profile": MINI,
        "ledger": Ledger(str(folder / "out")),
        "cache": MediaCache(run_id="test", folder=str(folder / "cache")),
        "model_digests": {"engine": "colours"},
        "shape": LAPTOP,
        "num_workers": 2,
        "load_engine": colour_engine,
        **settings,
    }
    return Graph(**values)  # type: ignore[arg-type]
