"""Solvers by name, from our settings or from the original's class names and option names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from musev.config import SamplingConfig, ScheduleConfig, SolverName
from musev.denoise.ddim import (
    DdimOptions,
    DdpmOptions,
    make_ddim,
    make_ddpm,
    make_zero_snr_ddim,
)
from musev.denoise.dpm import DpmOptions, make_dpm
from musev.denoise.euler import (
    EulerAncestralOptions,
    EulerOptions,
    make_euler,
    make_euler_ancestral,
)
from musev.denoise.lcm import LcmOptions, make_lcm
from musev.denoise.solver_base import Solver, SolverState
from musev.errors import ConfigError

__all__ = ["Solver", "SolverState", "make_solver", "make_upstream_solver"]

_SOLVERS: Mapping[SolverName, tuple[type[Any], Callable[..., Solver]]] = MappingProxyType(
    {
        "euler": (EulerOptions, make_euler),
        "euler_ancestral": (EulerAncestralOptions, make_euler_ancestral),
        "ddim": (DdimOptions, make_ddim),
        "ddim_zero_snr": (DdimOptions, make_zero_snr_ddim),
        "ddpm": (DdpmOptions, make_ddpm),
        "lcm": (LcmOptions, make_lcm),
        "dpmpp": (DpmOptions, make_dpm),
    }
)

_LINEAR = MappingProxyType({"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"})
_SCALED = MappingProxyType(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
_CLIPPED = MappingProxyType({"clip_sample": True, "steps_offset": 0})
# Defaults of the original's classes where they differ from ours, by its constructor arguments.
_UPSTREAM: Mapping[str, tuple[SolverName, Mapping[str, Any]]] = MappingProxyType(
    {
        "EulerDiscreteScheduler": (
            "euler",
            {**_LINEAR, "timestep_spacing": "linspace", "steps_offset": 0},
        ),
        "EulerAncestralDiscreteScheduler": ("euler_ancestral", _LINEAR),
        "DDIMScheduler": ("ddim", {**_LINEAR, **_CLIPPED, "set_alpha_to_one": True}),
        "DDPMScheduler": ("ddpm", {**_LINEAR, **_CLIPPED}),
        "LCMScheduler": ("lcm", _SCALED),
        "DPMSolverMultistepScheduler": ("dpmpp", {**_LINEAR, "use_karras_sigmas": True}),
    }
)


def make_solver(
    sampling: SamplingConfig, schedule: ScheduleConfig, **upstream_options: Any
) -> Solver:
    """Build the solver a clip is sampled with.

    Args:
        sampling: Its solver, number of steps and, for DDIM, ``eta``.
        schedule: The diffusion the network was trained on.
        **upstream_options: The solver's own options by the original's names, for example
            ``s_churn`` or ``use_karras_sigmas``.

    Returns:
        A frozen solver.

    Raises:
        ConfigError: If an option does not exist, or the model cannot be sampled so.
    """
    options_type, build = _SOLVERS[sampling.solver]
    known = [item.name for item in dataclasses.fields(options_type)]
    unknown = [name for name in upstream_options if name not in known]
    if unknown:
        raise ConfigError(
            f"solver {sampling.solver} has no option {', '.join(unknown)}; "
            f"options: {', '.join(known) or 'none'}"
        )
    if options_type is DdimOptions:
        upstream_options = {"eta": sampling.eta, **upstream_options}
    return build(schedule, sampling.num_steps, options_type(**upstream_options))


def make_upstream_solver(
    class_name: str, init: Mapping[str, Any], *, num_steps: int, **step_options: Any
) -> Solver:
    """Build the solver that equals one of the original's scheduler classes.

    Args:
        class_name: For example ``EulerDiscreteScheduler``.
        init: Its constructor arguments or a ``scheduler_config.json``; the class's own defaults
            fill the gaps, and what the class does not know is ignored, as the original does.
        num_steps: Number of steps.
        **step_options: Arguments the original hands to every step, for example ``eta``.

    Returns:
        A frozen solver.

    Raises:
        ConfigError: If the class is not one of those, or a step option does not exist.
    """
    if class_name not in _UPSTREAM:
        raise ConfigError(f"no solver equals {class_name!r}; known classes: {', '.join(_UPSTREAM)}")
    solver, defaults = _UPSTREAM[class_name]
    arguments = {**defaults, **init}
    trained = {item.name for item in dataclasses.fields(ScheduleConfig)}
    own = {item.name for item in dataclasses.fields(_SOLVERS[solver][0])}
    schedule = ScheduleConfig(**{key: arguments[key] for key in arguments if key in trained})
    options = {key: arguments[key] for key in arguments if key in own and key not in trained}
    return make_solver(
        SamplingConfig(solver=solver, num_steps=num_steps), schedule, **options, **step_options
    )
