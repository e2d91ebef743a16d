"""The mmpose engine: DWPose or RTMPose for whole bodies, behind YOLOX person boxes.

mmpose, mmdet and mmcv are older than the Python, numpy and torch of today. What stands in their way
is mended here at first use, without touching their files.

Axes here: T frame, N person, P point of the 133, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import pickle
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
        self._pose = self._mmpose.init_model(
            str(configs / "dwpose_config" / "dwpose-l_384x288.py"), device=device
        )
        _fill(self._pose, files[POSE_FILE])
        self._boxes = self._mmdet.init_detector(
            str(configs / "yolox_config" / "yolox_l_8xb8-300e_coco.py"), device=device
        )
        _fill(self._boxes, files[BOX_FILE])
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


class _Inert:
    """Stands for everything in a checkpoint that is no tensor: keeps nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def __hash__(self) -> int:
        return id(self)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take an item of a pickled list, and forget it."""

    def extend(self, values: Any) -> None:
        """Take items of a pickled list, and forget them."""


_TENSOR_PARTS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.serialization", "_get_layout"),
}


class _TensorsOnly(pickle.Unpickler):
    """Builds tensors and plain containers; no other code named in the file is ever run."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve what tensors are made of; all else is :class:`_Inert`."""
        if (module, name) in _TENSOR_PARTS:
            return super().find_class(module, name)
        return _Inert


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the tensors of an mmengine checkpoint.

    Beside them such a file holds the history of its training as pickled objects, which torch's
    own reader refuses. Here they are stepped over.

    Args:
        path: A ``.pth`` file: ``state_dict``, and anything else.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: If it is something else.
    """
    import torch

    reader = types.SimpleNamespace(
        Unpickler=_TensorsOnly,
        load=lambda file, **options: _TensorsOnly(file, **options).load(),
        __name__="pickle",
    )
    try:
        whole = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # torch, pickle and zipfile each have errors of their own
        raise WeightsError(
            f"{path} does not load ({type(error).__name__}: {str(error).splitlines()[0]}). Take "
            f"the file as its authors publish it."
        ) from error
    state = whole.get("state_dict", whole) if isinstance(whole, dict) else {}
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors. Take the file as its authors publish it.")
    return tensors


def _fill(network: Any, path: Path) -> None:
    """Load a checkpoint into a network; names that the network does not have are left out."""
    try:
        missing = network.load_state_dict(read_checkpoint(path), strict=False).missing_keys
    except RuntimeError as error:
        raise WeightsError(
            f"{path} is of another network: {str(error).splitlines()[-1]}"
        ) from error
    if missing:
        raise WeightsError(
            f"{path} is of another network: it lacks {len(missing)} tensors, {missing[0]} first."
        )


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
