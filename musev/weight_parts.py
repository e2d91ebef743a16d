"""Which parts of weights a config names, where each lies, and what each digests to.

Importing this module does not import torch: the driver digests weights without holding a network.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from musev.config import ClipRequest, WeightsConfig
from musev.errors import WeightsError
from musev.text_to_pose_config import CONFIG_FILE
from musev.weight_store import RECORD, is_remote
from musev.weights import find_weights, local_path, read_config

BUNDLE_FILE = "musev_bundle.json"
_SHIPPED = Path(__file__).parent / "bundles"
CONTROLNETS = "controlnets/"
"""Parts of this prefix are ControlNets; a clip's bytes depend on those it uses."""
IMAGE_PROMPT_FILE = "ip_adapter_image_proj.bin"
POSE_GUIDER = "pose_guider"
"""Part, and the name by which a manifest's ``control`` has it read the maps like a ControlNet."""
# Version of the recipe in musev/models/tiny.py: raise it when the random networks change.
TINY_VERSION = "tiny-1"
TINY_CONTROLNETS = ("openpose",)
"""ControlNets of the random networks."""
SINGLE_FILES = (".safetensors", ".ckpt")
"""Ends of a base model that is one file; a diffusers model is a folder."""
EMBEDDINGS = "embeddings/"
"""Parts of this prefix are learnt words; a clip's bytes depend on those in its prompts."""


def published_paths(config: WeightsConfig) -> dict[str, Path]:
    """Folder or file of each part of the published layout.

    Args:
        config: Settings with ``t2i`` and ``motion``.

    Returns:
        Paths by part; parts the settings leave out are absent.

    Raises:
        WeightsError: If only one of image prompt and image encoder is given.
    """
    if config.t2i is None or config.motion is None:
        raise WeightsError("the published layout needs both weights.t2i and weights.motion")
    if (config.image_prompt is None) != (config.image_encoder is None):
        raise WeightsError(
            "weights.image_prompt and weights.image_encoder work only together; give both or none"
        )
    paths = _base_paths(config.t2i, config)
    paths["unet"] = local_path(config.motion, "unet")
    if config.vae:
        paths["vae"] = local_path(config.vae)
    if config.referencenet:
        paths["referencenet"] = local_path(config.referencenet, "referencenet")
    elif config.reference_attention:
        if "t2i_unet" not in paths:
            raise WeightsError(
                "weights.reference_attention needs weights.referencenet, or a weights.t2i that is "
                f"a diffusers folder; {config.t2i} is a single file"
            )
        paths["referencenet"] = paths["t2i_unet"]
    if config.image_prompt and config.image_encoder:
        prompt = config.image_prompt
        is_file = Path(prompt).suffix != "" if is_remote(prompt) else not Path(prompt).is_dir()
        paths["image_prompt"] = local_path(prompt, "" if is_file else IMAGE_PROMPT_FILE)
        paths["image_encoder"] = local_path(config.image_encoder)
    if config.face:
        paths["face"] = local_path(config.face)
    return paths


def _base_paths(t2i: str, config: WeightsConfig) -> dict[str, Path]:
    """Parts of the base model: a diffusers folder, or one file beside the folder of another."""
    if not t2i.endswith(SINGLE_FILES):
        names = {name: name for name in ("tokenizer", "text_encoder", "scheduler")}
        names |= {"t2i_unet": "unet"} | ({} if config.vae else {"vae": "vae"})
        return {part: local_path(t2i, name) for part, name in names.items()}
    if config.t2i_config is None:
        raise WeightsError(
            f"weights.t2i: {t2i} is a single file, which has no tokenizer. Name the diffusers "
            "folder of any Stable Diffusion 1.5 model in weights.t2i_config."
        )
    return {
        "t2i_file": local_path(t2i),
        "tokenizer": local_path(config.t2i_config, "tokenizer"),
    } | _optional_part(config.t2i_config, "scheduler")


def _optional_part(base: str, name: str) -> dict[str, Path]:
    try:
        path = local_path(base, name)
    except WeightsError:
        return {}
    return {name: path} if path.exists() else {}


def bundle_folder(name: str) -> Path:
    """Find a bundle's folder.

    Args:
        name: A path, or ``package:NAME`` for one that ships with this package. The latter is looked
            up where it is used, so that machines may have the package in different places.

    Returns:
        The folder.

    Raises:
        WeightsError: If the package has no such bundle.
    """
    scheme, _, shipped = name.rpartition(":")
    if is_remote(name):
        return _remote_bundle(name)
    if scheme != "package":
        return Path(name)
    folder = _SHIPPED / shipped
    if not shipped or not (folder / BUNDLE_FILE).is_file():
        there = sorted(path.parent.name for path in _SHIPPED.glob(f"*/{BUNDLE_FILE}"))
        raise WeightsError(f"no bundle {name!r}; this package ships: {', '.join(there) or 'none'}")
    return folder


def text_to_pose_folder(name: str) -> Path:
    """Find a network of text to pose.

    Args:
        name: A folder, path or URL, or ``package:NAME`` for one that ships with this package.

    Returns:
        The folder; what lies elsewhere has been fetched.

    Raises:
        WeightsError: If the package has no such network, or a URL cannot be fetched.
    """
    scheme, _, shipped = name.rpartition(":")
    if scheme != "package":
        return local_path(name)
    folder = _SHIPPED / shipped
    if not shipped or not (folder / CONFIG_FILE).is_file():
        there = sorted(path.parent.name for path in _SHIPPED.glob(f"*/{CONFIG_FILE}"))
        raise WeightsError(
            f"no network of text to pose {name!r}; this package ships: {', '.join(there) or 'none'}"
        )
    return folder


def digest_text_to_pose(folder: Path) -> str:
    """``sha256:...`` of a network of text to pose and its configuration."""
    return _digest_part("text_to_pose", folder)


def _remote_bundle(url: str) -> Path:
    """Fetch a bundle's parts; its index lies in a folder beside theirs."""
    index = local_path(url, BUNDLE_FILE)
    for part in read_config(index.parent, where="bundle", name=BUNDLE_FILE).get("parts", {}):
        local_path(url, part)
    return index.parent.parent


def _index_folder(folder: Path) -> Path:
    return folder / BUNDLE_FILE if (folder / BUNDLE_FILE).is_dir() else folder


def bundle_paths(folder: Path) -> dict[str, Path]:
    """Folder of each part of our own layout, plus the index file as ``index``.

    Args:
        folder: Folder written by ``save_bundle``.

    Returns:
        Paths by part.

    Raises:
        WeightsError: If the folder holds no readable ``musev_bundle.json``.
    """
    place = _index_folder(folder)
    index = read_config(place, where="bundle", name=BUNDLE_FILE)
    parts = index.get("parts")
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise WeightsError(f"bundle: {folder / BUNDLE_FILE} names no parts; write it again")
    return {"index": place / BUNDLE_FILE} | {name: folder / name for name in parts}


def controlnet_part(name: str) -> str:
    """Part name of a ControlNet, and its folder within a bundle: ``controlnets/openpose``."""
    return f"{CONTROLNETS}{name}"


def controlnet_names(config: WeightsConfig) -> tuple[str, ...]:
    """Names of the ControlNets, and the pose guider, that these weights hold; none is loaded.

    Args:
        config: Where the weights lie.

    Returns:
        Sorted names.
    """
    held: Iterable[str] = ()
    guider = config.pose_guider is not None
    if config.random_seed is not None:
        held = TINY_CONTROLNETS
    elif config.bundle is not None:
        parts = bundle_paths(bundle_folder(config.bundle))
        held = [part.removeprefix(CONTROLNETS) for part in parts if part.startswith(CONTROLNETS)]
        guider = guider or POSE_GUIDER in parts
    return tuple(sorted({*held, *config.controlnets, *([POSE_GUIDER] if guider else [])}))


def digest_weights(config: WeightsConfig) -> dict[str, str]:
    """Digest everything about the weights that decides the bytes of a clip.

    Args:
        config: Where the weights lie. Files are hashed once a process while their size and
            modification time stay the same.

    Returns:
        ``sha256:...`` by part, and the settings that change the arithmetic as ``settings``. Paths
        do not enter: the same files elsewhere give the same digests. A seed digests to itself.
        A part that is missing is a :class:`WeightsError`.
    """
    eps = config.layer_norm_eps
    named = extra_paths(config)
    if config.random_seed is not None:
        digests = {"random": f"{TINY_VERSION}:seed={config.random_seed}"}
        digests |= {"settings": f"layer_norm_eps={eps!r}"} if eps else {}
        return digests | {name: _digest_extra(name, path, config) for name, path in named.items()}
    if config.bundle is not None:
        paths = bundle_paths(bundle_folder(config.bundle))
        settings = "layer_norm_eps=" + ("as saved" if eps is None else repr(eps))
    else:
        paths = published_paths(config)
        settings = f"layer_norm_eps={eps or 0.0!r},motion_name={config.motion_name}"
        if config.image_prompt and image_prompt_wins(config):
            settings += ",image_prompt_attention=file"
    digests = {name: _digest_part(name, path) for name, path in paths.items()}
    digests |= {name: _digest_extra(name, path, config) for name, path in named.items()}
    return digests | {"settings": settings}


def image_prompt_wins(config: WeightsConfig) -> bool:
    """Whether the image-prompt file's attention weights replace those the U-Net was trained with.

    MuseV's U-Net was trained with MuseV's own projection; tokens of another adapter mean something
    else to it, and that adapter's weights know what.
    """
    if config.image_prompt_attention != "auto":
        return config.image_prompt_attention == "file"
    prompt = Path(config.image_prompt or IMAGE_PROMPT_FILE)
    return prompt.suffix != "" and prompt.name != IMAGE_PROMPT_FILE


def extra_paths(config: WeightsConfig) -> dict[str, Path]:
    """File or folder of each part that can be added to weights of any source.

    Args:
        config: Where the weights lie.

    Returns:
        Paths by part: ControlNets, learnt words, pose guider, models that find faces; and the VAE
        where it takes the place of another source's.
    """
    found = {controlnet_part(name): local_path(path) for name, path in config.controlnets.items()}
    for word, file in config.embeddings.items():
        found[EMBEDDINGS + word] = local_path(file)
    if config.pose_guider is not None:
        found["pose_guider"] = local_path(config.pose_guider)
    if config.face_models is not None:
        found["face_models"] = Path(config.face_models)
    if config.vae is not None and config.t2i is None:
        found["vae"] = local_path(config.vae)
    return found


def digests_in_use(
    digests: Mapping[str, str], request: ClipRequest, *, controlnets: Iterable[str] | None = None
) -> dict[str, str]:
    """Leave out what a clip does not use, so that it does not rename its video.

    Args:
        digests: From :func:`digest_weights`, or anything else by part.
        request: Names ControlNets and pictures, and holds the prompts that name learnt words.
        controlnets: The ControlNets it uses, where they are not called as in its ``control``.

    Returns:
        The entries of what the clip is rendered with.
    """
    nets = request.control if controlnets is None else controlnets
    used_names = set(nets)
    used = {controlnet_part(name) for name in used_names}
    texts = (
        request.prompt,
        request.negative_prompt,
        request.sampling.first_frame.negative_prompt or "",
    )

    def counts(name: str) -> bool:
        if name.startswith(EMBEDDINGS):
            return any(name.removeprefix(EMBEDDINGS) in text for text in texts)
        if name == "face_models":
            return bool(request.pictures("face_image"))
        if name == POSE_GUIDER:
            return POSE_GUIDER in used_names
        return name in used or not name.startswith(CONTROLNETS)

    return {name: digest for name, digest in digests.items() if counts(name)}


def _digest_extra(name: str, path: Path, config: WeightsConfig) -> str:
    if name == "face_models":
        models = sorted(path.glob("*.onnx"))
        if not models:
            raise WeightsError(f"{name}: no .onnx files in {path}")
        told = "\n".join(f"{model.name} {hash_file(model)}" for model in models)
        return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"
    only_first = name.startswith(EMBEDDINGS) and config.embedding_vectors == "first"
    return _digest_part(name, path) + (":first" if only_first else "")


def _digest_part(name: str, path: Path) -> str:
    if path.is_dir():
        files = {file.name: file for file in path.iterdir() if file.suffix in (".json", ".txt")}
        files.pop(RECORD, None)  # of a copy: where it came from decides nothing
        if name not in ("tokenizer", "scheduler"):
            weights = find_weights(path, where=name)
            files[weights.name] = weights
    elif name == "index":
        # Without its list of parts: each part is digested itself, and a new one renames no video.
        index = read_config(path.parent, where=name, name=path.name)
        index.pop("licences", None)
        told = json.dumps({**index, "parts": None}, sort_keys=True)
        return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"
    elif path.is_file():
        files = {"": path}
    else:
        raise WeightsError(f"{name}: {path} is missing. Check the weights settings of the run.")
    total = hashlib.sha256()
    for file_name, file in sorted(files.items()):
        total.update(f"{file_name}\0{hash_file(file)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex; read once a process while size and modification time stay."""
    stat = path.stat()
    return _hash_file(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_file(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
