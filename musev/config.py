"""Settings as frozen values: what decides a clip's bytes, checked where they enter.

Per clip: a manifest column ends up in :class:`ClipRequest`. Per run: a :class:`Profile`. Nothing
here imports torch, so the driver and the manifest reader stay light.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from musev.errors import ConfigError
from musev.lora_choice import LoraChoice, LoraMerge

Layout = Literal["musev", "upstream", "upstream_uniform", "rotating"]
Blend = Literal["flat", "linear", "pyramid", "gaussian"]
UnconditionalHalf = Literal["with_reference", "bare"]
GuidanceSchedule = Literal["constant", "linear", "two_stage", "three_stage", "fix_two_stage"]
SolverName = Literal["euler", "euler_ancestral", "ddim", "ddim_zero_snr", "ddpm", "lcm", "dpmpp"]
NoiseKind = Literal["counter", "upstream_random", "upstream_video_fusion"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
Precision = Literal["float32", "bfloat16", "float16"]
PoseEngineName = Literal["embedded", "mmpose", "controlnet_aux"]
Align = Literal["auto", "always", "never"]


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a clip's frames are grouped into windows that are denoised together.

    Layouts: ``musev`` (every window full length, the last one slides back), ``upstream`` (the
    original's ``uniform_v2``: the tail may be short), ``upstream_uniform`` (the original's
    ``uniform``: closed loop, dilated), ``rotating`` (tiles without overlap whose borders move every
    step; the last ``settle_steps`` steps use the ``musev`` layout).
    """

    num_frames: int = 12
    overlap: int = 4
    layout: Layout = "musev"
    blend: Blend = "flat"
    stride: int = 1
    settle_steps: int = 2

    def __post_init__(self) -> None:
        _check(self.num_frames >= 1, f"window must be at least 1 frame, got {self.num_frames}")
        _check(
            0 <= self.overlap < self.num_frames,
            f"overlap must be in [0, {self.num_frames}) for a window of {self.num_frames} frames, "
            f"got {self.overlap}",
        )
        _check(self.stride >= 1, f"stride must be at least 1, got {self.stride}")
        _check(self.settle_steps >= 0, f"settle_steps must not be negative: {self.settle_steps}")
        _check_literals(self)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Guidance scale over the steps; at or below 1 at the start, guidance is off."""

    scale: float = 3.5
    scale_end: float | None = None
    schedule: GuidanceSchedule = "linear"
    unconditional: UnconditionalHalf = "with_reference"
    """What the unconditional estimate is told. ``with_reference``: the negative prompt and the same
    reference, as the original does, so that guidance strengthens the words (and the image prompt,
    which is zeroed). ``bare``: the negative prompt alone, so that guidance strengthens reference,
    image prompt and face too; only for networks that were trained without them as well."""

    def __post_init__(self) -> None:
        for name in ("scale", "scale_end"):
            value = getattr(self, name)
            _check(value is None or value >= 0, f"guidance {name} must not be negative: {value}")
        _check_literals(self)

    @property
    def active(self) -> bool:
        """Whether unconditional estimates are needed; decided by the start scale, as upstream."""
        return self.scale > 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The diffusion a network was trained on; part of its weights, not of a request.

    Defaults are Stable Diffusion 1.5's (``scheduler/scheduler_config.json`` of the base model).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 1
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False
    clip_sample: bool = False

    def __post_init__(self) -> None:
        _check(self.num_train_timesteps >= 1, "num_train_timesteps must be at least 1")
        _check(0 < self.beta_start <= self.beta_end < 1, "betas must satisfy 0 < start <= end < 1")
        _check_literals(self)


@dataclass(frozen=True, kw_only=True)
class FirstFrameConfig:
    """Where frame 0 of a clip comes from when no condition image is given, or it is redrawn.

    ``drawn``: a single picture is generated from the text first, with the temporal layers off, and
    the clip goes on from it as from a given image. ``noise``: all frames are generated together.
    ``by_length``: ``noise`` for a clip of text alone that is at most a frame longer than a window,
    all of it in one window and, where the clip has no guidance, with the one below; else ``drawn``.
    A clip with a negative prompt for its first frame has that frame drawn. :class:`ClipRequest`
    decides which from the pictures that it names, and never keeps ``by_length``.
    Defaults are the original's ``--guidance_scale``, ``--num_inference_steps`` and ``--strength``.
    """

    origin: Literal["drawn", "noise", "by_length"] = "drawn"
    num_steps: int = 30
    guidance: GuidanceConfig = field(default_factory=lambda: GuidanceConfig(scale=7.5))
    negative_prompt: str | None = None
    """Of this picture alone; None: the clip's."""
    strength: float = 0.8
    """How much of a given picture a redraw makes anew: 0 nothing, 1 everything."""
    with_reference: bool = True
    """Whether this picture is shown the reference, and so on below."""
    with_image_prompt: bool = True
    with_face: bool = True
    becomes_reference: bool = False
    """Whether a drawn picture takes the place of a given reference and image prompt; a redrawn one
    always does."""

    def __post_init__(self) -> None:
        _check(1 <= self.num_steps <= 1000, f"steps must be in 1..1000, got {self.num_steps}")
        _check(0 < self.strength <= 1, f"strength must be above 0 and at most 1: {self.strength}")
        _check_literals(self)


@dataclass(frozen=True, kw_only=True)
class ShotConfig:
    """A video made shot after shot, each going on from the last frames of the one before.

    The original's ``n_batch``. Without ``num_frames`` the whole video is one shot, whose windows
    agree with each other at every step: better, and spread over a cluster. Shots are made one after
    the other, so a video of several shots is one task of one worker.
    """

    num_frames: int | None = None
    """Frames of a shot; None: all of the video's."""
    carried_frames: int | None = None
    """Last frames of a shot that condition the next one; None: as many as condition the first."""
    fixed_condition: bool = False
    """Whether every shot goes on from the first shot's conditioning frames instead."""
    fixed_reference: bool = True
    """Whether the reference stays; else later shots refer to the carried frames. So on below."""
    fixed_image_prompt: bool = True
    fixed_face: bool = True
    smoothed_frames: int = 0
    """First frames of a shot that are mixed a little with the last ones of the shot before."""
    smooth_latents: bool = True
    """Mix latents at the start and after the first two steps (upstream's ``record_mid_*``)."""
    smooth_estimates: bool = False
    """Mix the network's estimates in the first half of the steps."""

    def __post_init__(self) -> None:
        for name, least in (("num_frames", 1), ("carried_frames", 1), ("smoothed_frames", 0)):
            value = getattr(self, name)
            _check(value is None or value >= least, f"shots.{name} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How one clip is sampled."""

    solver: SolverName = "euler"
    num_steps: int = 10
    eta: float = 0.0
    """DDIM only: 0 deterministic, 1 as noisy as DDPM."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    first_frame: FirstFrameConfig = field(default_factory=FirstFrameConfig)
    noise: NoiseKind = "counter"
    w_ind_noise: float = 0.5
    """Share of a frame's noise that is its own; the rest is common to the clip (variance)."""
    img_weight: float = 1e-3
    """Share of the conditioning frame mixed into the initial noise (variance)."""
    motion_speed: float = 8.0
    """Upstream's ``sample_frame_rate``: frame positions are multiplied by it."""
    ip_adapter_scale: float = 1.0
    ip_adapter_face_scale: float = 1.0
    """Weight of the face tokens; at or below 0 faces are left out."""
    control_guess: bool = False
    """Whether control works on the conditional half of guidance alone (diffusers' guess mode)."""
    prompt_from_image: bool = False
    """Whether image tokens take the place of the prompt, in a U-Net that has no branch for them."""
    strength: float = 1.0
    """How much of a video that a clip starts from is made anew: the share of the steps that run."""
    strength_counts: bool = True
    """Whether strengths do anything; they do not in the original (ALGORITHM.md 7.4)."""
    histogram_match: bool = False
    """Whether the colours of every frame are matched to those of frame 0."""
    shots: ShotConfig = field(default_factory=ShotConfig)
    image_fit: Literal["centre", "upstream"] = "centre"
    """How a picture is cropped to the clip's shape; ``upstream`` loses the last row and column."""

    def __post_init__(self) -> None:
        _check(1 <= self.num_steps <= 1000, f"steps must be in 1..1000, got {self.num_steps}")
        for name in ("w_ind_noise", "img_weight", "eta"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        _check(self.motion_speed > 0, f"motion_speed must be positive, got {self.motion_speed}")
        _check(0 < self.strength <= 1, f"strength must be above 0 and at most 1: {self.strength}")
        halves = {self.guidance.unconditional, self.first_frame.guidance.unconditional}
        _check(
            not (self.prompt_from_image and "bare" in halves),
            "guidance unconditional=bare leaves the image prompt out of one half, but "
            "prompt_from_image puts it in the prompt's place; take unconditional=with_reference",
        )
        _check_literals(self)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """H.264 settings; one setting for all segments of all clips of a run, so bytes repeat."""

    crf: int = 18
    preset: str = "medium"
    num_threads: int = 1
    segment_frames: int = 48

    def __post_init__(self) -> None:
        _check(0 <= self.crf <= 51, f"crf must be in 0..51, got {self.crf}")
        _check(self.num_threads >= 1, f"num_threads must be at least 1, got {self.num_threads}")
        _check(
            self.segment_frames >= 1,
            f"segment_frames must be at least 1, got {self.segment_frames}",
        )


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Where the weights lie: our own bundle folder, or the published folders, or a seed.

    ``bundle`` is a folder written by ``save_bundle``, or ``package:NAME`` for weights that ship
    with this package. The published layout needs ``t2i`` (a diffusers folder), ``motion`` (the
    folder that holds ``unet/``) and ``motion_name``; the others are optional.
    ``random_seed`` builds small untrained networks (for tests and the demo only). ``controlnets``
    can be added to any of the three.
    """

    bundle: str | None = None
    random_seed: int | None = None
    t2i: str | None = None
    motion: str | None = None
    motion_name: Literal["musev", "musev_referencenet", "musev_referencenet_pose"] = (
        "musev_referencenet"
    )
    referencenet: str | None = None
    reference_attention: bool = False
    """Whether self attention reads the reference too ("reference-only"): of ReferenceNet's layers,
    or, without a ReferenceNet, of the base model's own U-Net."""
    image_prompt: str | None = None
    image_encoder: str | None = None
    vae: str | None = None
    """In the place of the VAE of any source."""
    t2i_config: str | None = None
    """Where ``t2i`` is a single ``.safetensors`` or ``.ckpt`` file: the diffusers folder of a model
    of the same kind, for what such a file lacks (the tokenizer)."""
    image_prompt_attention: Literal["auto", "unet", "file"] = "auto"
    """Whose keys and values read the image tokens: the U-Net's own, or those of the image-prompt
    file. ``auto``: the file's, unless it is MuseV's own projection, with which the U-Net was
    trained."""
    face: str | None = None
    """An IP-Adapter FaceID file."""
    face_models: str | None = None
    """Folder of an insightface model pack, such as ``buffalo_l``, that finds faces in pictures."""
    pose_guider: str | None = None
    """Folder or file of a pose guider, which takes the place of a ControlNet."""
    loras: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name that a manifest's ``loras`` may use to a LoRA file."""
    lora_merge: LoraMerge = "exact"
    """How LoRA files are merged; see :class:`~musev.lora_choice.LoraChoice`."""
    embeddings: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Word of a prompt to the textual inversion file that it stands for."""
    embedding_vectors: Literal["all", "first"] = "all"
    """``first``: of a file with several vectors only the first is used, as in the original."""
    controlnets: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name that a manifest's ``control`` uses, such as ``openpose``, to a diffusers folder of a
    ControlNet; added to those of a bundle."""
    layer_norm_eps: float | None = None
    """Epsilon of norm1 and norm3 in the UNet's and ReferenceNet's transformer blocks. None: what a
    bundle was saved with, and 0 for the published weights. 0 is what the original computes (an
    accident of argument order); 1e-5 is what its weights were most likely trained with."""

    def __post_init__(self) -> None:
        _check_literals(self)
        sources = [
            name
            for name, given in (
                ("bundle", self.bundle is not None),
                ("random_seed", self.random_seed is not None),
                ("t2i/motion", self.t2i is not None or self.motion is not None),
            )
            if given
        ]
        _check(
            len(sources) == 1,
            "weights must come from exactly one of: bundle, random_seed, t2i with motion; "
            f"got {', '.join(sources) or 'none'}. Give one, for example "
            "--set weights.bundle=FOLDER.",
        )
        _check(
            (self.t2i is None) == (self.motion is None),
            "the published layout needs both weights.t2i and weights.motion",
        )
        for name in self.controlnets:
            _check(
                name.isidentifier(),
                f"a ControlNet's name is letters, digits and underscores, got {name!r}",
            )
        for token in self.embeddings:
            _check(
                bool(token.strip()) and not set(token) & set("()[]\\: \t\n"),
                f"an embedding's word has no blanks, brackets, colons, backslashes; got {token!r}",
            )


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """How driving videos become control maps; the table of names is in docs/control.md."""

    pose_engine: PoseEngineName = "embedded"
    """Finds people for every pose name; ``embedded`` needs no download."""
    weights: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name to a folder, ``hf://`` or ``s3://`` URL that holds weights files: ``annotators`` for all
    detectors, or a control or pose engine name for that one alone."""
    resolution: int | None = None
    """Short side at which detectors look, in pixels; None: that of the frame, as upstream."""
    min_confidence: float = 0.3
    """Keypoints below it are not drawn (the original's threshold for DWPose)."""
    follow_person: bool = False
    """Whether one person of a video is followed and put first; so it is with the two below."""
    smoothing: float = 0.0
    """Share of the previous frame's keypoints kept in the next; 0 is off."""
    max_gap_frames: int = 0
    """Keypoints missing for at most so many frames are interpolated; 0 is off."""
    align: Align = "auto"
    """Whether poses are moved onto the person in the portrait; ``auto``: where they differ."""
    canny_low: float = 100.0
    canny_high: float = 200.0
    seed: int = 0
    """Decides the warp of ``content`` and the colours of ``sam``."""

    @property
    def steadies(self) -> bool:
        """Whether the people of a video are looked at as a whole."""
        return self.follow_person or self.smoothing > 0 or self.max_gap_frames > 0

    def __post_init__(self) -> None:
        _check_literals(self)
        for name in self.weights:
            _check(
                name.isidentifier(),
                f"a name in control.weights is letters, digits and underscores, got {name!r}",
            )
        _check(
            self.resolution is None or self.resolution >= 64,
            f"control resolution must be at least 64, got {self.resolution}",
        )
        _check(
            0 <= self.min_confidence <= 1,
            f"control min_confidence must be in [0, 1], got {self.min_confidence}",
        )
        _check(
            0 <= self.smoothing < 1, f"control smoothing must be in [0, 1), got {self.smoothing}"
        )
        _check(
            self.max_gap_frames >= 0,
            f"control max_gap_frames must not be negative: {self.max_gap_frames}",
        )
        _check(
            0 <= self.canny_low <= self.canny_high,
            f"canny thresholds must satisfy 0 <= low <= high, got {self.canny_low} and "
            f"{self.canny_high}",
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A named config for a run: the values a row takes where it says nothing itself."""

    name: str
    weights: WeightsConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    precision: Precision = "float32"
    width: int = 512
    height: int = 512
    num_frames: int = 13
    fps: float = 4.0
    negative_prompt: str = ""
    loras: tuple[str, ...] = ()
    """LoRAs of rows that name none, spelled as in a manifest."""
    size_multiple: int = 64
    """Width and height must be multiples of this many pixels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loras", tuple(self.loras))
        _check_literals(self)


Pictures = str | tuple[str, ...] | None
_CONTROL_NUMBERS = {"control_scale": 1.0, "control_start": 0.0, "control_end": 1.0}
PICTURE_COLUMNS = ("condition_image", "reference_image", "ip_adapter_image", "face_image")


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """One manifest row, resolved: everything about a clip that the caller decides.

    ``num_frames`` counts the frames of the finished video. With a ``condition_image`` that image is
    frame 0 and the other ``num_frames - 1`` frames are generated. Media are absolute fsspec URIs;
    of pictures there may be several. With a ``video`` that holds control maps, its frame ``t``
    controls frame ``t`` of the clip.
    """

    request_id: str
    prompt: str = ""
    negative_prompt: str = ""
    condition_image: Pictures = None
    condition_index: tuple[int, ...] = ()
    """Frame number of each condition image, -1 for the last frame; empty: they are the first."""
    redraw: bool = False
    """Whether the condition images are drawn anew from themselves first."""
    reference_image: Pictures = None
    ip_adapter_image: Pictures = None
    face_image: Pictures = None
    face_embedding: tuple[float, ...] = ()
    """Embeddings of faces, computed beforehand; those of several faces one after the other."""
    loras: tuple[LoraChoice, ...] = ()
    video: str | None = None
    start_from_video: bool = False
    """Whether the frames start from the video's and not from noise; see ``strength``."""
    video_is_control: bool = False
    """Whether the video's frames are control maps already."""
    video_may_be_cut: bool = False
    """Whether a damaged video is read as far as its first damage."""
    sample_rate: int | None = None
    """Frame ``t`` of the clip reads frame ``t * sample_rate`` of the video; None: by time."""
    keypoints: str | None = None
    """People to draw control maps of, in place of a video: a Parquet file."""
    condition_has_own_map: bool = False
    """Whether frame 0, the condition image, is no frame of the video: a map is made of the image,
    and frame ``t`` reads frame ``t - 1`` of the video."""
    align: Align | None = None
    """Whether people are moved onto the one in the condition image; None: there are none."""
    control: tuple[str, ...] = ()
    """What controls the clip: names of maps that are made, or of ControlNets that read the video's
    frames as they are."""
    control_scale: tuple[float, ...] = ()
    """Strength of each of ``control``; all 1 where nothing is given."""
    control_start: tuple[float, ...] = ()
    """Share of the steps after which each of ``control`` sets in; all 0 where nothing is given."""
    control_end: tuple[float, ...] = ()
    """Share of the steps after which each of ``control`` stops; all 1 where nothing is given."""
    num_frames: int
    """0 until the video that decides the length has been measured."""
    fps: float
    width: int
    height: int
    seed: int
    profile: str
    sampling: SamplingConfig
    extra: str | None = None
    """The caller's own text or JSON, handed through to the results; decides no bytes."""

    def __post_init__(self) -> None:
        for column in PICTURE_COLUMNS:
            object.__setattr__(self, column, _pictures(getattr(self, column)))
        object.__setattr__(self, "condition_index", tuple(self.condition_index))
        loras = (
            lora if isinstance(lora, LoraChoice) else LoraChoice(**lora) for lora in self.loras
        )
        object.__setattr__(self, "loras", tuple(loras))
        object.__setattr__(self, "face_embedding", tuple(map(float, self.face_embedding)))
        names = tuple(self.control)  # lists, where the request comes from JSON
        object.__setattr__(self, "control", names)
        for column, default in _CONTROL_NUMBERS.items():
            numbers = tuple(map(float, getattr(self, column))) or (default,) * len(names)
            object.__setattr__(self, column, numbers)
            _check(
                len(numbers) == len(names),
                f"{column} has {len(numbers)} numbers for {len(names)} names in control",
            )
        if self.sampling.first_frame.origin == "by_length":
            object.__setattr__(self, "sampling", self._settle_first_frame())

    def _settle_first_frame(self) -> SamplingConfig:
        sampling, first, windows = self.sampling, self.sampling.first_frame, self.sampling.windows
        text_alone = not (self.media or self.control or self.face_embedding)
        fits = 1 < self.num_frames <= windows.num_frames + 1
        as_one = fits and sampling.shots.num_frames is None
        if not (text_alone and as_one and first.negative_prompt is None):
            drawn = dataclasses.replace(first, origin="drawn")
            return dataclasses.replace(sampling, first_frame=drawn)
        size = max(windows.num_frames, self.num_frames)
        return dataclasses.replace(
            sampling,
            first_frame=dataclasses.replace(first, origin="noise"),
            windows=dataclasses.replace(windows, num_frames=size),
            guidance=sampling.guidance if sampling.guidance.active else first.guidance,
        )

    @property
    def media(self) -> dict[str, str]:
        """Name to URI of the media this clip reads.

        The name is the column's; further pictures of a column are ``column.1`` and so on.
        """
        found = {}
        for column in PICTURE_COLUMNS:
            for number, uri in enumerate(self.pictures(column)):
                found[f"{column}.{number}" if number else column] = uri
        others = {name: getattr(self, name) for name in ("video", "keypoints")}
        return found | {name: uri for name, uri in others.items() if uri is not None}

    @property
    def is_driven(self) -> bool:
        """Whether a video, or keypoints in its place, lead the clip."""
        return self.video is not None or self.keypoints is not None

    @property
    def maps_made_of(self) -> str:
        """Column that control maps have to be made of: ``video``, ``keypoints`` or none."""
        if self.keypoints is not None:
            return "keypoints"
        made = self.video is not None and bool(self.control) and not self.video_is_control
        return "video" if made else ""

    @property
    def needs_maps(self) -> bool:
        """Whether any control map has to be made before the clip can be."""
        return bool(self.maps_made_of) or self.condition_has_own_map

    @property
    def files(self) -> dict[str, str]:
        """Name to URI of the weights that the row brings along: ``loras.0`` and so on."""
        return {f"loras.{number}": lora.file for number, lora in enumerate(self.loras)}

    def pictures(self, column: str) -> tuple[str, ...]:
        """URIs of a column of pictures, none, one or several."""
        given = getattr(self, column)
        return () if given is None else (given,) if isinstance(given, str) else given

    @property
    def num_steps(self) -> int:
        """Steps that are run: the last ones, where the clip starts from a video."""
        sampling = self.sampling
        if not self.start_from_video or not sampling.strength_counts:
            return sampling.num_steps
        return steps_left(sampling.num_steps, sampling.strength)

    @property
    def spreads(self) -> bool:
        """Whether there is work for several workers: windows that wait for each other only.

        Shots wait for each other as wholes; conditioning frames inside the video and colours
        matched to a first frame that is itself generated need the whole video at once.
        """
        sampling = self.sampling
        as_whole = (
            sampling.shots.num_frames is not None
            or bool(self.condition_index)
            or sampling.histogram_match
        )
        return not as_whole and self.num_frames - self.num_given > sampling.windows.num_frames

    @property
    def num_given(self) -> int:
        """Conditioning frames: given ones, or the one that is drawn first."""
        drawn = int(self.sampling.first_frame.origin == "drawn")
        return len(self.pictures("condition_image")) or drawn


def steps_left(num_steps: int, strength: float) -> int:
    """How many of the last steps a strength leaves, at least one: ``get_timesteps`` upstream."""
    return max(int(num_steps * strength), 1)


def _pictures(given: Pictures | list[str]) -> Pictures:
    if given is None or isinstance(given, str):
        return given
    return given[0] if len(given) == 1 else tuple(given) or None


ConfigT = TypeVar("ConfigT")


def to_plain(config: Any) -> dict[str, Any]:
    """Turn a config into nested plain values (for JSON and hashing)."""
    return dataclasses.asdict(config)


@functools.cache
def field_types(kind: type) -> Mapping[str, Any]:
    """Types of a config class's fields; kept, since finding them takes longer than all else."""
    return get_type_hints(kind)


def _check_literals(config: Any) -> None:
    for name, kind in field_types(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            raise ConfigError(
                f"{name} must be one of {', '.join(map(str, get_args(kind)))}; "
                f"got {getattr(config, name)!r}"
            )
