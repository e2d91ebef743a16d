"""Check a profile's weights before a run, or write them as one folder that loads by itself.

    python -m jobs.prepare_weights --profile musev
    python -m jobs.prepare_weights --set weights.bundle=out/mine --output out/small --half

Loading checks every key of every file. The folder written takes ``--set weights.bundle=FOLDER``.
``--vae`` is for a decoder that was trained further: its encoder has to be the one that the other
networks were trained with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ProfileOption,
    SetOption,
    errors_as_status,
    load_settings,
    run_app,
)
from musev.errors import WeightsError
from musev.licences import UNKNOWN, licences_when_joined

if TYPE_CHECKING:
    from musev.models.bundle import ModelBundle

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def prepare_weights(
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="New folder to write the networks to.")
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option("--vae", help="Put this VAE in: a folder, or an export of jobs.train."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Write float16: half the size, VAE included.")
    ] = False,
) -> None:
    """Check a profile's weights before a run, or write them as one folder that loads by itself."""
    with errors_as_status():
        settings = load_settings(profile, changes or ())
        from musev.models.bundle import load_bundle, save_bundle
        from musev.training.starts import load_vae
        from musev.weight_parts import digest_weights

        weights = settings.profile.weights
        bundle = load_bundle(weights)
        if vae is not None:
            bundle = dataclasses.replace(bundle, vae=load_vae(vae))
        check_finite(bundle, half=half)
        for line in describe(bundle, digest_weights(weights)):
            typer.echo(line)
        if output is not None:
            for net in bundle.networks.values() if half else ():
                net.half()
            # A VAE that is put in by hand has a licence of its own, which nobody has told.
            licences = licences_when_joined(weights) | ({"vae": UNKNOWN} if vae else {})
            save_bundle(bundle, output, licences=licences)
            typer.echo(f"written to {output}: {_megabytes(_size_of(output))}")
    raise typer.Exit(OK)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 the weights are good, 2 wrong command, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.prepare_weights")


def check_finite(bundle: ModelBundle, *, half: bool) -> None:
    """Refuse weights that are no numbers, or would be none in half precision.

    Args:
        bundle: Loaded networks.
        half: Whether they are to fit float16.

    Raises:
        WeightsError: Names the tensors.
    """
    import torch

    dtype = torch.float16 if half else torch.float32
    bad = [
        f"{part}.{name}"
        for part, net in bundle.networks.items()
        for name, value in net.state_dict().items()
        if value.is_floating_point() and not value.to(dtype).isfinite().all()
    ]
    if bad:
        remedy = "leave --half away, or train again" if half else "train or download them again"
        raise WeightsError(
            f"{len(bad)} tensors hold values that are not finite in {dtype}: "
            f"{', '.join(bad[:5])}; {remedy}"
        )


def describe(bundle: ModelBundle, digests: dict[str, str]) -> list[str]:
    """Say what was loaded, one line a part.

    Args:
        bundle: Loaded networks.
        digests: Of the files by part.

    Returns:
        Lines of part, parameters and digest; the total last.
    """
    counts = {
        part: sum(p.numel() for p in net.parameters()) for part, net in bundle.networks.items()
    }
    lines = [
        f"{part:22} {count:>13,} parameters  {digests.get(part, '')[:19]}"
        for part, count in counts.items()
    ]
    return [*lines, f"{'all':22} {sum(counts.values()):>13,} parameters"]


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    raise SystemExit(main())
