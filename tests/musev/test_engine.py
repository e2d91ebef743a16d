"""The pieces of a long clip, computed apart, make the bytes that one process makes."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from musev.clip_front import ClipFacts, open_front
from musev.conditions import ClipMedia, encode_conditions, fit_media
from musev.config import (
    ClipRequest,
    EncoderConfig,
    GuidanceConfig,
    Precision,
    SamplingConfig,
    WindowConfig,
)
from musev.engine import ClipEngine
from musev.errors import RequestError
from musev.media import join_segments, write_segment
from musev.models.bundle import ModelBundle
from musev.models.loading import DTYPES
from musev.models.tiny import make_tiny_bundle
from musev.models.vae import decode_latents
from musev.parts import RecentParts
from musev.render import denoise_request
from musev.window_denoiser import ClipConditions

ENCODER = EncoderConfig(segment_frames=4)
CLIP = ClipRequest(
    request_id="long",
    prompt="a red coat",
    num_frames=11,
    fps=8,
    width=64,
    height=64,
    seed=5,
    profile="test",
    sampling=SamplingConfig(
        num_steps=2,
        guidance=GuidanceConfig(scale=2.0),
        windows=WindowConfig(num_frames=6, overlap=2),
    ),
)


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    torch.set_num_threads(1)
    return make_tiny_bundle(0)


def portrait(colour: int = 90) -> ClipMedia:
    return ClipMedia(condition_image=np.full((64, 64, 3), colour, np.uint8))


def control_video(folder: Path, num_frames: int) -> Path:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (num_frames, 8, 8, 3), dtype=np.uint8)
    path = folder / "control.mp4"
    write_segment(path, np.kron(frames, np.ones((1, 8, 8, 1), np.uint8)), fps=8)
    return path


def denoise_apart(
    engine: ClipEngine, request: ClipRequest, media: ClipMedia
) -> tuple[torch.Tensor, ClipFacts]:
    """Condition in one place, denoise in another, always the last window that is ready."""
    conditions, facts = pickle.loads(pickle.dumps(engine.condition(request, media)))
    front = open_front(request, facts)
    with engine.open_clip(request, conditions, media.video) as denoise:
        while ready := front.ready():
            work = front.take(ready[-1])
            noisy = work.noisy_BCFHW.to(facts.wire_dtype)
            front.answer(work.task, denoise(noisy, work.timestep, work.task.frames))
    latents = front.release(0, front.num_frames)
    if facts.given_BCTHW is not None:
        latents = torch.cat([facts.given_BCTHW, latents], dim=2)
    return latents, facts


def in_pieces(
    engine: ClipEngine, request: ClipRequest, media: ClipMedia, folder: Path
) -> tuple[bytes, ClipFacts]:
    """Denoise apart, write segments, join them."""
    latents, facts = denoise_apart(engine, request, media)
    paths = []
    for first in range(0, request.num_frames, ENCODER.segment_frames):
        paths.append(folder / f"{first}.mp4")
        part = latents[:, :, first : first + ENCODER.segment_frames]
        assert engine.write_segment(part, fps=request.fps, target=paths[-1]) == part.shape[2]
    join_segments(paths, folder / "joined.mp4")
    return (folder / "joined.mp4").read_bytes(), facts


@pytest.mark.parametrize("kind", ["portrait", "drawn", "noise", "control"])
def test_pieces_make_the_bytes_of_the_whole(bundle: ModelBundle, tmp_path: Path, kind: str) -> None:
    engine = ClipEngine(bundle, ENCODER)
    request, media = CLIP, ClipMedia()
    if kind == "portrait":
        media = portrait()
    if kind == "noise":
        first = dataclasses.replace(CLIP.sampling.first_frame, origin="noise")
        sampling = dataclasses.replace(CLIP.sampling, first_frame=first)
        request = dataclasses.replace(CLIP, sampling=sampling)
    if kind == "control":
        video = control_video(tmp_path, request.num_frames)
        media = dataclasses.replace(portrait(), video=video)
        request = dataclasses.replace(
            CLIP, video=str(video), video_is_control=True, control=("openpose",)
        )
    joined, facts = in_pieces(engine, request, media, tmp_path)
    engine.render(request, media, tmp_path / "whole.mp4", lambda *_: None)
    assert joined == (tmp_path / "whole.mp4").read_bytes()
    assert facts.num_given == (0 if kind == "noise" else 1)
    assert facts.first_frame_drawn == (kind == "drawn")


def test_equal_pictures_are_conditioned_on_once(bundle: ModelBundle) -> None:
    parts = RecentParts()
    engine = ClipEngine(bundle, ENCODER, parts)
    first, _ = engine.condition(CLIP, portrait())
    made = parts.counts.made.total()
    other = dataclasses.replace(CLIP, prompt="a blue coat", seed=99)
    engine.condition(other, portrait())
    assert parts.counts.made.total() == made + 1, "the text alone is new"
    again, _ = engine.condition(CLIP, portrait())
    assert parts.counts.made.total() == made + 1
    assert torch.equal(first.frames_BCTHW, again.frames_BCTHW)  # type: ignore[arg-type]
    fresh, _ = ClipEngine(bundle, ENCODER).condition(CLIP, portrait())
    for name, layer in fresh.network.layers.items():
        assert torch.equal(layer.text.key_BLC, again.network.layers[name].text.key_BLC)
    engine.condition(CLIP, portrait(91))
    assert parts.counts.made.total() > made + 1, "another picture is another part"


class Shortage:
    """A device whose memory holds only so many clips and halves at a time."""

    def __init__(self, bundle: ModelBundle, rows: int) -> None:
        self.rows, self.refused, self.allowed = rows, 0, 0
        self._handle = bundle.unet.register_forward_pre_hook(self._check)

    def _check(self, _module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[0] > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory (said by a test)")
        self.allowed += 1

    def remove(self) -> None:
        self._handle.remove()


def estimates(engine: ClipEngine, conditions: ClipConditions, facts: ClipFacts) -> list[bytes]:
    front = open_front(CLIP, facts)
    found = []
    with engine.open_clip(CLIP, conditions, None) as denoise:
        for task in front.ready():
            work = front.take(task)
            found.append(denoise(work.noisy_BCFHW, work.timestep, task.frames).numpy().tobytes())
    return found


def test_memory_that_runs_out_changes_the_calls_and_not_the_picture(bundle: ModelBundle) -> None:
    engine = ClipEngine(bundle, ENCODER)
    conditions, facts = engine.condition(CLIP, portrait())
    plenty = estimates(engine, conditions, facts)
    wanted, _ = denoise_apart(engine, CLIP, portrait())
    shortage = Shortage(bundle, rows=1)
    try:
        scarce = estimates(engine, conditions, facts)
        assert shortage.refused == 1, "what has run out is not tried again"
        assert shortage.allowed == 2 * len(plenty)
        found, _ = denoise_apart(engine, CLIP, portrait())
    finally:
        shortage.remove()
    # A convolution's last bits depend on how many rows share a call.
    for one, other in zip(plenty, scarce, strict=True):
        np.testing.assert_allclose(
            np.frombuffer(one, np.float32), np.frombuffer(other, np.float32), atol=5e-5
        )
    pictures = [decode_latents(bundle.vae, latents).astype(int) for latents in (wanted, found)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_memory_too_small_for_anything_names_the_remedy(bundle: ModelBundle) -> None:
    engine = ClipEngine(bundle, ENCODER)
    conditions, facts = engine.condition(CLIP, portrait())
    shortage = Shortage(bundle, rows=0)
    try:
        with pytest.raises(RequestError, match="width and height"):
            estimates(engine, conditions, facts)
    finally:
        shortage.remove()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_latents_sent_in_the_networks_precision_change_no_bit(precision: Precision) -> None:
    bundle = make_tiny_bundle(0).to("cpu", precision)
    apart, facts = denoise_apart(ClipEngine(bundle, ENCODER), CLIP, portrait())
    assert facts.wire_dtype == DTYPES[precision]
    conditions = encode_conditions(bundle, CLIP, fit_media(CLIP, portrait()))
    with torch.inference_mode():
        whole = denoise_request(bundle, CLIP, conditions)
    assert torch.equal(apart, whole)


def test_of_a_drawn_first_frame_others_share_what_it_does_not_decide(bundle: ModelBundle) -> None:
    picture = np.full((64, 64, 3), 40, np.uint8)
    given = ClipMedia(reference_image=picture, ip_adapter_image=picture)
    parts = RecentParts()
    engine = ClipEngine(bundle, ENCODER, parts)
    for seed in (1, 2):
        engine.condition(dataclasses.replace(CLIP, seed=seed), given)
    assert parts.counts.made["condition frames"] == 2, "each is drawn by its own seed"
    assert parts.counts.made["image prompt"] == parts.counts.made["reference"] == 1
    before = parts.counts.copy()
    engine.condition(dataclasses.replace(CLIP, seed=3), ClipMedia(reference_image=picture))
    uses = parts.counts.since(before)
    assert uses["image prompt"] == {"computed": 1, "reused": 0}, "of the picture that was drawn"
