"""Which ControlNet reads the maps of a control name; no network is loaded to know."""

from __future__ import annotations

from collections.abc import Collection

from musev.control.control_names import CONTROLS


def controlnet_for(name: str, held: Collection[str]) -> str | None:
    """Find the ControlNet of a control name.

    Args:
        name: A name of the table of maps, or a ControlNet's own.
        held: ControlNets that there are.

    Returns:
        The ControlNet of that very name, else the one that the table pairs with it; None if neither
        is held.
    """
    if name in held:
        return name
    paired = CONTROLS[name].controlnet if name in CONTROLS else None
    return paired if paired in held else None
