"""Which ranks have one folder for the run, and which have another, as on machines that share none.

Found out once, by files: a host's name says nothing of its disks, and containers may all have the same.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import CheckpointError, why
from pretrain.checkpoint.task import patiently
from pretrain.strategy.base import World

TOKEN = ".rank-was-here-"
TRIES, PAUSE_S = 5, 0.2  # for rank 0's file, which a network's file system may show a moment later


@dataclass(frozen=True)
class Sharing:
    """This rank's place among those that share its folder, and how many they are.

    The first is the folder's keeper: nobody else publishes there, renames or removes. Where all share one
    folder that is rank 0 alone.
    """

    index: int = 0
    count: int = 1

    @property
    def is_keeper(self) -> bool:
        return self.index == 0


def find_sharing(run: Path, world: World) -> Sharing:
    """Every rank leaves a file in its folder, and looks for the first rank whose file is there.

    Raises, on every rank: CheckpointError where a folder cannot be written.
    """
    if world.size == 1:
        return Sharing()

    def begin(_: object) -> str:
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{run} could not be made by rank {world.rank}: {why(error)}") from error
        if not world.is_first:
            return ""
        for left in run.glob(f"{TOKEN}*"):  # by a start that was killed
            left.unlink(missing_ok=True)
        return uuid.uuid4().hex

    mark = patiently(world, begin)[0]

    def token(rank: int) -> Path:
        return run / f"{TOKEN}{mark}-{rank:05d}"  # a new name: no cache can say that it is not there

    def leave(_: object) -> None:
        try:
            token(world.rank).touch()
        except OSError as error:
            raise CheckpointError(f"{run} could not be written by rank {world.rank}: {why(error)}") from error

    patiently(world, leave)

    def keeper(_: object) -> int:
        for _try in range(TRIES):
            if token(0).exists():
                return 0
            time.sleep(PAUSE_S)
        return next(rank for rank in range(world.rank + 1) if token(rank).exists())

    keepers = patiently(world, keeper)
    patiently(world, lambda _: token(world.rank).unlink(missing_ok=True))
    mine = [rank for rank, found in enumerate(keepers) if found == keepers[world.rank]]
    return Sharing(mine.index(world.rank), len(mine))
