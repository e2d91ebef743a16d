"""Solvers against the original's recorded steps, and what every solver has to keep."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.config import SamplingConfig, ScheduleConfig
from musev.denoise.noise import UpstreamNoise, mix_condition, mix_noise
from musev.denoise.solvers import Solver, SolverState, make_solver, make_upstream_solver
from musev.errors import ConfigError
from tests.goldens import GOLDENS, have_goldens, model_case, model_cases, pipeline_case

# Largest difference over the largest value of the recorded tensor, along a whole run. The original
# computes its coefficients in float32, we in float64 from the same tables; the worst case is 6e-7.
STEP_TOLERANCE = 2e-6

SD15 = ScheduleConfig()
ZERO_SNR = ScheduleConfig(
    beta_schedule="linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    set_alpha_to_one=True,
)
EVERY_SOLVER: dict[str, tuple[SamplingConfig, ScheduleConfig, dict[str, Any]]] = {
    "euler": (SamplingConfig(solver="euler", num_steps=6), SD15, {}),
    "euler churn": (SamplingConfig(solver="euler", num_steps=6), SD15, {"s_churn": 2.0}),
    "euler karras": (SamplingConfig(num_steps=6), SD15, {"use_karras_sigmas": True}),
    "euler log": (SamplingConfig(num_steps=6), SD15, {"interpolation_type": "log_linear"}),
    "euler_ancestral": (SamplingConfig(solver="euler_ancestral", num_steps=6), SD15, {}),
    "ddim": (SamplingConfig(solver="ddim", num_steps=6), SD15, {}),
    "ddim eta": (SamplingConfig(solver="ddim", num_steps=6, eta=0.7), SD15, {}),
    "ddim zero snr": (SamplingConfig(solver="ddim", num_steps=6, eta=0.5), ZERO_SNR, {}),
    "ddim zero snr by name": (SamplingConfig(solver="ddim_zero_snr", num_steps=6), SD15, {}),
    "ddpm": (SamplingConfig(solver="ddpm", num_steps=6), SD15, {}),
    "ddpm large": (
        SamplingConfig(solver="ddpm", num_steps=6),
        SD15,
        {"variance_type": "fixed_large"},
    ),
    "lcm": (SamplingConfig(solver="lcm", num_steps=6), SD15, {}),
    "dpmpp": (SamplingConfig(solver="dpmpp", num_steps=6), SD15, {}),
    "dpmpp 3": (
        SamplingConfig(solver="dpmpp", num_steps=6),
        SD15,
        {"solver_order": 3, "solver_type": "heun"},
    ),
    "dpm noise form": (
        SamplingConfig(solver="dpmpp", num_steps=6),
        SD15,
        {"algorithm_type": "dpmsolver"},
    ),
}
solvers = pytest.mark.parametrize("name", EVERY_SOLVER)


def build(name: str) -> Solver:
    sampling, schedule, options = EVERY_SOLVER[name]
    return make_solver(sampling, schedule, **options)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


# The original's recorded steps


@pytest.mark.parity
@pytest.mark.parametrize("num_steps", [4, 10, 30])
def test_zero_snr_by_name_is_the_pipelines_over_any_diffusion(num_steps: int) -> None:
    if not have_goldens():
        pytest.skip("no goldens")
    folder = GOLDENS / "pipeline" / "components" / "scheduler_zero_snr"
    init = json.loads((folder / "scheduler_config.json").read_text())
    recorded = make_upstream_solver("DDIMScheduler", init, num_steps=num_steps)
    named = make_solver(SamplingConfig(solver="ddim_zero_snr", num_steps=num_steps), SD15)
    assert named == recorded
    assert named.timesteps[0] == 999


def golden_solver(call: dict[str, Any]) -> Solver:
    step = {k: v for k, v in call.get("step", {}).items() if k not in ("noise_type", "w_ind_noise")}
    return make_upstream_solver(
        call["class"], call["init"], num_steps=call["num_inference_steps"], **step
    )


def recorded_noise(io: dict[str, Any], call: dict[str, Any], index: int) -> torch.Tensor | None:
    draws = [io[key] for key in (f"out.draw_{index}_0", f"out.draw_{index}_1") if key in io]
    if len(draws) == 2:
        return mix_noise(draws[0], draws[1], call["step"].get("w_ind_noise", 0.5))
    return draws[0] if draws else None


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("scheduler"))
def test_steps_equal_the_original(name: str) -> None:
    case, _, io = model_case(name)
    call = case["call"]
    solver = golden_solver(call)
    start = call.get("start_step", 0)
    # Euler's Karras timesteps come from float32 logarithms: equal to one unit in the last place.
    slack = 5e-5 if call["init"].get("use_karras_sigmas") else 0.0
    expected = io["out.timesteps"].double()
    torch.testing.assert_close(
        torch.tensor(solver.timesteps, dtype=torch.float64), expected, rtol=0, atol=slack
    )
    if "out.sigmas" in io:
        torch.testing.assert_close(
            torch.tensor(solver.sigmas), io["out.sigmas"].float(), rtol=3e-7, atol=0
        )
    assert solver.initial_scale == pytest.approx(float(io["out.init_noise_sigma"]), rel=2e-7)
    scale = solver.initial_scale if call.get("scale_init") else 1.0
    assert error(io["in.sample"] * scale, io["out.x_init"]) <= STEP_TOLERANCE
    state = SolverState(io["out.x_init"])
    for index in range(solver.num_steps - start):
        step = start + index
        noise = recorded_noise(io, call, index)
        assert (noise is not None) == solver.upstream_draws(step)
        assert noise is not None or not solver.needs_noise(step)
        scaled = solver.scale_input(state.latents, step)
        assert error(scaled, io[f"out.scaled_{index}"]) <= STEP_TOLERANCE, step
        state = solver.advance(state, io[f"out.model_output_{index}"], step, noise)
        expected = io[f"out.prev_sample_{index}"]
        assert error(state.latents, expected) <= STEP_TOLERANCE, step


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("scheduler"))
def test_generator_gives_the_recorded_draws(name: str) -> None:
    case, _, io = model_case(name)
    call = case["call"]
    solver = golden_solver(call)
    fusion = call["step"].get("noise_type", "random") == "video_fusion"
    source = UpstreamNoise(
        torch.Generator().manual_seed(call["seed"]),
        kind="upstream_video_fusion" if fusion else "upstream_random",
        w_ind_noise=call["step"].get("w_ind_noise", 0.5),
    )
    shape = tuple(io["in.sample"].shape)
    start = call.get("start_step", 0)
    for index in range(solver.num_steps - start):
        expected = recorded_noise(io, call, index)
        assert (expected is not None) == solver.upstream_draws(start + index)
        if expected is not None:
            assert torch.equal(source.draw(shape), expected)


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("scheduler_add_noise"))
def test_add_noise_equals_the_original(name: str) -> None:
    case, _, io = model_case(name)
    call = case["call"]
    solver = golden_solver(call)
    step = call["index"]
    assert (io["out.t"] == solver.timesteps[step]).all()
    assert error(solver.add_noise(io["in.sample"], io["in.noise"], step), io["out.out"]) <= 2e-7


PIPELINE_CLASSES = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddim_zero_snr": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "lcm": "LCMScheduler",
    "lcm_from_euler": "LCMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
}
OUR_NAMES = {"euler_a": "euler_ancestral", "lcm_from_euler": "lcm", "dpm": "dpmpp"}


def pipeline_cases(*, finished: bool = False) -> list[Any]:
    if not have_goldens():
        return [pytest.param("missing", marks=pytest.mark.parity)]
    files = sorted((GOLDENS / "pipeline" / "cases").glob("*.json"))
    cases = [(file.stem, json.loads(file.read_text())) for file in files]
    return [
        name
        for name, case in cases
        if case["level"] == "pipeline" and not (finished and "error" in case["result"])
    ]


def case_solver(case: dict[str, Any]) -> tuple[Solver, Solver]:
    """The solver by the original's class and config, and the one production would build."""
    kind, call = case["scheduler"], case["call"]
    folder = "scheduler_zero_snr" if kind == "ddim_zero_snr" else "scheduler"
    file = GOLDENS / "pipeline" / "components" / folder / "scheduler_config.json"
    overrides = case.get("scheduler_overrides") or {}
    steps = call["num_inference_steps"]
    eta = {"eta": call["eta"]} if call.get("eta") else {}
    upstream = make_upstream_solver(
        PIPELINE_CLASSES[kind],
        {**json.loads(file.read_text()), **overrides},
        num_steps=steps,
        **eta,
    )
    options = {"use_karras_sigmas": True, **overrides} if kind == "dpm" else {}
    production = make_solver(
        SamplingConfig(
            solver=OUR_NAMES.get(kind, kind.removesuffix("_zero_snr")), num_steps=steps, **eta
        ),
        ZERO_SNR if kind == "ddim_zero_snr" else SD15,
        **options,
    )
    return upstream, production


@pytest.mark.parity
@pytest.mark.parametrize("name", pipeline_cases())
def test_pipelines_visit_the_recorded_timesteps(name: str) -> None:
    case, _ = pipeline_case(name)
    solver, production = case_solver(case)
    assert production == solver
    for call in case["result"]["calls"]:
        if "timesteps" not in call:
            continue
        count = len(call["timesteps"])  # strength may cut the start, when latents are given too
        assert list(solver.timesteps[-count:]) == call["timesteps"]
        assert solver.initial_scale == pytest.approx(call["scheduler_init_noise_sigma"], rel=2e-7)


def initial_latents(case: dict[str, Any], tensors: dict[str, Any], solver: Solver) -> torch.Tensor:
    noise, condition = tensors["c0.noise"], tensors.get("c0.condition_latents")
    if case["call"].get("need_img_based_video_noise") and condition is not None:
        noise = mix_condition(noise, condition, case["call"]["img_weight"])
    return noise * solver.initial_scale


@pytest.mark.parity
@pytest.mark.parametrize("name", pipeline_cases(finished=True))
def test_pipelines_draw_the_recorded_noise(name: str) -> None:
    """The generator serves the initial noise, then each step that draws, and nothing else."""
    case, tensors = pipeline_case(name)
    (call,) = case["result"]["calls"]
    solver, _ = case_solver(case)
    generator = torch.Generator().manual_seed(case["generator_seed"])
    noise_type = case["call"]["noise_type"]
    source = UpstreamNoise(generator, f"upstream_{noise_type}", case["call"]["w_ind_noise"])
    shape = tensors["c0.latents_init"].shape
    if "c0.noise" in tensors:
        noise = source.draw(shape)
        assert torch.equal(noise, tensors["c0.noise"])
        if "in.image" not in tensors and "in.latents" not in tensors:
            initial = initial_latents(case, tensors, solver)
            assert error(initial, tensors["c0.latents_init"]) <= 2e-7
    recorded = [tensors[k] for k in sorted(tensors) if k.startswith("c0.step_noise.")]
    drawn = []
    for step in range(solver.num_steps - len(call["timesteps"]), solver.num_steps):
        if solver.upstream_draws(step):
            drawn.append(source.draw(shape))
    if recorded:  # Euler's unused draws are not
        assert all(torch.equal(a, b) for a, b in zip(drawn, recorded, strict=True))
    after = torch.tensor(case["result"]["generator_next"])
    assert torch.equal(torch.randn(4, generator=generator), after)


# What every solver keeps


@solvers
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_frames_can_be_advanced_alone(name: str, data: st.DataObject) -> None:
    solver = build(name)
    num_frames = 7
    chosen = data.draw(st.lists(st.integers(0, num_frames - 1), min_size=1, unique=True))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def draw() -> torch.Tensor:
        return torch.randn(1, 4, num_frames, 3, 5, generator=generator)

    whole = SolverState(draw() * solver.initial_scale)
    alone = whole.select_frames(chosen)
    for step in range(solver.num_steps):
        estimate, noise = draw(), draw()
        whole = solver.advance(whole, estimate, step, noise)
        alone = solver.advance(alone, estimate[:, :, chosen], step, noise[:, :, chosen])
        expected = whole.select_frames(chosen)
        assert torch.equal(alone.latents, expected.latents)
        assert len(alone.history) == len(expected.history)
        for found, past in zip(alone.history, expected.history, strict=True):
            assert torch.equal(found, past)


@solvers
def test_nothing_given_is_written_to(name: str) -> None:
    solver = build(name)
    state = SolverState(torch.randn(1, 4, 2, 3, 3))
    for step in range(solver.num_steps):
        estimate, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
        given_tensors = (state.latents, *state.history, estimate, noise)
        copies = [tensor.clone() for tensor in given_tensors]
        solver.scale_input(state.latents, step)
        solver.add_noise(state.latents, noise, step)
        moved = solver.advance(state, estimate, step, noise)
        assert all(torch.equal(a, b) for a, b in zip(given_tensors, copies, strict=True))
        state = moved


@solvers
def test_noise_matters_exactly_where_it_is_needed(name: str) -> None:
    solver = build(name)
    state = SolverState(torch.randn(1, 4, 2, 3, 3))
    for step in range(solver.num_steps):
        estimate, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
        moved = solver.advance(state, estimate, step, noise)
        other = solver.advance(state, estimate, step, -noise)
        assert torch.equal(moved.latents, other.latents) != solver.needs_noise(step)
        if solver.needs_noise(step):
            assert solver.upstream_draws(step)
            with pytest.raises(ValueError, match="needs noise"):
                solver.advance(state, estimate, step, None)
        else:
            silent = solver.advance(state, estimate, step, None)
            assert torch.equal(moved.latents, silent.latents)
        state = moved


@solvers
def test_half_precision_estimates_are_stepped_in_float32(name: str) -> None:
    solver = build(name)
    state = SolverState(torch.randn(1, 4, 2, 3, 3))
    estimate = torch.randn(1, 4, 2, 3, 3).to(torch.bfloat16)
    noise = torch.randn(1, 4, 2, 3, 3)
    low = solver.advance(state, estimate, 0, noise).latents
    high = solver.advance(state, estimate.float(), 0, noise).latents
    assert low.dtype == torch.float32
    assert torch.equal(low, high)


@solvers
def test_solvers_travel_between_processes(name: str) -> None:
    solver = build(name)
    again = pickle.loads(pickle.dumps(solver))
    assert again == solver
    assert hash(again) == hash(solver)
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.timesteps = ()


@solvers
def test_timesteps_fall_and_the_first_is_noisiest(name: str) -> None:
    solver = build(name)
    assert list(solver.timesteps) == sorted(solver.timesteps, reverse=True)
    clean, noise = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    amounts = [float(solver.add_noise(clean, noise, step)) for step in range(solver.num_steps)]
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[0] <= solver.initial_scale * (1 + 1e-6)


@solvers
def test_unit_gaussian_data_stay_unit_gaussian(name: str) -> None:
    """With the ideal denoiser of N(0, 1) data the end has the data's variance.

    The original lets a step's stride and the spacing of its timesteps differ, so the tolerance is
    wide; a wrong coefficient is off by far more.
    """
    sampling, schedule, options = EVERY_SOLVER[name]
    steps = 40 if sampling.solver == "lcm" else 200
    solver = make_solver(dataclasses.replace(sampling, num_steps=steps), schedule, **options)
    generator = torch.Generator().manual_seed(3)
    shape = (1, 4, 4, 16, 16)
    state = SolverState(torch.randn(shape, generator=generator) * solver.initial_scale)
    for step in range(solver.num_steps):
        estimate = ideal_estimate(solver, state.latents, step)
        state = solver.advance(state, estimate, step, torch.randn(shape, generator=generator))
    expected = 1.0
    if name in ("euler log",):  # ends at the smallest sigma of the table, not at 0
        expected = math.sqrt(1 + solver.sigmas[-2] ** 2)
    if sampling.solver == "lcm":  # each jump goes to the mean, which keeps part of the variance
        expected = consistency_end(solver)
    assert float(state.latents.std()) == pytest.approx(expected, rel=0.06)


def consistency_end(solver: Solver) -> float:
    """Standard deviation after consistency steps whose network gives the mean of unit data."""
    std = 1.0
    for step, share in enumerate(solver.alphas_cumprod):
        scaled = 10.0 * solver.timesteps[step]
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        std *= out * math.sqrt(share) + skip
        if step < solver.num_steps - 1:
            after = solver.alphas_cumprod[step + 1]
            std = math.sqrt(after * std**2 + 1 - after)
    return std


def ideal_estimate(solver: Solver, latents: torch.Tensor, step: int) -> torch.Tensor:
    """What a perfect network says about noisy N(0, 1) data, in the terms the solver expects."""
    zero, one = torch.zeros(1), torch.ones(1)
    sigma = float(solver.add_noise(zero, one, step))
    alpha = float(solver.add_noise(one, zero, step))
    variance = alpha**2 + sigma**2
    clean, noise = latents * (alpha / variance), latents * (sigma / variance)
    if solver.prediction_type == "epsilon":
        return noise
    return alpha * noise - sigma * clean


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="solver euler has no option eta; options: use_karras"):
        make_solver(SamplingConfig(), SD15, eta=0.5)
    with pytest.raises(ConfigError, match="no solver equals 'HeunDiscreteScheduler'"):
        make_upstream_solver("HeunDiscreteScheduler", {}, num_steps=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {}),
        ("euler_ancestral", {}),
        ("dpmpp", {}),
        ("dpmpp", {"use_karras_sigmas": True}),
    ],
)
def test_solvers_on_sigma_refuse_zero_snr(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="use solver ddim"):
        make_solver(SamplingConfig(solver=name), ZERO_SNR, **options)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm"])
def test_noise_prediction_refuses_to_start_from_nothing(name: str) -> None:
    schedule = dataclasses.replace(ZERO_SNR, prediction_type="epsilon")
    with pytest.raises(ConfigError, match="zero signal"):
        make_solver(SamplingConfig(solver=name), schedule)


def test_production_steps_of_dpmpp_are_evenly_spaced() -> None:
    solver = make_solver(SamplingConfig(solver="dpmpp", num_steps=4), SD15)
    assert solver.timesteps == (999, 749, 500, 250)
