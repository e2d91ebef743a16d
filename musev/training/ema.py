"""A slowly following average of the trained weights, which is what is evaluated and shipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from musev.training.sharding import spread_like


class Ema:
    """Exponential moving average of the parameters that are trained.

    ``average = decay * average + (1 - decay) * weight`` after every update, where the decay starts
    low, ``(1 + n) / (10 + n)`` at update n, so that the random start is forgotten soon.

    Args:
        module: Parameters that require gradients are followed.
        decay: Of long runs.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.averages = {name: p.detach().clone() for name, p in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the averages towards the module's present weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in _trained(module):
            self.averages[name].lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the averages into the module for a while; the weights come back unchanged."""
        own = {name: parameter.detach().clone() for name, parameter in _trained(module)}
        self._copy(self.averages, module)
        try:
            yield
        finally:
            self._copy(own, module)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor], module: nn.Module) -> None:
        for name, parameter in _trained(module):
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """Plain values for a checkpoint."""
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        """Take up the values of :meth:`state_dict`."""
        self.num_updates = state["num_updates"]
        for name, average in self.averages.items():
            average.copy_(spread_like(state["averages"][name], average))


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
