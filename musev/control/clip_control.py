"""The control of one clip: its control frames, embedded once, and the residuals they give.

Axes here: R clip and frame folded into one axis (clip-major), B clip (or guidance half), C channel,
F frame within a window, H W latent rows and columns, Y X pixel rows and columns, L token, D
embedding.

Control frame ``t`` belongs to frame ``t`` of the finished video. So a conditioning frame at the
front, given or drawn, is controlled by control frame 0 (ALGORITHM.md 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from musev.config import ClipRequest
from musev.errors import RequestError
from musev.media import FrameStore, fit_image, read_video, resample_frames, scan_video
from musev.models.attachments import ControlResiduals
from musev.models.bundle import ModelBundle
from musev.models.control import ControlNet, MultiControlNet

EMBEDDED_BYTES = 512 * 2**20
"""Bound on the embedded frames kept for a clip and a network: 200 frames of 512x512 in half
precision. Frames beyond it are embedded again for every window."""

Embedded = Callable[[Sequence[int]], Tensor]
"""Frame numbers to ``embedded_RCHW``, one row a frame."""


class EmbeddedFrames:
    """Control frames as one ControlNet wants them, computed once while they fit into memory.

    Each frame is embedded by itself, so its values do not depend on which frames it is asked for
    with, nor on whether it was kept.
    """

    def __init__(
        self,
        net: ControlNet,
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
        nets: Sequence[ControlNet],
        embedded: Sequence[Embedded],
        scales: Callable[[float], Sequence[float]],
    ) -> None:
        """Put networks and their frames together.

        Args:
            nets: The networks; their residuals are added.
            embedded: The control frames of each network.
            scales: Timestep to the scale of each network; one at scale 0 is not run.
        """
        self._net = MultiControlNet(nets)
        self._embedded = tuple(embedded)
        self._scales = scales

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
            Residuals, or None if every scale is 0.
        """
        dtype = noisy_BCFHW.dtype
        return self._net(
            rearrange(noisy_BCFHW, "b c f h w -> (b f) c h w"),
            timestep,
            text_BLD.to(dtype),
            [embedded(frames) for embedded in self._embedded],
            scales=self._scales(timestep),
        )


@contextmanager
def open_control(
    bundle: ModelBundle, request: ClipRequest, video: Path | None
) -> Iterator[ClipControl | None]:
    """Open a clip's control video and keep it open for as long as the clip is rendered.

    Args:
        bundle: Holds the ControlNets.
        request: Names them in ``control``; gives size and frame rate.
        video: A file whose frames are control maps; None for a clip without control.

    Yields:
        The clip's control, or None.

    Raises:
        RequestError: If the request names no ControlNet, or one that the bundle does not hold.
        MediaError: If the file cannot be read.
    """
    if video is None:
        yield None
        return
    nets = _find_nets(bundle, request)
    with open_control_frames(request, video) as store:
        embedded = [EmbeddedFrames(net, store.read) for net in nets]
        yield ClipControl(nets, embedded, lambda _timestep: request.control_scale)


def open_control_frames(request: ClipRequest, video: Path) -> FrameStore:
    """Open a control video as frames by number, at the clip's frame rate and size.

    Args:
        request: Gives frame rate and size; where rates differ, the frame that is on screen at the
            wanted moment is taken.
        video: The file.

    Returns:
        Frames from 0; decoded as far as they are asked for.
    """
    name = f"request {request.request_id!r}, control video {video.name}"
    return FrameStore(_fitted_frames(request, video), name=name)


def _fitted_frames(request: ClipRequest, video: Path) -> Iterator[np.ndarray]:
    source_fps = scan_video(video).fps
    upstream = request.sampling.image_fit == "upstream"
    with closing(read_video(video)) as decoded:
        for frame_YXC in resample_frames(decoded, source_fps=source_fps, fps=request.fps):
            yield fit_image(
                frame_YXC,
                width=request.width,
                height=request.height,
                resampling="bilinear" if upstream else "lanczos",
                exact_upstream=upstream,
            )


def _find_nets(bundle: ModelBundle, request: ClipRequest) -> list[ControlNet]:
    where = f"request {request.request_id!r}"
    if not request.control:
        raise RequestError(
            f"{where}: a control video is given, but no ControlNet is named. Put its name into "
            "control."
        )
    for name in request.control:
        if name not in bundle.controlnets:
            raise RequestError(
                f"{where}: the weights hold no ControlNet {name!r}; they hold: "
                f"{', '.join(bundle.controlnets) or 'none'}. Name one of these in control, or add "
                f"weights.controlnets.{name}."
            )
    return [bundle.controlnets[name] for name in request.control]
