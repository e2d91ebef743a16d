"""Weights on disk: find, read and check files, rename published keys.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musev.errors import WeightsError
from musev.weight_store import local_part

if TYPE_CHECKING:
    from torch import Tensor

# In the order of preference; diffusers first, then transformers. One file a part: published MuseV
# and Stable Diffusion 1.5 parts are not sharded.
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.bin",
)
_LISTED_KEYS = 30
_SMALL_FILES = (".json", ".txt", ".md", "LICENSE")

Shapes = Mapping[str, Sequence[int]]


def local_path(base: str, name: str = "") -> Path:
    """Find a file or folder of weights on this machine; what a URL names is fetched once.

    Args:
        base: Path or URL.
        name: Of a part below it.

    Returns:
        The path.
    """
    return local_part(base, name, choose=_needed_files)


def _needed_files(names: Sequence[str]) -> list[str]:
    small = [name for name in names if name.endswith(_SMALL_FILES)]
    return small + [name for name in WEIGHT_FILES if name in names][:1]


def find_weights(folder: Path, *, where: str) -> Path:
    """Find the one weights file of a part.

    Args:
        folder: Folder of a diffusers or transformers model.
        where: What the folder is, for the error.

    Returns:
        Path of the first existing name of :data:`WEIGHT_FILES`.

    Raises:
        WeightsError: If the folder or a weights file in it is missing.
    """
    if not folder.is_dir():
        raise WeightsError(f"{where}: no folder {folder}. Check the weights settings of the run.")
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{where}: no weights file in {folder}; looked for {', '.join(WEIGHT_FILES)}"
    )


def read_config(folder: Path, *, where: str, name: str = "config.json") -> dict[str, Any]:
    """Read a part's JSON config.

    Args:
        folder: Folder of the part.
        where: What the folder is, for the error.
        name: File name.

    Returns:
        The config.

    Raises:
        WeightsError: If it is missing or not a JSON object.
    """
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{where}: {path} is missing") from None
    except ValueError as error:
        raise WeightsError(f"{where}: {path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{where}: {path} must hold a JSON object, got {type(config).__name__}")
    return config


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a flat weights file onto the CPU.

    Args:
        path: A ``.safetensors`` file, or a ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` pickle; pickles
            are read with ``weights_only``, so that code in them is refused, not run.

    Returns:
        Tensors by key, dtype as stored.

    Raises:
        WeightsError: If the file is missing, damaged, of another kind, or holds other things than
            tensors; the file is named.
    """
    import torch

    values = load_values(path)
    others = [key for key, value in values.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(f"{path}: not a flat weights file; no tensors at {_listed(others)}")
    return values


def load_groups(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read a weights file made of named groups, such as ``ip_adapter_image_proj.bin``.

    Args:
        path: A pickle of dicts of tensors, or a ``.safetensors`` file whose keys start with
            ``group.``.

    Returns:
        Tensors by group and key.

    Raises:
        WeightsError: If the file is missing or damaged, or is not made of groups.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in load_values(path).items():
        if isinstance(value, dict):
            groups.setdefault(key, {}).update(value)
        else:
            group, dot, rest = key.partition(".")
            if not dot:
                raise WeightsError(f"{path}: key {key!r} belongs to no group")
            groups.setdefault(group, {})[rest] = value
    return groups


def safetensors_keys(path: Path) -> list[str] | None:
    """Read the keys of a ``.safetensors`` file without torch.

    Args:
        path: Any file.

    Returns:
        The keys; None for a file of another kind.

    Raises:
        WeightsError: If the file is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        return [key for key in header if key != "__metadata__"]
    except (ValueError, TypeError, MemoryError, OverflowError) as error:
        raise WeightsError(f"{path.name}: damaged or truncated ({error}). Copy it again.") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a ``.safetensors`` file; of another file there is none."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load_values(path: str | Path) -> dict[str, Any]:
    """Read whatever a weights file holds by name: tensors, and in pickles also plain values.

    Args:
        path: As for :func:`load_state_dict`.

    Returns:
        Values by key.

    Raises:
        WeightsError: If the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return _read_pickle(path)
    raise WeightsError(f"{path}: unknown kind {path.suffix!r}; give .safetensors, .bin or .pt")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or truncated ({path.stat().st_size} bytes; {error}). Copy it again."
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    import torch

    try:
        # The class is how older training code kept textual inversions; it holds tensors only.
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, because reading it would run code or it is damaged "
            f"({_first_line(error)}). Convert it to safetensors where you trust it."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or truncated ({path.stat().st_size} bytes; "
            f"{_first_line(error)}). Copy it again."
        ) from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: holds a {type(values).__name__}, not weights by key")
    return values


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_keys(expected: Shapes, found: Shapes, where: str) -> None:
    """Check that a file's keys and shapes are exactly those of a network.

    Args:
        expected: Shape of every key the network has.
        found: Shape of every key the file has.
        where: What is being loaded and from where, for the error.

    Raises:
        WeightsError: If any key is missing, unknown or of another shape; the message lists them.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    misshaped = [
        f"{key}: file {list(found[key])}, network {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("extra", extra), ("of another shape", misshaped))
    problems = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in kinds if keys]
    if problems:
        raise WeightsError(
            f"{where}: the file does not fit the network. " + "; ".join(problems) + ". "
            "Check that the file and its config.json belong together."
        )


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _LISTED_KEYS
    return ", ".join(keys[:_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")


# --- published names -------------------------------------------------------------------------


def rename_ip_adapter(
    names: Iterable[str], unet_names: Iterable[str], *, face: bool = False
) -> dict[str, str]:
    """Map the numbered keys of an IP-Adapter file to keys of the U-Net.

    Odd numbers count the spatial cross attentions: down blocks, then up blocks, the middle last.

    Args:
        names: Keys such as ``1.to_k_ip.weight``.
        unet_names: All keys of the U-Net.
        face: Address the face tokens' weights instead of the image tokens'.

    Returns:
        U-Net key by file key.

    Raises:
        WeightsError: If a number addresses no cross attention.

    Source:
        Upstream ip_adapter_loader; recorded in goldens/fullsize/ip_adapter_key_mapping.json.
    """
    pattern = re.compile(r"(?:.+\.)?attentions\.\d+\.transformer_blocks\.\d+\.attn2")
    layers = {
        name.removesuffix(".to_q.weight")
        for name in unet_names
        if name.endswith(".attn2.to_q.weight") and "temp_attentions" not in name
    }
    order = ("down_blocks", "up_blocks", "mid_block")
    ranked = sorted(
        (layer for layer in layers if pattern.fullmatch(layer)),
        key=lambda layer: (order.index(layer.split(".")[0]), _numbers(layer)),
    )
    by_number = {str(2 * rank + 1): layer for rank, layer in enumerate(ranked)}
    prefix = "ip_adapter_face_" if face else ""
    renamed = {}
    for name in names:
        number, _, leaf = name.partition(".")
        if number not in by_number or leaf not in ("to_k_ip.weight", "to_v_ip.weight"):
            raise WeightsError(
                f"ip_adapter key {name!r} addresses no cross attention of this U-Net, "
                f"which has {len(ranked)} (numbers 1 to {2 * len(ranked) - 1})"
            )
        renamed[name] = f"{by_number[number]}.{prefix}{leaf}"
    return renamed


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())


def kohya_names(weight_names: Iterable[str], prefix: str) -> dict[str, str]:
    """Flat module names of a kohya LoRA file, to the weights they change.

    Args:
        weight_names: Keys of the network.
        prefix: ``lora_unet_``, or ``lora_te_text_model_`` for a text encoder.

    Returns:
        Network key by the part of a LoRA key before its first dot.
    """
    return {
        prefix + name.removesuffix(".weight").replace(".", "_"): name
        for name in weight_names
        if name.endswith(".weight")
    }


_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_vae(name: str) -> str:
    """Give the attention of an older AutoencoderKL file (sd-vae-ft-mse) its present names."""
    head, _, leaf = name.rpartition(".")
    base, _, module = head.rpartition(".")
    if ".attentions." in name and module in _OLD_VAE_ATTENTION:
        return f"{base}.{_OLD_VAE_ATTENTION[module]}.{leaf}"
    return name


# --- digests ---------------------------------------------------------------------------------
