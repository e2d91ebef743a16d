"""The mmpose engine says what it lacks; with its extra, the real networks load and run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from musev.control.person import PARTS
from musev.control.pose_mmpose import (
    BOX_FILE,
    POSE_FILE,
    MmposeEngine,
    mend_imports,
    read_checkpoint,
)
from musev.errors import WeightsError

INSTALLED = all(importlib.util.find_spec(name) for name in ("mmpose", "mmdet", "mmcv", "mmengine"))
needs_extra = pytest.mark.skipif(not INSTALLED, reason="the extra `mmpose` is not installed")


@pytest.mark.skipif(INSTALLED, reason="the extra `mmpose` is installed")
def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not installed: mmengine, .*--no-deps mmpose==1\.3\.2"):
        MmposeEngine(str(tmp_path))


@needs_extra
def test_without_files_it_names_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"does not hold {POSE_FILE}"):
        MmposeEngine(str(tmp_path))
    with pytest.raises(WeightsError, match="no place is given"):
        MmposeEngine(None)


@needs_extra
def test_the_stand_in_for_compiled_operations_has_torchvisions_nms() -> None:
    import torch

    mend_imports()
    extension = sys.modules["mmcv._ext"]
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    kept = extension.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5, offset=0)
    assert kept.tolist() == [1, 2]
    with pytest.raises(NotImplementedError, match="roi_align_forward"):
        extension.roi_align_forward()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout: ``meta`` and ``state_dict``."""
    import torch

    mend_imports()
    from mmdet.apis import init_detector
    from mmengine.logging import HistoryBuffer
    from mmpose.apis import init_model

    from musev.control.pose_mmpose import _configs

    folder = tmp_path_factory.mktemp("mmpose")
    torch.manual_seed(0)
    pose = init_model(str(_configs() / "dwpose_config/dwpose-l_384x288.py"), None, device="cpu")
    boxes = init_detector(
        str(_configs() / "yolox_config/yolox_l_8xb8-300e_coco.py"), None, device="cpu"
    )
    for name, model in ((POSE_FILE, pose), (BOX_FILE, boxes)):
        model.init_weights()
        history = HistoryBuffer([1.0, 0.5], [1, 1])
        meta = {"epoch": 1, "seed": np.float64(3.0), "loss": history}
        torch.save({"meta": meta, "state_dict": model.state_dict()}, folder / name)
    return folder


@needs_extra
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_networks_load_and_run(weights: Path) -> None:
    engine = MmposeEngine(str(weights))
    frames = np.random.default_rng(0).integers(0, 255, (2, 96, 64, 3), np.uint8)
    poses = engine.find(frames)
    assert len(poses) == 2
    # Random boxes are below the threshold, so each frame is looked at as one person.
    assert [len(people) for people in poses] == [1, 1]
    for (person,) in poses:
        for part in PARTS:
            points = person.part(part)
            assert (points[:, 2] > 0).any()
            assert ((points[:, :2] > -0.5) & (points[:, :2] < 1.5)).all()
    (alone,) = engine.find(frames[1:])
    np.testing.assert_allclose(alone[0].body_K3, poses[1][0].body_K3, atol=1e-4)
    # A box puts the points into it.
    engine._person_boxes = lambda frame: np.array([[0.0, 0, 20, 20], [30, 40, 64, 96]])  # type: ignore[method-assign]
    (two,) = engine.find(frames[:1])
    assert len(two) == 2
    assert two[0].body_K3[:, 0].mean() < two[1].body_K3[:, 0].mean()


@needs_extra
@pytest.mark.slow
def test_a_damaged_file_is_named_with_its_place(tmp_path: Path) -> None:
    import torch

    for name in (POSE_FILE, BOX_FILE):
        (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=f"{POSE_FILE} does not load"):
        MmposeEngine(str(tmp_path))
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / POSE_FILE)
    with pytest.raises(WeightsError, match=rf"{POSE_FILE} is of another network: it lacks \d+"):
        MmposeEngine(str(tmp_path))


class Mischief:
    """Pickles as a call of a function that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoints_tensors_are_read_and_nothing_else_in_it_is_run(
    tmp_path: Path, legacy: bool
) -> None:
    import torch

    wanted = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.count": torch.tensor(7)}
    history = {"loss": Mischief(tmp_path / "ran"), "lr": np.float64(3.0), "all": {1, 2}}
    torch.save(
        {"meta": {"epoch": 3, "hub": history}, "state_dict": wanted},
        tmp_path / "c.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    read = read_checkpoint(tmp_path / "c.pth")
    assert set(read) == set(wanted)
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    assert not (tmp_path / "ran").exists()


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": {"a": 1}}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_checkpoint(tmp_path / "c.pth")
