"""A name finds the ControlNet of that name, else the one that its maps are for."""

from __future__ import annotations

import pytest

from musev.control.controlnets import controlnet_for


@pytest.mark.parametrize(
    ("name", "held", "found"),
    [
        ("dwpose_body_hand", ("canny", "openpose"), "openpose"),
        ("openpose", ("openpose",), "openpose"),
        ("canny", ("canny",), "canny"),
        ("zoe", ("depth", "zoe"), "zoe"),
        ("zoe", ("depth",), "depth"),
        ("canny", ("openpose",), None),
        ("mine", ("openpose",), None),
        ("mine", ("mine",), "mine"),
    ],
)
def test_the_network_of_a_name(name: str, held: tuple[str, ...], found: str | None) -> None:
    assert controlnet_for(name, held) == found
