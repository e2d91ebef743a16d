"""Faces in pictures to embeddings, through insightface where its models are there.

The models are the user's own files: their licence forbids commercial use, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musev.errors import RequestError, WeightsError

DETECTION_SIDE = 640
"""Pixels of the square that faces are looked for in; upstream's ``det_size``."""

Analyse = Callable[[np.ndarray], list[Any]]
"""``picture_YXC``, BGR, 0..255, to the faces found, each with ``normed_embedding``."""


@dataclass(frozen=True)
class FaceFinder:
    """Finds the face of each picture."""

    analyse: Analyse

    def find(self, pictures_TYXC: np.ndarray) -> np.ndarray:
        """Embed the first face found in each picture.

        Args:
            pictures_TYXC: RGB, 0..255: uint8, or float32 of a picture that was generated before,
                which the original does not round either.

        Returns:
            ``faces_TD``: float32, of length one along D.

        Raises:
            RequestError: If a picture shows no face.
        """
        found = []
        for number, picture_YXC in enumerate(pictures_TYXC, start=1):
            faces = self.analyse(np.ascontiguousarray(picture_YXC[..., ::-1]))
            if not faces:
                which = (
                    f"picture {number} of face_image" if len(pictures_TYXC) > 1 else "face_image"
                )
                height, width = picture_YXC.shape[:2]
                raise RequestError(
                    f"no face was found in {which}, cropped to {width}x{height}. Give a picture "
                    "with a larger, frontal face, or a face_embedding."
                )
            found.append(np.asarray(faces[0].normed_embedding, np.float32))
        return np.stack(found)


def open_face_finder(folder: str) -> FaceFinder:
    """Load insightface's detector and recogniser, on the CPU: a picture takes milliseconds.

    Args:
        folder: Of a model pack, such as ``.../models/buffalo_l``, with its ``.onnx`` files.

    Returns:
        The finder.

    Raises:
        WeightsError: If the package, the folder or one of the two models is missing.
    """
    path = Path(folder)
    models = sorted(path.glob("*.onnx"))
    if not models:
        raise WeightsError(
            f"face_models: no .onnx files in {path}. Put insightface's buffalo_l there (licensed "
            "for research only), or give face_embedding in the rows."
        )
    try:
        from insightface.app import FaceAnalysis  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise WeightsError(
            f"face_models needs insightface ({error}). Install it: pip install 'musev[face]'."
        ) from None
    try:
        analysis = FaceAnalysis(
            name=str(path.resolve()),
            allowed_modules=["detection", "recognition"],
            providers=["CPUExecutionProvider"],
        )
        analysis.prepare(ctx_id=-1, det_size=(DETECTION_SIDE, DETECTION_SIDE))
    except Exception as error:
        raise WeightsError(
            f"face_models: {path} cannot be used ({type(error).__name__}: {error})"
        ) from error
    if "recognition" not in analysis.models:
        raise WeightsError(f"face_models: {path} holds no recognition model, only {models}")
    return FaceFinder(analysis.get)
