"""Give the prompts of a manifest poses to follow: what a person does, made before the pictures.

    python -m jobs.text_to_pose --manifest prompts.parquet --output out/poses
    python -m jobs.text_to_video --manifest out/poses/manifest.parquet --output out/videos

A small network makes the joints of a moving body from the words; the new manifest names them in
``keypoints``, and the videos follow them through the pose ControlNet. Rows that bring a video,
keypoints, a control or a condition image of their own stay as they are, and so do those whose
prompt names no action that the network has learnt.

``jobs.text_to_video --text-to-pose`` does both at once; this job is for other networks, and for
poses that are to be looked at, or changed, before anything is rendered.
"""

from __future__ import annotations

import shlex
import sys
import time
from typing import Annotated

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ROWS_FAILED,
    WORKERS,
    ManifestOption,
    ProfileOption,
    SetOption,
    errors_as_status,
    load_settings,
    run_app,
)
from jobs._console import INTERRUPTED, Teller, disconnect, terminate_as_interrupt
from jobs._poses import give_poses, make
from musev.text_to_pose_config import GUIDANCE, NUM_STEPS
from pipelines.manifest import (
    folder_of,
    read_manifest,
    resolve_rows,
    split_writable,
    write_manifest,
)
from pipelines.resources import parse_workers
from pipelines.storage import Store
from pipelines.text_to_pose import SHIPPED, PoseSettings, posed_rows, read_pose_settings

MANIFEST = "manifest.parquet"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def text_to_pose(
    manifest: ManifestOption,
    output: Annotated[
        str, typer.Option("--output", help="Folder or URL for poses and the new manifest.")
    ],
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
    weights: Annotated[
        str,
        typer.Option("--weights", help="The network: a folder or URL, or package:NAME."),
    ] = SHIPPED,
    num_steps: Annotated[
        int, typer.Option("--steps", min=1, max=1000, help="Steps of its diffusion.")
    ] = NUM_STEPS,
    guidance: Annotated[
        float, typer.Option("--guidance", min=0.0, help="How much more than the prompt says.")
    ] = GUIDANCE,
    workers: Annotated[
        str | None, typer.Option("--workers", metavar=WORKERS, help="Default: one a CPU.")
    ] = None,
) -> None:
    """Give the prompts of a manifest poses to follow."""
    with errors_as_status():
        settings = read_pose_settings(weights, num_steps=num_steps, guidance=guidance)
        status = _run(manifest, output, profile, tuple(changes or ()), settings, workers)
    raise typer.Exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 done, 3 some rows are bad or got no poses for an error, 2 wrong command, 130
        interrupted, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.text_to_pose")


def _run(
    manifest: str,
    output: str,
    profile_name: str,
    changes: tuple[str, ...],
    settings: PoseSettings,
    workers: str | None,
) -> int:
    started, teller = time.monotonic(), Teller(sys.stderr)
    asked, chosen = parse_workers(workers), load_settings(profile_name, changes)
    raw = read_manifest(manifest)
    writable, unwritable = split_writable(raw.rows)
    requests, failures = resolve_rows(
        writable, chosen.profile, raw.base_uri, find_profile=chosen.find_profile
    )
    for problem in unwritable:
        teller.say(f"left out of the new manifest: {problem}")
    for failure in failures:
        teller.say(failure.message)
    poses = give_poses(
        writable, requests, settings, Store(output), chosen=chosen, base_uri=raw.base_uri
    )
    try:
        with terminate_as_interrupt():
            failed = make(poses, asked, teller)
    except KeyboardInterrupt:
        teller.say("interrupted; poses that are there stay, run the same command again to go on")
        return INTERRUPTED
    finally:
        disconnect()
    target = poses.store.uri_of(MANIFEST)
    bases = {"old_base": raw.base_uri, "new_base": folder_of(target)}
    rows = posed_rows(writable, poses.plan, failed, store=poses.store, **bases)
    write_manifest(rows, target)
    for line in poses.lines(len(raw.rows), failed):
        typer.echo(line)
    typer.echo(f"in             {time.monotonic() - started:.0f} s")
    typer.echo(f"manifest       {target}")
    told = ["musev", "text-to-video", "--manifest", target, "--profile", profile_name]
    told += [word for change in changes for word in ("--set", change)]
    typer.echo(f"next           {shlex.join(told)} --output OUT")
    return ROWS_FAILED if failed or failures or unwritable else OK


if __name__ == "__main__":
    sys.exit(main())
