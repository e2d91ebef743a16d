"""The pieces of a long clip, computed apart, make the bytes that one process makes."""

from __future__ import annotations

import dataclasses
import pickle
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
from musev.lora_choice import LoraFile, parse_lora
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


@pytest.mark.parametrize(
    "kind",
    ["portrait", "drawn", "noise", "control", "late control", "started", "redrawn", "upstream"],
)
def test_pieces_make_the_bytes_of_the_whole(bundle: ModelBundle, tmp_path: Path, kind: str) -> None:
    engine = ClipEngine(bundle, ENCODER)
    request, media = CLIP, ClipMedia()
    if kind == "portrait":
        media = portrait()
    if kind == "noise":
        first = dataclasses.replace(CLIP.sampling.first_frame, origin="noise")
        sampling = dataclasses.replace(CLIP.sampling, first_frame=first)
        request = dataclasses.replace(CLIP, sampling=sampling)
    if kind.endswith("control"):
        video = control_video(tmp_path, request.num_frames)
        media = dataclasses.replace(portrait(), video=video)
        request = dataclasses.replace(
            CLIP, video=str(video), video_is_control=True, control=("openpose",)
        )
    if kind == "late control":
        request = dataclasses.replace(request, control_start=(0.5,))
    if kind == "started":
        media = ClipMedia(video=control_video(tmp_path, request.num_frames))
        sampling = dataclasses.replace(CLIP.sampling, num_steps=4, strength=0.5)
        request = dataclasses.replace(
            CLIP, video=str(media.video), start_from_video=True, sampling=sampling
        )
    if kind == "redrawn":
        media, request = portrait(), dataclasses.replace(CLIP, redraw=True)
    if kind == "upstream":  # one generator for the first frame and the clip
        sampling = dataclasses.replace(CLIP.sampling, noise="upstream_video_fusion")
        request = dataclasses.replace(CLIP, sampling=sampling)
    joined, facts = in_pieces(engine, request, media, tmp_path)
    engine.render(request, media, tmp_path / "whole.mp4", lambda *_: None)
    assert joined == (tmp_path / "whole.mp4").read_bytes()
    assert facts.num_given == (0 if kind == "noise" else 1)
    assert facts.first_frame_drawn == (kind in ("drawn", "started", "upstream"))
    assert (facts.source_BCTHW is not None) == (kind == "started")
    assert (facts.noise_state is not None) == (kind == "upstream")


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


def lora_files(folder: Path, bundle: ModelBundle) -> list[LoraFile]:
    """Two files that change the same layer of the U-Net, each in its own way."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    rows, columns = bundle.unet.get_parameter(f"{layer}.weight").shape
    found = []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        module = "lora_unet_" + layer.replace(".", "_")
        path = folder / f"style-{number}.safetensors"
        save_file(
            {
                f"{module}.lora_down.weight": torch.randn(4, columns, generator=generator),
                f"{module}.lora_up.weight": torch.randn(rows, 4, generator=generator),
            },
            path,
        )
        found.append(LoraFile(parse_lora(f"{path}:0.8"), path))
    return found


def test_clips_with_other_loras_take_turns_window_by_window(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    """Each clip gets the bits it would get on a worker of its own; none leaves a trace."""
    engine = ClipEngine(bundle, ENCODER)
    one, two = lora_files(tmp_path, bundle)
    loras: list[tuple[LoraFile, ...]] = [(one,), (two, one), ()]
    noisy = torch.randn(1, 4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    window = (1, 2, 3, 4, 5, 6)
    media = [dataclasses.replace(portrait(), loras=files) for files in loras]
    conditions = [engine.condition(CLIP, each)[0] for each in media]
    alone = []
    for files, own in zip(loras, conditions, strict=True):
        with engine.open_clip(CLIP, own, None, files) as denoise:
            alone.append(denoise(noisy, 500.0, window))
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2])
    plain = ClipEngine(make_tiny_bundle(0), ENCODER)
    with plain.open_clip(CLIP, plain.condition(CLIP, portrait())[0], None) as denoise:
        assert torch.equal(denoise(noisy, 500.0, window), alone[2])

    with ExitStack() as stack:
        opened = [
            stack.enter_context(engine.open_clip(CLIP, own, None, files))
            for files, own in zip(loras, conditions, strict=True)
        ]
        for turn in (0, 1, 2, 1, 0, 0, 2):
            assert torch.equal(opened[turn](noisy, 500.0, window), alone[turn])
    assert bundle.loras.num_merges == 2


def test_a_whole_clip_with_loras_is_its_pieces(bundle: ModelBundle, tmp_path: Path) -> None:
    engine = ClipEngine(bundle, ENCODER)
    media = dataclasses.replace(portrait(), loras=tuple(lora_files(tmp_path, bundle)))
    engine.render(CLIP, media, tmp_path / "a.mp4", lambda *_: None)
    engine.render(CLIP, portrait(), tmp_path / "plain.mp4", lambda *_: None)
    engine.render(CLIP, media, tmp_path / "b.mp4", lambda *_: None)
    first, plain, again = (
        (tmp_path / name).read_bytes() for name in ("a.mp4", "plain.mp4", "b.mp4")
    )
    assert first == again != plain
