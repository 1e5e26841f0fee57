"""Slow work beside the training loop: a thread a task, and ranks that meet while they wait for each other's.

No collective runs in such a thread. A rank that waits does so in short collectives, so that one whose disk is
slower than `strategy.timeout_s` is not taken for a lost peer; and it beats as long as anybody's work moves,
so that waiting for a disk or a store is no hang, and waiting for a writer that hangs is one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from data_pipeline.storage import Moved
from pretrain import pulse
from pretrain.strategy.base import World

T = TypeVar("T")
LONGEST_PAUSE_S = 0.25


class Task(Generic[T]):
    """`work` in a thread of its own, from now on; it is given what to tell the bytes that it moves."""

    def __init__(self, work: Callable[[Moved], T]) -> None:
        self._work = work
        self._num_moved = self._num_seen = 0
        self._kept: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        # A daemon, so that a store that hangs does not keep a process that wants to end.
        threading.Thread(target=self._run, name="foreframe-checkpoint", daemon=True).start()

    def _run(self) -> None:
        try:
            self._kept.append(self._work(self._moved))
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error
        finally:
            self._done.set()

    def _moved(self, count: int) -> None:
        self._num_moved += count

    def take_moved(self) -> bool:
        """Whether the work has moved since this was last asked."""
        before, self._num_seen = self._num_seen, self._num_moved
        return self._num_seen != before

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self, seconds: float | None = None) -> None:
        self._done.wait(seconds)

    def result(self) -> T:
        """What the work returned, once it is done. Raises: what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._kept[0]


def wait_for_all(world: World, task: Task[T]) -> None:
    """Wait until every rank's task is done, well or not."""
    pause_s = 0.001
    while world.any(not task.is_done):
        if world.any(task.take_moved()):
            pulse.beat()
        task.wait(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def patiently(world: World, work: Callable[[Moved], T]) -> list[T]:
    """As `World.together`, for work of any length."""
    task = Task(work)
    wait_for_all(world, task)
    return world.together(task.result)
