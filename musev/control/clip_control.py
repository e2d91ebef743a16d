"""The control of one clip: its control frames, embedded once, and the residuals they give.

Axes here: R clip and frame folded into one axis (clip-major), B clip (or guidance half), C channel,
F frame within a window, H W latent rows and columns, Y X pixel rows and columns, L token, D
embedding.

Control frame ``t`` belongs to frame ``t`` of the finished video. So a conditioning frame at the
front, given or drawn, is controlled by control frame 0 (ALGORITHM.md 11); by its own map where
there is one, and then frame ``t`` reads map ``t - 1``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from musev.config import ClipRequest
from musev.control.controlnets import controlnet_for
from musev.errors import RequestError
from musev.media import (
    FrameStore,
    fit_image,
    pick_frames,
    read_frames,
    read_video,
    time_frames,
)
from musev.models.attachments import ControlResiduals, PoseFeatures
from musev.models.bundle import ModelBundle
from musev.models.control import ControlNet, MultiControlNet, PoseGuider
from musev.models.trees import map_tensors
from musev.weight_parts import POSE_GUIDER

EMBEDDED_BYTES = 512 * 2**20
"""Bound on the embedded frames kept for a clip and a network: 200 frames of 512x512 in half
precision. Frames beyond it are embedded again for every window."""

OPEN_PIECES = 64
"""Pieces of a map video kept open at a time: 8 bytes of memory a frame, and files on disk."""

Embedded = Callable[[Sequence[int]], Tensor]
"""Frame numbers to ``embedded_RCHW``, one row a frame."""


class EmbeddedFrames:
    """Control frames as one ControlNet wants them, computed once while they fit into memory.

    Each frame is embedded by itself, so its values do not depend on which frames it is asked for
    with, nor on whether it was kept.
    """

    def __init__(
        self,
        net: ControlNet | PoseGuider,
        read: Callable[[int], np.ndarray],
        *,
        limit_bytes: int = EMBEDDED_BYTES,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            net: Embeds.
            read: Frame number to ``image_YXC``, uint8 RGB at the clip's size.
            limit_bytes: How much may be kept. The first frames asked for stay, so a clip that is
                too long still profits at every step; the last call's are kept besides, because
                neighbouring windows share frames.
        """
        self._net = net
        self._read = read
        self._limit_bytes = limit_bytes
        self._kept: dict[int, Tensor] = {}
        self._recent: dict[int, Tensor] = {}
        self._num_bytes = 0

    def __call__(self, frames: Sequence[int]) -> Tensor:
        """Embed some frames; ``embedded_RCHW`` on the network's device and in its precision."""
        asked = {frame: self._find(frame) for frame in frames}
        self._recent = {frame: found for frame, found in asked.items() if frame not in self._kept}
        return torch.stack([asked[frame] for frame in frames])

    def _find(self, frame: int) -> Tensor:
        for place in (self._kept, self._recent):
            if frame in place:
                return place[frame]
        image_YXC = torch.from_numpy(self._read(frame).copy())
        image_RCYX = rearrange(image_YXC, "y x c -> 1 c y x").to(self._net.device).float() / 255
        embedded_CHW = self._net.embed_condition(image_RCYX.to(self._net.dtype))[0]
        if self._num_bytes + embedded_CHW.nbytes <= self._limit_bytes:
            self._kept[frame] = embedded_CHW
            self._num_bytes += embedded_CHW.nbytes
        return embedded_CHW


class ClipControl:
    """What the ControlNets of a clip add to the video network, for any of its frames."""

    def __init__(
        self,
        nets: Sequence[ControlNet | PoseGuider],
        embedded: Sequence[Embedded],
        scales: Callable[[float], Sequence[float]],
        limits: Sequence[tuple[float, float]] = (),
        *,
        guess: bool = False,
    ) -> None:
        """Put networks and their frames together.

        Args:
            nets: The networks; the residuals of ControlNets, and the features of pose guiders, are
                added up.
            embedded: The control frames of each network.
            scales: Timestep to the scale of each network; one at scale 0 is not run.
            limits: Shares of the steps between which each network takes part; see :meth:`during`.
            guess: Control the conditional half of guidance alone, less in the upper layers.
        """
        self._nets = nets
        self._net = MultiControlNet([net for net in nets if isinstance(net, ControlNet)])
        self._embedded = tuple(embedded)
        self._scales = scales
        self._limits = limits
        self.guess = guess

    def during(self, timesteps: Sequence[float]) -> ClipControl:
        """Let networks set in and stop within these steps.

        Args:
            timesteps: Of the steps, in order.

        Returns:
            The control for them; it shares the embedded frames.

        Source:
            Upstream's keep list (ALGORITHM.md 7.2).
        """
        if all(limit == (0.0, 1.0) for limit in self._limits):
            return self
        count, steps = len(timesteps), {timestep: n for n, timestep in enumerate(timesteps)}

        def scales(timestep: float) -> list[float]:
            step = steps[timestep]
            return [
                scale if start <= step / count and (step + 1) / count <= end else 0.0
                for scale, (start, end) in zip(self._scales(timestep), self._limits, strict=True)
            ]

        return ClipControl(self._nets, self._embedded, scales, guess=self.guess)

    def residuals(
        self, noisy_BCFHW: Tensor, timestep: float, text_BLD: Tensor, frames: Sequence[int]
    ) -> ControlResiduals | None:
        """Compute the residuals of one window.

        Args:
            noisy_BCFHW: What the video network is given: conditioning frames in front, both
                guidance halves along B.
            timestep: The step's; conditioning frames get it as well, as in the original.
            text_BLD: Prompt of each half.
            frames: Number of each frame of the F axis within the finished video.

        Returns:
            Residuals, or None if every scale is 0 or there is no ControlNet.
        """
        halves = len(noisy_BCFHW)
        if self.guess:
            noisy_BCFHW, text_BLD = noisy_BCFHW[-1:], text_BLD[-1:]
        own = [number for number, net in enumerate(self._nets) if isinstance(net, ControlNet)]
        scales = self._scales(timestep)
        found = self._net(
            rearrange(noisy_BCFHW, "b c f h w -> (b f) c h w"),
            timestep,
            text_BLD.to(noisy_BCFHW.dtype),
            [self._embedded[number](frames) for number in own],
            scales=[scales[number] for number in own],
            guess_mode=self.guess,
        )
        if found is None or not self.guess or halves == 1:
            return found
        # Nothing for the unconditional half, which comes first.
        return map_tensors(lambda half: torch.cat([torch.zeros_like(half), half]), found)

    def pose_features(
        self, timestep: float, frames: Sequence[int], *, batch: int
    ) -> PoseFeatures | None:
        """Features of the pose guiders for one window.

        Args:
            timestep: The step's.
            frames: As of :meth:`residuals`.
            batch: Clips or guidance halves of the window; all are given the same.

        Returns:
            Features, or None without a pose guider or where its scale is 0.
        """
        total: Tensor | None = None
        for net, embedded, scale in zip(
            self._nets, self._embedded, self._scales(timestep), strict=True
        ):
            if isinstance(net, PoseGuider) and scale:
                found = scale * embedded(frames)
                total = found if total is None else total + found
        return None if total is None else PoseFeatures(total.repeat(batch, 1, 1, 1))


@dataclass(frozen=True, kw_only=True)
class ControlMaps:
    """Control maps that were made for a clip: of each name those of its frames, and one in front.

    A long map video comes as pieces, so that who needs a few frames reads a few files.
    """

    open_piece: Callable[[str, int], Path] | None = None
    """Name and number to a map video of :attr:`piece_frames` frames, the last one of fewer, at the
    clip's rate and size. None: all names read :attr:`video`."""
    piece_frames: int = 0
    video: Path | None = None
    """A control video as the user gave it."""
    front: Mapping[str, np.ndarray] = field(default_factory=dict)
    """``image_YXC`` of each name that has a map of the condition image."""


class MapReader:
    """The maps of one control name by frame number; at most so many pieces are kept open."""

    def __init__(self, request: ClipRequest, name: str, maps: ControlMaps) -> None:
        """Set up; nothing is opened yet.

        Args:
            request: Whose maps; for errors, and for how a control video is read.
            name: Of the control.
            maps: Where they lie.
        """
        self._request = request
        self._name = name
        self._maps = maps
        self._open: OrderedDict[int, FrameStore] = OrderedDict()

    def __enter__(self) -> MapReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def read(self, frame: int) -> np.ndarray:
        """Read the map of one frame of the clip.

        Args:
            frame: From 0.

        Returns:
            ``image_YXC``: uint8.

        Raises:
            MediaError: If there is no such frame, or a file cannot be read.
        """
        if self._name in self._maps.front:
            if frame == 0:
                return self._maps.front[self._name]
            frame -= 1
        if self._maps.open_piece is None:
            return self._piece(0).read(frame)
        number, within = divmod(frame, self._maps.piece_frames)
        return self._piece(number).read(within)

    def _piece(self, number: int) -> FrameStore:
        if number not in self._open:
            while len(self._open) >= OPEN_PIECES:
                self._open.popitem(last=False)[1].close()
            self._open[number] = self._store(number)
        self._open.move_to_end(number)
        return self._open[number]

    def _store(self, number: int) -> FrameStore:
        if self._maps.open_piece is not None:
            path = self._maps.open_piece(self._name, number)
            where = f"request {self._request.request_id!r}, {self._name} maps, piece {number}"
            return FrameStore(read_video(path), name=where)
        assert self._maps.video is not None
        return open_control_frames(self._request, self._maps.video)


@contextmanager
def open_control(
    bundle: ModelBundle, request: ClipRequest, maps: Path | Mapping[str, Path] | ControlMaps | None
) -> Iterator[ClipControl | None]:
    """Open a clip's control maps and keep them open for as long as the clip is rendered.

    Args:
        bundle: Holds the ControlNets.
        request: Names the controls in ``control``; gives size and frame rate.
        maps: Maps that were made for the clip; or a file whose frames are control maps, for all
            names or one for each; None for a clip without control.

    Yields:
        The clip's control, or None.

    Raises:
        RequestError: If the request names no control, or one that no ControlNet of the bundle is
            for, or gives it no maps.
        MediaError: If a file cannot be read.
    """
    if maps is None or (
        isinstance(maps, Path) and request.start_from_video and not request.control
    ):
        yield None
        return
    nets = _find_nets(bundle, request)
    with ExitStack() as stack:
        readers = [
            stack.enter_context(MapReader(request, name, _maps_of(request, name, maps)))
            for name in request.control
        ]
        embedded = [
            EmbeddedFrames(net, reader.read) for net, reader in zip(nets, readers, strict=True)
        ]
        limits = list(zip(request.control_start, request.control_end, strict=True))
        guess = request.sampling.control_guess
        yield ClipControl(
            nets, embedded, lambda _timestep: request.control_scale, limits, guess=guess
        )


def _maps_of(
    request: ClipRequest, name: str, maps: Path | Mapping[str, Path] | ControlMaps
) -> ControlMaps:
    if isinstance(maps, ControlMaps):
        return maps
    if isinstance(maps, Path):
        return ControlMaps(video=maps)
    if name not in maps:
        raise RequestError(
            f"request {request.request_id!r}: there are no control maps for {name!r}, only for: "
            f"{', '.join(maps) or 'none'}. Give one video for each name in control."
        )
    return ControlMaps(video=maps[name])


def open_control_frames(request: ClipRequest, video: Path) -> FrameStore:
    """Open a video as frames by number, at the clip's frame rate and size.

    Args:
        request: Gives rate and size, and which frames are read; by time, it is the frame that is on
            screen at the wanted moment.
        video: The file.

    Returns:
        Frames from 0; decoded as far as they are asked for.
    """
    name = f"request {request.request_id!r}, control video {video.name}"
    return FrameStore(fitted_frames(request, video), name=name)


def fitted_frames(request: ClipRequest, video: Path) -> Iterator[np.ndarray]:
    """Frames of a video, one after another, as :func:`open_control_frames` numbers them."""
    times = time_frames(video, may_be_cut=request.video_may_be_cut)
    numbers = pick_frames(times, fps=request.fps, sample_rate=request.sample_rate)
    with closing(read_frames(video, times, numbers)) as frames:
        for frame_YXC in frames:
            yield fit_frame(request, frame_YXC)


def fit_frame(request: ClipRequest, frame_YXC: np.ndarray) -> np.ndarray:
    """Crop and resize a frame of a video to the clip's size, as the request's profile does."""
    upstream = request.sampling.image_fit == "upstream"
    return fit_image(
        frame_YXC,
        width=request.width,
        height=request.height,
        resampling="bilinear" if upstream else "lanczos",
        exact_upstream=upstream,
    )


def _find_nets(bundle: ModelBundle, request: ClipRequest) -> list[ControlNet | PoseGuider]:
    where = f"request {request.request_id!r}"
    if not request.control:
        raise RequestError(
            f"{where}: a control video is given, but no ControlNet is named. Put its name into "
            "control."
        )
    nets: list[ControlNet | PoseGuider] = []
    for name in request.control:
        if name == POSE_GUIDER and bundle.pose_guider is not None:
            nets.append(bundle.pose_guider)
            continue
        held = controlnet_for(name, bundle.controlnets)
        if held is None:
            raise RequestError(
                f"{where}: the weights hold no ControlNet {name!r}; they hold: "
                f"{', '.join(bundle.controlnets) or 'none'}. Name one of these in control, or add "
                f"weights.controlnets.{name}."
            )
        nets.append(bundle.controlnets[held])
    return nets
