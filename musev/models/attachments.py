"""What can be attached to the video network, and what the network computes from it once a request.

Axes here: B clip, T frame, C channel, H W latent rows and columns, L token, D embedding width,
R clip and frame folded into one axis (clip-major).

Two moments: what belongs to the request goes to ``unet.prepare`` and becomes a
:class:`UNetConditioning`; what belongs to the window or the step goes to ``unet(...)``. Nothing
attached is the plain network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from musev.errors import ShapeError

AttachmentT = TypeVar("AttachmentT")


@dataclass(frozen=True)
class ImagePrompt:
    """Image tokens that every spatial cross attention sees beside the text.

    ``tokens`` is ``_BLD`` (the same for all frames) or ``_BTLD``. A scale <= 0 switches the branch
    off; it does not subtract (MODELS.md 1.6).
    """

    tokens: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class FacePrompt:
    """Face tokens, with key and value weights of their own; otherwise like :class:`ImagePrompt`."""

    tokens: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of the reference images, as ``ReferenceNet2D`` returns them.

    ``down`` and ``mid`` (each ``_BCTHW``, T counts reference images) feed the fuse attentions;
    ``self_attention`` feeds the spatial self attentions, one entry a spatial block, in the plain
    string order of the block names.
    """

    down: tuple[Tensor, ...] = ()
    mid: Tensor | None = None
    self_attention: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class ConditionFrames:
    """Positions of the clean conditioning frames in the joint frame axis.

    ``index`` is a tuple of frame numbers, or an integer tensor ``[n]`` or ``[B, n]``.
    """

    index: tuple[int, ...] | Tensor


@dataclass(frozen=True)
class ControlResiduals:
    """Residuals for the skip connections (``down``) and the middle block, each ``_RCHW``."""

    down: tuple[Tensor, ...]
    mid: Tensor | None = None


@dataclass(frozen=True)
class PoseFeatures:
    """Features of the pose guider, added after the first convolution; ``_RCHW``."""

    features_RCHW: Tensor


@dataclass(frozen=True)
class FramePositions:
    """Frame numbers for the temporal layers.

    ``motion_speed`` multiplies the frame numbers (upstream's ``sample_frame_rate``; only networks
    with ``use_anivv1_cfg`` read it). An explicit ``index_BT`` is used as it is.
    """

    motion_speed: float = 10.0
    index_BT: Tensor | None = None


@dataclass(frozen=True)
class TemporalOff:
    """Every temporal layer returns its input: frames do not see each other through them."""


class KeyValue(NamedTuple):
    """Projected keys and values; heads are not split yet."""

    key_BLC: Tensor
    value_BLC: Tensor

    def to(self, *args: torch.device | torch.dtype | str) -> KeyValue:
        """Move or convert both tensors."""
        return KeyValue(self.key_BLC.to(*args), self.value_BLC.to(*args))


class ScaledKeyValue(NamedTuple):
    """An extra cross-attention branch: its result is multiplied by ``scale`` and added."""

    key_value: KeyValue
    scale: float


@dataclass(frozen=True)
class LayerConditioning:
    """Keys and values of one spatial transformer block that do not depend on step or window."""

    text: KeyValue
    extra: tuple[ScaledKeyValue, ...] = ()
    reference: KeyValue | None = None

    def to(self, *args: torch.device | torch.dtype | str) -> LayerConditioning:
        """Move or convert all tensors."""
        return LayerConditioning(
            text=self.text.to(*args),
            extra=tuple(ScaledKeyValue(kv.to(*args), scale) for kv, scale in self.extra),
            reference=None if self.reference is None else self.reference.to(*args),
        )


@dataclass(frozen=True)
class UNetConditioning:
    """Everything about a request that the network needs at every step, computed once.

    Plain values: it can be pickled, moved between devices, and put into an object store.
    """

    batch: int
    layers: dict[str, LayerConditioning]
    """Spatial transformer name -> its keys and values."""
    references: dict[str, KeyValue] = field(default_factory=dict)
    """Reference fuse attention name -> keys and values of the reference features."""

    def to(self, *args: torch.device | torch.dtype | str) -> UNetConditioning:
        """Move or convert all tensors, with the arguments of :meth:`torch.Tensor.to`."""
        return UNetConditioning(
            batch=self.batch,
            layers={name: layer.to(*args) for name, layer in self.layers.items()},
            references={name: kv.to(*args) for name, kv in self.references.items()},
        )


def find_attachment(attachments: Sequence[object], kind: type[AttachmentT]) -> AttachmentT | None:
    """Return the only attachment of a kind.

    Args:
        attachments: What the caller attached.
        kind: The class to look for.

    Returns:
        The attachment, or None.

    Raises:
        ShapeError: If there are two or more of the kind.
    """
    found = [item for item in attachments if isinstance(item, kind)]
    if len(found) > 1:
        raise ShapeError(f"{kind.__name__} is attached {len(found)} times; attach it once")
    return found[0] if found else None


def check_kinds(attachments: Sequence[object], kinds: tuple[type, ...], where: str) -> None:
    """Refuse attachments that would be silently ignored.

    Args:
        attachments: What the caller attached.
        kinds: The classes that are read here.
        where: The call, for the message.

    Raises:
        ShapeError: If any attachment is of another class.
    """
    for item in attachments:
        if not isinstance(item, kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise ShapeError(f"{where} cannot use {type(item).__name__}; it reads: {names}")
