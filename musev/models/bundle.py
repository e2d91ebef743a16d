"""Everything one worker holds: the networks of a run, loaded once from any of three sources.

Our own layout is a folder with ``musev_bundle.json``, which names the parts and the schedule, and
one ``from_pretrained`` folder a part, weights as safetensors. A ControlNet is the part
``controlnets/NAME``. The index is written last of all, so that a folder with it is whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from musev.config import Precision, ScheduleConfig, WeightsConfig, to_plain
from musev.errors import MusevError, WeightsError
from musev.models import vae as vae_functions
from musev.models.control import ControlNet, PoseGuider
from musev.models.faces import FaceFinder, open_face_finder
from musev.models.image_prompt import FaceIdProjection, ImageProjection, Resampler
from musev.models.loading import DTYPES, build_empty, load_net, load_tokenizer
from musev.models.lora_switch import LoraSwitch
from musev.models.pose_guider import load_pose_guider
from musev.models.published import build_released, load_published
from musev.models.reference import ReferenceNet2D
from musev.models.text_inversion import Words, add_words, read_vectors
from musev.models.unet import UNet3DConditionModel
from musev.weight_parts import (
    BUNDLE_FILE,
    CONTROLNETS,
    EMBEDDINGS,
    bundle_folder,
    bundle_paths,
    controlnet_part,
    extra_paths,
)
from musev.weights import local_path, read_config, rename_vae

FORMAT = 1

_NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet3DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "referencenet": ReferenceNet2D,
    "image_encoder": CLIPVisionModelWithProjection,
    "image_projection": ImageProjection,
    "face_projection": FaceIdProjection,
    "pose_guider": PoseGuider,
}
_CLASSES: dict[str, type[nn.Module]] = {"Resampler": Resampler}
_REQUIRED = ("unet", "vae", "text_encoder", "tokenizer")
# Their transformer blocks take the epsilon of WeightsConfig.
_WITH_LAYER_NORM_EPS = ("unet", "referencenet")


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """The networks of a run, frozen, on one device.

    ``dtype`` is that of all networks but the VAE, which computes in float32.
    """

    unet: UNet3DConditionModel
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    schedule: ScheduleConfig
    referencenet: ReferenceNet2D | None = None
    image_encoder: CLIPVisionModelWithProjection | None = None
    image_projection: ImageProjection | Resampler | None = None
    face_projection: FaceIdProjection | None = None
    face_finder: FaceFinder | None = None
    """Finds faces in pictures; without it rows bring the embeddings themselves."""
    pose_guider: PoseGuider | None = None
    controlnets: dict[str, ControlNet] = dataclasses.field(default_factory=dict)
    """By the name that a manifest's ``control`` uses, such as ``openpose``."""
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    words: Words = dataclasses.field(default_factory=Words)
    """Learnt words of prompts; the text encoder's table holds their vectors."""
    loras: LoraSwitch = dataclasses.field(default=None)  # pyright: ignore[reportAssignmentType]
    """Merges LoRA files into U-Net and text encoder; shared by copies of the bundle."""

    def __post_init__(self) -> None:
        if self.loras is None or not self.loras.serves(self.unet, self.text_encoder):
            object.__setattr__(self, "loras", LoraSwitch(self.unet, self.text_encoder))
        if (self.image_encoder is None) != (self.image_projection is None):
            raise WeightsError("image_encoder and image_projection work only together")
        for what, found, needed in _joints(self):
            if found != needed:
                raise WeightsError(f"parts do not fit together: {what} is {found}, needs {needed}")
        num_rows = self.text_encoder.config.vocab_size
        if len(self.tokenizer) > num_rows:
            raise WeightsError(
                f"parts do not fit together: tokenizer has {len(self.tokenizer)} tokens, the text "
                f"encoder {num_rows}"
            )

    @property
    def takes_references(self) -> bool:
        """Whether there is a ReferenceNet and the U-Net reads its features."""
        if self.referencenet is None:
            return False
        own = self.referencenet.config.need_self_attn_block_embs
        return bool(self.unet.config.need_refer_emb or own)

    @property
    def takes_image_prompts(self) -> bool:
        """Whether there is an image-prompt projection and the U-Net reads its tokens."""
        return self.image_projection is not None and bool(self.unet.config.ip_adapter_cross_attn)

    @property
    def takes_faces(self) -> bool:
        """Whether there is a face projection and the U-Net reads its tokens."""
        return self.face_projection is not None and bool(self.unet.config.need_t2i_ip_adapter_face)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent row or column stands for."""
        return vae_functions.scale_factor(self.vae)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are there, by part name."""
        found = {name: getattr(self, name) for name in _NETWORKS}
        controlnets = {controlnet_part(name): net for name, net in self.controlnets.items()}
        return {name: net for name, net in found.items() if net is not None} | controlnets

    def to(self, device: str | torch.device, precision: Precision = "float32") -> ModelBundle:
        """Move the networks and set their precision; they are shared with the old bundle."""
        self.loras.use()
        for name, net in self.networks.items():
            dtype = torch.float32 if name == "vae" else DTYPES[precision]
            # Not diffusers' own ``to``, which warns about every change of precision.
            nn.Module.to(net, device=device, dtype=dtype)
        return dataclasses.replace(
            self, device=torch.device(device), dtype=DTYPES[precision], loras=None
        )


def _joints(bundle: ModelBundle) -> list[tuple[str, Any, Any]]:
    """What two parts must share: name, the part's own, what it has to be."""
    width, channels = bundle.unet.config.cross_attention_dim, bundle.unet.config.in_channels
    joints = [
        ("text_encoder width", bundle.text_encoder.config.hidden_size, width),
        ("vae latent channels", bundle.vae.config.latent_channels, channels),
    ]
    if bundle.referencenet is not None:
        config = bundle.referencenet.config
        joints.append(("referencenet token width", config.cross_attention_dim, width))
        joints.append(("referencenet latent channels", config.in_channels, channels))
    if bundle.image_projection is not None and bundle.image_encoder is not None:
        joints += _image_joints(bundle.image_projection, bundle.image_encoder, width)
    if bundle.face_projection is not None:
        config = bundle.face_projection.config
        joints.append(("face_projection token width", config.cross_attention_dim, width))
    if bundle.pose_guider is not None:
        features = bundle.pose_guider.config.conditioning_embedding_channels
        joints.append(("pose_guider features", features, bundle.unet.config.block_out_channels[0]))
    for name, net in bundle.controlnets.items():
        joints += _control_joints(controlnet_part(name), net, bundle)
    return joints


def _image_joints(
    projection: ImageProjection | Resampler, encoder: CLIPVisionModelWithProjection, width: int
) -> list[tuple[str, Any, Any]]:
    own = projection.config
    if isinstance(projection, Resampler):
        given, found = (own.output_dim, own.embedding_dim), encoder.config.hidden_size
    else:
        given = (own.cross_attention_dim, own.clip_embeddings_dim)
        found = encoder.config.projection_dim
    return [
        ("image_projection token width", given[0], width),
        ("image_projection input width", given[1], found),
    ]


def _control_joints(part: str, net: ControlNet, bundle: ModelBundle) -> list[tuple[str, Any, Any]]:
    unet, own = bundle.unet.config, net.config
    reduction = 2 ** (len(own.conditioning_embedding_out_channels) - 1)
    return [
        (f"{part} token width", own.cross_attention_dim, unet.cross_attention_dim),
        (f"{part} latent channels", own.in_channels, unet.in_channels),
        (f"{part} widths", tuple(own.block_out_channels), tuple(unet.block_out_channels)),
        (f"{part} layers per block", own.layers_per_block, unet.layers_per_block),
        (f"{part} pixels a latent", reduction, bundle.vae_scale_factor),
    ]


def load_bundle(
    weights: WeightsConfig,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> ModelBundle:
    """Load the networks of a run; a key that is wrong, missing or extra anywhere is an error.

    Args:
        weights: Our own folder, the published folders, or a seed; and ControlNets, which join those
            of the folder or take their place.
        device: Where the networks go.
        precision: Of all networks but the VAE, which stays in float32.

    Returns:
        The bundle, in evaluation mode, without gradients.
    """
    dtype = DTYPES[precision]
    if weights.random_seed is not None:
        # Here and not above: that module builds on this one.
        from musev.models.tiny import make_tiny_bundle

        eps = weights.layer_norm_eps or 0.0
        bundle = make_tiny_bundle(weights.random_seed, layer_norm_eps=eps)
    elif weights.bundle is not None:
        folder = bundle_folder(weights.bundle)
        bundle = _load_own(folder, weights.layer_norm_eps, dtype=dtype)
    else:
        bundle = ModelBundle(**load_published(weights, dtype=dtype))
    bundle = _with_extras(bundle, weights, dtype=dtype)
    named = {
        name: load_net(ControlNet, local_path(folder), dtype=dtype, where=controlnet_part(name))
        for name, folder in weights.controlnets.items()
    }
    if named:
        bundle = dataclasses.replace(bundle, controlnets=bundle.controlnets | named)
    return bundle.to(device, precision)


def _with_extras(bundle: ModelBundle, weights: WeightsConfig, *, dtype: torch.dtype) -> ModelBundle:
    """Add what can be added to weights of any source."""
    changes: dict[str, Any] = {}
    paths = extra_paths(weights)
    if weights.vae is not None and weights.t2i is None:
        changes["vae"] = load_net(
            AutoencoderKL, paths["vae"], dtype=torch.float32, where="vae", rename=rename_vae
        )
    if weights.pose_guider is not None:
        changes["pose_guider"] = load_pose_guider(paths["pose_guider"], dtype=dtype)
    if weights.face_models is not None:
        changes["face_finder"] = open_face_finder(weights.face_models)
    if weights.embeddings:
        changes["words"] = add_words(
            bundle.text_encoder,
            bundle.tokenizer,
            {word: read_vectors(paths[EMBEDDINGS + word]) for word in weights.embeddings},
            first_only=weights.embedding_vectors == "first",
        )
    return dataclasses.replace(bundle, **changes)


def empty_networks(weights: WeightsConfig) -> dict[str, nn.Module]:
    """Build the networks of a run without their weights, to count what they cost.

    Args:
        weights: As for :func:`load_bundle`. Of our own folder only the configs are read; published
            networks have their published sizes, and their files need not be there.

    Returns:
        Networks on the ``meta`` device by part, ControlNets as ``controlnets/NAME``.
    """
    if weights.random_seed is not None:
        from musev.models.tiny import make_tiny_bundle

        nets = make_tiny_bundle(weights.random_seed).networks
    elif weights.bundle is not None:
        paths = bundle_paths(bundle_folder(weights.bundle))
        index = read_config(paths["index"].parent, where="bundle", name=BUNDLE_FILE)
        kinds = {name: _kind_of(name, index) for name in paths}
        nets = {
            name: build_empty(kind, read_config(paths[name], where=name), where=name)
            for name, kind in kinds.items()
            if kind is not None
        }
    else:
        with torch.device("meta"):
            nets = build_released(weights)
    for name, folder in weights.controlnets.items():
        part = controlnet_part(name)
        config = read_config(Path(folder), where=part) if Path(folder).is_dir() else {}
        nets[part] = build_empty(ControlNet, config, where=part)
    return {name: nn.Module.to(net.eval(), device="meta") for name, net in nets.items()}


def _kind_of(part: str, index: dict[str, Any]) -> type[nn.Module] | None:
    told = index["parts"].get(part, {}).get("class", "")
    if told in _CLASSES:
        return _CLASSES[told]
    return ControlNet if part.startswith(CONTROLNETS) else _NETWORKS.get(part)


def _load_own(folder: Path, layer_norm_eps: float | None, *, dtype: torch.dtype) -> ModelBundle:
    index = read_config(bundle_paths(folder)["index"].parent, where="bundle", name=BUNDLE_FILE)
    where = f"bundle at {folder}"
    if index.get("format") != FORMAT:
        raise WeightsError(
            f"{where}: format {index.get('format')!r}, but this version reads {FORMAT}"
        )
    paths = {name: path for name, path in bundle_paths(folder).items() if name != "index"}
    controlnets = {name: path for name, path in paths.items() if name.startswith(CONTROLNETS)}
    unknown = sorted(set(paths) - {*_NETWORKS, "tokenizer", *controlnets})
    missing = [name for name in _REQUIRED if name not in paths]
    if unknown or missing:
        raise WeightsError(f"{where}: unknown parts {unknown}, missing parts {missing}")
    try:
        schedule = ScheduleConfig(**index["schedule"])
    except (MusevError, KeyError, TypeError) as error:
        raise WeightsError(f"{where}: no usable schedule in {BUNDLE_FILE} ({error})") from error
    parts: dict[str, Any] = {"tokenizer": load_tokenizer(paths.pop("tokenizer"))}
    parts["controlnets"] = {
        name.removeprefix(CONTROLNETS): load_net(ControlNet, path, dtype=dtype, where=name)
        for name, path in controlnets.items()
    }
    for name, path in paths.items():
        if name in controlnets:
            continue
        chosen = layer_norm_eps is not None and name in _WITH_LAYER_NORM_EPS
        parts[name] = load_net(
            _kind_of(name, index) or _NETWORKS[name],
            path,
            dtype=torch.float32 if name == "vae" else dtype,
            where=name,
            overrides={"layer_norm_eps": layer_norm_eps} if chosen else {},
        )
    return ModelBundle(schedule=schedule, **parts)


def save_bundle(
    bundle: ModelBundle, folder: str | Path, *, licences: Mapping[str, str] | None = None
) -> None:
    """Write a bundle in our own layout, in the precision it is in.

    Args:
        bundle: The networks.
        folder: An empty or new folder.
        licences: Of the parts, to be told with every video that is made with them.

    Raises:
        WeightsError: If the folder holds anything already, or the bundle holds learnt words, which
            a run brings along itself.
    """
    if bundle.words.ids:
        raise WeightsError(
            "a bundle is written without learnt words; load it without weights.embeddings and give "
            "them to the run"
        )
    bundle.loras.use()
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise WeightsError(f"{folder} is not empty; give a new folder for the bundle")
    folder.mkdir(parents=True, exist_ok=True)
    bundle.tokenizer.save_pretrained(folder / "tokenizer")
    parts = {"tokenizer": {"class": type(bundle.tokenizer).__name__}}
    for name, net in bundle.networks.items():
        net.save_pretrained(folder / name, safe_serialization=True)
        parts[name] = {"class": type(net).__name__}
    index: dict[str, Any] = {"format": FORMAT, "parts": parts}
    index["schedule"] = to_plain(bundle.schedule)
    if licences:
        index["licences"] = {name: licence for name, licence in licences.items() if name in parts}
    partial = folder / f"{BUNDLE_FILE}.part"
    partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / BUNDLE_FILE)
