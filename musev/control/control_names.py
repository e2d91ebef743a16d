"""The table of control names: what a manifest's ``control`` may say, and what each name means.

The 26 names of the original and one more that needs no weights. Only the table: importing this
module loads no network. docs/control.md shows it to people.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from musev.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class WeightsFiles:
    """The files one detector needs, and where their authors publish them."""

    names: tuple[str, ...]
    published: str
    """An fsspec URL whose folder holds the files; read only where a run's settings name it."""
    licence: str
    """As its authors state it; the repository that hosts a copy may add terms of its own."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """What one control name means."""

    detector: str
    """Makes the map; key of :data:`WEIGHTS` where it needs files."""
    controlnet: str
    """Name, in ``weights.controlnets``, of the ControlNet that reads such maps."""
    published: str
    """Repository in which that ControlNet is published; all are under an OpenRAIL-M licence."""
    options: Mapping[str, bool] = field(default_factory=dict, hash=False)
    """What the detector is told besides the resolution."""
    parts: tuple[str, ...] = ()
    """Of poses: which of ``body``, ``hands`` and ``face`` are drawn."""
    differs: str = ""
    """Where the original does something else, and what."""


_ANNOTATORS = "hf://lllyasviel/Annotators"

WEIGHTS: Mapping[str, WeightsFiles] = {
    "hed": WeightsFiles(names=("ControlNetHED.pth",), published=_ANNOTATORS, licence="Apache-2.0"),
    "pidinet": WeightsFiles(
        names=("table5_pidinet.pth",),
        published=_ANNOTATORS,
        licence="research only; commercial use by agreement with its authors",
    ),
    "lineart": WeightsFiles(
        names=("sk_model.pth", "sk_model2.pth"), published=_ANNOTATORS, licence="MIT"
    ),
    "lineart_anime": WeightsFiles(names=("netG.pth",), published=_ANNOTATORS, licence="MIT"),
    "midas": WeightsFiles(
        names=("dpt_hybrid-midas-501f0c75.pt",), published=_ANNOTATORS, licence="MIT"
    ),
    "normal_bae": WeightsFiles(names=("scannet.pt",), published=_ANNOTATORS, licence="MIT"),
    "zoe": WeightsFiles(names=("ZoeD_M12_N.pt",), published=_ANNOTATORS, licence="MIT"),
    "leres": WeightsFiles(
        names=("res101.pth", "latest_net_G.pth"),
        published=_ANNOTATORS,
        licence="academic, not commercial",
    ),
    "sam": WeightsFiles(
        names=("sam_vit_h_4b8939.pth",),
        published="hf://ybelkada/segment-anything/checkpoints",
        licence="Apache-2.0",
    ),
    "mobile_sam": WeightsFiles(
        names=("mobile_sam.pt",), published="hf://dhkim2810/MobileSAM", licence="Apache-2.0"
    ),
}
"""Files of each detector that needs some, in controlnet_aux's layout. Poses and faces are not in
here: what they need depends on ``control.pose_engine``."""

_POSE_NET = "lllyasviel/control_v11p_sd15_openpose"
_DEPTH_NET = "lllyasviel/control_v11f1p_sd15_depth"
_SEG_NET = "lllyasviel/control_v11p_sd15_seg"
_LINEART_NET = "lllyasviel/control_v11p_sd15_lineart"
_EMPTY_MAP = "the original's switch for hands and face overrides this name: its map is empty"
_NO_DRAWING = "the original stops with a TypeError when it draws"


def _pose(*parts: str, differs: str = "") -> Control:
    return Control(
        detector="pose", controlnet="openpose", published=_POSE_NET, parts=parts, differs=differs
    )


CONTROLS: Mapping[str, Control] = {
    "pose": _pose("body", "hands"),
    "pose_body": _pose("body"),
    "pose_hand": _pose("hands", differs=_EMPTY_MAP),
    "pose_face": _pose("face", differs=_EMPTY_MAP),
    "pose_hand_body": _pose(
        "body", "hands", differs="the original draws the body only, by the same override"
    ),
    "pose_hand_face": _pose("hands", "face"),
    "dwpose": _pose("body", "hands", "face"),
    "dwpose_face": _pose("face", differs=_NO_DRAWING),
    "dwpose_hand": _pose("hands", differs=_NO_DRAWING),
    "dwpose_body": _pose("body"),
    "dwpose_body_hand": _pose("body", "hands"),
    "canny": Control(
        detector="canny",
        controlnet="canny",
        published="lllyasviel/control_v11p_sd15_canny",
    ),
    "tile": Control(
        detector="tile",
        controlnet="tile",
        published="lllyasviel/control_v11f1e_sd15_tile",
    ),
    "hed": Control(detector="hed", controlnet="hed", published="lllyasviel/sd-controlnet-hed"),
    "hed_scribble": Control(
        detector="hed",
        controlnet="scribble",
        published="lllyasviel/control_v11p_sd15_scribble",
        options={"scribble": True},
        differs="the original forgets the scribble switch and gives the plain HED map",
    ),
    "depth": Control(detector="midas", controlnet="depth", published=_DEPTH_NET),
    "pidi": Control(
        detector="pidinet",
        controlnet="softedge",
        published="lllyasviel/control_v11p_sd15_softedge",
        differs="the original reads this edge map with the depth ControlNet, which never saw edges;"
        " softedge was trained on PiDiNet's maps among others",
    ),
    "normal_bae": Control(
        detector="normal_bae",
        controlnet="normalbae",
        published="lllyasviel/control_v11p_sd15_normalbae",
    ),
    "lineart": Control(
        detector="lineart",
        controlnet="lineart",
        published=_LINEART_NET,
        options={"coarse": True},
    ),
    "lineart_anime": Control(
        detector="lineart_anime",
        controlnet="lineart_anime",
        published="lllyasviel/control_v11p_sd15s2_lineart_anime",
    ),
    "zoe": Control(detector="zoe", controlnet="depth", published=_DEPTH_NET),
    "sam": Control(
        detector="sam",
        controlnet="seg",
        published=_SEG_NET,
        differs="the original asks for a file without a name and does not load; its colours change "
        "with every frame",
    ),
    "mobile_sam": Control(
        detector="mobile_sam",
        controlnet="seg",
        published=_SEG_NET,
        differs="the original stops with a TypeError when it loads; its colours would change with "
        "every frame",
    ),
    "leres": Control(detector="leres", controlnet="depth", published=_DEPTH_NET),
    "content": Control(
        detector="content",
        controlnet="shuffle",
        published="lllyasviel/control_v11e_sd15_shuffle",
        differs="the original warps every frame another way; here one warp for the whole video",
    ),
    "face_detector": Control(
        detector="face_mesh",
        controlnet="mediapipe_face",
        published="CrucibleAI/ControlNetMediaPipeFace",
        differs="the original reads these lines with the openpose ControlNet, which never saw them;"
        " its mediapipe solution no longer exists, the face landmarker here gives the same points",
    ),
    "lineart_standard": Control(
        detector="lineart_standard",
        controlnet="lineart",
        published=_LINEART_NET,
        differs="the original has no such name; lines by filtering, without weights",
    ),
}
"""By name, in the original's order; our own last."""


def find_control(name: str) -> Control:
    """Look a control name up.

    Args:
        name: Key of :data:`CONTROLS`.

    Returns:
        What it means.

    Raises:
        RequestError: If there is none; the message names the nearest and all.
    """
    if name in CONTROLS:
        return CONTROLS[name]
    near = difflib.get_close_matches(name, CONTROLS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RequestError(f"control: no detector {name!r}; there are {', '.join(CONTROLS)}.{hint}")


def controlnet_of(name: str) -> str:
    """Name of the ControlNet that reads the maps of a control name; unknown names are refused."""
    return find_control(name).controlnet
