"""The video U-Net of MuseV: Stable Diffusion 1.5's, with layers that look along the frame axis.

Axes here: B clip, T frame, C channel, H W latent rows and columns, L text token, D embedding width,
R clip and frame folded into one axis (clip-major).

    conditioning = unet.prepare(text_BLD, (ImagePrompt(tokens_BLD), reference_features))   # once
    noise_BCTHW = unet(noisy_BCTHW, timestep, conditioning, (ConditionFrames((0,)),))      # a step

With guidance the unconditional clips come first along B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from musev.errors import ConfigError, ShapeError
from musev.models.attachments import (
    ConditionFrames,
    ControlResiduals,
    FacePrompt,
    FramePositions,
    ImagePrompt,
    PoseFeatures,
    ReferenceFeatures,
    TemporalOff,
    UNetConditioning,
    check_kinds,
    find_attachment,
)
from musev.models.attention import ReferenceFuse, SpatialTransformer, reference_tokens
from musev.models.blocks import (
    BlockSettings,
    MidBlock,
    NumberEmbedding,
    Step,
    fuse_reference,
    make_down_blocks,
    make_temporal,
    make_up_blocks,
    sinusoid,
    spread,
)
from musev.models.temporal import zero_frames

DOWN_TYPES = ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D")
UP_TYPES = ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D")
TRANSFORMER_IN_GROUPS = 32  # of transformer_in, whatever norm_num_groups is (MODELS.md 1.2)

REQUEST_KINDS = (ImagePrompt, FacePrompt, ReferenceFeatures)
CALL_KINDS = (ConditionFrames, ControlResiduals, PoseFeatures, FramePositions, TemporalOff)

_COMMON: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "need_t2i_ip_adapter": True,
    "need_adain_temporal_cond": True,
    "norm_spatial_length": True,
}
_WITH_REFERENCES: dict[str, Any] = {
    **_COMMON,
    "need_transformer_in": False,
    "use_anivv1_cfg": True,
    "resnet_2d_skip_time_act": True,
    "keep_vision_condtion": True,
    "need_refer_emb": True,
    "ip_adapter_cross_attn": True,
}

# Source: MODELS.md 1.1; upstream musev/models/unet_loader.py, load_unet_by_name.
RELEASED: dict[str, dict[str, Any]] = {
    "musev": _COMMON,
    "musev_referencenet": _WITH_REFERENCES,
    "musev_referencenet_pose": _WITH_REFERENCES,
}


def released_config(name: str, *, face: bool = False) -> dict[str, Any]:
    """Return the constructor arguments of a released network, at Stable Diffusion 1.5's size.

    Args:
        name: ``musev``, ``musev_referencenet`` or ``musev_referencenet_pose``.
        face: Whether to add the weights for face tokens; ``musev`` never has them.

    Returns:
        A fresh dict; change sizes in it as you like.

    Raises:
        ConfigError: If there is no such network, or it cannot have face weights.
    """
    if name not in RELEASED:
        raise ConfigError(f"no released network {name!r}; released: {', '.join(RELEASED)}")
    config = dict(RELEASED[name])
    if face and not config.get("ip_adapter_cross_attn"):
        raise ConfigError(f"{name!r} has no face branch; take musev_referencenet")
    return config | {"need_t2i_ip_adapter_face": True} if face else config


class UNet3DConditionModel(ModelMixin, ConfigMixin):
    """Estimates the noise of a window of latent frames.

    The config keys are the original's. Those that decide something: ``need_transformer_in`` (a
    temporal transformer before the first block), ``use_anivv1_cfg`` (SiLU after both embeddings,
    and frame numbers times the motion speed), ``resnet_2d_skip_time_act`` (the residual layers then
    skip their own SiLU), ``keep_vision_condtion`` (conditioning frames get no time embedding),
    ``need_refer_emb`` (reference fuse attentions), ``ip_adapter_cross_attn`` and
    ``need_t2i_ip_adapter_face`` (weights for image and face tokens), ``need_spatial_position_emb``
    (creates parameters that no result depends on). ``attention_head_dim`` is the number of heads.
    Without effect, there as here: ``need_adain_temporal_cond``, ``need_zero_vis_cond_temb``,
    ``norm_spatial_length``, ``spatial_max_length``, ``sample_size``. Settings that no released
    network uses and that would change the arithmetic are refused.

    ``layer_norm_eps`` is ours: the epsilon of norm1 and norm3 in all transformer blocks. 0 is what
    the original computes, an accident of argument order; 1e-5 is what its weights were most likely
    trained with (about 2e-5 on the output). With 0 a token whose channels are all equal becomes
    NaN, as in the original; real latents do not do that, zero weights do.

    Source:
        MODELS.md 1; upstream musev/models/unet_3d_condition.py.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = DOWN_TYPES,
        up_block_types: Sequence[str] = UP_TYPES,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | Sequence[int] = 8,
        temporal_conv_block: str = "TemporalConvLayer",
        temporal_transformer: str = "TransformerTemporalModel",
        need_spatial_position_emb: bool = False,
        need_transformer_in: bool = True,
        need_t2i_ip_adapter: bool = True,
        need_adain_temporal_cond: bool = False,
        t2i_ip_adapter_attn_processor: str = "NonParamReferenceIPXFormersAttnProcessor",
        keep_vision_condtion: bool = False,
        use_anivv1_cfg: bool = False,
        resnet_2d_skip_time_act: bool = False,
        need_zero_vis_cond_temb: bool = True,
        norm_spatial_length: bool = False,
        spatial_max_length: int = 2048,
        need_refer_emb: bool = False,
        ip_adapter_cross_attn: bool = False,
        t2i_crossattn_ip_adapter_attn_processor: str | None = (
            "T2IReferencenetIPAdapterXFormersAttnProcessor"
        ),
        need_t2i_facein: bool = False,
        need_t2i_ip_adapter_face: bool = False,
        need_vis_cond_mask: bool = False,
        layer_norm_eps: float = 0.0,
    ) -> None:
        super().__init__()
        _refuse_unreleased(self.config)
        channels = tuple(block_out_channels)
        heads = spread(attention_head_dim, len(channels))
        settings = BlockSettings(
            time_channels=4 * channels[0],
            text_channels=cross_attention_dim,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            layer_norm_eps=layer_norm_eps,
            skip_time_act=resnet_2d_skip_time_act,
            downsample_padding=downsample_padding,
            reference_fuse=need_refer_emb,
            image_prompt=ip_adapter_cross_attn,
            face_prompt=need_t2i_ip_adapter_face,
            spatial_position_emb=need_spatial_position_emb,
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = NumberEmbedding(channels[0], settings.time_channels)
        self.frame_embedding = NumberEmbedding(channels[0], settings.time_channels)
        if need_spatial_position_emb:  # only holds the weights of such files
            self.spatial_position_embedding = NumberEmbedding(
                2 * channels[0], settings.time_channels
            )
        if need_transformer_in:
            self.transformer_in = make_temporal(
                channels[0], heads[0], settings, TRANSFORMER_IN_GROUPS
            )
        if need_refer_emb:
            self.first_refer_emb_attns = ReferenceFuse(channels[0], num_heads=heads[0])
            self.mid_block_refer_emb_attns = ReferenceFuse(channels[-1], num_heads=heads[-1])
        self.down_blocks = make_down_blocks(
            down_block_types, channels, layers_per_block, heads, settings
        )
        self.mid_block = MidBlock(
            channels[-1],
            settings=settings,
            num_heads=heads[-1],
            output_scale=mid_block_scale_factor,
        )
        self.up_blocks = make_up_blocks(up_block_types, channels, layers_per_block, heads, settings)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)
        name_layers(self)

    def prepare(self, text: Tensor, attachments: Sequence[object] = ()) -> UNetConditioning:
        """Compute everything that depends on the request only: keys and values of every layer.

        Args:
            text: Text embeddings, ``_BLD``, or ``_BTLD`` with one text a frame.
            attachments: Of the request: :class:`ImagePrompt`, :class:`FacePrompt`,
                :class:`ReferenceFeatures`. With guidance they hold both halves, like the text.

        Returns:
            The conditioning, for every step and every window of the request.

        A :class:`~musev.errors.ConfigError` says that the network has no weights for an attachment,
        a :class:`~musev.errors.ShapeError` that batches differ or that an attachment is a call's.
        """
        check_kinds(attachments, REQUEST_KINDS, "UNet3DConditionModel.prepare")
        image = self._active_prompt(find_attachment(attachments, ImagePrompt), len(text))
        face = self._active_prompt(find_attachment(attachments, FacePrompt), len(text))
        references = find_attachment(attachments, ReferenceFeatures) or ReferenceFeatures()
        spatial = spatial_transformers(self)
        own_reference = self_attention_references(references, list(spatial), len(text))
        return UNetConditioning(
            batch=len(text),
            layers={
                name: transformer.block.prepare(
                    _rows(text),
                    image=image,
                    face=face,
                    reference_BCTHW=own_reference.get(name),
                )
                for name, transformer in spatial.items()
            },
            references={
                name: self.get_submodule(name).key_value(reference_tokens(features_BCTHW))
                for name, features_BCTHW in self._fuse_references(references, len(text)).items()
            },
        )

    def forward(
        self,
        noisy_BCTHW: Tensor,
        timestep: Tensor | float,
        conditioning: UNetConditioning,
        attachments: Sequence[object] = (),
    ) -> Tensor:
        """Estimate the noise of one window at one step.

        Args:
            noisy_BCTHW: Noisy latents, scaled as the solver wants them; clean conditioning frames
                stand at their places among them.
            timestep: One number, or one a clip.
            conditioning: From :meth:`prepare`.
            attachments: Of the window or step: :class:`ConditionFrames`,
                :class:`ControlResiduals`, :class:`PoseFeatures`, :class:`FramePositions`,
                :class:`TemporalOff`.

        Returns:
            The estimate, of the shape and dtype of ``noisy_BCTHW``; conditioning frames included.

        Raises:
            ShapeError: If the batch is not the conditioning's, or an attachment is a request's.
        """
        check_kinds(attachments, CALL_KINDS, "UNet3DConditionModel")
        batch, _, num_frames = noisy_BCTHW.shape[:3]
        if batch != conditioning.batch:
            raise ShapeError(
                f"{batch} clips, but the conditioning was prepared for {conditioning.batch}; "
                "with guidance both hold the unconditional and the conditional half"
            )
        pose = find_attachment(attachments, PoseFeatures)
        control = find_attachment(attachments, ControlResiduals)
        step = self._make_step(noisy_BCTHW, timestep, conditioning, attachments)

        x_RCHW = self.conv_in(noisy_BCTHW.transpose(1, 2).flatten(0, 1))
        if pose is not None:
            x_RCHW = x_RCHW + pose.features_RCHW
        if self.config.need_transformer_in and step.frames_BTD is not None:
            x_RCHW = self.transformer_in(x_RCHW, step.frames_BTD)
        if self.config.need_refer_emb:
            x_RCHW = fuse_reference(self.first_refer_emb_attns, x_RCHW, step)

        skips = [x_RCHW]
        for down_block in self.down_blocks:
            x_RCHW, block_skips = down_block(x_RCHW, step)
            skips.extend(block_skips)
        if control is not None:
            for index, residual_RCHW in enumerate(control.down[: len(skips)]):
                skips[index] = skips[index] + residual_RCHW

        x_RCHW = self.mid_block(x_RCHW, step)
        if self.config.need_refer_emb:
            x_RCHW = fuse_reference(self.mid_block_refer_emb_attns, x_RCHW, step)
        if control is not None and control.mid is not None:
            x_RCHW = x_RCHW + control.mid

        for up_block in self.up_blocks:
            x_RCHW = up_block(x_RCHW, skips, step)
        estimate_RCHW = self.conv_out(F.silu(self.conv_norm_out(x_RCHW)))
        return estimate_RCHW.unflatten(0, (batch, num_frames)).transpose(1, 2)

    def _make_step(
        self,
        noisy_BCTHW: Tensor,
        timestep: Tensor | float,
        conditioning: UNetConditioning,
        attachments: Sequence[object],
    ) -> Step:
        num_frames = noisy_BCTHW.shape[2]
        index = None
        condition = find_attachment(attachments, ConditionFrames)
        if condition is not None and num_frames > 1:
            index = torch.as_tensor(condition.index, dtype=torch.long, device=noisy_BCTHW.device)
        frames_BTD = None
        if find_attachment(attachments, TemporalOff) is None:
            positions = find_attachment(attachments, FramePositions) or FramePositions()
            frames_BTD = self._embed_frames(positions, noisy_BCTHW)
        time_RD = self._embed_time(timestep, noisy_BCTHW).repeat_interleave(num_frames, dim=0)
        if self.config.keep_vision_condtion:
            # Zeroed after SiLU: conditioning frames get only the biases of each time_emb_proj.
            time_RD = zero_frames(time_RD, index, num_frames=num_frames)
        return Step(
            conditioning=conditioning,
            num_frames=num_frames,
            time_RD=time_RD,
            frames_BTD=frames_BTD,
            condition_index=index,
        )

    def _embed_time(self, timestep: Tensor | float, noisy_BCTHW: Tensor) -> Tensor:
        timesteps = torch.as_tensor(timestep, device=noisy_BCTHW.device).reshape(-1)
        timesteps = timesteps.expand(noisy_BCTHW.shape[0])
        waves = sinusoid(timesteps, self.config.block_out_channels[0])
        time_BD = self.time_embedding(waves.to(noisy_BCTHW.dtype))
        return F.silu(time_BD) if self.config.use_anivv1_cfg else time_BD

    def _embed_frames(self, positions: FramePositions, noisy_BCTHW: Tensor) -> Tensor:
        index_BT = positions.index_BT
        if index_BT is None:
            index_BT = torch.arange(noisy_BCTHW.shape[2], device=noisy_BCTHW.device)[None]
            if self.config.use_anivv1_cfg:
                index_BT = (index_BT * positions.motion_speed).long()
        waves = sinusoid(index_BT.to(noisy_BCTHW.device), self.config.block_out_channels[0])
        frames_BTD = self.frame_embedding(waves.to(noisy_BCTHW.dtype))
        return F.silu(frames_BTD) if self.config.use_anivv1_cfg else frames_BTD

    def _active_prompt(
        self, prompt: ImagePrompt | FacePrompt | None, batch: int
    ) -> tuple[Tensor, float] | None:
        if prompt is None or prompt.scale <= 0:
            return None
        setting = "ip_adapter_cross_attn"
        if isinstance(prompt, FacePrompt):
            setting = "need_t2i_ip_adapter_face"
        if not self.config[setting]:
            raise ConfigError(
                f"this network has no weights for {type(prompt).__name__} ({setting} is off); "
                "leave it out, or load a network that has them"
            )
        _check_batch(prompt.tokens, batch, type(prompt).__name__)
        return _rows(prompt.tokens), prompt.scale

    def _fuse_references(self, references: ReferenceFeatures, batch: int) -> dict[str, Tensor]:
        """Fuse attention name -> the features it sees.

        QUIRK kept from the original (MODELS.md 1.4, step 8): it finds a block's place in the list
        from the block's own number of layers, and the last block has no downsampler. So the last
        block sees features of the block before it, and the last entries are never read.
        """
        if not references.down and references.mid is None:
            return {}
        if not self.config.need_refer_emb:
            raise ConfigError(
                "this network has no fuse attentions for reference features (need_refer_emb is "
                "off); leave them out, or load musev_referencenet"
            )
        found = {}
        if references.down:
            found["first_refer_emb_attns"] = references.down[0]
            for number, block in enumerate(self.down_blocks):
                size = len(block.refer_emb_attns)
                own = references.down[1 + size * number : 1 + size * (number + 1)]
                if len(own) < size:
                    raise ShapeError(
                        f"{len(references.down)} reference features; down block {number} needs "
                        f"those up to number {size * (number + 1)}"
                    )
                names = (f"down_blocks.{number}.refer_emb_attns.{i}" for i in range(size))
                found.update(zip(names, own, strict=True))
        if references.mid is not None:
            found["mid_block_refer_emb_attns"] = references.mid
        for name, features_BCTHW in found.items():
            _check_batch(features_BCTHW, batch, f"reference features of {name}")
            width = self.get_submodule(name).to_k.in_features
            if features_BCTHW.shape[1] != width:
                raise ShapeError(
                    f"{name} reads features of {width} channels, got {features_BCTHW.shape[1]}. "
                    "The last down block reads an earlier block's features, so with 2 layers a "
                    "block the last two levels must be equally wide, with 1 the second and the last"
                )
        return found


def name_layers(network: nn.Module) -> None:
    """Tell the layers that look something up by their name (``layer_name``) what it is."""
    for name, module in network.named_modules():
        if hasattr(module, "layer_name"):
            module.layer_name = name


def spatial_transformers(network: nn.Module) -> dict[str, SpatialTransformer]:
    """Name -> spatial transformer, in the plain string order of the names."""
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, SpatialTransformer)
    }
    return dict(sorted(found.items()))


def self_attention_references(
    references: ReferenceFeatures, names: Sequence[str], batch: int
) -> dict[str, Tensor]:
    """Hand the self-attention features out to the spatial transformers.

    Args:
        references: The features; those for self attention may be missing.
        names: All spatial transformers, sorted as strings.
        batch: Clips.

    Returns:
        Spatial transformer name -> features ``_BCTHW``.

    Raises:
        ShapeError: If there is not exactly one feature a transformer, or the batch differs.
    """
    if references.self_attention is None:
        return {}
    if len(references.self_attention) != len(names):
        raise ShapeError(
            f"{len(references.self_attention)} self-attention features for {len(names)} blocks"
        )
    for features_BCTHW in references.self_attention:
        _check_batch(features_BCTHW, batch, "self-attention features")
    return dict(zip(names, references.self_attention, strict=True))


def _rows(tokens: Tensor) -> Tensor:
    """Fold the frames of ``_BTLD`` tokens into the batch; ``_BLD`` tokens stay as they are."""
    return tokens.flatten(0, 1) if tokens.ndim == 4 else tokens


def _check_batch(tensor: Tensor, batch: int, what: str) -> None:
    if tensor.shape[0] != batch:
        raise ShapeError(f"{what}: {tensor.shape[0]} clips, but the text has {batch}")


def _refuse_unreleased(config: Any) -> None:
    expected = {
        "act_fn": ("silu",),
        "temporal_conv_block": ("TemporalConvLayer",),
        "temporal_transformer": ("TransformerTemporalModel",),
        "need_t2i_ip_adapter": (True,),
        "t2i_ip_adapter_attn_processor": ("NonParamReferenceIPXFormersAttnProcessor",),
        "t2i_crossattn_ip_adapter_attn_processor": (
            "T2IReferencenetIPAdapterXFormersAttnProcessor",
            None,
        ),
        "need_t2i_facein": (False,),  # the original raises NotImplementedError
        "need_vis_cond_mask": (False,),
    }
    for name, values in expected.items():
        if config[name] not in values:
            raise ConfigError(
                f"{name}={config[name]!r} belongs to no released network; it must be {values[0]!r}"
            )
    if config["need_t2i_ip_adapter_face"] and not config["ip_adapter_cross_attn"]:
        raise ConfigError("need_t2i_ip_adapter_face needs ip_adapter_cross_attn")


__all__ = [
    "RELEASED",
    "UNet3DConditionModel",
    "UNetConditioning",
    "released_config",
]
