"""Profile name to config: the only table of names."""

from __future__ import annotations

import difflib

from musev.config import (
    FirstFrameConfig,
    GuidanceConfig,
    Profile,
    SamplingConfig,
    WeightsConfig,
    WindowConfig,
)
from musev.errors import ConfigError
from musev.negative_prompts import NEGATIVE_PROMPTS

# Folders the original's README tells its users to create; override with --set weights.t2i=...
_PUBLISHED = WeightsConfig(
    t2i="checkpoints/t2i/sd1.5/majicmixRealv6Fp16",
    motion="checkpoints/motion/musev_referencenet",
    motion_name="musev_referencenet",
    referencenet="checkpoints/motion/musev_referencenet",
    image_prompt="checkpoints/motion/musev_referencenet/ip_adapter_image_proj.bin",
    image_encoder="checkpoints/IP-Adapter/models/image_encoder",
    vae="checkpoints/vae/sd-vae-ft-mse",
    loras={"lcm": "checkpoints/lcm/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"},
)

# Next to no seams, at less work than the original's overlap: docs/windows-study.md.
_WINDOWS = WindowConfig(layout="rotating", overlap=4, settle_steps=2, blend="linear")

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        # The original's defaults (scripts/inference/text2video.py), its windows and its noise.
        # docs/from-musev.md lists where the two differ, and why.
        Profile(
            name="upstream",
            weights=_PUBLISHED,
            precision="float16",
            negative_prompt=NEGATIVE_PROMPTS["V5"],
            sampling=SamplingConfig(
                noise="upstream_video_fusion",
                image_fit="upstream",
                strength_counts=False,
                windows=WindowConfig(layout="upstream"),
            ),
        ),
        # Ours: counter-based noise, rotating windows blended linearly, everything else as upstream.
        Profile(
            name="musev",
            weights=_PUBLISHED,
            precision="float16",
            negative_prompt=NEGATIVE_PROMPTS["V5"],
            sampling=SamplingConfig(windows=_WINDOWS),
        ),
        # The whole architecture in small, trained on drawn people (docs/mini-model.md).
        Profile(
            name="mini",
            weights=WeightsConfig(bundle="package:mini"),
            width=128,
            height=128,
            num_frames=13,
            fps=8.0,
            size_multiple=16,
            sampling=SamplingConfig(
                solver="ddim",
                num_steps=10,
                # A picture drawn by itself says little of an action, and the clip keeps its pose;
                # all frames together show better what the words ask for (docs/mini-model.md).
                # The unconditional half sees no portrait: else guidance has nothing to say of it.
                first_frame=FirstFrameConfig(
                    origin="by_length",
                    num_steps=10,
                    guidance=GuidanceConfig(scale=3.0, unconditional="bare"),
                ),
                guidance=GuidanceConfig(scale=1.0),
                windows=_WINDOWS,
            ),
        ),
    )
}


def get_profile(name: str) -> Profile:
    """Look a profile up by name.

    Args:
        name: Key of :data:`PROFILES`.

    Returns:
        The profile.

    Raises:
        ConfigError: If there is none; the message lists all and the nearest.
    """
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(name, PROFILES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no profile {name!r}; profiles: {', '.join(PROFILES)}.{hint}")
