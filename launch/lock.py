"""Where a run's folder is, and who holds it. Imports no torch: a supervisor is small and starts at once."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UsageError, why
from pretrain.config import RunConfig

LOCK_FILE = ".lock"
SUBMISSIONS_FOLDER = "submissions"  # of a run's folder: what `foreframe submit` froze


def run_folder(config: RunConfig) -> Path:
    return Path(config.out) / config.name


def is_bare(run: Path) -> bool:
    """Whether a folder holds nothing but locks and submissions: no run was begun there."""
    return all(
        entry.name.startswith(LOCK_FILE) or entry.name == SUBMISSIONS_FOLDER for entry in run.iterdir()
    )


@contextmanager
def lock_run(
    run: Path, name: str = LOCK_FILE, doing: str = "trained", other: str = "name=..."
) -> Iterator[None]:
    """Hold a run's folder for this process alone, until the end of it or of the block.

    name: of the lock's file, one for each thing that only one process may be `doing`. other: what to
    choose another of.
    Raises: UsageError with the pid and the machine of the process that holds it, or when nothing can be
    written there.
    """
    try:
        lock = (run / name).open("a+")
    except OSError as error:
        raise UsageError(f"{run} cannot be written, choose another out=...: {why(error)}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = " on ".join(file.read().split()) or "?"
            raise UsageError(
                f"{run} is being {doing} by process {holder}; wait for its end, or choose another {other}"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}")  # a folder may be shared between machines
        file.flush()
        yield
