"""Random weights in the published files' layout, written the way their authors saved them."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musev.control.aux_library import import_controlnet_aux
from musev.control.control_names import WEIGHTS


def write_weights(detector: str, folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Write all files of a detector; path by published name."""
    import_controlnet_aux()
    torch.manual_seed(seed)
    for name, content in _WRITERS[detector]().items():
        torch.save(content, folder / name)
    return {name: folder / name for name in WEIGHTS[detector].names}


def _module(name: str) -> Any:
    return import_controlnet_aux(f"controlnet_aux.{name}")


def _behind(prefix: str, net: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in net.state_dict().items()}


def _hed() -> dict[str, Any]:
    return {"ControlNetHED.pth": _module("hed").ControlNetHED_Apache2().state_dict()}


def _pidinet() -> dict[str, Any]:
    net = _module("pidi.model").pidinet()
    # With its 0.25 random numbers give the same level everywhere.
    nn.init.constant_(net.classifier.weight, 25.0)
    return {"table5_pidinet.pth": {"state_dict": _behind("module.", net)}}


def _lineart() -> dict[str, Any]:
    make = _module("lineart").Generator
    return {name: make(3, 1, 3).state_dict() for name in WEIGHTS["lineart"].names}


def _lineart_anime() -> dict[str, Any]:
    norm = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    net = _module("lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm)
    return {"netG.pth": _behind("module.", net)}


def _midas() -> dict[str, Any]:
    make = _module("midas.midas.dpt_depth").DPTDepthModel
    net = make(path=None, backbone="vitb_rn50_384", non_negative=True)
    return {"dpt_hybrid-midas-501f0c75.pt": net.state_dict()}


def _normal_bae() -> dict[str, Any]:
    settings = types.SimpleNamespace(
        mode="client",
        architecture="BN",
        pretrained="scannet",
        sampling_ratio=0.4,
        importance_ratio=0.7,
    )
    net = _module("normalbae").NNET(settings)
    return {"scannet.pt": {"model": _behind("module.", net)}}


def _zoe() -> dict[str, Any]:
    zoe = _module("zoe")
    net = zoe.ZoeDepth.build_from_config(zoe.get_config("zoedepth", "infer"))
    return {"ZoeD_M12_N.pt": {"model": net.state_dict()}}


def _leres() -> dict[str, Any]:
    depth = _module("leres.leres.multi_depth_model_woauxi").RelDepthModel(backbone="resnext101")
    leres = _module("leres")
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        options = leres.TestOptions().parse()
    finally:
        sys.argv = arguments
    options.gpu_ids = []
    merge = leres.Pix2Pix4DepthModel(options).netG
    return {
        "res101.pth": {"depth_model": _behind("module.", depth)},
        "latest_net_G.pth": merge.state_dict(),
    }


def _mobile_sam() -> dict[str, Any]:
    build = _module("segment_anything.build_sam").sam_model_registry["vit_t"]
    return {"mobile_sam.pt": build().state_dict()}


_WRITERS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "hed": _hed,
    "pidinet": _pidinet,
    "lineart": _lineart,
    "lineart_anime": _lineart_anime,
    "midas": _midas,
    "normal_bae": _normal_bae,
    "zoe": _zoe,
    "leres": _leres,
    "mobile_sam": _mobile_sam,
}
