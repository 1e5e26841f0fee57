"""How a process ended, for the one that started it: ranks tell their starter, that its supervisor."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.errors import ForeframeError
from data_pipeline.storage import write_whole

ERRORS_VARIABLE = "FOREFRAME_RANK_ERRORS"  # the folder in which ranks leave their errors and beat
END_VARIABLE = "FOREFRAME_END_FILE"  # of one attempt alone, so that no end of an earlier one is believed


@dataclass(frozen=True)
class End:
    """How a command ended. kind: name of the error's class. may_pass: the same command may fare better."""

    exit_code: int
    kind: str
    sentence: str
    may_pass: bool

    @classmethod
    def read(cls, path: Path) -> End | None:
        """None when nothing readable was left."""
        try:
            plain = json.loads(path.read_bytes())
            return cls(int(plain["exit_code"]), str(plain["kind"]), str(plain["sentence"]), plain["may_pass"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def leave_end(exit_code: int, kind: str, sentence: str, *, may_pass: bool) -> None:
    """Tell the supervisor, if there is one, how this command ends."""
    path = os.environ.get(END_VARIABLE)
    if path:
        try:
            write_whole(Path(path), json.dumps(asdict(End(exit_code, kind, sentence, may_pass))).encode())
        except OSError:
            return  # a full disk: the exit code says what it can


def leave_rank_error(rank: int, error: Exception) -> bool:
    """Tell the process that started this rank what it ends with; False when nobody is told so."""
    folder = os.environ.get(ERRORS_VARIABLE)
    if not folder:
        return False
    is_ours = isinstance(error, ForeframeError)
    record = {
        "text": str(error) if is_ours else f"rank {rank} crashed: {in_a_line(error)}; its traceback is above",
        "exit_code": error.exit_code if isinstance(error, ForeframeError) else 1,
        "kind": type(error).__name__,
        "may_pass": error.may_pass if isinstance(error, ForeframeError) else True,
    }
    try:
        write_whole(Path(folder) / f"rank-{rank:05d}.json", json.dumps(record).encode())
    except OSError:
        return False
    return True


def in_a_line(error: BaseException) -> str:
    """An unexpected error's class and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def how_to_go_on(run: Path) -> str:
    """The sentence that ends every early end of a run."""
    from pretrain.checkpoint import newest_named

    newest = newest_named(run)
    if newest is None:
        return f"no checkpoint was written yet: `foreframe train {run}` starts over"
    return f"`foreframe train {run}`, at any --nproc, goes on from {newest[0].name}"
