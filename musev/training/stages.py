"""The stages: which networks take part, what learns, on which batches, for how long.

Each can be run alone; what it starts from is a bundle of an earlier stage, or nothing. ``mini``
entries train the shipped miniature from nothing, where everything has to be learnt; the others are
the published recipe, where a base model's picture layers stay as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from musev.config import ScheduleConfig
from musev.errors import ConfigError
from musev.training.corruption import CorruptionConfig
from musev.training.loop import LoopConfig
from musev.training.optimizer import OptimizerConfig
from musev.training.poses import PoseCorruptionConfig
from musev.training.vae import VaeLossConfig

TEMPORAL = ("networks.unet.*temp_convs.*", "networks.unet.*temp_attentions.*")
FRAME_NUMBERS = ("networks.unet.frame_embedding.*",)
REFERENCE_FUSE = ("networks.unet.*refer_emb_attns.*",)
IMAGE_BRANCH = ("networks.unet.*_ip.weight",)
"""Keys and values for image tokens in every cross attention."""
TEXT_TO_IMAGE = ("networks.unet.*",)
NOT_TEXT_TO_IMAGE = (*TEMPORAL, *FRAME_NUMBERS, *REFERENCE_FUSE, *IMAGE_BRANCH)
LORA = ("networks.unet.*.parametrizations.weight.0.*",)

SD15_SCHEDULE = ScheduleConfig()
"""Epsilon, as the released weights were trained."""
MINI_SCHEDULE = ScheduleConfig(
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    rescale_betas_zero_snr=True,
)
"""v prediction down to pure noise: few steps then start where training did."""


def _refuse_below(config: object, least: int, *names: str, group: str = "") -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(
                f"{name} must be at least {least}, got {value}; give --set {group}{name}={least} "
                "or more"
            )


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What one worker puts into one batch, before accumulation."""

    num_clips: int
    num_frames: int = 1
    control: bool = False
    reference: bool = False
    image_every: int | None = None
    """Every so many steps a batch of single frames instead, so that pictures are not forgotten."""
    images_then: int = 1
    """Clips in such a batch."""

    def __post_init__(self) -> None:
        names = ("num_clips", "num_frames", "image_every", "images_then")
        _refuse_below(self, 1, *names, group="batch.")


@dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """A stage on latents."""

    name: str
    about: str
    parts: tuple[str, ...]
    trained: tuple[str, ...]
    but_not: tuple[str, ...] = ()
    batch: BatchConfig
    accumulate: int = 1
    schedule: ScheduleConfig = SD15_SCHEDULE
    min_snr_gamma: float | None = 5.0
    person: float = 3.0
    motion: float = 0.0
    """Extra weight of what moves; see :class:`~musev.training.diffusion.DiffusionLossConfig`."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig
    lora_rank: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _refuse_below(self, 1, "accumulate", "lora_rank")
        _refuse_below(self, 0, "person", "motion")
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise ConfigError(
                f"min_snr_gamma must be above 0, got {self.min_snr_gamma}; give --set "
                "min_snr_gamma=5, or none for equal weights"
            )


@dataclass(frozen=True, kw_only=True)
class VaeStage:
    """A stage on pixels. ``joint``: the encoder learns too; else the decoder alone."""

    name: str
    about: str
    joint: bool
    widths: tuple[int, ...] = (16, 32, 64, 80)
    size_px: int = 128
    crop_px: int = 64
    whole_every: int = 4
    """Every so many steps whole pictures, so that the norms see them."""
    num_crops: int = 24
    num_whole: int = 6
    accumulate: int = 1
    loss: VaeLossConfig = field(default_factory=VaeLossConfig)
    optimizer: OptimizerConfig
    loop: LoopConfig

    def __post_init__(self) -> None:
        names = ("size_px", "crop_px", "whole_every", "num_crops", "num_whole", "accumulate")
        _refuse_below(self, 1, *names)
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(
                f"widths must be numbers above 0, got {self.widths}; give --set 'widths=16;32;64'"
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of what learns."""
        return ("vae.*",) if self.joint else ("vae.decoder.*", "vae.post_quant_conv.*")


@dataclass(frozen=True, kw_only=True)
class VisionStage:
    """A stage on portraits: the image encoder learns what people look like."""

    name: str
    about: str
    num_images: int = 64
    size_px: int = 128
    """Side at which portraits are drawn; the encoder sees its own."""
    accumulate: int = 1
    schedule: ScheduleConfig = MINI_SCHEDULE
    """Of the bundle that is written, where the start has no U-Net with one of its own."""
    optimizer: OptimizerConfig
    loop: LoopConfig

    def __post_init__(self) -> None:
        _refuse_below(self, 1, "num_images", "size_px", "accumulate")

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of what learns."""
        return ("image_encoder.*", "readers.*")


@dataclass(frozen=True, kw_only=True)
class PoseStage:
    """The stage of text to pose: a small network on joints and captions, no pictures."""

    name: str
    about: str
    batch_clips: int = 64
    fps: float = 8.0
    num_frames: int = 32
    num_given: int = 12
    width: int = 96
    depth: int = 4
    accumulate: int = 1
    corruption: PoseCorruptionConfig = field(default_factory=PoseCorruptionConfig)
    optimizer: OptimizerConfig
    loop: LoopConfig

    def __post_init__(self) -> None:
        names = ("batch_clips", "num_frames", "num_given", "width", "depth", "accumulate")
        _refuse_below(self, 1, *names)
        if not self.fps > 0:
            raise ConfigError(f"fps must be above 0, got {self.fps}; give --set fps=8")

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of what learns."""
        return ("net.*",)


Stage = DiffusionStage | VaeStage | VisionStage | PoseStage

_BASE = ("unet", "text_encoder")
_PROMPTED = (*_BASE, "referencenet", "image_encoder", "image_projection")
_LONG = LoopConfig(num_steps=50_000, log_every=20, evaluate_every=1_000, save_every=500)
_GENTLE = OptimizerConfig(learning_rate=1e-4, warmup_steps=500, ema_decay=0.9995)


def _published() -> list[Stage]:
    """At Stable Diffusion 1.5's size, over a base model's weights."""
    return [
        DiffusionStage(
            name="text-to-image",
            about="the picture layers of the U-Net on captioned frames; text encoder frozen",
            parts=_BASE,
            trained=TEXT_TO_IMAGE,
            but_not=NOT_TEXT_TO_IMAGE,
            batch=BatchConfig(num_clips=8),
            accumulate=4,
            optimizer=dataclasses.replace(_GENTLE, learning_rate=1e-5),
            loop=_LONG,
            gradient_checkpointing=True,
        ),
        DiffusionStage(
            name="motion",
            about="temporal layers on clips with clean conditioning frames; picture layers frozen",
            parts=_BASE,
            trained=(*TEMPORAL, *FRAME_NUMBERS),
            batch=BatchConfig(num_clips=1, num_frames=13),
            accumulate=8,
            optimizer=_GENTLE,
            loop=_LONG,
            gradient_checkpointing=True,
        ),
        DiffusionStage(
            name="reference",
            about="ReferenceNet, its fuse attentions, image projection and image branch; all else "
            "frozen",
            parts=_PROMPTED,
            trained=(
                "networks.referencenet.*",
                "networks.image_projection.*",
                *REFERENCE_FUSE,
                *IMAGE_BRANCH,
            ),
            batch=BatchConfig(num_clips=1, num_frames=13, reference=True),
            accumulate=8,
            optimizer=dataclasses.replace(_GENTLE, learning_rate=5e-5),
            loop=_LONG,
            gradient_checkpointing=True,
        ),
        DiffusionStage(
            name="controlnet",
            about="a ControlNet on single frames; U-Net frozen",
            parts=(*_BASE, "controlnet"),
            trained=("networks.controlnet.*",),
            batch=BatchConfig(num_clips=8, control=True),
            accumulate=4,
            optimizer=dataclasses.replace(_GENTLE, learning_rate=1e-5),
            loop=_LONG,
            gradient_checkpointing=True,
        ),
        DiffusionStage(
            name="lora",
            about="low-rank changes of the attention projections; all weights frozen",
            parts=_BASE,
            trained=LORA,
            batch=BatchConfig(num_clips=4),
            accumulate=2,
            optimizer=_GENTLE,
            loop=dataclasses.replace(_LONG, num_steps=5_000),
            lora_rank=16,
            gradient_checkpointing=True,
        ),
        DiffusionStage(
            name="ip-adapter",
            about="image projection and image branch; U-Net and image encoder frozen",
            parts=(*_BASE, "image_encoder", "image_projection"),
            trained=("networks.image_projection.*", *IMAGE_BRANCH),
            batch=BatchConfig(num_clips=8, reference=True),
            accumulate=4,
            optimizer=_GENTLE,
            loop=_LONG,
            gradient_checkpointing=True,
        ),
    ]


_MINI_LOOP = LoopConfig(num_steps=12_000, log_every=20, evaluate_every=500, save_every=100)
_MINI_OPTIMIZER = OptimizerConfig(learning_rate=1.2e-3, warmup_steps=200, ema_decay=0.997)


def _mini() -> list[Stage]:
    """The miniature, from nothing, on drawn people."""
    common = {"schedule": MINI_SCHEDULE, "min_snr_gamma": None}
    return [
        VaeStage(
            name="mini-vae",
            about="encoder and decoder together",
            joint=True,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=60),
            loop=LoopConfig(num_steps=4_000, evaluate_every=200, save_every=50),
        ),
        VaeStage(
            name="mini-vae-decoder",
            about="decoder alone; the encoder and its latents stay as they are",
            joint=False,
            optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=60),
            loop=LoopConfig(num_steps=6_000, evaluate_every=200, save_every=50),
        ),
        VisionStage(
            name="mini-vision",
            about="image encoder alone: it learns to name what drawn people look like",
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, end_ratio=0.02),
            loop=LoopConfig(num_steps=1_200, log_every=20, evaluate_every=200, save_every=100),
        ),
        PoseStage(
            name="text-to-pose",
            about="joints of drawn people from their captions; of no other stage",
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, ema_decay=0.999),
            loop=LoopConfig(num_steps=8_000, log_every=100, evaluate_every=1_000, save_every=500),
        ),
        DiffusionStage(
            name="mini-image",
            about="picture layers and text encoder together, on single frames",
            parts=_BASE,
            trained=("networks.*",),
            but_not=NOT_TEXT_TO_IMAGE,
            batch=BatchConfig(num_clips=32),
            optimizer=_MINI_OPTIMIZER,
            loop=_MINI_LOOP,
            **common,
        ),
        DiffusionStage(
            name="mini-motion",
            about="the whole U-Net and the text encoder on clips with clean conditioning frames",
            parts=_BASE,
            trained=("networks.*",),
            but_not=(*REFERENCE_FUSE, *IMAGE_BRANCH),
            batch=BatchConfig(num_clips=4, num_frames=13, image_every=4, images_then=32),
            optimizer=dataclasses.replace(_MINI_OPTIMIZER, learning_rate=9e-4),
            loop=_MINI_LOOP,
            **common,
        ),
        DiffusionStage(
            name="mini-reference",
            about="ReferenceNet, image encoder and projection, with the U-Net that reads them",
            parts=_PROMPTED,
            trained=("networks.*",),
            batch=BatchConfig(
                num_clips=4, num_frames=13, reference=True, image_every=2, images_then=32
            ),
            optimizer=dataclasses.replace(_MINI_OPTIMIZER, learning_rate=6e-4),
            loop=_MINI_LOOP,
            **common,
        ),
        DiffusionStage(
            name="mini-controlnet",
            about="the pose ControlNet alone, on single frames and short clips",
            parts=(*_BASE, "controlnet"),
            trained=("networks.controlnet.*",),
            batch=BatchConfig(
                num_clips=4, num_frames=13, control=True, image_every=2, images_then=32
            ),
            optimizer=_MINI_OPTIMIZER,
            loop=_MINI_LOOP,
            **common,
        ),
        DiffusionStage(
            name="mini-joint",
            about="all networks but VAE and image encoder at once, each condition left out as "
            "often as given",
            parts=(*_PROMPTED, "controlnet"),
            trained=("networks.*",),
            but_not=("networks.image_encoder.*",),
            batch=BatchConfig(
                num_clips=4,
                num_frames=13,
                reference=True,
                control=True,
                image_every=2,
                images_then=32,
            ),
            corruption=CorruptionConfig(drop_pictures=0.4, drop_control=0.45),
            optimizer=dataclasses.replace(_MINI_OPTIMIZER, learning_rate=9e-4),
            loop=_MINI_LOOP,
            **common,
        ),
    ]


STAGES: dict[str, Stage] = {stage.name: stage for stage in (*_published(), *_mini())}


def get_stage(name: str) -> Stage:
    """Look a stage up.

    Args:
        name: Key of :data:`STAGES`.

    Returns:
        The stage.

    Raises:
        ConfigError: If there is none.
    """
    if name not in STAGES:
        raise ConfigError(f"no training stage {name!r}; stages: {', '.join(STAGES)}")
    return STAGES[name]
