"""The named errors of all three packages, each with the exit code it ends a command with.

Exit codes: 0 done, 2 config or usage, 3 data, 4 checkpoint, 5 diverged or collapsed,
6 lost peer or hang, 75 preempted after a save.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_LOST_PEER = 6
EXIT_PREEMPTED = 75
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class ForeframeError(Exception):
    """Base of every error that a user can cause or mend; its text is what the terminal shows."""

    exit_code = 1
    label = "error"  # what the terminal shows before the sentence
    may_pass = False  # whether the same command may fare better later, though nobody has mended anything


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a config: the dotted key, what stands there, what is valid."""

    key: str
    need: str
    got: object = None
    try_: tuple[object, ...] = ()
    file: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        found = f" is {self.got!r}" if self.got is not None else ""
        hint = f"; try {' or '.join(str(value) for value in self.try_)}" if self.try_ else ""
        return f"{where}{self.key}{found}: need {self.need}{hint}"


class ConfigError(ForeframeError):
    """One or several wrong settings; nothing was started."""

    exit_code = 2

    def __init__(
        self,
        key: str,
        *,
        need: str,
        got: object = None,
        try_: Sequence[object] = (),
        file: str | None = None,
    ) -> None:
        self.problems: tuple[Problem, ...] = (Problem(key, need, got, tuple(try_), file),)
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> ConfigError:
        """All problems of one config as a single error, in the order given."""
        found = tuple(problems)
        error = cls(found[0].key, need=found[0].need)
        error.problems = found
        error.args = ("\n".join(str(problem) for problem in found),)
        return error


class UsageError(ForeframeError):
    """The command line asks for something impossible: a run that exists, a port in use, no such folder."""

    exit_code = 2


class DataError(ForeframeError):
    """Videos, shards or samples that cannot be used, or a data set that is not whole."""

    exit_code = 3


class MissingError(DataError):
    """A file, an object or a bucket that is not there."""


class RefusedError(DataError):
    """Storage that refuses the credentials it is given, or is given none."""


class StorageError(DataError):
    """Storage that is unreachable, too slow, failing, or sends half a file; later it may answer."""

    may_pass = True


class WorkerError(DataError):
    """A loader worker that was killed, or delivers nothing."""

    may_pass = True


class CheckpointError(ForeframeError):
    """A checkpoint that is missing, damaged or of another run."""

    exit_code = 4


class DivergedError(ForeframeError):
    """The loss or the gradients stopped being finite, past the limit."""

    exit_code = 5


class CollapsedError(ForeframeError):
    """The features lost their spread: the run would go on with a falling loss and learn nothing."""

    exit_code = 5


class LostPeerError(ForeframeError):
    """A rank died, or stopped answering."""

    exit_code = EXIT_LOST_PEER
    may_pass = True


class HangError(LostPeerError):
    """A rank that lives and does not move; told with the stacks of all."""


def why(error: OSError) -> str:
    """What the system says, and for a full disk what to do."""
    reason = error.strerror or str(error)
    return f"{reason}: make room there, the same command goes on" if error.errno in FULL_DISK else reason
