"""One network from its config and its file: every key checked, nothing left at random.

Nothing here knows the published layout or ours; see published.py and bundle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from musev.config import Precision, ScheduleConfig
from musev.errors import MusevError, WeightsError
from musev.weights import check_keys, find_weights, load_state_dict, read_config, shapes_of

NetT = TypeVar("NetT", bound=nn.Module)
State = dict[str, Tensor]

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# A counter that older transformers saved as if it were a weight.
_NOT_WEIGHTS = ("embeddings.position_ids",)
# What diffusers' EulerDiscreteScheduler takes where the file says nothing: the original builds that
# class from the file (ALGORITHM.md 4.2). The last two are not Euler's; they are DDIM's.
_SCHEDULE_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "clip_sample": True,
}
_UNSUPPORTED_SCHEDULE = (
    "trained_betas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "thresholding",
)


def build_empty(kind: type[NetT], config: Mapping[str, Any], *, where: str) -> NetT:
    """Build a network without memory for its weights.

    Args:
        kind: A diffusers or transformers model class.
        config: Contents of its ``config.json``.
        where: What is being built, for the error.

    Returns:
        The network; its parameters are on the ``meta`` device, its buffers are real.

    Raises:
        WeightsError: If the class refuses the config.
    """
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    try:
        with init_empty_weights(include_buffers=False):
            if issubclass(kind, PreTrainedModel):
                return kind(kind.config_class.from_dict(values))
            return kind.from_config(values)
    except (MusevError, TypeError, ValueError, KeyError, IndexError) as error:
        raise WeightsError(f"{where}: {kind.__name__} refuses its config ({error})") from error


def fill(net: NetT, state: Mapping[str, Tensor], *, dtype: torch.dtype, where: str) -> NetT:
    """Give an empty network its weights and freeze it.

    Args:
        net: From :func:`build_empty`.
        state: Weights, exactly the network's keys and shapes.
        dtype: Of the finished network.
        where: What is being loaded and from where, for the error.

    Returns:
        The same network in evaluation mode, no gradients, on the CPU.
    """
    check_keys(shapes_of(net.state_dict()), shapes_of(state), where)
    # Copied, even where nothing is converted: memory-mapped buffers may lie unaligned, which
    # changes last bits (MODELS.md section 8).
    copies = {key: value.to(dtype, copy=True) for key, value in state.items()}
    net.load_state_dict(copies, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def load_net(
    kind: type[NetT],
    folder: Path,
    *,
    dtype: torch.dtype,
    where: str,
    overrides: Mapping[str, Any] | None = None,
    rename: Callable[[str], str] | None = None,
) -> NetT:
    """Load one network from a folder with ``config.json`` and a weights file.

    Args:
        kind: A diffusers or transformers model class.
        folder: The folder.
        dtype: Of the finished network.
        where: What the part is called, for the error.
        overrides: Settings that win over the file's.
        rename: Turns the file's keys into the network's.

    Returns:
        The network, frozen, on the CPU.
    """
    config = read_config(folder, where=where) | dict(overrides or {})
    net = build_empty(kind, config, where=f"{where} at {folder}")
    file = find_weights(folder, where=where)
    state = load_state_dict(file)
    if issubclass(kind, PreTrainedModel):
        state = _transformers_names(net, state)
    if rename is not None:
        state = {rename(key): value for key, value in state.items()}
    return fill(net, state, dtype=dtype, where=f"{where} at {file}")


def _transformers_names(net: nn.Module, state: State) -> State:
    state = {key: value for key, value in state.items() if not key.endswith(_NOT_WEIGHTS)}
    if isinstance(net, CLIPTextModel) and not any(
        key.startswith("text_model.") for key in net.state_dict()
    ):
        # Files keep the prefix that transformers 5 dropped from the network's own keys.
        return {key.removeprefix("text_model."): value for key, value in state.items()}
    return state


def load_tokenizer(folder: Path, *, where: str = "tokenizer") -> CLIPTokenizer:
    """Load a CLIP tokenizer from its folder, never from the network.

    Args:
        folder: Folder with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.
        where: What the part is called, for the error.

    Returns:
        The tokenizer.

    Raises:
        WeightsError: If files are missing or damaged.
    """
    read_config(folder, where=where, name="tokenizer_config.json")
    have_both = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not have_both and not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"{where}: {folder} holds neither tokenizer.json nor vocab.json with merges.txt"
        )
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise WeightsError(f"{where}: cannot read {folder} ({error})") from error


def read_schedule(folder: Path, *, where: str = "scheduler") -> ScheduleConfig:
    """Read the diffusion a base model was trained on from its scheduler's config.

    Settings that the file leaves out take the values the original ends up with.

    Args:
        folder: A diffusers ``scheduler`` folder, of any class.
        where: What the part is called, for the error.

    Returns:
        The schedule.

    Raises:
        WeightsError: If the file asks for something :class:`ScheduleConfig` cannot say.
    """
    config = read_config(folder, where=where, name="scheduler_config.json")
    unsupported = [key for key in _UNSUPPORTED_SCHEDULE if config.get(key)]
    if unsupported:
        raise WeightsError(
            f"{where}: {folder} sets {', '.join(unsupported)}, which is not supported"
        )
    given = {key: config[key] for key in _SCHEDULE_DEFAULTS if config.get(key) is not None}
    try:
        return ScheduleConfig(**(_SCHEDULE_DEFAULTS | given))
    except (MusevError, TypeError) as error:
        raise WeightsError(f"{where}: {folder} does not describe a schedule ({error})") from error
