"""What a request asks for in the language of the drawn captions, and which clip it came from.

Knows neither torch nor pixels, so a driver may import it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from musev.synthetic.captions import ACTION_PHRASES, SCENE_PHRASES, VOCABULARY
from musev.synthetic.clips import Clip, draw_clip
from musev.synthetic.people import CLOTHES_COLORS, HAIR_COLORS, SKIN_COLORS, TROUSERS_SHAPES
from musev.words import words_of

Kind = Literal["text", "pose", "identity", "long"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_EXTRA = "drawn_clip"


@dataclass(frozen=True)
class DrawnClip:
    """The held-out clip that a request was made from, and what the request gives of it.

    ``text``: the caption; ``pose``: the caption and the drawing of every frame's skeleton;
    ``identity``: the portrait, with a prompt that says nothing; ``long``: the caption, for a clip
    of many windows.
    """

    kind: Kind
    seed: int
    index: int

    def draw(self, *, num_frames: int, fps: float, height: int, width: int) -> Clip:
        """Draw the clip, as long and as large as it is wanted."""
        return draw_clip(
            self.seed,
            self.index,
            held_out=True,
            num_frames=num_frames,
            fps=fps,
            height=height,
            width=width,
        )

    def to_extra(self) -> str:
        """Write it for the manifest's column ``extra``."""
        return json.dumps({_EXTRA: asdict(self)})


def drawn_clip_of(extra: str | None) -> DrawnClip | None:
    """Read what :meth:`DrawnClip.to_extra` wrote.

    Args:
        extra: Text of the column ``extra``; anything at all.

    Returns:
        The clip; None if the text names none.
    """
    try:
        found = json.loads(extra or "null")
        clip = DrawnClip(**found[_EXTRA])
    except (ValueError, TypeError, KeyError):
        return None
    return clip if clip.kind in KINDS else None


def words_asked(prompt: str) -> dict[str, str] | None:
    """Find what a prompt asks for, if it is written in the words of the drawn captions.

    Args:
        prompt: Any prompt.

    Returns:
        Any of ``scene, action, shirt_color, trousers_color, skin, hair_color`` to the word of the
        tables of :mod:`musev.synthetic.people`; empty if it names none of them. None if the prompt
        holds words of other languages than the captions': the judges of drawn people have no say.
    """
    words = words_of(prompt)
    if not words or not set(words) <= set(VOCABULARY):
        return None
    text = f" {' '.join(words)} "
    asked = {
        name: word
        for name, phrases in (("scene", SCENE_PHRASES), ("action", ACTION_PHRASES))
        for word, ways in phrases.items()
        if any(f" {way} " in text for way in ways)
    }
    below = "|".join(TROUSERS_SHAPES)
    for name, pattern, table in (
        ("shirt_color", r"(\w+) shirt", CLOTHES_COLORS),
        ("trousers_color", rf"(\w+) (?:{below})", CLOTHES_COLORS),
        ("skin", r"(\w+) skin", SKIN_COLORS),
        ("hair_color", r"(\w+) hair", {**HAIR_COLORS, "no": None}),
    ):
        found = re.search(pattern, text)
        if found and found[1] in table:
            asked[name] = "bald" if found[1] == "no" else found[1]
    return asked
