"""What a prompt asks for: all of a caption, nothing of other people's prompts."""

from __future__ import annotations

import pytest

from musev.quality.drawn import DrawnClip, drawn_clip_of, words_asked
from musev.synthetic.captions import draw_caption
from musev.synthetic.clips import draw_clip, plan_clip
from musev.synthetic.people import RandomStream


def test_captions_are_read_back_word_for_word() -> None:
    named_hair = named_skin = 0
    for index in range(300):
        a = plan_clip(11, index, held_out=True)
        asked = words_asked(draw_caption(a, RandomStream(11, index)))
        assert asked is not None
        hair = "bald" if a.hair_style == "bald" else a.hair_color
        named_hair += asked.pop("hair_color", None) == hair
        named_skin += asked.pop("skin", None) == a.skin
        expected = {"scene": a.scene, "action": a.action, "shirt_color": a.shirt_color}
        if a.shows_trousers:
            expected["trousers_color"] = a.trousers_color
        assert asked == expected
    assert 120 < named_hair < 180
    assert 60 < named_skin < 120


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a person", {}),
        ("a person in a red shirt", {"shirt_color": "red"}),
        ("a figure with no hair, standing at night", {
            "hair_color": "bald", "action": "standing", "scene": "night"}),
        ("A person in a RED shirt, waving!", {"shirt_color": "red", "action": "waving"}),
        ("a painter looks up from the canvas", None),
        ("", None),
    ],
)  # fmt: skip
def test_other_prompts(prompt: str, asked: dict[str, str] | None) -> None:
    assert words_asked(prompt) == asked


def test_a_clip_is_found_again_from_its_row() -> None:
    clip = DrawnClip("pose", 5, 17)
    assert drawn_clip_of(clip.to_extra()) == clip
    again = clip.draw(num_frames=3, fps=8.0, height=64, width=64)
    assert again.caption == draw_clip(5, 17, held_out=True, num_frames=3).caption
    assert again.frames_TYXC.shape == (3, 64, 64, 3)
    for other in (None, "", "my own note", "{}", '{"drawn_clip": {"kind": "x"}}', "[1]"):
        assert drawn_clip_of(other) is None
    assert drawn_clip_of('{"drawn_clip": {"kind": "x", "seed": 1, "index": 2}}') is None
