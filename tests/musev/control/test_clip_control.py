"""Control of a clip: the right frame at the right place, embedded once, in bounded memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musev.config import ClipRequest, SamplingConfig
from musev.control import clip_control
from musev.control.clip_control import (
    ClipControl,
    ControlMaps,
    EmbeddedFrames,
    MapReader,
    open_control,
    open_control_frames,
)
from musev.errors import MediaError, RequestError
from musev.media import write_lossless, write_segment
from musev.models.bundle import ModelBundle
from musev.models.control import ControlNet, PoseGuider
from musev.models.tiny import LEVELS, make_tiny_bundle, randomize

SIDE = 32


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    torch.set_num_threads(1)
    return make_tiny_bundle(0)


@pytest.fixture(scope="module")
def net(bundle: ModelBundle) -> ControlNet:
    return bundle.controlnets["openpose"]


def control_map(number: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)


def grey(number: int, side: int = SIDE) -> np.ndarray:
    """A plain frame whose brightness is its number: survives H.264."""
    return np.full((side, side, 3), 10 * number, dtype=np.uint8)


def request(**changes: Any) -> ClipRequest:
    values: dict[str, Any] = {
        "request_id": "r",
        "num_frames": 4,
        "fps": 8.0,
        "width": SIDE,
        "height": SIDE,
        "seed": 0,
        "profile": "p",
        "sampling": SamplingConfig(),
        "control": ("openpose",),
        **changes,
    }
    return ClipRequest(**values)


class Reads:
    """Notes which frames are read."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int) -> np.ndarray:
        self.numbers.append(number)
        return control_map(number)


def test_a_frame_is_embedded_once_whatever_it_is_asked_for_with(net: ControlNet) -> None:
    reads = Reads()
    embedded = EmbeddedFrames(net, reads)
    windows = [embedded(range(first, first + 4)) for first in (0, 2, 4, 0, 2, 4)]
    assert reads.numbers == list(range(8))
    assert torch.equal(windows[0], windows[3])
    image = torch.from_numpy(control_map(5)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(windows[1][3:4], net.embed_condition(image))


def test_the_bound_changes_no_value_and_is_kept(net: ControlNet) -> None:
    free = EmbeddedFrames(net, control_map)
    reads = Reads()
    three = 3 * free([0]).nbytes
    bound = EmbeddedFrames(net, reads, limit_bytes=three)
    for _ in range(2):
        for window in ([0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]):
            assert torch.equal(bound(window), free(window))
    # Frames 0 to 2 stay; the others are kept from one window to the next.
    assert reads.numbers == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]
    assert sum(value.nbytes for value in bound._kept.values()) == three


def test_residuals_are_the_networks_for_every_frame_and_half(net: ControlNet) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 3, 8, 8, generator=generator)  # at 1 x 1 norms magnify rounding
    text = torch.randn(2, 7, 32, generator=generator)
    frames = [0, 5, 6]
    read = functools.partial(control_map, side=64)
    control = ClipControl([net], [EmbeddedFrames(net, read)], lambda _t: [0.5])
    with torch.inference_mode():
        found = control.residuals(noisy, 400.0, text, frames)
        assert found is not None
        for half in range(2):
            for place, frame in enumerate(frames):
                image = torch.from_numpy(read(frame)).permute(2, 0, 1)[None].float() / 255
                alone = net(
                    noisy[half : half + 1, :, place],
                    400.0,
                    text[half : half + 1],
                    net.embed_condition(image),
                    scale=0.5,
                )
                row = half * len(frames) + place
                assert found.mid is not None
                assert torch.allclose(found.mid[row], alone.mid[0], atol=1e-4)
                for ours, theirs in zip(found.down, alone.down, strict=True):
                    assert torch.allclose(ours[row], theirs[0], atol=1e-4)


def test_scale_zero_attaches_nothing(net: ControlNet) -> None:
    control = ClipControl([net], [EmbeddedFrames(net, control_map)], lambda _t: [0.0])
    noisy, text = torch.zeros(1, 4, 2, 4, 4), torch.zeros(1, 7, 32)
    assert control.residuals(noisy, 1.0, text, [0, 1]) is None


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second at 24 frames a second, twice the clip's size and wider."""
    path = tmp_path_factory.mktemp("control") / "poses.mp4"
    frames = (np.pad(grey(n, 64), ((0, 0), (16, 16), (0, 0))) for n in range(24))
    write_segment(path, frames, fps=24)
    return path


@pytest.mark.parametrize(("fps", "shown"), [(24, [0, 1, 2, 23]), (8, [0, 3, 6, 21]), (48, [0, 0])])
def test_frames_have_the_clips_size_and_rate(video: Path, fps: float, shown: list[int]) -> None:
    with open_control_frames(request(fps=float(fps)), video) as store:
        places = [0, 1, 2, 7] if fps == 8 else [0, 1, 2, 23][: len(shown)]
        for place, number in zip(places, shown, strict=True):
            frame = store.read(place)
            assert frame.shape == (SIDE, SIDE, 3)
            assert abs(int(frame.astype(int).mean()) - 10 * number) <= 2  # black sides are cut off


def test_a_video_that_is_too_short_is_named(bundle: ModelBundle, video: Path) -> None:
    with open_control(bundle, request(), video) as control:
        assert control is not None
        noisy, text = torch.zeros(1, 4, 1, 4, 4), torch.zeros(1, 7, 32)
        with pytest.raises(MediaError, match=r"'r', control video poses.mp4.*9 is needed.* only 8"):
            control.residuals(noisy, 1.0, text, [9])


def test_without_a_video_there_is_no_control(bundle: ModelBundle) -> None:
    with open_control(bundle, request(control=()), None) as control:
        assert control is None


@pytest.mark.parametrize(
    ("names", "phrase"),
    [((), "no ControlNet is named"), (("depth",), r"no ControlNet 'depth'; they hold: openpose\.")],
)
def test_a_network_that_is_not_there_is_named(
    bundle: ModelBundle, video: Path, names: tuple[str, ...], phrase: str
) -> None:
    def open_it() -> Iterator[None]:
        with open_control(bundle, request(control=names), video):
            yield

    with pytest.raises(RequestError, match=phrase):
        list(open_it())


def pieces(folder: Path, name: str, num_frames: int, size: int) -> None:
    for number in range(0, num_frames, size):
        maps = [control_map(n) for n in range(number, min(number + size, num_frames))]
        write_lossless(folder / f"{name}-{number // size}.mkv", maps, fps=8)


def test_maps_come_from_pieces_with_the_condition_images_own_in_front(tmp_path: Path) -> None:
    pieces(tmp_path, "canny", 7, 3)
    opened: list[int] = []

    def open_piece(name: str, number: int) -> Path:
        opened.append(number)
        return tmp_path / f"{name}-{number}.mkv"

    maps = ControlMaps(open_piece=open_piece, piece_frames=3)
    with MapReader(request(), "canny", maps) as reader:
        for frame in (6, 0, 1, 6):
            np.testing.assert_array_equal(reader.read(frame), control_map(frame))
        assert opened == [2, 0]
    in_front = dataclasses.replace(maps, front={"canny": control_map(99)})
    with MapReader(request(), "canny", in_front) as reader:
        np.testing.assert_array_equal(reader.read(0), control_map(99))
        np.testing.assert_array_equal(reader.read(4), control_map(3))
        with pytest.raises(MediaError, match="canny maps, piece 2"):
            reader.read(9)


def test_few_pieces_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_control, "OPEN_PIECES", 2)
    pieces(tmp_path, "canny", 6, 1)
    maps = ControlMaps(open_piece=lambda name, n: tmp_path / f"{name}-{n}.mkv", piece_frames=1)
    with MapReader(request(), "canny", maps) as reader:
        for frame in range(6):
            np.testing.assert_array_equal(reader.read(frame), control_map(frame))
        assert len(reader._open) == 2


def test_the_map_of_an_image_stands_in_front_of_a_control_video(video: Path) -> None:
    maps = ControlMaps(video=video, front={"openpose": control_map(1)})
    with MapReader(request(), "openpose", maps) as reader:
        np.testing.assert_array_equal(reader.read(0), control_map(1))
        assert abs(int(reader.read(2).mean()) - 30) <= 2


def test_every_network_reads_its_own_maps(tmp_path: Path, bundle: ModelBundle) -> None:
    nets = dataclasses.replace(
        bundle, controlnets={**bundle.controlnets, "canny": bundle.controlnets["openpose"]}
    )
    pieces(tmp_path, "dwpose", 4, 4)
    pieces(tmp_path, "canny", 4, 4)
    files = {name: tmp_path / f"{name}-0.mkv" for name in ("dwpose", "canny")}
    write_lossless(files["canny"], [control_map(n + 50) for n in range(4)], fps=8)
    both = request(control=("dwpose", "canny"))
    with open_control(nets, both, files) as control:
        assert control is not None
        poses, edges = (embedded([2]) for embedded in control._embedded)
    net = bundle.controlnets["openpose"]
    for found, frame in ((poses, 2), (edges, 52)):
        image = torch.from_numpy(control_map(frame)).permute(2, 0, 1)[None].float() / 255
        assert torch.equal(found, net.embed_condition(image))
    with (
        pytest.raises(RequestError, match="no control maps for 'canny', only for: dwpose"),
        open_control(nets, both, {"dwpose": files["dwpose"]}),
    ):
        pass


def test_every_so_manieth_frame_of_a_video(video: Path) -> None:
    with open_control_frames(request(sample_rate=5), video) as store:
        for place in (0, 1, 4):
            assert abs(int(store.read(place).astype(int).mean()) - 50 * place) <= 2
        with pytest.raises(MediaError, match="only 5"):
            store.read(5)


def test_a_pose_guider_stands_in_for_a_controlnet(bundle: ModelBundle) -> None:
    """Its features are those of the network itself, at its scale, the same for both halves."""
    guider = randomize(
        PoseGuider(conditioning_embedding_channels=LEVELS[0], block_out_channels=(4, 4, 8, 8)),
        seed=0,
        prefix="pose_guider",
    )
    dressed = dataclasses.replace(bundle, pose_guider=guider)
    pictures = {0: control_map(0), 1: control_map(1)}
    control = ClipControl(
        [guider], [EmbeddedFrames(guider, pictures.__getitem__)], lambda timestep: (timestep,)
    )
    noisy, text = torch.zeros(2, 4, 2, SIDE // 8, SIDE // 8), torch.zeros(2, 77, 32)
    assert control.residuals(noisy, 1.0, text, (0, 1)) is None
    assert control.pose_features(0.0, (0, 1), batch=2) is None
    found = control.pose_features(0.5, (0, 1), batch=2)
    assert found is not None
    stacked = torch.from_numpy(np.stack([pictures[0], pictures[1]])).permute(3, 0, 1, 2) / 255
    expected = guider(stacked[None])[0].transpose(0, 1)
    torch.testing.assert_close(found.features_RCHW, 0.5 * expected.repeat(2, 1, 1, 1))

    with pytest.raises(RequestError, match="no ControlNet 'pose_guider'"):
        with open_control(bundle, request(control=("pose_guider",)), Path("maps.mp4")):
            pass
    with open_control(dressed, request(control=("pose_guider",)), Path("maps.mp4")) as opened:
        assert opened is not None
