"""Control maps made by controlnet_aux's networks, loaded by its own code from files on disk.

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musev.control.aux_library import import_controlnet_aux
from musev.errors import WeightsError

FrameMap = Callable[[np.ndarray], np.ndarray]
"""``frame_YXC`` at detection size to a map of that size, grey or RGB."""

_CLASSES: Mapping[str, str] = {
    "hed": "HEDdetector",
    "pidinet": "PidiNetDetector",
    "lineart": "LineartDetector",
    "lineart_anime": "LineartAnimeDetector",
    "midas": "MidasDetector",
    "normal_bae": "NormalBaeDetector",
    "zoe": "ZoeDetector",
    "leres": "LeresDetector",
    "sam": "SamDetector",
    "mobile_sam": "SamDetector",
}
"""Class of controlnet_aux for each detector with weights."""

_SAM_TYPES = {"sam": "vit_h", "mobile_sam": "vit_t"}
_UNLOADABLE = (
    *(RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, OSError),
    pickle.UnpicklingError,
)
"""What loading a damaged or a wrong file raises; which of them depends on the detector."""


def open_network(
    detector: str,
    files: Mapping[str, Path],
    *,
    options: Mapping[str, bool],
    seed: int,
    device: str,
) -> FrameMap:
    """Load a detector's network.

    Args:
        detector: Key of ``control_names.WEIGHTS``.
        files: Its files by published name, all present.
        options: Passed to the detector with every frame.
        seed: Decides the colours of segments.
        device: Where it runs.

    Returns:
        The map of one frame.

    Raises:
        WeightsError: If a file is damaged or holds another network.
    """
    library = import_controlnet_aux()
    kind = getattr(library, _CLASSES[detector])
    first = next(iter(files.values()))
    named = ", ".join(str(path) for path in files.values())
    if detector == "zoe":
        _check_zoe(library, first)
    try:
        with _loading():
            if detector in _SAM_TYPES:
                arguments = {"model_type": _SAM_TYPES[detector], "filename": first.name}
                net = kind.from_pretrained(str(first.parent), **arguments)
            else:
                net = kind.from_pretrained(str(_one_folder(files)))
    except _UNLOADABLE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"{named} did not load as {detector} ({type(error).__name__}: {lines[0][:300]}). "
            "Check that it is the published file, complete."
        ) from error
    if detector in _SAM_TYPES:
        return SegmentMap(net.mask_generator, seed, device)
    return _frame_map(net.to(device), options)


def _one_folder(files: Mapping[str, Path]) -> Path:
    """The folder that holds all files under their names; fetched ones lie in one each."""
    folders = {path.parent for path in files.values()}
    if len(folders) == 1:
        return folders.pop()
    places = hashlib.sha256("\0".join(map(str, files.values())).encode()).hexdigest()
    joined = next(iter(files.values())).parent / f"with-{places[:16]}"
    joined.mkdir(exist_ok=True)
    for name, path in files.items():
        with contextlib.suppress(FileExistsError):
            (joined / name).symlink_to(path.resolve())
    return joined


_LOADING = threading.Lock()


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Make controlnet_aux's loading safe here, for one thread at a time.

    This program's arguments are hidden, because LeReS parses them; what networks print is dropped;
    and files that were saved on a GPU are read onto the CPU, which some detectors do not ask for.
    """
    import torch

    with _LOADING, contextlib.redirect_stdout(io.StringIO()):
        arguments, load = sys.argv, torch.load

        def load_onto_cpu(*given: Any, **named: Any) -> Any:
            return load(*given, **{"map_location": "cpu", **named})

        sys.argv, torch.load = arguments[:1], load_onto_cpu
        try:
            yield
        finally:
            sys.argv, torch.load = arguments, load


def _frame_map(net: Any, options: Mapping[str, bool]) -> FrameMap:
    def find(frame_YXC: np.ndarray) -> np.ndarray:
        resolution = min(frame_YXC.shape[:2])
        sizes = {"detect_resolution": resolution, "image_resolution": resolution}
        return net(np.ascontiguousarray(frame_YXC), output_type="np", **sizes, **options)

    return find


def _check_zoe(library: Any, path: Path) -> None:
    """Refuse a file that lacks parts: ZoeDetector would go on with random numbers in them.

    It reads the file again without strictness if anything differs, because present timm releases
    no longer keep some tables that the published file holds.
    """
    import torch

    zoe = sys.modules[library.ZoeDetector.__module__]
    try:
        with torch.device("meta"), _loading():
            net = zoe.ZoeDepth.build_from_config(zoe.get_config("zoedepth", "infer"))
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model"]
    except _UNLOADABLE as error:
        raise WeightsError(f"{path} did not load as zoe ({error}). Copy it again.") from error
    missing = sorted(set(net.state_dict()) - set(found))
    if missing:
        raise WeightsError(
            f"{path} did not load as zoe: {len(missing)} weights are missing, such as "
            f"{missing[0]}. Check that it is the published file, complete."
        )


class SegmentMap:
    """What Segment Anything makes of a frame, painted."""

    def __init__(self, generator: Any, seed: int, device: str) -> None:
        """Set up.

        Args:
            generator: controlnet_aux's ``SamAutomaticMaskGenerator``.
            seed: Of the colours.
            device: Where it runs.
        """
        self.generator = generator
        self._seed = seed
        generator.predictor.model.to(device)

    def __call__(self, frame_YXC: np.ndarray) -> np.ndarray:
        """Segments of one frame; ``map_YXC``."""
        found = self.generator.generate(np.ascontiguousarray(frame_YXC))
        masks = [segment["segmentation"] for segment in found]
        return paint_segments(masks, frame_YXC.shape[:2], self._seed)


def paint_segments(masks: list[np.ndarray], shape: tuple[int, int], seed: int) -> np.ndarray:
    """Paint masks over each other, the largest first; where there is none, black.

    The n-th largest has the same colour in every frame. The original draws new colours each time.

    Args:
        masks: Bool ``[Y, X]`` each.
        shape: Rows and columns.
        seed: Of the colours.

    Returns:
        ``map_YXC``.
    """
    map_YXC = np.zeros((*shape, 3), np.uint8)
    colors = np.random.RandomState(seed).randint(255, size=(len(masks), 3), dtype=np.uint8)
    ordered = sorted(masks, key=lambda mask: int(mask.sum()), reverse=True)
    for mask_YX, color in zip(ordered, colors, strict=True):
        map_YXC[mask_YX] = color
    return map_YXC
