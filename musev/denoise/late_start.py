"""A solver that starts in the middle of its steps: from something noised, not from pure noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from musev.config import steps_left
from musev.denoise.solver_base import Solver, SolverState


@dataclass(frozen=True)
class LateStart(Solver):
    """The last steps of another solver; its step 0 is that one's step ``first``."""

    whole: Solver
    first: int

    @property
    def timesteps(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the network is told, one entry a step that is left."""
        return self.whole.timesteps[self.first :]

    @property
    def initial_scale(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the whole solver."""
        return self.whole.initial_scale

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """Scale latents to what the network expects at ``step``; float32."""
        return self.whole.scale_input(latents, self.first + step)

    def add_noise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Mix clean latents and unit noise to the noise scale at the start of ``step``."""
        return self.whole.add_noise(clean, noise, self.first + step)

    def needs_noise(self, step: int) -> bool:
        """Whether the result of ``step`` depends on fresh noise."""
        return self.whole.needs_noise(self.first + step)

    def upstream_draws(self, step: int) -> bool:
        """Whether the original takes noise from its generator at ``step``, needed or not."""
        return self.whole.upstream_draws(self.first + step)

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Move a state over one step; as the whole solver."""
        return self.whole.advance(state, estimate, self.first + step, noise)


def start_late(solver: Solver, strength: float) -> Solver:
    """Leave out the first steps of a solver.

    Args:
        solver: The whole.
        strength: Share of the steps that is left, at least one.

    Returns:
        The solver itself where nothing is left out.

    Source:
        Upstream's ``get_timesteps`` (ALGORITHM.md 7.4): the last ``int(steps * strength)`` steps.
    """
    left = min(steps_left(solver.num_steps, strength), solver.num_steps)
    return solver if left == solver.num_steps else LateStart(solver, solver.num_steps - left)
