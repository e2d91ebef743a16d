"""One window of a clip through the networks, with everything the clip is conditioned on attached.

Axes here: B clip (or guidance half), C channel, F frame within a window, T frame, H W latent rows
and columns, L token, D embedding.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.control.clip_control import ClipControl
from musev.denoise.places import FramePlaces
from musev.denoise.windows import Window
from musev.errors import RequestError
from musev.models.attachments import (
    ConditionFrames,
    ControlResiduals,
    FramePositions,
    PoseFeatures,
    TemporalOff,
    UNetConditioning,
)
from musev.models.trees import map_tensors
from musev.models.unet import UNet3DConditionModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipConditions:
    """Everything one clip is conditioned on, computed once; picklable."""

    network: UNetConditioning
    text_BLD: Tensor
    """Text embeddings, for ControlNets; both guidance halves."""
    frames_BCTHW: Tensor | None
    """Clean latents of the conditioning frames, float32; None if all frames are generated."""
    guided: bool
    """Whether there is an unconditional half: ``network`` holds [unconditional, conditional] along
    B, or the latter alone where ``bare`` is the former."""
    bare: UNetConditioning | None = None
    """The unconditional half where it is told less, and so is another computation."""
    first_frame_drawn: bool = False
    """Whether the conditioning frame was generated from the text, not given."""
    places: FramePlaces | None = None
    """Where the conditioning frames stand in the video; None: they are its first frames."""
    source_BCTHW: Tensor | None = None
    """Clean latents that the generated frames start from, float32; None: they start from noise."""
    alone: int | None = None
    """Which guidance half this is, where it is one alone: 0 unconditional, 1 conditional."""
    noise_state: Tensor | None = None
    """The original's generator after the draws of the first frame; None: at its beginning."""

    @property
    def frame_places(self) -> FramePlaces:
        """Where the conditioning frames stand in the video."""
        num_given = 0 if self.frames_BCTHW is None else self.frames_BCTHW.shape[2]
        return self.places or FramePlaces(tuple(range(num_given)))

    def half(self, index: int) -> ClipConditions:
        """Keep one guidance half only: 0 unconditional, 1 conditional."""
        assert self.guided, "only guided conditions have halves"

        def cut(tensor: Tensor) -> Tensor:
            return tensor.chunk(2)[index]

        if self.bare is None:
            network = map_tensors(cut, self.network)
            network = dataclasses.replace(network, batch=self.network.batch // 2)
        else:
            network = (self.bare, self.network)[index]
        return dataclasses.replace(
            self,
            network=network,
            text_BLD=cut(self.text_BLD),
            guided=False,
            bare=None,
            alone=index,
        )


def join_frames(conditions: ClipConditions, generated_BCTHW: Tensor) -> Tensor:
    """Put conditioning frames and generated ones in the order of the video; on the CPU."""
    if conditions.frames_BCTHW is None:
        return generated_BCTHW
    frames_BCTHW = conditions.frames_BCTHW.to(generated_BCTHW)
    if conditions.places is None:
        return torch.cat([frames_BCTHW, generated_BCTHW], dim=2)
    places = conditions.places
    generated = [places.of(frame) for frame in range(generated_BCTHW.shape[2])]
    order = torch.tensor([*places.given, *generated]).argsort()
    return torch.cat([frames_BCTHW, generated_BCTHW], dim=2).index_select(2, order)


class WindowDenoiser:
    """The video U-Net as a :class:`Denoiser`: shows every window the conditioning frames.

    They stand in front, or wherever they belong in the video, are clean and not scaled by the
    solver (ALGORITHM.md 8.2); their estimates are dropped. Control sees what the U-Net sees:
    conditioning frames included, both guidance halves.
    """

    def __init__(
        self,
        unet: UNet3DConditionModel,
        conditions: ClipConditions,
        *,
        always: tuple[FramePositions | TemporalOff, ...],
        control: ClipControl | None = None,
    ) -> None:
        self._unet = unet
        self._conditions = conditions
        self._control = control
        self._places = conditions.frame_places
        self._always = always

    def __call__(self, noisy_BCFHW: Tensor, timestep: float, window: Window) -> Tensor:
        """Estimate one window; with guidance [unconditional, conditional] along B, float32."""
        joint_BCFHW = noisy_BCFHW.to(self._unet.device)
        attachments: tuple[FramePositions | TemporalOff | ConditionFrames, ...] = self._always
        given, numbers = self._places.join(window)
        generated = [n for n in range(len(numbers)) if n not in given]
        if self._conditions.frames_BCTHW is not None:
            frames_BCTHW = self._conditions.frames_BCTHW.to(joint_BCFHW)
            parts = torch.cat([frames_BCTHW, joint_BCFHW], dim=2)
            order = torch.tensor([*given, *generated], device=parts.device).argsort()
            joint_BCFHW = parts.index_select(2, order)
            attachments += (ConditionFrames(given),)
        if self._conditions.guided:
            joint_BCFHW = torch.cat([joint_BCFHW, joint_BCFHW])
        joint_BCFHW = joint_BCFHW.to(self._unet.dtype)
        estimate_BCFHW = self._unet(
            joint_BCFHW,
            timestep,
            self._conditions.network,
            attachments=attachments + self._control_of(joint_BCFHW, timestep, numbers),
        )
        if given != tuple(range(len(given))):
            return estimate_BCFHW[:, :, generated].float()
        return estimate_BCFHW[:, :, len(given) :].float()

    def _control_of(
        self, joint_BCFHW: Tensor, timestep: float, numbers: tuple[int, ...]
    ) -> tuple[ControlResiduals | PoseFeatures, ...]:
        if self._control is None:
            return ()
        found = None
        if not self._control.guess or self._conditions.alone != 0:
            text_BLD = self._conditions.text_BLD
            found = self._control.residuals(joint_BCFHW, timestep, text_BLD, numbers)
        poses = self._control.pose_features(timestep, numbers, batch=len(joint_BCFHW))
        return tuple(each for each in (found, poses) if each is not None)


class CarefulDenoiser:
    """A :class:`WindowDenoiser` that goes on in smaller pieces when the device's memory runs out.

    The pieces are the guidance halves: they do not see each other inside the networks. What has
    run out once is not tried again for the clip. Halves that are told different things are computed
    one after the other from the start.

    Args:
        unet: The video network.
        conditions: On its device.
        always: Attached to every call.
        control: Of the clip.
    """

    def __init__(
        self,
        unet: UNet3DConditionModel,
        conditions: ClipConditions,
        *,
        always: tuple[FramePositions | TemporalOff, ...],
        control: ClipControl | None = None,
    ) -> None:
        def denoiser(of: ClipConditions) -> WindowDenoiser:
            return WindowDenoiser(unet, of, always=always, control=control)

        self._device = unet.device
        self._whole = denoiser(conditions)
        self._halves: list[WindowDenoiser] = []
        if conditions.guided:
            self._halves = [denoiser(conditions.half(index)) for index in range(2)]
        self.in_halves = conditions.bare is not None
        """Whether the guidance halves are computed one after the other."""

    def __call__(self, noisy_BCFHW: Tensor, timestep: float, window: Window) -> Tensor:
        """Estimate one window; as :class:`WindowDenoiser`.

        Args:
            noisy_BCFHW: Latents of the window's frames.
            timestep: Of the step.
            window: Number of each frame.

        Returns:
            ``estimate_BCFHW``.

        Raises:
            RequestError: If the memory does not even suffice for the pieces.
        """
        if not self.in_halves:
            try:
                return self._whole(noisy_BCFHW, timestep, window)
            except torch.OutOfMemoryError as error:
                if not self._halves:
                    raise RequestError(_too_large(noisy_BCFHW)) from error
            logger.warning("device memory ran out: guidance halves one after the other from now on")
            self.in_halves = True
            free_device(self._device)
        try:
            return torch.cat([half(noisy_BCFHW, timestep, window) for half in self._halves])
        except torch.OutOfMemoryError as error:
            raise RequestError(_too_large(noisy_BCFHW)) from error


def free_device(device: torch.device) -> None:
    """Give cached device memory back, so that what failed can be tried in smaller pieces."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _too_large(noisy_BCFHW: Tensor) -> str:
    frames, height, width = noisy_BCFHW.shape[2:]
    return (
        f"a window of {frames} frames with latents of {width}x{height} does not fit into the "
        "device's memory, not even one guidance half at a time. Make width and height or "
        "sampling.windows.num_frames smaller, or take a GPU with more memory."
    )
