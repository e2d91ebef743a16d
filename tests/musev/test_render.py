"""One clip, start to finish, on the small seeded bundle: real networks, real ffmpeg."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musev.conditions import ClipMedia, draw_first_frame, encode_conditions, fit_media
from musev.config import (
    ClipRequest,
    EncoderConfig,
    FirstFrameConfig,
    GuidanceConfig,
    SamplingConfig,
    WindowConfig,
)
from musev.control.clip_control import open_control
from musev.errors import RequestError
from musev.media import read_video, write_segment
from musev.models.bundle import ModelBundle
from musev.models.tiny import make_tiny_bundle
from musev.models.vae import encode_frames
from musev.render import decode_segments, denoise_request, render_clip


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    """The small seeded bundle, loaded once for the file."""
    torch.set_num_threads(1)
    return make_tiny_bundle(0)


def make_request(**changes: object) -> ClipRequest:
    """Nine frames of 64x64 in two steps."""
    plain = ClipRequest(
        request_id="r1",
        prompt="a (red:1.2) coat",
        num_frames=9,
        fps=8,
        width=64,
        height=64,
        seed=11,
        profile="test",
        sampling=SamplingConfig(
            num_steps=2,
            first_frame=FirstFrameConfig(num_steps=2),
            guidance=GuidanceConfig(scale=2.0),
            windows=WindowConfig(num_frames=6, overlap=2),
        ),
    )
    return dataclasses.replace(plain, **changes)


def portrait(seed: int = 0) -> np.ndarray:
    """A picture with structure, of a size that is not the clip's."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((16, 16, 1), dtype=np.uint8))


def test_mp4_has_the_frames_the_row_asked_for_and_repeats_bit_for_bit(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    """Size, count, rate and codec are measured from the file; a second run gives the same bytes."""
    encoder = EncoderConfig(segment_frames=4)
    media = ClipMedia(condition_image=portrait())
    seen: list[tuple[str, int, int]] = []
    files = []
    for name in ("a.mp4", "b.mp4"):
        info = render_clip(
            bundle,
            make_request(),
            media,
            encoder=encoder,
            target=tmp_path / name,
            on_progress=lambda *event: seen.append(event),
        )
        assert (info.width, info.height, info.num_frames, info.fps) == (64, 64, 9, 8)
        assert info.codec == "h264"
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert seen[: len(seen) // 2] == [
        ("denoise", 1, 2),
        ("denoise", 2, 2),
        ("decode", 4, 9),
        ("decode", 8, 9),
        ("decode", 9, 9),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert len(list(read_video(tmp_path / "a.mp4"))) == 9


def test_condition_image_is_frame_zero(bundle: ModelBundle) -> None:
    """The conditioning frame's clean latents stand in front and are never denoised."""
    picture = np.kron(portrait()[::16, ::16][:4, :4], np.ones((16, 16, 1), dtype=np.uint8))
    request = make_request()
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, ClipMedia(condition_image=picture[None]))
        latents = denoise_request(bundle, request, conditions)
        given = encode_frames(bundle.vae, picture[None]).float()
    assert latents.shape == (1, 4, 9, 8, 8)
    assert torch.equal(latents[:, :, :1], given)


def latents_of(bundle: ModelBundle, request: ClipRequest, media: ClipMedia) -> torch.Tensor:
    """Denoise a request."""
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, fit_media(request, media))
        return denoise_request(bundle, request, conditions)


def test_every_input_of_a_request_reaches_the_picture(bundle: ModelBundle) -> None:
    """Changing any one of them changes the generated latents."""
    media = ClipMedia(
        condition_image=portrait(0), reference_image=portrait(1), ip_adapter_image=portrait(2)
    )
    request = make_request()
    base = latents_of(bundle, request, media)[:, :, 1:]
    sampling = request.sampling
    others = {
        "prompt": (make_request(prompt="a blue hat"), media),
        "negative": (make_request(negative_prompt="bad"), media),
        "seed": (make_request(seed=12), media),
        "motion": (
            make_request(sampling=dataclasses.replace(sampling, motion_speed=3.0)),
            media,
        ),
        "condition": (request, dataclasses.replace(media, condition_image=portrait(5))),
        "reference": (request, dataclasses.replace(media, reference_image=portrait(5))),
        "ip_adapter": (request, dataclasses.replace(media, ip_adapter_image=portrait(5))),
    }
    for name, (changed, pictures) in others.items():
        difference = (latents_of(bundle, changed, pictures)[:, :, 1:] - base).abs().max()
        assert difference > 1e-4, name


def test_reference_and_image_prompt_fall_back_to_the_condition_image(bundle: ModelBundle) -> None:
    """As in the original: one portrait is enough."""
    one = latents_of(bundle, make_request(), ClipMedia(condition_image=portrait()))
    three = ClipMedia(
        condition_image=portrait(), reference_image=portrait(), ip_adapter_image=portrait()
    )
    assert torch.equal(one, latents_of(bundle, make_request(), three))


def test_without_a_condition_image_the_text_draws_frame_zero(bundle: ModelBundle) -> None:
    """One picture first, without temporal layers; the clip goes on from it as from an image."""
    request = make_request()
    with torch.inference_mode():
        first = draw_first_frame(bundle, request, ClipMedia())
        drawn, picture = first.latents_BCTHW, first.frames_TYXC
        shown = encode_conditions(bundle, request, ClipMedia(condition_image=picture))
        # Its latents are used as they are; reference and image prompt see the picture.
        shown = dataclasses.replace(shown, frames_BCTHW=drawn)
        from_image = denoise_request(bundle, request, shown)
    assert drawn.shape == (1, 4, 1, 8, 8)
    assert torch.equal(latents_of(bundle, request, ClipMedia()), from_image)
    assert torch.equal(from_image[:, :, :1], drawn)
    assert torch.equal(latents_of(bundle, make_request(num_frames=1), ClipMedia()), drawn)
    # It follows its own settings, and a longer clip begins with the same picture.
    assert torch.equal(
        latents_of(bundle, make_request(num_frames=12), ClipMedia())[:, :, :1], drawn
    )
    how = FirstFrameConfig(num_steps=2, guidance=GuidanceConfig(scale=1.0))
    calm = make_request(sampling=dataclasses.replace(request.sampling, first_frame=how))
    assert not torch.equal(latents_of(bundle, calm, ClipMedia())[:, :, :1], drawn)


def test_all_frames_can_be_generated_together(bundle: ModelBundle) -> None:
    how = FirstFrameConfig(origin="noise")
    request = make_request(sampling=dataclasses.replace(make_request().sampling, first_frame=how))
    with torch.inference_mode():
        assert encode_conditions(bundle, request, ClipMedia()).frames_BCTHW is None
    assert latents_of(bundle, request, ClipMedia()).shape == (1, 4, 9, 8, 8)


def test_segment_length_changes_no_pixel(bundle: ModelBundle) -> None:
    """Decoding is frame by frame in its result, whatever is decoded together."""
    latents = latents_of(bundle, make_request(), ClipMedia())
    with torch.inference_mode():
        whole = np.concatenate(list(decode_segments(bundle, latents, 100)))
        parts = list(decode_segments(bundle, latents, 2))
    assert max(len(part) for part in parts) == 2
    assert np.array_equal(whole, np.concatenate(parts))


def test_too_short_for_its_condition_image(bundle: ModelBundle) -> None:
    """One frame with a condition image leaves nothing to generate."""
    with pytest.raises(RequestError, match=r"'r1'.*num_frames is 1.*2 frames or more"):
        latents_of(bundle, make_request(num_frames=1), ClipMedia(condition_image=portrait()))


def test_picture_without_its_network_is_refused_by_name(bundle: ModelBundle) -> None:
    """A column is never silently ignored."""
    bare = dataclasses.replace(bundle, referencenet=None)
    request = make_request(reference_image="file:///x.png")
    with pytest.raises(RequestError, match=r"'r1'.*reference_image.*no ReferenceNet"):
        encode_conditions(bare, request, ClipMedia())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(bundle: ModelBundle, precision: torch.dtype) -> None:
    """The same path runs in half precision; latents are kept in float32 and stay close."""
    request, media = make_request(num_frames=4), ClipMedia(condition_image=portrait())
    full = latents_of(bundle, request, media)
    half = latents_of(in_precision(make_tiny_bundle(0), precision), request, media)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.1 * full.abs().mean()


def test_control_runs_in_half_precision(bundle: ModelBundle, tmp_path: Path) -> None:
    video = poses(tmp_path / "a.mp4", 3)
    request = make_request(num_frames=3, control=("openpose",))
    full = controlled(bundle, request, video, portrait())
    half = controlled(make_tiny_bundle(0).to("cpu", "bfloat16"), request, video, portrait())
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.1 * full.abs().mean()


def in_precision(bundle: ModelBundle, dtype: torch.dtype) -> ModelBundle:
    """Cast every network of a bundle."""
    for network in bundle.networks.values():
        network.to(dtype)
    return dataclasses.replace(bundle, dtype=dtype)


def poses(path: Path, num_frames: int, *, seed: int = 0) -> Path:
    """A control video of coarse blocks that move."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (num_frames, 4, 4, 3), dtype=np.uint8)
    frames = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)
    write_segment(path, frames, fps=8)
    return path


def controlled(
    bundle: ModelBundle, request: ClipRequest, video: Path, image: np.ndarray | None = None
) -> torch.Tensor:
    """Latents of a clip that follows a control video."""
    media = ClipMedia(condition_image=image, video=video)
    with torch.inference_mode(), open_control(bundle, request, video) as control:
        conditions = encode_conditions(bundle, request, fit_media(request, media), control)
        return denoise_request(bundle, request, conditions, control)


class NotesFrames:
    """A control that adds nothing and notes which frames it was asked for."""

    def __init__(self) -> None:
        self.asked: set[tuple[int, ...]] = set()

    guess = False

    def pose_features(self, timestep: float, frames: Sequence[int], *, batch: int) -> None:
        assert batch == 2

    def during(self, timesteps: Sequence[float]) -> NotesFrames:
        assert len(timesteps) > 0
        return self

    def residuals(
        self, noisy: torch.Tensor, timestep: float, text: torch.Tensor, frames: list[int]
    ) -> None:
        assert noisy.shape[0] == text.shape[0] == 2
        assert noisy.shape[2] == len(frames)
        self.asked.add(tuple(frames))


@pytest.mark.parametrize(
    ("origin", "image", "asked"),
    [
        ("drawn", portrait(), {(0, 1, 2, 3, 4, 5, 6), (0, 3, 4, 5, 6, 7, 8)}),
        ("drawn", None, {(0,), (0, 1, 2, 3, 4, 5, 6), (0, 3, 4, 5, 6, 7, 8)}),
        ("noise", None, {(0, 1, 2, 3, 4, 5), (3, 4, 5, 6, 7, 8)}),
    ],
)
def test_control_frame_t_controls_frame_t(
    bundle: ModelBundle, origin: Any, image: np.ndarray | None, asked: set[tuple[int, ...]]
) -> None:
    """The conditioning frame in front of every window is controlled by frame 0, given or drawn."""
    notes: Any = NotesFrames()
    sampling = make_request().sampling
    windows = dataclasses.replace(sampling.windows, overlap=3)
    how = FirstFrameConfig(origin=origin, num_steps=1, guidance=sampling.guidance)
    request = make_request(
        sampling=dataclasses.replace(sampling, num_steps=1, windows=windows, first_frame=how)
    )
    with torch.inference_mode():
        media = fit_media(request, ClipMedia(condition_image=image))
        conditions = encode_conditions(bundle, request, media, notes)
        denoise_request(bundle, request, conditions, notes)
    assert notes.asked == asked


@pytest.mark.parametrize("image", [portrait(), None], ids=["given", "drawn"])
def test_control_decides_every_frame_it_should(
    bundle: ModelBundle, tmp_path: Path, image: np.ndarray | None
) -> None:
    """A given first frame stays as it is; a drawn one follows control frame 0."""
    video = poses(tmp_path / "a.mp4", 4)
    request = make_request(num_frames=4, control=("openpose",))
    base = controlled(bundle, request, video, image)
    others = {
        "none": latents_of(bundle, make_request(num_frames=4), ClipMedia(condition_image=image)),
        "another video": controlled(bundle, request, poses(tmp_path / "b.mp4", 4, seed=1), image),
        "half strength": controlled(
            bundle, dataclasses.replace(request, control_scale=(0.5,)), video, image
        ),
    }
    for name, latents in others.items():
        changed = (latents - base).abs().amax(dim=(0, 1, 3, 4))
        assert changed[1:].min() > 1e-3, name
        assert (changed[0] > 1e-3) == (image is None), name


def test_without_control_the_result_is_bit_equal(bundle: ModelBundle, tmp_path: Path) -> None:
    """No network, no video, or strength 0: the same bits."""
    media = ClipMedia(condition_image=portrait())
    plain = latents_of(bundle, make_request(num_frames=4), media)
    bare = dataclasses.replace(bundle, controlnets={})
    assert torch.equal(latents_of(bare, make_request(num_frames=4), media), plain)
    silent = make_request(num_frames=4, control=("openpose",), control_scale=(0.0,))
    video = poses(tmp_path / "a.mp4", 4)
    assert torch.equal(controlled(bundle, silent, video, portrait()), plain)


def test_control_reaches_the_file_and_repeats(bundle: ModelBundle, tmp_path: Path) -> None:
    media = ClipMedia(condition_image=portrait(), video=poses(tmp_path / "poses.mp4", 3))
    files = []
    for name in ("a.mp4", "b.mp4", "plain.mp4"):
        wanted = make_request(num_frames=3, control=("openpose",) if name != "plain.mp4" else ())
        render_clip(
            bundle,
            wanted,
            media if name != "plain.mp4" else dataclasses.replace(media, video=None),
            encoder=EncoderConfig(),
            target=tmp_path / name,
        )
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] != files[2]
