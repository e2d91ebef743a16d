"""Every control name behind one interface: frames in, maps of the same size out.

A detector knows nothing of the frames before: a frame gives the same map whatever it is given with,
so a video may be cut into batches, spread and repeated at will.

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Protocol

import numpy as np

from musev.config import ControlConfig
from musev.control.control_names import Control, find_control
from musev.control.network_maps import FrameMap, open_network
from musev.control.plain_maps import (
    canny_map,
    line_map,
    to_detection_size,
    to_frame_size,
    warp_map,
)
from musev.control.pose_maps import PoseDetector, describe_pose_engine
from musev.control.weights_files import digest_file, find_files

# Raise it when a change here or in the files of the maps gives other maps for the same settings.
MAPS_VERSION = "1"


class Detector(Protocol):
    """Makes control maps. Pose names also give the people: see ``pose_maps.PoseDetector``."""

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        """Map of each frame: uint8 RGB in, uint8 RGB of the same size out."""
        ...


class MapDetector:
    """A detector made of a function of one frame at detection size."""

    def __init__(self, find: FrameMap, resolution: int | None) -> None:
        """Set up.

        Args:
            find: Makes the map.
            resolution: Short side at which it looks; None for that of the frame.
        """
        self._find = find
        self._resolution = resolution

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        """Map of each frame; see :class:`Detector`."""
        maps_TYXC = np.empty_like(frames_TYXC)
        height, width = frames_TYXC.shape[1:3]
        for frame_YXC, map_YXC in zip(frames_TYXC, maps_TYXC, strict=True):
            found = self._find(to_detection_size(frame_YXC, self._resolution))
            map_YXC[:] = to_frame_size(found, height, width)
        return maps_TYXC


class SameFrames:
    """The map of ``tile``: the frame."""

    def maps(self, frames_TYXC: np.ndarray) -> np.ndarray:
        """A copy of the frames."""
        return frames_TYXC.copy()


def open_detector(name: str, config: ControlConfig, *, device: str) -> Detector:
    """Open a detector; what it loads is held for its life.

    Args:
        name: Control name.
        config: Settings; where weights lie.
        device: Where networks run, such as ``cpu`` or ``cuda``.

    Returns:
        The detector.

    Raises:
        RequestError: If there is no such name.
        WeightsError: If files or packages are missing; it says what to put where.
    """
    control = find_control(name)
    if control.parts:
        return open_pose_detector(name, config, device=device)
    if control.detector == "face_mesh":
        from musev.control.face_maps import FaceMeshDetector

        return FaceMeshDetector(config.weights, config.resolution)
    if control.detector == "tile":
        return SameFrames()
    return MapDetector(_frame_map(name, control, config, device), config.resolution)


def open_pose_detector(name: str, config: ControlConfig, *, device: str) -> PoseDetector:
    """Open the detector of a pose name, which also gives the people; see :func:`open_detector`."""
    from musev.control.pose_engine import open_pose_engine

    engine = open_pose_engine(config.pose_engine, config.weights, device=device)
    parts = find_control(name).parts
    return PoseDetector(engine, parts, min_confidence=config.min_confidence)


def _frame_map(name: str, control: Control, config: ControlConfig, device: str) -> FrameMap:
    if control.detector == "canny":
        return partial(canny_map, low=config.canny_low, high=config.canny_high)
    if control.detector == "content":
        return partial(warp_map, seed=config.seed)
    if control.detector == "lineart_standard":
        return line_map
    return open_network(
        control.detector,
        find_files(name, config),
        options=control.options,
        seed=config.seed,
        device=device,
    )


def describe_detector(name: str, config: ControlConfig) -> dict[str, str]:
    """Say everything that decides a detector's output, and nothing else.

    For cache keys and the names of videos: places do not enter, the files in them do, so the same
    weights elsewhere give the same description. Settings a detector does not read do not enter.

    Args:
        name: Control name.
        config: Settings; where weights lie. Files that lie elsewhere are fetched to be digested.

    Returns:
        Text by name.

    Raises:
        RequestError: If there is no such name.
        WeightsError: If files or packages are missing.
    """
    control = find_control(name)
    told = {"control": name, "detector": control.detector, "version": MAPS_VERSION}
    if control.parts:
        told |= {"parts": ",".join(control.parts), "min_confidence": repr(config.min_confidence)}
        return told | describe_pose_engine(config)
    if control.detector == "tile":
        return told
    told["resolution"] = str(config.resolution or "frame")
    if control.detector == "face_mesh":
        from musev.control.face_maps import describe_face_mesh

        return told | describe_face_mesh(config.weights)
    if control.detector == "canny":
        told |= {"low": repr(config.canny_low), "high": repr(config.canny_high)}
    if control.detector in ("content", "sam", "mobile_sam"):
        told["seed"] = str(config.seed)
    files = find_files(name, config)
    if files:
        told["controlnet_aux"] = version("controlnet_aux")
    return told | {f"weights {file}": digest_file(path) for file, path in files.items()}
