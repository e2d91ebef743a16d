"""The flags of a job's command line."""

from __future__ import annotations

import typer
import typer.main


def flags_of(app: typer.Typer) -> set[str]:
    """Every name of every option, and of arguments their own."""
    return {flag for option in typer.main.get_command(app).params for flag in option.opts}
