"""A goal to be reached in a simulated world: what was seen so far, and a picture of what is wanted.

The goal is what the same video would have come to after `steps` frames under other actions, so it can be
reached in that time, and its leaves are those of that time: only the object tells it from doing nothing.

Shapes: t frames told, S side, A action size. A moment is `stride` frames of the world.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_pipeline.worlds import Scene, State, World, actions_of, begin, move, render, step
from pretrain.planning.search import Floats
from pretrain.rng import stream

Frame = NDArray[np.uint8]
TRIES = 32  # of a goal that is far enough from where doing nothing ends


@dataclass(frozen=True)
class Situation:
    """What is known at a moment. frames, actions: of all moments so far; one action fewer than frames.

    state: the true one, which is for oracles alone.
    """

    scene: Scene
    state: State
    frames: tuple[Frame, ...]
    actions: tuple[Floats, ...]
    stride: int

    def after(self, action: Floats) -> Situation:
        """One moment later, under an action held for it."""
        state = moments_later(self.scene.world, self.state, [action], self.stride)
        return replace(
            self,
            state=state,
            frames=(*self.frames, render(state, self.scene)),
            actions=(*self.actions, np.asarray(action, np.float64)),
        )


@dataclass(frozen=True)
class Task:
    """begin: the situation to start from. goal: the state, and its picture, wanted `steps` moments later."""

    begin: Situation
    goal: State
    picture: Frame
    steps: int

    def distance(self, state: State) -> float:
        """Of the object from its place in the goal, in frame widths."""
        return float(np.hypot(*(state.position - self.goal.position)))


def moments_later(world: World, state: State, actions: Floats | list[Floats], stride: int) -> State:
    """The state after each action was held for a moment."""
    for action in actions:
        for _ in range(stride):
            state = step(world, state, action)
    return state


def make_task(
    world: World, seed: int, index: int, *, told: int, steps: int, stride: int = 1, far: float = 0.25
) -> Task:
    """The task of video `index`: a function of its arguments alone.

    told: moments seen before the search begins. far: frame widths that the goal is away from where the
    object would be without any action, at least; where none of 32 goals is, the farthest.
    """
    state, scene = begin(world, seed, index)
    situation = Situation(scene, state, (render(state, scene),), (), stride)
    for action in held(actions_of(world, seed, index).astype(np.float64), told - 1, stride):
        situation = situation.after(action)
    idle = moments_later(world, situation.state, list(np.zeros((steps, 2))), stride)
    best, best_away = idle, -1.0
    for number in range(TRIES):
        actions = drawn_actions(world, steps, stride, stream(seed, "goal", index, number))
        position = object_later(world, situation.state, actions[None], stride)[0]
        away = float(np.hypot(*(position - idle.position)))
        if away > best_away:
            best, best_away = replace(idle, position=position), away
        if away >= far:
            break
    return Task(situation, best, render(best, scene), steps)


def held(actions_FA: Floats, moments: int, stride: int) -> Floats:
    """The recorded actions, each the mean of those of a moment, as a data set tells them: (moments, A)."""
    if moments * stride > len(actions_FA):
        raise ValueError(f"{moments} moments of {stride} frames: the video has {len(actions_FA)} frames")
    found: Floats = actions_FA[: moments * stride].reshape(moments, stride, -1).mean(1)
    return found


def drawn_actions(world: World, moments: int, stride: int, rng: np.random.Generator) -> Floats:
    """Actions as a world draws them, held for `hold_s`: (moments, A)."""
    hold = max(1, round(world.hold_s * world.fps / stride))
    pushes = rng.normal(0, world.push, (moments // hold + 2, 2))
    first = int(rng.integers(hold))
    return np.repeat(pushes, hold, axis=0)[first : first + moments]


def object_later(world: World, state: State, actions_NnA: Floats, stride: int) -> Floats:
    """Where the object is after sequences of actions: (N, 2), all at once, without a picture."""
    count = len(actions_NnA)
    position, velocity = np.tile(state.position, (count, 1)), np.tile(state.velocity, (count, 1))
    radius = np.full(count, state.radius)
    for moment in range(actions_NnA.shape[1]):
        for _ in range(stride):
            position, velocity = move(
                position, velocity, radius, actions_NnA[:, moment], world.dt, world.drag
            )
    return position
