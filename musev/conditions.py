"""Everything a clip is conditioned on, computed once: text, pictures, first frame, references.

Axes here: B clip, C channel, T frame, H W latent rows and columns, Y X pixel rows and columns, L
token, D embedding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from musev.config import PICTURE_COLUMNS, ClipRequest
from musev.control.clip_control import ClipControl, ControlMaps
from musev.denoise.places import places_of
from musev.errors import RequestError
from musev.lora_choice import LoraFile
from musev.media import fit_image
from musev.models.attachments import FacePrompt, ImagePrompt, ReferenceFeatures, TemporalOff
from musev.models.bundle import ModelBundle
from musev.models.image_prompt import encode_faces, encode_image_prompt
from musev.models.text import encode_prompts
from musev.models.vae import decode_to_float, encode_frames
from musev.parts import NoStore, OwnParts, PartStore, part_key
from musev.whole_clip import denoise_frames
from musev.window_denoiser import ClipConditions

ReadFrame = Callable[[int], np.ndarray]
"""Frame number of the finished video to ``image_YXC``, uint8 RGB of the clip's size."""


Picture = np.ndarray | Sequence[np.ndarray] | None
"""uint8 RGB ``YXC``; or several, in a list or as ``TYXC``."""


@dataclass(frozen=True, kw_only=True)
class ClipMedia:
    """The media of one request; a video stays a file: it may be long."""

    condition_image: Picture = None
    reference_image: Picture = None
    ip_adapter_image: Picture = None
    face_image: Picture = None
    loras: tuple[LoraFile, ...] = ()
    """Files of the request's LoRAs."""
    video: Path | None = None
    maps: ControlMaps | None = None
    """Control maps that were made for the clip; without, the video's frames are the maps."""

    @property
    def control(self) -> Path | ControlMaps | None:
        """What controls the clip."""
        return self.video if self.maps is None else self.maps


class FirstFrame(NamedTuple):
    """A picture that was generated before its clip."""

    latents_BCTHW: Tensor
    frames_TYXC: np.ndarray
    """float32, 0..1."""
    noise_state: Tensor | None
    """Of the original's generator, which the clip goes on with."""


def fit_media(request: ClipRequest, media: ClipMedia) -> ClipMedia:
    """Crop and resize every picture to the clip's size.

    Args:
        request: Gives the size and how to crop.
        media: Pictures of any size.

    Returns:
        The pictures as ``TYXC`` of the clip's size; the video as it was.
    """
    fit = functools.partial(
        fit_image,
        width=request.width,
        height=request.height,
        exact_upstream=request.sampling.image_fit == "upstream",
    )
    pictures = {}
    for column in PICTURE_COLUMNS:
        given: Picture = getattr(media, column)
        if given is not None:
            several = [given] if isinstance(given, np.ndarray) and given.ndim == 3 else given
            pictures[column] = np.stack([fit(picture) for picture in several])
    return dataclasses.replace(media, **pictures)


def encode_conditions(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
    *,
    source: ReadFrame | None = None,
    parts: PartStore | None = None,
) -> ClipConditions:
    """Compute everything the clip is conditioned on, once.

    Without a condition image the first frame is generated here (see ``FirstFrameConfig``), and then
    serves as one; with ``redraw`` the condition images are generated anew from themselves. A
    reference or image-prompt picture that is not given falls back to the condition image, as in the
    original, where the bundle has the network for it.

    Args:
        bundle: The loaded networks.
        request: Prompts, sizes and guidance.
        media: Its pictures at the clip's size, from :func:`fit_media`.
        control: Controls the first frame too, where that is generated.
        source: Frames that the clip starts from, with ``start_from_video``.
        parts: Where what other clips share is kept; None computes all of it.

    Returns:
        Keys and values of every layer, and the conditioning frames' latents.

    Raises:
        RequestError: If a picture is given that the bundle has no network for, or pictures and
            their places do not fit together.
    """
    return open_conditions(bundle, request, media, control, source=source, parts=parts)[0]


def open_conditions(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
    *,
    source: ReadFrame | None = None,
    parts: PartStore | None = None,
) -> tuple[ClipConditions, ClipMedia]:
    """Do what :func:`encode_conditions` does, and return the pictures that were used besides."""
    _refuse_unusable_media(bundle, request)
    parts = parts or NoStore()
    drawn, source = None, source if request.start_from_video else None
    draws = media.condition_image is None and request.sampling.first_frame.origin == "drawn"
    if draws or request.redraw:
        drawn = draw_first_frame(bundle, request, media, control, source=source, parts=parts)
        shown = _with_drawn(request, media, drawn.frames_TYXC)
        media, parts = shown, OwnParts(parts, _kinds_of_own(media, shown))
    conditions = encode_given(bundle, request, media, parts=parts)
    if drawn is not None:
        conditions = dataclasses.replace(
            conditions,
            frames_BCTHW=drawn.latents_BCTHW,
            first_frame_drawn=draws,
            noise_state=drawn.noise_state,
        )
    num_given = len(conditions.frame_places.given)
    if request.condition_index:
        places = places_of(num_given, request.condition_index, request.num_frames)
        conditions = dataclasses.replace(conditions, places=places)
    if source is None:
        return conditions, media
    numbers = [conditions.frame_places.of(frame) for frame in range(request.num_frames - num_given)]
    found_BCTHW = encode_source(bundle, source, numbers)
    return dataclasses.replace(conditions, source_BCTHW=found_BCTHW), media


def encode_source(bundle: ModelBundle, source: ReadFrame, numbers: Sequence[int]) -> Tensor | None:
    """Encode frames of a video, one at a time.

    Args:
        bundle: Holds the VAE.
        source: Reads them.
        numbers: Which frames.

    Returns:
        ``latents_BCTHW``, float32 on the CPU; None for no frames.
    """
    found = [encode_frames(bundle.vae, source(number)[None]).float().cpu() for number in numbers]
    return torch.cat(found, dim=2) if found else None


def draw_first_frame(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
    *,
    source: ReadFrame | None = None,
    parts: PartStore | None = None,
) -> FirstFrame:
    """Generate one picture from the text, or condition images anew, with the temporal layers off.

    Args:
        bundle: The loaded networks.
        request: Prompts, size, seed and ``sampling.first_frame``.
        media: Reference and image prompt, where given; with ``redraw`` the condition images that
            the pictures start from.
        control: Its frame 0 is used.
        source: Its frame 0 is what the picture starts from, if no condition image is.
        parts: As of :func:`encode_conditions`.

    Returns:
        The picture: frame 0 of the clip, or as many as there are condition images.

    Raises:
        RequestError: If a picture is to be drawn anew and none is given.

    Source:
        Upstream's first-frame call (ALGORITHM.md 10).
    """
    still, shown = _still_of(request, media)
    conditions = encode_given(bundle, still, shown, parts=parts or NoStore())
    given: Tensor | None = None
    if request.redraw:
        if media.condition_image is None:
            raise RequestError(
                f"request {request.request_id!r}: redraw is set, but there is no condition_image "
                "to draw anew. Give one, or leave redraw null."
            )
        given = encode_frames(bundle.vae, np.asarray(media.condition_image)).float().cpu()
    elif source is not None:
        given = encode_source(bundle, source, [0])
    latents_BCTHW, noise_state = denoise_frames(
        bundle,
        still,
        dataclasses.replace(conditions, source_BCTHW=given),
        control,
        num_frames=1 if given is None else given.shape[2],
        attached=TemporalOff(),
    )
    latents_BCTHW = latents_BCTHW.to(bundle.device)
    return FirstFrame(latents_BCTHW, decode_floats(bundle, latents_BCTHW), noise_state)


def decode_floats(bundle: ModelBundle, latents_BCTHW: Tensor) -> np.ndarray:
    """Decode one clip's latents to ``frames_TYXC``: float32, 0..1, on the host."""
    frames_TCYX = decode_to_float(bundle.vae, latents_BCTHW)[0]
    return frames_TCYX.permute(0, 2, 3, 1).cpu().numpy()


def _still_of(request: ClipRequest, media: ClipMedia) -> tuple[ClipRequest, ClipMedia]:
    """The request of the first frame alone, and the pictures it is shown."""
    how = request.sampling.first_frame
    sampling = dataclasses.replace(
        request.sampling,
        num_steps=how.num_steps,
        guidance=how.guidance,
        strength=how.strength,
        noise="counter" if request.sampling.noise == "counter" else "upstream_random",
    )
    negative = request.negative_prompt if how.negative_prompt is None else how.negative_prompt
    still = dataclasses.replace(request, num_frames=1, sampling=sampling, negative_prompt=negative)
    shown = dataclasses.replace(
        media,
        condition_image=None,
        reference_image=media.reference_image if how.with_reference else None,
        ip_adapter_image=media.ip_adapter_image if how.with_image_prompt else None,
        face_image=media.face_image if how.with_face else None,
    )
    if not how.with_face:
        still = dataclasses.replace(still, face_embedding=())
    return still, shown


def _with_drawn(request: ClipRequest, media: ClipMedia, drawn_TYXC: np.ndarray) -> ClipMedia:
    """Let a drawn picture take its place; a redrawn one is the reference too (ALGORITHM.md 10)."""
    replaced = {"condition_image": drawn_TYXC}
    if request.redraw or request.sampling.first_frame.becomes_reference:
        for column in ("reference_image", "ip_adapter_image"):
            if getattr(media, column) is not None:
                replaced[column] = drawn_TYXC
    if request.redraw and not request.is_driven and media.face_image is not None:
        replaced["face_image"] = drawn_TYXC  # of a driven video the original leaves the face
    return dataclasses.replace(media, **replaced)


def _kinds_of_own(given: ClipMedia, shown: ClipMedia) -> set[str]:
    """Kinds of parts that nobody can share, because this row's seed drew their picture."""

    def is_given(column: str) -> bool:
        picture = getattr(shown, column)
        return picture is not None and picture is getattr(given, column)

    kinds = {"condition frames"}
    if not is_given("ip_adapter_image"):
        kinds |= {"image prompt", "reference"}  # the reference is told the image prompt
    elif not is_given("reference_image"):
        kinds.add("reference")
    if not is_given("face_image"):
        kinds.add("face")
    return kinds


def encode_given(
    bundle: ModelBundle, request: ClipRequest, media: ClipMedia, *, parts: PartStore
) -> ClipConditions:
    """Compute the conditions of pictures as they are; arguments as :func:`encode_conditions`.

    Args:
        bundle: The loaded networks.
        request: Prompts, sizes and guidance.
        media: Its pictures at the clip's size: uint8, or float32 in 0..1.
        parts: Where what other clips share is kept.

    Returns:
        The conditions; the conditioning frames are the first of the video.
    """
    guided = request.sampling.guidance.active
    bare = guided and request.sampling.guidance.unconditional == "bare"
    with_unconditional = guided and not bare
    negatives = [request.negative_prompt] if guided else None
    text_BLD = parts.find(
        part_key("text", request.prompt, negatives, bundle.loras.in_use),
        lambda: encode_prompts(
            bundle.tokenizer,
            bundle.text_encoder,
            [request.prompt],
            negatives,
            words=bundle.words,
        ),
    )
    condition_TYXC = None if media.condition_image is None else np.asarray(media.condition_image)
    reference_TYXC = _first_given(media.reference_image, condition_TYXC)
    image_prompt_TYXC = _first_given(media.ip_adapter_image, condition_TYXC)

    attachments: list[ImagePrompt | FacePrompt | ReferenceFeatures] = []
    tokens_BLD = None
    in_place = request.sampling.prompt_from_image and not bundle.unet.config.ip_adapter_cross_attn
    takes_tokens = bundle.takes_image_prompts or (in_place and bundle.image_projection is not None)
    if takes_tokens and image_prompt_TYXC is not None:
        prepared_TYXC = _as_image_prompt(request, image_prompt_TYXC)
        tokens_BLD = parts.find(
            part_key("image prompt", prepared_TYXC, with_unconditional),
            lambda: encode_image_prompt(
                bundle.image_encoder,
                bundle.image_projection,
                prepared_TYXC,
                with_unconditional=with_unconditional,
            ),
        )
        if in_place:
            text_BLD = tokens_BLD
        else:
            attachments.append(ImagePrompt(tokens_BLD, scale=request.sampling.ip_adapter_scale))
    if bundle.takes_references and reference_TYXC is not None:
        own_text_BLD = text_BLD[1:] if bare else text_BLD
        told_BLD = own_text_BLD if tokens_BLD is None else tokens_BLD
        attachments.append(
            parts.find(
                part_key("reference", reference_TYXC, told_BLD),
                lambda: encode_reference(bundle, reference_TYXC, told_BLD),
            )
        )
    faces = _encode_faces(bundle, request, media, parts, with_unconditional=with_unconditional)
    if faces is not None:
        attachments.append(faces)
    frames_BCTHW = None
    if condition_TYXC is not None:
        frames_BCTHW = parts.find(
            part_key("condition frames", condition_TYXC),
            lambda: encode_frames(bundle.vae, condition_TYXC).float(),
        )
    text_BLD = text_BLD.to(bundle.dtype)
    if not (bare and attachments):
        network = bundle.unet.prepare(text_BLD, tuple(attachments))
        return ClipConditions(network, text_BLD, frames_BCTHW, guided)
    network = bundle.unet.prepare(text_BLD[1:], tuple(attachments))
    told_less = bundle.unet.prepare(text_BLD[:1], ())
    return ClipConditions(network, text_BLD, frames_BCTHW, guided, bare=told_less)


def encode_reference(
    bundle: ModelBundle, reference_TYXC: np.ndarray, told_BLD: Tensor
) -> ReferenceFeatures:
    """Run the ReferenceNet once, on clean latents at timestep 0.

    Args:
        bundle: Holds the ReferenceNet and the VAE.
        reference_TYXC: Reference pictures at the clip's size.
        told_BLD: Image-prompt tokens if there are any, else the text; both guidance halves.

    Returns:
        Features of every layer; both halves see the same latents, as in the original.
    """
    assert bundle.referencenet is not None
    latents_BCTHW = encode_frames(bundle.vae, reference_TYXC).to(bundle.dtype)
    latents_BCTHW = latents_BCTHW.expand(told_BLD.shape[0], -1, -1, -1, -1)
    features = bundle.referencenet(latents_BCTHW, told_BLD.to(bundle.dtype), timestep=0)
    if bundle.unet.config.need_refer_emb:
        return features
    return dataclasses.replace(features, down=(), mid=None)  # this U-Net's self attention reads it


def _encode_faces(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    parts: PartStore,
    *,
    with_unconditional: bool,
) -> FacePrompt | None:
    """Face tokens of the row's faces: embeddings that it brings along, or found in its pictures."""
    faces_TYXC = media.face_image
    if bundle.face_projection is None or request.sampling.ip_adapter_face_scale <= 0:
        return None
    if not bundle.takes_faces or (faces_TYXC is None and not request.face_embedding):
        return None
    if faces_TYXC is None:
        width = bundle.face_projection.config.id_embeddings_dim
        if len(request.face_embedding) % width:
            raise RequestError(
                f"request {request.request_id!r}: face_embedding has "
                f"{len(request.face_embedding)} numbers, but an embedding has {width}. Give that "
                "many, or a multiple for several faces."
            )
        faces_KD = torch.tensor(request.face_embedding).reshape(-1, width)
    else:
        finder = bundle.face_finder
        if finder is None:
            raise RequestError(
                f"request {request.request_id!r}: face_image is given, but there are no models "
                "that find faces. Name their folder in weights.face_models, or give "
                "face_embedding."
            )
        pictures_TYXC = np.asarray(faces_TYXC)
        if pictures_TYXC.dtype != np.uint8:  # generated before, 0..1
            pictures_TYXC = pictures_TYXC.astype(np.float32) * 255
        faces_KD = parts.find(
            part_key("face", pictures_TYXC),
            lambda: torch.from_numpy(finder.find(pictures_TYXC)),
        )
    tokens_BLD = encode_faces(
        bundle.face_projection, faces_KD, with_unconditional=with_unconditional
    )
    return FacePrompt(tokens_BLD, scale=request.sampling.ip_adapter_face_scale)


def _refuse_unusable_media(bundle: ModelBundle, request: ClipRequest) -> None:
    if request.face_embedding and not bundle.takes_faces:
        raise RequestError(
            f"request {request.request_id!r}: face_embedding is given, but the weights of profile "
            f"{request.profile!r} hold no face projection that its U-Net reads. Name a FaceID file "
            "in weights.face, or leave face_embedding empty."
        )
    for column, usable, name in (
        ("reference_image", bundle.takes_references, "ReferenceNet"),
        ("face_image", bundle.takes_faces, "face projection"),
        ("ip_adapter_image", bundle.takes_image_prompts, "image-prompt projection"),
    ):
        if getattr(request, column) is not None and not usable:
            raise RequestError(
                f"request {request.request_id!r}: {column} is given, but the weights of profile "
                f"{request.profile!r} hold no {name} that its U-Net reads. Leave {column} empty or "
                "choose other weights."
            )


def _as_image_prompt(request: ClipRequest, picture_TYXC: np.ndarray) -> np.ndarray:
    """Upstream crops and resizes once more, by another filter, on the way to CLIP."""
    if picture_TYXC.dtype != np.uint8:
        picture_TYXC = (picture_TYXC * 255).astype(np.uint8)
    if request.sampling.image_fit != "upstream":
        return picture_TYXC
    size = {"width": request.width, "height": request.height}
    return np.stack(
        [
            fit_image(item, **size, exact_upstream=True, resampling="bicubic")
            for item in picture_TYXC
        ]
    )


def _first_given(first: Picture, second: np.ndarray | None) -> np.ndarray | None:
    return second if first is None else np.asarray(first)
