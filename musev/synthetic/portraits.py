"""Head-and-shoulders portraits of people who do not exist, drawn from a seed.

Lengths are in units of the picture's shorter side; the head's own parts are in half head widths
(across) and half head heights (down), measured from the middle of the head. Shapes are drawn at
several times the wanted size and scaled down, which smooths their edges.

Axes here: Y X pixel rows and columns, C channel (red, green, blue); P points of an outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from musev.synthetic.canvas import (
    Canvas,
    Colour,
    Point,
    Points,
    arc,
    bumpy_oval,
    colour_of,
    curve,
    mirrored,
    mix,
    oval,
    rounded_box,
    smooth,
)

_SKIN = ("f6d7c3", "efc3a4", "e3ab84", "c98f68", "a56b47", "7d4a30", "5c3524")
_HAIR = ("1d1a1c", "2f211b", "4a2f20", "6e4526", "9a6a38", "c79a55", "8f8a88", "7a2f1d")
_IRIS = ("4a2f1c", "5b3a20", "6b7c4a", "4f7ea3", "3c5d7d", "5f6f72")
_CLOTHES = (
    "28435e",
    "7c2f3a",
    "2f5d50",
    "c9b79c",
    "4b3b63",
    "d8d5cf",
    "b5652f",
    "34373c",
    "9db4c0",
)
_BACKGROUNDS = (
    ("dfe8ec", "9fb8c4"),
    ("f3e3d0", "cfa57f"),
    ("d9e4d1", "87a38b"),
    ("e6dff0", "9c8fbb"),
    ("3b4a5a", "1d2630"),
    ("f2d9d6", "b98a8f"),
    ("5b4a42", "2a211d"),
)
_HAIR_STYLES = ("short", "side", "long", "bob", "curly", "bun", "afro", "bald")
_COLLARS = ("round", "v", "shirt", "high")
_SHARPNESS = 3  # drawn at this many times the size, at least
_WORKING_PX = 512  # and never smaller than this, so that small pictures get fine lines too


@dataclass(frozen=True, kw_only=True)
class Person:
    """What one person looks like; every choice is made before anything is drawn."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    inner: Colour
    background: tuple[Colour, Colour]
    hair_style: str
    collar: str
    jaw: float
    head_width: float
    turn: float
    brow: float
    smile: float
    lips: float
    beard: bool
    glasses: bool
    earrings: bool
    lashes: bool
    bokeh_P: tuple[tuple[float, float, float], ...]


def draw_portrait(seed: int, *, width: int, height: int) -> np.ndarray:
    """Draw one person; the same seed and size give the same pixels.

    Args:
        seed: Which person; any integer from 0.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        ``image_YXC``: uint8 RGB.
    """
    person = choose_person(seed)
    scale = max(_SHARPNESS, -(-_WORKING_PX // min(width, height)))
    canvas = Canvas(width * scale, height * scale)
    _draw_background(canvas, person)
    _draw_back_hair(canvas, person)
    _draw_body(canvas, person)
    _draw_head(canvas, person)
    _draw_features(canvas, person)
    _draw_front_hair(canvas, person)
    _draw_extras(canvas, person)
    return np.array(canvas.image.resize((width, height), Image.Resampling.BOX))


def choose_person(seed: int) -> Person:
    """Choose how person number ``seed`` looks.

    Args:
        seed: Which person; any integer from 0.

    Returns:
        All choices.
    """
    rng = np.random.default_rng([seed, 0x506F7274])

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    tone = int(rng.integers(len(_SKIN)))
    # Light hair and light eyes go with the lighter skins; dark ones with all.
    hair = int(rng.integers(len(_HAIR) if tone < 3 else 3 if tone > 3 else 5))
    style = pick(_HAIR_STYLES)
    feminine = style in ("long", "bob", "bun") or (
        style in ("curly", "afro") and rng.random() < 0.5
    )
    top, bottom = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]
    clothes = pick(_CLOTHES)
    bokeh = rng.random((7, 3))
    return Person(
        skin=colour_of(_SKIN[tone]),
        hair=colour_of(_HAIR[hair]),
        iris=colour_of(_IRIS[int(rng.integers(len(_IRIS) if tone < 3 else 2))]),
        clothes=colour_of(clothes),
        inner=colour_of("f4f1ea" if clothes != "d8d5cf" else "6f8fa6"),
        background=(colour_of(top), colour_of(bottom)),
        hair_style=style,
        collar=pick(_COLLARS),
        jaw=rng.uniform(0.26, 0.36) if feminine else rng.uniform(0.16, 0.28),
        head_width=rng.uniform(0.148, 0.158) if feminine else rng.uniform(0.155, 0.168),
        turn=rng.uniform(-1, 1),
        brow=0.8 if feminine else rng.uniform(1.1, 1.5),
        smile=rng.uniform(0.2, 1.0),
        lips=rng.uniform(0.8, 1.0) if feminine else rng.uniform(0.35, 0.55),
        beard=bool(not feminine and rng.random() < 0.45),
        glasses=bool(rng.random() < 0.25),
        earrings=bool(feminine and rng.random() < 0.6),
        lashes=feminine,
        bokeh_P=tuple((float(x), float(y), float(r)) for x, y, r in bokeh),
    )


@dataclass(frozen=True)
class _Head:
    """Where things are on one person's head."""

    person: Person
    x: float = 0.5
    y: float = 0.435

    @property
    def half(self) -> tuple[float, float]:
        return self.person.head_width, 0.205

    def at(self, across: float, down: float, *, turned: bool = True) -> tuple[float, float]:
        """A place on the head; features follow the head's turn, its outline does not."""
        half_width, half_height = self.half
        shift = 0.10 * self.person.turn * (1 - min(1.0, across * across)) if turned else 0.0
        return self.x + (across + shift) * half_width, self.y + down * half_height

    def ring(self, grow: float = 1.0) -> list[Point]:
        """Outline of the face, clockwise from the right ear; the chin is narrower than the brow."""
        angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        down = np.sin(angles)
        across = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.86
        across = across * (1 - self.person.jaw * np.clip(down, 0, 1) ** 1.6)
        return [
            self.at(a * grow, d * grow, turned=False) for a, d in zip(across, down, strict=True)
        ]

    def points(self, points: Points, *, turned: bool = False) -> list[Point]:
        return [self.at(a, d, turned=turned) for a, d in points]


def _draw_background(canvas: Canvas, person: Person) -> None:
    width, height = canvas.image.size
    rows = np.linspace(0, 1, height)[:, None, None]
    columns = np.linspace(-1, 1, width)[None, :, None]
    top, bottom = (np.array(colour, float) for colour in person.background)
    fade = np.clip(rows * 0.75 + 0.25 * columns**2, 0, 1)
    blend = top * (1 - fade) + bottom * fade
    canvas.image.paste(Image.fromarray(np.broadcast_to(blend, (height, width, 3)).astype(np.uint8)))
    light = mix(person.background[0], (255, 255, 255), 0.5)
    for x, y, size in person.bokeh_P:
        disc = oval((x * 1.4 - 0.2, y * 0.8), 0.05 + 0.09 * size, 0.05 + 0.09 * size)
        canvas.paint(canvas.outline(disc, blur=0.012), light, opacity=0.16)


def _draw_back_hair(canvas: Canvas, person: Person) -> None:
    head, dark = _Head(person), mix(person.hair, (0, 0, 0), 0.28)
    style = person.hair_style
    if style == "long":
        half = [
            (0, -1.2),
            (0.7, -1.1),
            (1.14, -0.6),
            (1.22, 0.2),
            (1.3, 1.0),
            (1.42, 1.8),
            (0.9, 2.15),
        ]
    elif style == "bob":
        half = [
            (0, -1.2),
            (0.7, -1.1),
            (1.16, -0.6),
            (1.28, 0.2),
            (1.28, 0.75),
            (0.95, 1.05),
            (0.4, 0.9),
        ]
    elif style == "bun":
        canvas.paint(canvas.outline(oval(head.at(0, -1.3, turned=False), 0.078, 0.07)), person.hair)
        shade = canvas.outline(oval(head.at(0, -1.12, turned=False), 0.08, 0.03), blur=0.012)
        canvas.paint(shade, dark, opacity=0.6)
        return
    elif style == "afro":
        ring = bumpy_oval(head.at(0, -0.38, turned=False), 0.265, 0.262, 34, 0.010)
        mass = canvas.outline(ring)
        canvas.paint(mass, person.hair)
        low = canvas.outline(oval(head.at(0, 0.5, turned=False), 0.24, 0.20), blur=0.05)
        canvas.paint(low, dark, inside=mass)
        return
    elif style == "curly":
        ring = bumpy_oval(head.at(0, -0.28, turned=False), 0.205, 0.245, 20, 0.016)
        canvas.paint(canvas.outline(ring), mix(person.hair, dark, 0.4))
        return
    else:
        return
    canvas.paint(canvas.outline(smooth(head.points(mirrored(half)))), dark)


def _draw_body(canvas: Canvas, person: Person) -> None:
    shade = mix(person.clothes, (0, 0, 0), 0.35)
    neck_skin = mix(person.skin, (90, 30, 20), 0.16)
    half = [(0, 0.665), (0.075, 0.675), (0.14, 0.705), (0.25, 0.745), (0.335, 0.81), (0.385, 0.95)]
    half += [(0.42, 1.3), (0, 1.32)]
    torso = canvas.outline(smooth([(0.5 + x, y) for x, y in mirrored(half)]))
    canvas.paint(torso, person.clothes)
    for side in (-1, 1):
        sleeve = oval((0.5 + side * 0.40, 1.02), 0.10, 0.26)
        canvas.paint(canvas.outline(sleeve, blur=0.03), shade, opacity=0.55, inside=torso)
    wide = person.head_width * (0.58 if person.lashes else 0.68)
    neck = [(wide, 0.50), (wide * 0.98, 0.62), (wide * 1.12, 0.675), (wide * 1.42, 0.703)]
    opening = {"v": 0.87, "shirt": 0.745, "round": 0.755, "high": 0.70}[person.collar]
    if person.collar == "high":
        neck = neck[:2]
    reach = 1.5
    if person.collar == "shirt":  # a wider neck would look out beside the collar
        neck, reach = [*neck[:2], (wide * 0.98, 0.70)], 1.0
    shoulders = canvas.outline(smooth([(0.5 + x, y) for x, y in mirrored([(0, 0.48), *neck])]))
    left, right = (0.5 - wide * reach, 0.704), (0.5 + wide * reach, 0.704)
    cut = (
        [left, (0.5, opening), right] if person.collar == "v" else arc(left, right, opening - 0.704)
    )
    skin = ImageChops.lighter(shoulders, canvas.outline(cut))
    canvas.paint(skin, neck_skin)
    under_chin = canvas.outline(oval((0.5, 0.585), 0.13, 0.065), blur=0.02)
    canvas.paint(under_chin, mix(person.skin, (50, 15, 15), 0.45), opacity=0.8, inside=skin)
    _draw_collar(canvas, person, wide, opening)


def _draw_collar(canvas: Canvas, person: Person, wide: float, opening: float) -> None:
    shade = mix(person.clothes, (0, 0, 0), 0.3)
    if person.collar == "high":
        top = arc((0.5 - wide * 1.06, 0.618), (0.5 + wide * 1.06, 0.618), 0.022)
        bottom = arc((0.5 + wide * 1.54, 0.714), (0.5 - wide * 1.54, 0.714), 0.032)
        band = canvas.outline([*top, *bottom])
        canvas.paint(band, mix(person.clothes, (255, 255, 255), 0.08))
        canvas.stroke(bottom, 0.008, shade, opacity=0.6)
        for side in (-1, 1):
            edge = canvas.outline(oval((0.5 + side * wide * 1.2, 0.66), 0.03, 0.06), blur=0.012)
            canvas.paint(edge, shade, opacity=0.5, inside=band)
    elif person.collar == "shirt":
        for side in (-1, 1):
            flap = [
                (wide * 0.98, 0.628),
                (wide * 1.42, 0.672),
                (wide * 1.22, 0.815),
                (0.0, opening),
            ]
            points = [(0.5 + side * x, y) for x, y in flap]
            under = [(x, y + 0.008) for x, y in points]
            canvas.paint(canvas.outline(under, blur=0.005), (0, 0, 0), opacity=0.35)
            canvas.paint(canvas.outline(points), person.inner)
        canvas.stroke([(0.5, opening), (0.5, 1.4)], 0.006, shade, opacity=0.7)
    else:
        low = opening + 0.003
        if person.collar == "v":
            line = [(0.5 - wide * 1.53, 0.702), (0.5, low), (0.5 + wide * 1.53, 0.702)]
        else:
            line = arc((0.5 - wide * 1.53, 0.702), (0.5 + wide * 1.53, 0.702), low - 0.702)
        inner = [(x, y + 0.016) for x, y in reversed(line)]
        canvas.paint(canvas.outline([*line, *inner]), shade, opacity=0.75)


def _draw_head(canvas: Canvas, person: Person) -> None:
    head, skin = _Head(person), person.skin
    shadow = mix(skin, (110, 40, 30), 0.35)
    for side in (-1, 1):
        ear = canvas.outline(oval(head.at(side * 1.0, 0.08, turned=False), 0.026, 0.047))
        canvas.paint(ear, mix(skin, (150, 60, 40), 0.12))
        inner = canvas.outline(oval(head.at(side * 1.02, 0.08, turned=False), 0.012, 0.028))
        canvas.paint(inner, shadow, opacity=0.5)
    face = canvas.outline(head.ring())
    canvas.paint(face, skin)
    dark_side = -1 if person.turn > 0 else 1
    edge = ImageChops.invert(
        canvas.outline(oval(head.at(-dark_side * 0.2, -0.1), 0.15, 0.20), blur=0.035)
    )
    canvas.paint(edge, shadow, opacity=0.42, inside=face)
    glow = canvas.outline(oval(head.at(-dark_side * 0.25, -0.45), 0.07, 0.05), blur=0.03)
    canvas.paint(glow, (255, 250, 240), opacity=0.22, inside=face)
    for side in (-1, 1):
        cheek = canvas.outline(oval(head.at(side * 0.52, 0.32), 0.034, 0.026), blur=0.016)
        canvas.paint(cheek, mix(skin, (220, 80, 80), 0.5), opacity=0.40, inside=face)
    if person.beard:
        half = [(0, 0.40), (0.25, 0.41), (0.42, 0.62), (0.70, 0.42), (0.96, 0.02), (1.02, 0.1)]
        half += [(0.96, 0.5), (0.70, 0.90), (0.35, 1.08), (0, 1.11)]
        beard = canvas.outline(smooth(head.points(mirrored(half))), blur=0.003)
        canvas.paint(beard, person.hair, opacity=0.93)


def _draw_features(canvas: Canvas, person: Person) -> None:
    head = _Head(person)
    for side in (-1, 1):
        _draw_eye(canvas, head, side)
    shade = mix(person.skin, (110, 40, 30), 0.5)
    lit = -1 if person.turn > 0 else 1
    ridge = [head.at(-lit * 0.07, -0.02), head.at(-lit * 0.09, 0.16), head.at(-lit * 0.13, 0.28)]
    canvas.stroke(curve(ridge), 0.006, shade, opacity=0.35)
    tip = arc(head.at(-0.15, 0.315), head.at(0.15, 0.315), 0.016)
    canvas.stroke(tip, 0.008, shade, opacity=0.75)
    shine = canvas.outline(oval(head.at(lit * 0.02, 0.22), 0.008, 0.016), blur=0.006)
    canvas.paint(shine, (255, 250, 245), opacity=0.05 + 0.30 * person.skin[1] / 255)
    _draw_mouth(canvas, head)


def _draw_eye(canvas: Canvas, head: _Head, side: int) -> None:
    person = head.person
    x, y = head.at(side * 0.42, -0.03)
    across, high = 0.037, 0.0135
    socket = canvas.outline(oval((x, y - 0.012), 0.046, 0.024), blur=0.010)
    canvas.paint(socket, mix(person.skin, (90, 40, 40), 0.4), opacity=0.35)
    upper = arc((x - across, y + 0.003), (x + across, y + 0.003), -1.55 * high)
    lower = arc((x + across, y + 0.003), (x - across, y + 0.003), 0.85 * high)
    white = canvas.outline([*upper, *lower])
    canvas.paint(white, (250, 247, 243))
    look = x + 0.004 * person.turn
    canvas.paint(canvas.outline(oval((look, y - 0.003), 0.0165, 0.0175)), person.iris, inside=white)
    canvas.paint(canvas.outline(oval((look, y - 0.003), 0.0085, 0.009)), (18, 14, 14), inside=white)
    lid_shade = canvas.outline([(px, py + 0.006) for px, py in upper] + upper[::-1], blur=0.002)
    canvas.paint(lid_shade, (60, 40, 40), opacity=0.35, inside=white)
    canvas.paint(canvas.outline(oval((look + 0.006, y - 0.009), 0.0042, 0.0042)), (255, 255, 255))
    lid = mix(person.hair, (20, 12, 12), 0.7)
    canvas.stroke(upper, 0.0105 if person.lashes else 0.0075, lid)
    canvas.stroke(lower, 0.003, lid, opacity=0.4)
    if person.lashes:
        corner = (x + side * across, y + 0.001)
        canvas.stroke(curve([corner, (x + side * (across + 0.009), y - 0.008)]), 0.006, lid)
    crease = [(px, py - 0.010) for px, py in upper[4:-4]]
    canvas.stroke(crease, 0.003, mix(person.skin, (80, 30, 30), 0.6), opacity=0.6)
    inner, peak, outer = (0.18, -0.245), (0.46, -0.325), (0.70, -0.235)
    brow = curve([head.at(side * a, d) for a, d in (inner, peak, outer)])
    canvas.stroke(brow, 0.013 * person.brow, mix(person.hair, person.skin, 0.12), opacity=0.92)


def _draw_mouth(canvas: Canvas, head: _Head) -> None:
    person = head.person
    left, right = head.at(-0.36, 0.565), head.at(0.36, 0.565)
    centre = (left[0] + right[0]) / 2
    bow = 0.003 + 0.013 * person.smile
    line = arc(left, right, bow)
    lip = mix(person.skin, (190, 40, 60), 0.30 + 0.28 * person.lips)
    thick = 0.010 + 0.008 * person.lips
    upper = curve(
        [
            left,
            (centre - 0.020, left[1] - thick * 0.75 + bow * 0.3),
            (centre, left[1] - thick * 0.45 + bow * 0.4),
            (centre + 0.020, left[1] - thick * 0.75 + bow * 0.3),
            right,
        ]
    )
    canvas.paint(canvas.outline([*upper, *line[::-1]]), mix(lip, (0, 0, 0), 0.12))
    lower = arc(left, right, bow + thick * 1.15)
    shape = canvas.outline([*line, *lower[::-1]])
    canvas.paint(shape, lip)
    shine = canvas.outline(oval((centre, left[1] + bow + thick * 0.5), 0.018, 0.003), blur=0.003)
    canvas.paint(shine, (255, 240, 235), opacity=0.35, inside=shape)
    canvas.stroke(line, 0.006, mix(lip, (40, 0, 10), 0.65))
    low = left[1] + bow + thick * 1.15 + 0.012
    under = arc((centre - 0.022, low), (centre + 0.022, low), 0.006)
    if not person.beard:
        canvas.stroke(under, 0.005, mix(person.skin, (110, 40, 30), 0.5), opacity=0.4)


def _draw_front_hair(canvas: Canvas, person: Person) -> None:
    head, style = _Head(person), person.hair_style
    if style == "bald":
        return
    part = 1 if person.turn > 0 else -1
    shapes: list[list[Point]] = []
    crown = [(-1.06, -0.10), (-1.12, -0.50), (-0.82, -1.02), (0, -1.22), (0.82, -1.02)]
    crown += [(1.12, -0.50), (1.06, -0.10)]
    if style in ("long", "bob", "bun"):
        low = {"long": 1.15, "bob": 0.78, "bun": 0.0}[style]
        for side in (-1, 1):
            top = (part * 0.25, -1.18)
            lock = [top, (side * 0.75, -1.06), (side * 1.12, -0.55)]
            if low:
                lock += [(side * 1.2, 0.2), (side * 1.22, low), (side * 1.02, low + 0.12)]
                lock += [(side * 0.98, 0.45), (side * 0.93, 0.0)]
            else:
                lock += [(side * 1.06, -0.05), (side * 0.97, 0.02)]
            lock += [(side * 0.86, -0.38), (side * 0.55 + part * 0.1, -0.66), (part * 0.25, -0.86)]
            shapes.append(smooth(head.points(lock)))
    elif style == "side":
        line = [(0.97, -0.06), (0.86, -0.42), (0.50, -0.62), (0.0, -0.72), (-0.45, -0.80)]
        line += [(-0.78, -0.60), (-0.90, -0.36), (-0.97, -0.06)]
        top = [(-1.06, -0.1), (-1.1, -0.5), (-0.86, -1.02), (-0.2, -1.27), (0.6, -1.22)]
        top += [(1.08, -0.78), (1.12, -0.42), (1.06, -0.1)]
        shapes.append(smooth(head.points([(part * a, d) for a, d in [*top, *line]])))
    elif style in ("curly", "afro"):
        line = [(0.98, -0.05), (0.88, -0.42), (0.55, -0.68), (0, -0.74), (-0.55, -0.68)]
        line += [(-0.88, -0.42), (-0.98, -0.05)]
        shapes.append(smooth(head.points([*crown, *line])))
    else:
        line = [(0.96, 0.0), (0.90, -0.36), (0.74, -0.60), (0.30, -0.70), (-0.30, -0.70)]
        line += [(-0.74, -0.60), (-0.90, -0.36), (-0.96, 0.0)]
        shapes.append(smooth(head.points([*crown, *line])))
    for shape in shapes:
        _paint_hair(canvas, head, canvas.outline(shape))
    if style == "curly":
        rng = np.random.default_rng(7)
        for angle in np.linspace(np.pi * 1.04, np.pi * 1.96, 15):
            place = head.at(1.02 * np.cos(angle), -0.22 + 0.86 * np.sin(angle), turned=False)
            size = 0.036 + 0.010 * rng.random()
            tint = mix(person.hair, (255, 255, 255) if rng.random() < 0.5 else (0, 0, 0), 0.035)
            canvas.paint(canvas.outline(oval(place, size, size)), tint)


def _paint_hair(canvas: Canvas, head: _Head, mask: Image.Image) -> None:
    person = head.person
    below = ImageChops.offset(mask, 0, round(0.012 * canvas.unit)).filter(
        ImageFilter.GaussianBlur(0.008 * canvas.unit)
    )
    face = canvas.outline(head.ring())
    canvas.paint(below, mix(person.skin, (60, 20, 15), 0.5), opacity=0.45, inside=face)
    canvas.paint(mask, person.hair)
    if person.hair_style in ("afro", "curly"):
        return
    shine = canvas.outline(
        oval(head.at(-0.35 * np.sign(person.turn), -0.92), 0.085, 0.030), blur=0.020
    )
    canvas.paint(shine, mix(person.hair, (255, 240, 220), 0.45), opacity=0.55, inside=mask)


def _draw_extras(canvas: Canvas, person: Person) -> None:
    head = _Head(person)
    if person.glasses:
        frame = (42, 36, 38)
        for side in (-1, 1):
            x, y = head.at(side * 0.43, 0.0)
            outer = canvas.outline(rounded_box((x, y), 0.056, 0.044))
            inner = canvas.outline(rounded_box((x, y), 0.050, 0.038))
            canvas.paint(inner, (255, 255, 255), opacity=0.10)
            canvas.paint(ImageChops.subtract(outer, inner), frame)
            hinge, ear = (x + side * 0.054, y - 0.012), head.at(side * 1.0, -0.04, turned=False)
            canvas.stroke(curve([hinge, ear]), 0.008, frame)
        nose = arc(head.at(-0.10, -0.02), head.at(0.10, -0.02), -0.012)
        canvas.stroke(nose, 0.009, frame)
    if person.earrings:
        for side in (-1, 1):
            drop = canvas.outline(oval(head.at(side * 1.05, 0.36, turned=False), 0.011, 0.013))
            canvas.paint(drop, (222, 184, 96))
