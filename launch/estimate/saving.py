"""How often to save for a given rate of failures, and what failures and saves cost.

Source: Young, Commun. ACM 17 (1974), and Daly, Future Gener. Comput. Syst. 22 (2006): saving every
sqrt(2 δ M) loses least, where δ is what a save holds training up for and M the mean time between failures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.estimate.stated import AGREE_S, HOST_COPY, RESTART_S, Stated

DAY_S = 86_400.0


@dataclass(frozen=True)
class Saving:
    """Bytes and seconds. held_up_s: training waits for a save. written_s: until it is whole.

    between_failures_s: infinite where none are expected. every_s: between saves, so that least is lost. lost,
    lost_own: share of the time that failures and saves take, saving so and as configured.
    """

    size: float
    held_up_s: float
    written_s: float
    between_failures_s: float
    every_s: float
    every_steps: int
    lost: float
    lost_own: float


def best_interval_s(held_up_s: float, between_failures_s: float) -> float:
    """Daly's, to third order; between failures itself where a save takes half of that or more."""
    if math.isinf(between_failures_s) or held_up_s >= between_failures_s / 2:
        return between_failures_s
    ratio = math.sqrt(held_up_s / (2 * between_failures_s))
    young = math.sqrt(2 * held_up_s * between_failures_s)
    return young * (1 + ratio / 3 + ratio**2 / 9) - held_up_s


def lost_share(every_s: float, held_up_s: float, written_s: float, between_failures_s: float) -> float:
    """Of the time: saves, and at each failure half an interval, what was being written, and the restart."""
    saves = held_up_s / every_s if every_s > 0 else 1.0
    return min(1.0, saves + (every_s / 2 + written_s + RESTART_S) / between_failures_s)


def saving(size: float, stated: Stated, step_s: float, steps: int, own_every: int, *, beside: bool) -> Saving:
    """size: of a checkpoint, over all ranks. beside: it is written while training goes on."""
    written_s = size / stated.storage
    held_up_s = size / stated.ranks / HOST_COPY + AGREE_S if beside else written_s
    rate = stated.failures * stated.nodes / DAY_S
    between_s = 1 / rate if rate > 0 else math.inf
    whole_s = steps * step_s
    # Not before the last one is written, and the last step saves too.
    every_s = min(whole_s, max(best_interval_s(held_up_s, between_s), written_s, step_s))
    every_steps = max(1, min(steps, round(every_s / step_s)))
    own_s = min(own_every, steps) * step_s
    return Saving(
        size=size,
        held_up_s=held_up_s,
        written_s=written_s,
        between_failures_s=between_s,
        every_s=every_s,
        every_steps=every_steps,
        lost=lost_share(every_s, held_up_s, written_s, between_s),
        lost_own=lost_share(own_s, held_up_s, written_s, between_s),
    )
