"""What a request costs the networks: FLOPs, memory and bytes, counted without weights or a device.

The networks are built on the ``meta`` device and called with inputs of the request's shapes.
Multiply and add count as two FLOPs, attention products included.

Axes here: B clip (or guidance half), C channel, T frame, H W latent rows and columns, Y X pixel
rows and columns, L token, D embedding, R clip and frame folded into one axis.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from musev.config import Precision, WeightsConfig
from musev.models.attachments import (
    ConditionFrames,
    ControlResiduals,
    FramePositions,
    ImagePrompt,
    ReferenceFeatures,
    TemporalOff,
    UNetConditioning,
)
from musev.models.bundle import empty_networks
from musev.models.control import ControlNet, MultiControlNet
from musev.models.loading import DTYPES
from musev.models.vae import scale_factor
from musev.weight_parts import CONTROLNETS, controlnet_part

LATENT_CHANNELS = 4

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """What about a request decides its cost, besides the number of its frames."""

    width: int
    height: int
    guided: bool
    """Both halves are counted as told the same, so a bare unconditional one as too dear."""
    given_frames: int = 0
    """Conditioning frames in front of every window."""
    first_frame_steps: int = 0
    """Steps of the first frame where it is drawn from the text; 0 if it is not."""
    first_frame_guided: bool = False
    has_reference: bool = False
    has_image_prompt: bool = False
    """Pictures of their own; a conditioning frame stands in where there are none."""
    control: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """What some calls cost."""

    flops: float = 0.0
    peak_bytes: int = 0
    """Most bytes of tensors alive at once, weights not counted."""
    kept_bytes: int = 0
    """Bytes of the result."""

    def __add__(self, other: Count) -> Count:
        return Count(
            self.flops + other.flops,
            max(self.peak_bytes, other.peak_bytes),
            self.kept_bytes + other.kept_bytes,
        )


class CostModel:
    """Counts what calls of a profile's networks cost; equal calls are counted once."""

    def __init__(self, weights: WeightsConfig, precision: Precision = "float32") -> None:
        """Build the networks without weights.

        Args:
            weights: Whose configs are used.
            precision: Of all networks but the VAE.
        """
        self._dtype = DTYPES[precision]
        self._nets: dict[str, Any] = {
            name: nn.Module.to(net, dtype=torch.float32 if name == "vae" else self._dtype)
            for name, net in empty_networks(weights).items()
        }
        self.controlnets = tuple(
            name.removeprefix(CONTROLNETS) for name in self._nets if name.startswith(CONTROLNETS)
        )
        self._unet: Any = self._nets["unet"]
        self._vae: Any = self._nets["vae"]
        self._text_tokens = self._nets["text_encoder"].config.max_position_embeddings
        self.latent_factor = scale_factor(self._vae)
        self.bytes_per_value = self._dtype.itemsize
        # Not lru_cache on the methods, which would keep every instance alive.
        self._held_bytes = functools.cache(self._weights_bytes)
        self._prepared = functools.cache(self._conditioning)
        self.condition = functools.cache(self._condition)
        self.window = functools.cache(self._window)
        self.decode_frame = functools.cache(self._decode_frame)
        self.control_frame = functools.cache(self._control_frame)

    def weights_bytes(self, control: tuple[str, ...] = ()) -> int:
        """Sum up the weights that a worker holds.

        Args:
            control: Only these ControlNets count.

        Returns:
            Bytes of parameters and buffers.
        """
        return self._held_bytes(control)

    def _weights_bytes(self, control: tuple[str, ...]) -> int:
        held = {controlnet_part(name) for name in control}
        return sum(
            tensor.nbytes
            for name, net in self._nets.items()
            if name in held or not isinstance(net, ControlNet)
            for tensor in itertools.chain(net.parameters(), net.buffers())
        )

    def latent_bytes(self, shape: ClipShape) -> int:
        """Bytes of one frame's latents in the networks' precision."""
        height, width = self._latent_size(shape)
        return LATENT_CHANNELS * height * width * self.bytes_per_value

    def _latent_size(self, shape: ClipShape) -> tuple[int, int]:
        return shape.height // self.latent_factor, shape.width // self.latent_factor

    def _condition(self, shape: ClipShape) -> Count:
        """Everything computed once a clip, the first frame included where it is drawn."""
        picture = bool(shape.given_frames)
        own, kept = _count(lambda: self._conditioning(shape, picture=picture))
        total = dataclasses.replace(own, kept_bytes=conditioning_bytes(kept))
        for _ in range(picture + self._reads_reference(shape, picture=picture)):
            total += self._encode_frame(shape)
        if shape.first_frame_steps:
            still = dataclasses.replace(shape, given_frames=0, guided=shape.first_frame_guided)
            before, _ = _count(lambda: self._conditioning(still, picture=False))
            step = self._call(still, frames=1, always=(TemporalOff(),))
            steps = Count(step.flops * shape.first_frame_steps, step.peak_bytes)
            frame = self.decode_frame(shape.width, shape.height)
            total += dataclasses.replace(before, kept_bytes=0) + steps
            if self._reads_reference(still, picture=False):
                total += self._encode_frame(shape)
            total += dataclasses.replace(frame, kept_bytes=0)
        return total

    def _window(self, shape: ClipShape, frames: int) -> Count:
        """One network call on a window of so many generated frames, ControlNets included."""
        return self._call(shape, frames=frames, always=(FramePositions(),))

    def _decode_frame(self, width: int, height: int) -> Count:
        size = height // self.latent_factor, width // self.latent_factor
        latents_RCHW = self._zeros(1, LATENT_CHANNELS, *size, dtype=torch.float32)
        return _count(lambda: self._vae.decode(latents_RCHW, return_dict=False))[0]

    def _control_frame(self, shape: ClipShape) -> Count:
        """One frame's control maps embedded, once a clip."""
        total = Count()
        for net in self._controlnets(shape):
            image_RCYX = self._zeros(1, 3, shape.height, shape.width)
            total += _count(functools.partial(net.embed_condition, image_RCYX))[0]
        return total

    def _encode_frame(self, shape: ClipShape) -> Count:
        image_RCYX = self._zeros(1, 3, shape.height, shape.width, dtype=torch.float32)
        count = _count(lambda: self._vae.encode(image_RCYX, return_dict=False))[0]
        return dataclasses.replace(count, kept_bytes=0)

    def _conditioning(self, shape: ClipShape, *, picture: bool) -> UNetConditioning:
        """As ``render.encode_conditions``, with zeros for every picture and prompt."""
        halves = 1 + shape.guided
        ids_BL = self._zeros(halves, self._text_tokens, dtype=torch.long)
        text_BLD = self._nets["text_encoder"](ids_BL).last_hidden_state
        attachments: list[object] = []
        tokens_BLD = text_BLD
        takes_prompts = "image_projection" in self._nets and self._unet.config.ip_adapter_cross_attn
        if takes_prompts and (shape.has_image_prompt or picture):
            encoder: Any = self._nets["image_encoder"]
            size = encoder.config.image_size
            embedding_BD = encoder(self._zeros(1, 3, size, size)).image_embeds
            tokens_BLD = self._nets["image_projection"](embedding_BD.expand(halves, -1))
            attachments.append(ImagePrompt(tokens_BLD))
        if self._reads_reference(shape, picture=picture):
            latents_BCTHW = self._zeros(halves, LATENT_CHANNELS, 1, *self._latent_size(shape))
            features: ReferenceFeatures = self._nets["referencenet"](
                latents_BCTHW, tokens_BLD, timestep=self._zeros(1)
            )
            attachments.append(features)
        return self._unet.prepare(text_BLD, tuple(attachments))

    def _reads_reference(self, shape: ClipShape, *, picture: bool) -> bool:
        takes = "referencenet" in self._nets and bool(self._unet.config.need_refer_emb)
        return takes and (shape.has_reference or picture)

    def _call(self, shape: ClipShape, *, frames: int, always: tuple[object, ...]) -> Count:
        halves, joint = 1 + shape.guided, frames + shape.given_frames
        if shape.given_frames:
            always += (ConditionFrames(tuple(range(shape.given_frames))),)
        with torch.no_grad():
            conditioning = self._prepared(shape, picture=bool(shape.given_frames))
        noisy_BCTHW = self._zeros(halves, LATENT_CHANNELS, joint, *self._latent_size(shape))
        timestep = self._zeros(1)

        def call() -> Tensor:
            control = self._control(shape, noisy_BCTHW, timestep)
            return self._unet(noisy_BCTHW, timestep, conditioning, always + control)

        return _count(call)[0]

    def _control(
        self, shape: ClipShape, noisy_BCTHW: Tensor, timestep: Tensor
    ) -> tuple[ControlResiduals, ...]:
        nets = self._controlnets(shape)
        if not nets:
            return ()
        noisy_RCHW = noisy_BCTHW.transpose(1, 2).flatten(0, 1)
        embedded_RCHW = [
            self._zeros(
                noisy_BCTHW.shape[2], net.config.block_out_channels[0], *noisy_RCHW.shape[2:]
            )
            for net in nets
        ]
        width = self._unet.config.cross_attention_dim
        text_BLD = self._zeros(len(noisy_BCTHW), self._text_tokens, width)
        scales = [1.0] * len(nets)
        found = MultiControlNet(nets)(noisy_RCHW, timestep, text_BLD, embedded_RCHW, scales=scales)
        return (found,)

    def _controlnets(self, shape: ClipShape) -> list[Any]:
        return [self._nets[controlnet_part(name)] for name in shape.control]

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(shape, dtype=dtype or self._dtype, device="meta")


def conditioning_bytes(conditioning: UNetConditioning) -> int:
    """Bytes of what a request keeps for all its steps."""
    pairs = list(conditioning.references.values())
    for layer in conditioning.layers.values():
        pairs += [layer.text, *(branch.key_value for branch in layer.extra)]
        pairs += [layer.reference] if layer.reference is not None else []
    return sum(tensor.nbytes for pair in pairs for tensor in pair)


def _count(call: Callable[[], ResultT]) -> tuple[Count, ResultT]:
    attention = _FusedAttention()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, attention, _Alive() as alive:
        result = call()
    kept = sum(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))
    return Count(counter.get_total_flops() + attention.flops, alive.peak_bytes, kept), result


class _FusedAttention(TorchFunctionMode):
    """Attention as a GPU does it: in one kernel, without the matrix of all scores in memory.

    On the meta device torch would fall back to that matrix, and memory would be that of no device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        self.flops += sdpa_flop_count(query.shape, key.shape, value.shape)
        return query.new_empty(*query.shape[:-1], value.shape[-1])


class _Alive(TorchDispatchMode):
    """Adds up the tensors alive during a call: what is made counts until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given
            ):  # else it is a view of a weight
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self._now += size
        self.peak_bytes = max(self.peak_bytes, self._now)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._known.discard(name)
        self._now -= size
