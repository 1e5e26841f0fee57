"""Searching a sequence of actions for the least energy: CEM and MPPI, over any energy function.

Both draw many sequences around a current one, ask for their energies at once, and move towards the better
ones. Random numbers come from the generator that is given, so equal ones give equal plans.

Shapes: N sequences tried at once, H actions of a sequence, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Energy = Callable[[Floats], Floats]
"""Energies (N,) of sequences of actions (N, H, A); lower is better."""


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest of every number of an action."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"bounds are {self.low} to {self.high}: need low < high")

    def clip(self, actions: Floats) -> Floats:
        return np.clip(actions, self.low, self.high)


@dataclass(frozen=True)
class Found:
    """actions: (H, A), where the search ended. energy: theirs. best: the least met after each turn."""

    actions: Floats
    energy: float
    best: tuple[float, ...] = field(default=())


class Search(Protocol):
    """From a first guess (H, A) to a better one."""

    def __call__(self, energy: Energy, start: Floats, bounds: Bounds, rng: np.random.Generator) -> Found: ...


@dataclass(frozen=True)
class Cem:
    """The cross-entropy method: a normal distribution is fitted to the best share of what it drew, again and
    again; it moves by `momentum`, and never gets narrower than `min_std`.

    std, min_std: in units of an action. elites: share of the samples that is fitted to. momentum: share of
    the old mean and deviation that stays.
    Source: Rubinstein, The cross-entropy method, 1999; de Boer et al., A tutorial, 2005, alg. 3.1 and 4.1,
    smoothed updates in sec. 3.2 (momentum is 1 - alpha there).
    """

    samples: int = 64
    turns: int = 6
    elites: float = 0.125
    std: float = 1.0
    min_std: float = 0.05
    momentum: float = 0.1

    def __call__(self, energy: Energy, start: Floats, bounds: Bounds, rng: np.random.Generator) -> Found:
        mean, std = np.array(start, np.float64), np.full(start.shape, self.std)
        count = max(2, round(self.elites * self.samples))
        best = _Best()
        for _ in range(self.turns):
            tried = bounds.clip(mean + std * rng.standard_normal((self.samples, *mean.shape)))
            energies = energy(tried)
            best.see(tried, energies)
            elite = tried[np.argsort(energies, kind="stable")[:count]]
            mean = self.momentum * mean + (1 - self.momentum) * elite.mean(0)
            std = np.maximum(self.momentum * std + (1 - self.momentum) * elite.std(0), self.min_std)
        return best.or_else(bounds.clip(mean), energy)


@dataclass(frozen=True)
class Mppi:
    """Model predictive path integral control: the mean of all draws, weighted by exp(-energy / lambda).

    std: of the noise around the current sequence, in units of an action. temperature: lambda; with
    `relative`, in units of the energies' own standard deviation in a turn, else in units of the energy.
    control_cost: gamma, the weight of the term gamma * sum(u * noise / std^2), which keeps to small actions;
    0 leaves it out.
    Source: Williams et al., Information theoretic MPC for model-based reinforcement learning, ICRA 2017,
    alg. 1 and 2; the relative temperature is ours.
    """

    samples: int = 64
    turns: int = 6
    std: float = 1.0
    temperature: float = 0.2
    relative: bool = True
    control_cost: float = 0.0

    def __call__(self, energy: Energy, start: Floats, bounds: Bounds, rng: np.random.Generator) -> Found:
        plan, best = bounds.clip(np.array(start, np.float64)), _Best()
        for _ in range(self.turns):
            tried = bounds.clip(plan + self.std * rng.standard_normal((self.samples, *plan.shape)))
            noise, energies = tried - plan, energy(tried)
            best.see(tried, energies)
            costs = energies + self.control_cost * (plan * noise).sum((1, 2)) / self.std**2
            plan = bounds.clip(plan + np.einsum("n,nha->ha", self.weights(costs), noise))
        return best.or_else(plan, energy)

    def weights(self, costs: Floats) -> Floats:
        """What each sequence counts, (N,), together 1."""
        scale = self.temperature * (float(costs.std()) or 1.0 if self.relative else 1.0)
        raised = np.exp(-(costs - costs.min()) / scale)
        found: Floats = raised / raised.sum()
        return found


class _Best:
    """The best sequence met, and how good it was after each turn."""

    def __init__(self) -> None:
        self._actions: Floats | None = None
        self._energies: list[float] = []

    def see(self, tried: Floats, energies: Floats) -> None:
        assert energies.shape == (len(tried),), "an energy for each sequence"
        least = int(np.argmin(energies))
        if not self._energies or energies[least] < self._energies[-1]:
            self._actions = tried[least]
            self._energies.append(float(energies[least]))
        else:
            self._energies.append(self._energies[-1])

    def or_else(self, plan: Floats, energy: Energy) -> Found:
        """Where the search ended, or the best that it met where that is better."""
        at_end = float(energy(plan[None])[0])
        if self._actions is not None and self._energies[-1] < at_end:
            return Found(self._actions, self._energies[-1], tuple(self._energies))
        return Found(plan, at_end, tuple(self._energies))
