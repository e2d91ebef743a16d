"""The file names that the original gives its videos, for those who look for them.

A name leaves out settings that change the video (windows, overlap, steps), so two runs can share
one; here it is only told in a row's ``extra``, and files are named by all that decides their bytes.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

_NOT_IN_NAMES = re.compile(r'[\\/:*?"<>|]')


def clean_name(name: str) -> str:
    """Delete what the original keeps out of file names."""
    return _NOT_IN_NAMES.sub("", name)


def short_hash(text: str) -> str:
    """First five digits of a text's MD5, as the original tells prompts apart."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:5]


def stem_of(paths: Sequence[str]) -> str:
    """How the original calls pictures: names up to the first dot, joined; ``no`` without any."""
    return "_".join(posixpath.basename(path).split(".")[0] for path in paths) or "no"


@dataclass(frozen=True, kw_only=True)
class NameParts:
    """What the original's file names tell; what is missing is ``no`` there, or ``None``."""

    model: str
    reference_net: str
    task: str
    width: int
    height: int
    time_size: int
    num_shots: int
    seed: int
    prompt_hash: str
    img_weight: float
    motion_speed: float
    strength: float
    guidance_scale: float
    """Of the first frame."""
    video_guidance_scale: float
    condition: str
    redraw: bool
    w_ind_noise: float
    negative: str
    reference: str
    face: str
    file_type: str = "mp4"
    which: str = "v2v"
    video_steps: int = 10
    control: str | None = None
    video_strength: float = 1.0


def text2video_name(parts: NameParts) -> str:
    """The name that text2video gives; its ``ip`` repeats the reference, as there."""
    return clean_name(
        f"m={parts.model}_rm={parts.reference_net}_case={parts.task}_w={parts.width}"
        f"_h={parts.height}_t={parts.time_size}_nb={parts.num_shots}_s={parts.seed}"
        f"_p={parts.prompt_hash}_w={parts.img_weight}_ms={parts.motion_speed}_s={parts.strength}"
        f"_g={parts.video_guidance_scale}_c-i={parts.condition[:5]}_r-c={parts.redraw}"
        f"_w={parts.w_ind_noise}_{_ending(parts)}"
    )


def video2video_name(parts: NameParts) -> str:
    """The name that video2video gives."""
    return clean_name(
        f"{parts.which}_m={parts.model}_rm={parts.reference_net}_c={parts.task}_w={parts.width}"
        f"_h={parts.height}_t={parts.time_size}_n={parts.num_shots}_vn={parts.video_steps}"
        f"_w={parts.img_weight}_w={parts.w_ind_noise}_s={parts.seed}_n={parts.control}"
        f"_s={parts.strength}_g={parts.guidance_scale}_vs={parts.video_strength}"
        f"_vg={parts.video_guidance_scale}_p={parts.prompt_hash}_{_ending(parts)}"
    )


def _ending(parts: NameParts) -> str:
    reference = parts.reference[:3]
    return (
        f"{parts.negative[:10]}_r={reference}_ip={reference}_f={parts.face[:3]}.{parts.file_type}"
    )
