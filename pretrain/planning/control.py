"""Acting towards a goal: search, act for a few moments, look, search anew (model predictive control).

The horizon shrinks: what is searched for are the actions that are left until the goal's time.

Shapes: n moments left, H decisions, A action size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from pretrain.planning.energy import EnergyOf, moments_of
from pretrain.planning.search import Bounds, Floats, Search
from pretrain.planning.task import Situation, Task

Decide = Callable[[Situation, Task, int, np.random.Generator], Floats]
"""(situation, task, moments left, rng) to the actions for them, (n, A)."""


@dataclass(frozen=True)
class Episode:
    """distances: from the goal, before the first action and after each; in frame widths. plan_ms: of each
    search, the first counted too."""

    distances: tuple[float, ...]
    plan_ms: tuple[float, ...] = field(compare=False)

    @property
    def final(self) -> float:
        return self.distances[-1]


def act(task: Task, decide: Decide, rng: np.random.Generator, *, replan: int) -> Episode:
    """Go for the goal until its time; decide anew every `replan` moments."""
    situation, left = task.begin, task.steps
    distances, plan_ms = [task.distance(situation.state)], []
    while left:
        begun = perf_counter()
        actions = decide(situation, task, left, rng)
        plan_ms.append(1000 * (perf_counter() - begun))
        for action in actions[: min(replan, left)]:
            situation = situation.after(action)
            distances.append(task.distance(situation.state))
            left -= 1
    return Episode(tuple(distances), tuple(plan_ms))


@dataclass
class Searching:
    """Decides by a search over decisions of `hold` moments; begins where the last search ended.

    It is of one episode: another begins with another one. _last: actions of the last search, moment by
    moment up to the goal's time, (n, A).
    """

    search: Search
    energy_of: EnergyOf
    bounds: Bounds
    hold: int
    action_size: int = 2
    _last: Floats | None = None

    def __call__(self, situation: Situation, task: Task, left: int, rng: np.random.Generator) -> Floats:
        count = math.ceil(left / self.hold)
        start = np.zeros((count, self.action_size))
        if self._last is not None:
            still_to_come = self._last[-left:]
            # decisions begin anew at this moment: of one that two before had a part in, their mean
            for number in range(count):
                start[number] = still_to_come[number * self.hold : (number + 1) * self.hold].mean(axis=0)
        energy = self.energy_of(situation, task, self.hold, left)
        found = self.search(energy, start, self.bounds, rng).actions
        self._last = moments_of(found[None], self.hold, left)[0]
        return self._last


def at_random(bounds: Bounds, hold: int, action_size: int = 2) -> Decide:
    """Actions drawn evenly within the bounds, each held: no search at all."""

    def decide(situation: Situation, task: Task, left: int, rng: np.random.Generator) -> Floats:
        drawn = rng.uniform(bounds.low, bounds.high, (1, math.ceil(left / hold), action_size))
        return moments_of(drawn, hold, left)[0]

    return decide


def nothing(situation: Situation, task: Task, left: int, rng: np.random.Generator) -> Floats:
    """No action."""
    return np.zeros((left, 2))
