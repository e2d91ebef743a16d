"""The mmpose engine: DWPose or RTMPose for whole bodies, behind YOLOX person boxes.

mmpose, mmdet and mmcv are older than the Python, numpy and torch of today. What stands in their way
is mended here at first use, without touching their files; DEPENDENCIES.md has the list.

Axes here: T frame, N person, P point of the 133, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from musev.control.person import FramePoses
from musev.control.weights_files import fetch_files
from musev.control.wholebody import people_from_wholebody
from musev.errors import WeightsError

POSE_FILE = "dw-ll_ucoco_384.pth"
"""DWPose-l, 384x288, Apache-2.0 (IDEA-Research/DWPose). RTMPose-l for whole bodies at the same size
is the same network: its file may be given under this name."""
BOX_FILE = "yolox_l_8x8_300e_coco_20211126_140236-d3bd2b23.pth"
"""YOLOX-l, Apache-2.0 (mmdetection)."""

BOX_SCORE = 0.5
BOX_OVERLAP = 0.7
"""Both from DWPose as the original uses it (ALGORITHM.md 13)."""

INSTALL = (
    "Install them: pip install -c constraints.txt -e '.[mmpose]', then "
    "pip install --no-deps mmpose==1.3.2 mmdet==3.3.0"
)


class MmposeEngine:
    """Finds people with mmdet's boxes and mmpose's 133 points."""

    def __init__(self, place: str | None, *, device: str = "cpu") -> None:
        """Load the networks.

        Args:
            place: Folder or URL with :data:`POSE_FILE` and :data:`BOX_FILE`.
            device: Where they run.

        Raises:
            WeightsError: If packages or files are missing.
        """
        mend_imports()
        files = _find_weights(place)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._mmpose = importlib.import_module("mmpose.apis")
                self._mmdet = importlib.import_module("mmdet.apis")
                utils = importlib.import_module("mmpose.utils")
        except ImportError as error:
            raise WeightsError(f"pose engine 'mmpose': {error}. {INSTALL}") from error
        configs = _configs()
        try:
            self._pose = self._mmpose.init_model(
                str(configs / "dwpose_config" / "dwpose-l_384x288.py"),
                str(files[POSE_FILE]),
                device=device,
            )
            self._boxes = self._mmdet.init_detector(
                str(configs / "yolox_config" / "yolox_l_8xb8-300e_coco.py"),
                str(files[BOX_FILE]),
                device=device,
            )
        except Exception as error:  # torch, pickle and mmengine each have errors of their own
            raise WeightsError(
                f"pose engine 'mmpose': the files at {place} do not load "
                f"({type(error).__name__}: {str(error).splitlines()[0]}). Take {POSE_FILE} and "
                f"{BOX_FILE} as their authors publish them."
            ) from error
        self._boxes.cfg = utils.adapt_mmdet_pipeline(self._boxes.cfg)

    def find(self, frames_TYXC: np.ndarray) -> list[FramePoses]:
        """Find everybody in every frame.

        Args:
            frames_TYXC: uint8 RGB.

        Returns:
            The people of each frame, as the boxes are ordered. A frame without a box is looked at
            as a whole, as in the original: confidences say whether anybody is in it.
        """
        return [self._find_in(np.ascontiguousarray(frame[..., ::-1])) for frame in frames_TYXC]

    def _find_in(self, frame_YXC: np.ndarray) -> FramePoses:
        """People of one BGR frame."""
        boxes_N4 = self._person_boxes(frame_YXC)
        results = self._mmpose.inference_topdown(
            self._pose, frame_YXC, boxes_N4 if len(boxes_N4) else None
        )
        points = [result.pred_instances for result in results]
        height, width = frame_YXC.shape[:2]
        return people_from_wholebody(
            np.concatenate([found.keypoints for found in points]),
            np.concatenate([found.keypoint_scores for found in points]),
            height=height,
            width=width,
        )

    def _person_boxes(self, frame_YXC: np.ndarray) -> np.ndarray:
        from torchvision.ops import nms

        found = self._mmdet.inference_detector(self._boxes, frame_YXC).pred_instances
        chosen = (found.labels == 0) & (found.scores > BOX_SCORE)
        boxes, scores = found.bboxes[chosen], found.scores[chosen]
        return boxes[nms(boxes, scores, BOX_OVERLAP)].cpu().numpy()


def _find_weights(place: str | None) -> dict[str, Path]:
    names = (POSE_FILE, BOX_FILE)
    remedy = f"Put {' and '.join(names)} into a folder and set control.weights.mmpose to it."
    if place is None:
        raise WeightsError(f"pose engine 'mmpose': no place is given for its weights. {remedy}")
    try:
        return fetch_files(place, names)
    except FileNotFoundError as error:
        raise WeightsError(
            f"pose engine 'mmpose': {place} does not hold {error.args[0]}. {remedy}"
        ) from error


def _configs() -> Path:
    """The networks' configurations, which controlnet_aux carries."""
    spec = importlib.util.find_spec("controlnet_aux")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "dwpose"


# Mends


def mend_imports() -> None:
    """Let mmpose and mmdet import beside current libraries; safe to repeat.

    Raises:
        WeightsError: If one of the packages is not installed.
    """
    packages = ("mmengine", "mmcv", "mmdet", "mmpose", "pycocotools")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise WeightsError(
            f"pose engine 'mmpose' needs packages that are not installed: {', '.join(missing)}. "
            f"{INSTALL}"
        )
    _alias_pycocotools()
    _stand_in_for_mmcv_ext()
    _allow_checkpoint_metadata()


def _alias_pycocotools() -> None:
    """xtcocotools is built for numpy 1; pycocotools has the same functions."""
    for name in ("", ".coco", ".cocoeval", ".mask"):
        module = importlib.import_module(f"pycocotools{name}")
        sys.modules.setdefault(f"xtcocotools{name}", module)


class _MmcvExt(types.ModuleType):
    """mmcv's compiled operations: torchvision's ``nms``, the others raise when called."""

    @staticmethod
    def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int = 0) -> Any:
        """Indices of the boxes kept, as mmcv's operation gives them."""
        from torchvision.ops import nms

        if offset:
            boxes = boxes.clone()
            boxes[:, 2:] += offset
        return nms(boxes, scores, iou_threshold)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"mmcv's operation {name} is not compiled here")

        return operation


def _stand_in_for_mmcv_ext() -> None:
    name = "mmcv._ext"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    module = _MmcvExt(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    sys.modules[name] = module


def _allow_checkpoint_metadata() -> None:
    """Let torch.load read the training history in checkpoints, which holds only numbers."""
    import torch

    history = importlib.import_module("mmengine.logging.history_buffer")
    core = importlib.import_module("numpy._core.multiarray")
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    torch.serialization.add_safe_globals(
        [history.HistoryBuffer, core._reconstruct, core.scalar, np.ndarray, np.dtype, *dtypes]
    )
    # Checkpoints written beside numpy 1 name the same functions by their former place.
    torch.serialization.add_safe_globals(
        [
            (core._reconstruct, "numpy.core.multiarray._reconstruct"),
            (core.scalar, "numpy.core.multiarray.scalar"),
        ]
    )
