"""Energies of action sequences: how far from the goal each would lead, by a model or by the true world.

Every energy is of the last moment of a sequence. A decision is held for `hold` moments, so that a search has
few numbers to find.

Shapes: N sequences, H decisions, n moments, t moments known, A action size, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_pipeline.worlds import render
from pretrain.data.augment import eval_view
from pretrain.planning.search import Energy, Floats
from pretrain.planning.task import Situation, Task, moments_later, object_later
from pretrain.rollout.model import Model
from pretrain.rollout.position import PositionDecoder

MODEL, DECODED, RENDERED, ORACLE = "model", "model, true distance", "true world, latent", "oracle"
MOST_AT_ONCE = 64  # sequences that a model foresees in one forward


def moments_of(decisions_NHA: Floats, hold: int, moments: int) -> Floats:
    """Actions (N, n, A) of decisions, each held; the last one may be cut short."""
    return np.repeat(decisions_NHA, hold, axis=1)[:, :moments]


@dataclass(frozen=True)
class Eye:
    """A model with what it saw of the goal. size: side of a frame as the model sees it.

    told: moments of the past that it is shown.
    """

    model: Model
    size: int
    told: int

    def see(self, frames: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Features (T, P, D) of frames of a world."""
        return self.model.read(eval_view(np.stack(list(frames)), self.size)[None])[0]

    def recall(self, situation: Situation) -> tuple[Tensor, Floats]:
        """Features (t, P, D) of the last frames, and the actions (t - 1, A) between them."""
        past = self.see(situation.frames[-self.told :])
        between = len(past) - 1
        last = np.array(situation.actions[len(situation.actions) - between :], np.float64)
        return past, last.reshape(between, self.model.action_size)

    def foresee(self, recalled: tuple[Tensor, Floats], actions_NnA: Floats) -> Tensor:
        """Features (N, P, D) at the end of each sequence, from what is recalled."""
        past, before = recalled
        found = []
        for part in np.array_split(actions_NnA, -(-len(actions_NnA) // MOST_AT_ONCE)):
            told = np.broadcast_to(before, (len(part), *before.shape))
            actions = torch.from_numpy(np.concatenate([told, part], 1)).float().to(past.device)
            known = past[None].expand(len(part), -1, -1, -1)
            found.append(self.model.roll(known, actions)[:, -1])
        return torch.cat(found)


EnergyOf = Callable[[Situation, Task, int, int], Energy]
"""(situation, task, hold, moments) to the energy of decisions that last for so many moments."""


def model_energy(eye: Eye) -> EnergyOf:
    """L1 between the foreseen features and the goal picture's: what a planner without labels has."""

    def of(situation: Situation, task: Task, hold: int, moments: int) -> Energy:
        goal, recalled = eye.see([task.picture]), eye.recall(situation)

        def energy(decisions: Floats) -> Floats:
            return _apart(eye.foresee(recalled, moments_of(decisions, hold, moments)), goal)

        return energy

    return of


def decoded_energy(eye: Eye, decoder: PositionDecoder) -> EnergyOf:
    """The distance of the position read from the foreseen features: a true distance, by foreseen frames."""

    def of(situation: Situation, task: Task, hold: int, moments: int) -> Energy:
        recalled = eye.recall(situation)

        def energy(decisions: Floats) -> Floats:
            said = eye.foresee(recalled, moments_of(decisions, hold, moments))
            return np.hypot(*(decoder(said[:, None])[:, 0] - task.goal.position).T)

        return energy

    return of


def rendered_energy(eye: Eye) -> EnergyOf:
    """L1 between the features of what will truly be seen and the goal picture's: a model without fault."""

    def of(situation: Situation, task: Task, hold: int, moments: int) -> Energy:
        goal, world = eye.see([task.picture]), situation.scene.world
        idle = moments_later(world, situation.state, list(np.zeros((moments, 2))), situation.stride)

        def energy(decisions: Floats) -> Floats:
            actions = moments_of(decisions, hold, moments)
            at = object_later(world, situation.state, actions, situation.stride)
            frames = [render(replace(idle, position=xy), situation.scene) for xy in at]
            return _apart(eye.see(frames), goal)

        return energy

    return of


def oracle_energy() -> EnergyOf:
    """The true distance in the true world."""

    def of(situation: Situation, task: Task, hold: int, moments: int) -> Energy:
        def energy(decisions: Floats) -> Floats:
            actions = moments_of(decisions, hold, moments)
            at = object_later(situation.scene.world, situation.state, actions, situation.stride)
            return np.hypot(*(at - task.goal.position).T)

        return energy

    return of


def _apart(said_NPD: Tensor, goal_1PD: Tensor) -> Floats:
    found: Floats = (said_NPD - goal_1PD).abs().mean((1, 2)).double().cpu().numpy()
    return found
