"""A request's wavefront without any network: what drives windows needs to know of a clip.

Axes here: B clip, C channel, T frame, H W latent rows and columns.

Latents live on the CPU in float32 and the solver steps them there, in one process as on a cluster:
so a clip's bits do not depend on where its windows were computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.config import ClipRequest, SamplingConfig, ScheduleConfig
from musev.denoise.late_start import start_late
from musev.denoise.noise import mix_condition
from musev.denoise.snapshots import Snapshot
from musev.denoise.solvers import Solver, make_solver
from musev.denoise.sources import CounterSource, NoiseSource, make_noise_source
from musev.denoise.wavefront import Wavefront, frames_of
from musev.errors import RequestError

LATENT_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What has to be known of a clip's networks and conditions to drive its windows; picklable."""

    schedule: ScheduleConfig
    latent_height: int
    latent_width: int
    given_BCTHW: Tensor | None
    """Clean latents of the conditioning frames, float32 on the CPU; None without any."""
    first_frame_drawn: bool = False
    source_BCTHW: Tensor | None = None
    """Clean latents that the generated frames start from; None: they start from noise."""
    noise_state: Tensor | None = None
    """See :class:`~musev.window_denoiser.ClipConditions`."""
    wire_dtype: torch.dtype = torch.float32
    """Precision of the networks, in which noisy latents may be sent: they are rounded to it anyway,
    after the solver has scaled them and before the network sees them."""

    @property
    def num_given(self) -> int:
        """Conditioning frames: they stand in front and are not denoised."""
        return 0 if self.given_BCTHW is None else self.given_BCTHW.shape[2]


def count_generated(request: ClipRequest, facts: ClipFacts) -> int:
    """Count the frames that have to be denoised.

    Args:
        request: Gives the length of the video.
        facts: Tell how many frames are given.

    Returns:
        At least 1; 0 only for a picture that was drawn from the text and is all that is wanted.

    Raises:
        RequestError: If a given picture leaves nothing to generate.
    """
    left = request.num_frames - facts.num_given
    if left > 0 or (facts.first_frame_drawn and left == 0):
        return left
    raise RequestError(
        f"request {request.request_id!r}: num_frames is {request.num_frames}, but the condition "
        f"image is frame 0 already. Ask for {facts.num_given + 1} frames or more."
    )


def open_front(
    request: ClipRequest,
    facts: ClipFacts,
    *,
    snapshot: Snapshot | None = None,
    ahead: int | None = None,
) -> Wavefront:
    """Begin a request's wavefront, or go on from a snapshot of it.

    Args:
        request: Sizes, seed and sampling.
        facts: Of its networks and conditions.
        snapshot: Taken from the wavefront of an equal request.
        ahead: How far beyond the first unfinished frame windows are begun; see
            :class:`~musev.denoise.tasks.TaskGraph`.

    Returns:
        The wavefront; its frame 0 is the first frame that is generated.

    Raises:
        RequestError: If no frame is left to generate.
    """
    num_frames = count_generated(request, facts)
    sampling = request.sampling
    solver = solver_of(sampling, facts.schedule, late=facts.source_BCTHW is not None)
    source = make_noise_source(
        sampling, request.seed, first_frame=facts.num_given, state=facts.noise_state
    )
    size = (facts.latent_height, facts.latent_width)

    def draw(frames: Sequence[int] | None) -> Tensor:
        count = num_frames if frames is None else len(frames)
        shape_BCTHW = (1, LATENT_CHANNELS, count, *size)
        return start_latents(
            source,
            shape_BCTHW,
            facts.given_BCTHW,
            solver,
            sampling,
            frames=frames,
            source_BCTHW=facts.source_BCTHW,
        )

    # The original's generators draw whole clips; frames of ours stand for themselves.
    start = draw if isinstance(source, CounterSource) else frames_of(draw(None))
    return Wavefront(
        start,
        num_frames=num_frames,
        solver=solver,
        sampling=sampling,
        noise=source,
        snapshot=snapshot,
        ahead=ahead,
    )


def solver_of(sampling: SamplingConfig, schedule: ScheduleConfig, *, late: bool) -> Solver:
    """Make the solver of a clip.

    Args:
        sampling: Its solver, steps and strength.
        schedule: The networks' diffusion.
        late: Whether the clip starts from something and not from pure noise.

    Returns:
        All steps, or as many of the last as the strength says.
    """
    solver = make_solver(sampling, schedule)
    return start_late(solver, sampling.strength) if late and sampling.strength_counts else solver


def start_latents(
    source: NoiseSource,
    shape_BCTHW: tuple[int, ...],
    given_BCTHW: Tensor | None,
    solver: Solver,
    sampling: SamplingConfig,
    *,
    frames: Sequence[int] | None = None,
    source_BCTHW: Tensor | None = None,
) -> Tensor:
    """Draw the noise frames start from, leaning a little towards the conditioning frames.

    Frames that start from a video are that video's, with noise added.

    Args:
        source: Draws the noise.
        shape_BCTHW: Of the frames wanted.
        given_BCTHW: Latents of the conditioning frames, or None.
        solver: Gives the initial scale.
        sampling: Gives ``img_weight``.
        frames: Which frames, where not 0 to T.
        source_BCTHW: Clean latents that the frames start from, of the whole clip; None for none.

    Returns:
        ``latents_BCTHW``: float32 on the CPU.

    Source:
        Upstream's ``need_img_based_video_noise`` (ALGORITHM.md 7.5).
    """
    noise_BCTHW = source.initial(shape_BCTHW, frames)
    if source_BCTHW is not None:
        clean_BCTHW = source_BCTHW if frames is None else source_BCTHW[:, :, list(frames)]
        return solver.add_noise(clean_BCTHW, noise_BCTHW, 0)
    if given_BCTHW is not None:
        noise_BCTHW = mix_condition(noise_BCTHW, given_BCTHW.cpu(), sampling.img_weight)
    return noise_BCTHW * solver.initial_scale
