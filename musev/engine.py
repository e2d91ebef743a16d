"""What one worker can do with its loaded networks: whole clips, and the pieces of long ones.

Axes here: B clip (or guidance half), C channel, T frame, F frame within a window, H W latent rows
and columns.

A long clip is conditioned once (:meth:`ClipEngine.condition`, anywhere), its windows are estimated
wherever there is a worker (:meth:`ClipEngine.open_clip`), and its finished frames become segments
(:meth:`ClipEngine.write_segment`). :func:`~musev.render.render_clip` does the same with the same
verbs in one process, to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from musev.clip_front import ClipFacts
from musev.conditions import ClipMedia, encode_conditions, fit_media
from musev.config import ClipRequest, EncoderConfig
from musev.control.clip_control import ControlMaps, open_control
from musev.denoise.conditioning import Denoiser
from musev.lora_choice import LoraFile
from musev.media import VideoInfo, write_segment
from musev.models.bundle import ModelBundle
from musev.models.trees import map_tensors
from musev.parts import PartStore
from musev.render import (
    OnProgress,
    decode_segments,
    facts_of,
    make_denoiser,
    open_source,
    render_clip,
)
from musev.window_denoiser import ClipConditions


class ClipEngine:
    """Networks in use.

    Args:
        bundle: The networks.
        encoder: H.264 settings of every video.
        parts: Where conditions that clips share are kept; None computes all of them.
    """

    def __init__(
        self, bundle: ModelBundle, encoder: EncoderConfig, parts: PartStore | None = None
    ) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._parts = parts

    @property
    def wire_dtype(self) -> torch.dtype:
        """Precision of the networks: in it nothing of an estimate is lost on its way."""
        return self._bundle.dtype

    def render(
        self, request: ClipRequest, media: ClipMedia, target: Path, on_progress: OnProgress
    ) -> VideoInfo:
        """Render a whole clip to a file; see :func:`~musev.render.render_clip`."""
        return render_clip(
            self._bundle,
            request,
            media,
            encoder=self._encoder,
            target=target,
            on_progress=on_progress,
            parts=self._parts,
        )

    @torch.inference_mode()
    def condition(self, request: ClipRequest, media: ClipMedia) -> tuple[ClipConditions, ClipFacts]:
        """Compute a clip's conditions; see :func:`~musev.render.encode_conditions`.

        Args:
            request: The clip.
            media: Its pictures, and its control video for a first frame that is drawn.

        Returns:
            The conditions, on the CPU, and what drives the clip's windows has to know.

        Raises:
            RequestError: If the request asks for something these networks cannot do.
        """
        self._bundle.loras.use(media.loras)
        with (
            open_control(self._bundle, request, media.control) as control,
            open_source(request, media.video) as source,
        ):
            fitted = fit_media(request, media)
            conditions = encode_conditions(
                self._bundle, request, fitted, control, source=source, parts=self._parts
            )
        conditions = map_tensors(Tensor.cpu, conditions)
        return conditions, facts_of(self._bundle, request, conditions)

    @contextmanager
    def open_clip(
        self,
        request: ClipRequest,
        conditions: ClipConditions,
        maps: Path | ControlMaps | None,
        loras: Sequence[LoraFile] = (),
    ) -> Iterator[Denoiser]:
        """Make ready to estimate windows of a clip.

        Args:
            request: The clip.
            conditions: From :meth:`condition`, of any process.
            maps: Its control maps or control video; kept open until the ``with`` block ends.
            loras: Its LoRA files. Windows of clips with others may come in between.

        Yields:
            Noisy latents, timestep and frame numbers to an estimate in :attr:`wire_dtype`.

        Raises:
            RequestError: If the request names a ControlNet that the networks do not hold.
        """
        device, dtype = self._bundle.device, self.wire_dtype
        here = map_tensors(lambda tensor: tensor.to(device), conditions)
        with open_control(self._bundle, request, maps) as control:
            estimate = make_denoiser(self._bundle, request, here, control)

            @torch.inference_mode()
            def denoise(noisy_BCFHW: Tensor, timestep: float, window: tuple[int, ...]) -> Tensor:
                self._bundle.loras.use(loras)
                # The networks answered in this precision; float32 was only their container.
                return estimate(noisy_BCFHW.float(), timestep, window).to(dtype).cpu()

            yield denoise

    @torch.inference_mode()
    def write_segment(self, latents_BCTHW: Tensor, *, fps: float, target: Path) -> int:
        """Decode some frames and encode them as a segment that others can be joined to.

        Args:
            latents_BCTHW: Clean latents of one clip's frames.
            fps: Of the video.
            target: The mp4 file to write.

        Returns:
            The number of frames.
        """
        num_frames = latents_BCTHW.shape[2]
        frames_TYXC = next(decode_segments(self._bundle, latents_BCTHW, num_frames))
        return write_segment(target, frames_TYXC, fps=fps, encoder=self._encoder)
