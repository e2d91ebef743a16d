"""Licences of weights: what the files' own pages say, and which of them allow commercial use.

A statement beside the files wins: the front matter of a ``README.md``, or the title of a
``LICENSE``. Then a short table of published names. Everything else is ``unknown``. This helps
to keep order and is no legal advice: the licences' own conditions hold.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from musev.config import WeightsConfig
from musev.errors import ConfigError, WeightsError
from musev.weight_parts import CONTROLNETS, EMBEDDINGS, bundle_folder, bundle_paths, controlnet_part
from musev.weight_store import is_remote
from musev.weights import local_path

UNKNOWN = "unknown"
OWN = "mit"
"""Of the weights that ship with this package, and of random ones."""

# Names in addresses of published files, and what their pages say, as far as known to us. The first
# that matches counts; FaceID before IP-Adapter, and MuseV's parts before Stable Diffusion's.
_PUBLISHED = (
    (r"faceid|antelopev2|buffalo_l", "non-commercial-research"),
    (r"ip_adapter_image_proj\.bin|motion/musev|musev_referencenet", "non-commercial-research"),
    (r"ip[-_]adapter", "apache-2.0"),
    (r"sd-vae-ft-(mse|ema)", "mit"),
    (r"lcm-lora", "openrail++"),
    (r"control_v11|sd-controlnet-", "openrail"),
    (r"stable-diffusion-v1-[45]|v1-5-pruned", "creativeml-openrail-m"),
)
_COMMERCIAL = {
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "openrail", "openrail++", "creativeml-openrail-m"),
    *("bigscience-openrail-m",),
}
_AND = " and "
_TITLES = (
    (r"\bMIT License", "mit"),
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"CreativeML Open RAIL\+\+-M", "openrail++"),
    (r"CreativeML Open ?RAIL-M", "creativeml-openrail-m"),
    (r"Attribution-NonCommercial", "cc-by-nc-4.0"),
)
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_LICENCE_LINE = re.compile(r"^license(_name)?:\s*[\"']?([\w.+-]+)", re.MULTILINE)


def allows_commercial(licence: str) -> bool:
    """Whether a licence is known to allow commercial use, with whatever conditions.

    Several, joined by ``and``, must all allow it.
    """
    return all(one in _COMMERCIAL for one in licence.lower().split(_AND))


def licence_of(address: str) -> str:
    """Find the licence of a file or folder of weights.

    Args:
        address: Path or URL, as the settings name it.

    Returns:
        A short name in lower case, or ``unknown``.
    """
    told = _told_beside(address)
    if told is not None:
        return told
    for pattern, licence in _PUBLISHED:
        if re.search(pattern, address, re.IGNORECASE):
            return licence
    return UNKNOWN


def licences_of(config: WeightsConfig) -> dict[str, str]:
    """Find the licence of every part of the weights.

    Args:
        config: Where the weights lie.

    Returns:
        Licence by part, parts named as in ``digest_weights``.
    """
    found = _of_source(config)
    named = {controlnet_part(name): address for name, address in config.controlnets.items()}
    named |= {EMBEDDINGS + word: file for word, file in config.embeddings.items()}
    extra = {name: getattr(config, name) for name in ("pose_guider", "face_models", "vae")}
    named |= {name: address for name, address in extra.items() if address is not None}
    return found | {name: licence_of(address) for name, address in named.items()}


def licences_when_joined(config: WeightsConfig) -> dict[str, str]:
    """Find the licences of a bundle that is made of these weights.

    Args:
        config: Where the weights lie.

    Returns:
        Licence by part of the bundle; of a part that is made of several, all of them.
    """
    found = licences_of(config)
    if config.t2i is None:
        return found

    def joined(*names: str) -> str:
        return _AND.join(sorted({found[name] for name in names if name in found}))

    parts = {
        "tokenizer": joined("t2i"),
        "text_encoder": joined("t2i"),
        "vae": joined("vae") or joined("t2i"),
        "unet": joined("t2i", "unet", "face", *(["image_prompt"] if config.image_prompt else [])),
        "referencenet": joined("referencenet"),
        "image_encoder": joined("image_encoder"),
        "image_projection": joined("image_prompt"),
        "face_projection": joined("face"),
        "pose_guider": joined("pose_guider"),
    }
    parts |= {name: joined(name) for name in found if name.startswith(CONTROLNETS)}
    return {name: licence for name, licence in parts.items() if licence}


def check_licences(licences: Mapping[str, str], required: str | None) -> None:
    """Refuse weights whose licence does not allow what is required.

    Args:
        licences: By part or file.
        required: ``commercial``, or None for nothing.

    Raises:
        ConfigError: Lists what is refused, and what to do.
    """
    if required is None:
        return
    if required != "commercial":
        raise ConfigError(f"--require-licence must be commercial, got {required!r}")
    refused = {name: lic for name, lic in licences.items() if not allows_commercial(lic)}
    if refused:
        told = ", ".join(f"{name} ({licence})" for name, licence in sorted(refused.items()))
        raise ConfigError(
            f"no licence for commercial use is known of: {told}. Take other files; or, where one "
            "has such a licence, put a README.md beside it whose front matter says `license: ...`."
        )


def _of_source(config: WeightsConfig) -> dict[str, str]:
    if config.random_seed is not None:
        return {"random": OWN}
    if config.bundle is not None:
        return _of_bundle(config.bundle)
    addresses = {
        "t2i": config.t2i,
        "unet": config.motion,
        "referencenet": config.referencenet,
        "image_prompt": config.image_prompt,
        "image_encoder": config.image_encoder,
        "face": config.face,
    }
    return {name: licence_of(each) for name, each in addresses.items() if each is not None}


def _of_bundle(name: str) -> dict[str, str]:
    paths = bundle_paths(bundle_folder(name))
    index = json.loads(paths.pop("index").read_text(encoding="utf-8"))
    whole = OWN if name.startswith("package:") else licence_of(name)
    return {part: index.get("licences", {}).get(part, whole) for part in paths}


@functools.cache
def _told_beside(address: str) -> str | None:
    """What a page or licence says in the folder itself, or of a file in its own."""
    if is_remote(address):
        bases = [address, address.rpartition("/")[0]]
    else:
        path = Path(address.removeprefix("file://"))
        folder = path if path.is_dir() else path.parent
        # A project's own licence says nothing of a file that somebody put into its folder.
        is_project = (folder / "pyproject.toml").is_file() or (folder / ".git").exists()
        bases = [str(folder)] if path.exists() and not is_project else []
    for base in bases:
        for name, read in (("README.md", _from_page), ("LICENSE", _from_licence)):
            text = _read(base, name)
            if text is not None and (found := read(text)) is not None:
                return found
    return None


def _read(base: str, name: str) -> str | None:
    try:
        path = local_path(base, name)
        return path.read_text(encoding="utf-8", errors="replace")
    except (WeightsError, OSError):
        return None


def _from_page(text: str) -> str | None:
    matter = _FRONT_MATTER.match(text)
    found = dict(_LICENCE_LINE.findall(matter[1])) if matter else {}
    licence = found.get("_name") if found.get("", "other") == "other" else found[""]
    return None if licence is None else licence.lower()


def _from_licence(text: str) -> str | None:
    for pattern, licence in _TITLES:
        if re.search(pattern, text[:2000], re.IGNORECASE):
            return licence
    return UNKNOWN if text.strip() else None
