"""The ranks of a run on this machine: started, waited for, and what they ended with as one error."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from data_pipeline.errors import EXIT_LOST_PEER, EXIT_PREEMPTED, ForeframeError, LostPeerError
from launch.config import CONFIG_FILE

ERRORS_VARIABLE = "FOREFRAME_RANK_ERRORS"
QUIET_VARIABLE = "FOREFRAME_QUIET"
SAVE_S = 600  # ranks that were asked to stop may take this long for their last save


class RankError(ForeframeError):
    """An error that a rank has ended with, told by the process that started it."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class PreemptedError(ForeframeError):
    """Asked to stop: the state is saved, the same command goes on."""

    exit_code = EXIT_PREEMPTED
    label = "stopped"


def spawn_ranks(run: Path, nproc: int, *, quiet: bool) -> None:
    """Start `nproc` ranks of a run on this machine through torch's elastic agent, and wait for them.

    Raises: what a rank ended with, once all ranks are gone.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for part in ("agent.server.api", "multiprocessing.api"):  # what they say is said as a sentence below
        logging.getLogger(f"torch.distributed.elastic.{part}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="foreframe-ranks-") as folder:
        os.environ[ERRORS_VARIABLE] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_for(None, nproc)))
        if quiet:
            os.environ[QUIET_VARIABLE] = "1"
        agent = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=f"foreframe-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            rdzv_configs={"is_host": "true"},
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.2,
            shutdown_timeout=SAVE_S,
        )
        # Python's tracker of semaphores removes those of a killed rank; its warning would only puzzle.
        hushed = ("-W", "ignore:resource_tracker:UserWarning")
        command = [sys.executable, *hushed, "-m", "launch.train", str(run / CONFIG_FILE), str(os.getpid())]
        try:
            elastic_launch(agent, command[0])(*command[1:])
        except ChildFailedError as error:
            exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise why_ranks_failed(run, Path(folder), exit_codes) from None
        except SignalException as error:
            raise why_stopped(run, Path(folder), signal.Signals(error.sigval)) from None
        finally:
            os.environ.pop(ERRORS_VARIABLE, None)
            os.environ.pop(QUIET_VARIABLE, None)


def why_stopped(run: Path, errors: Path, asked: signal.Signals) -> ForeframeError:
    """The error to show after a signal: preempted only when the ranks say that they have saved."""
    told = [json.loads(path.read_bytes()) for path in sorted(errors.glob("rank-*.json"))]
    saved = next((record for record in told if record["exit_code"] == EXIT_PREEMPTED), None)
    if saved is not None:
        return PreemptedError(saved["text"])
    return LostPeerError(f"stopped by {asked.name} without a save; {how_to_go_on(run)}")


def why_ranks_failed(run: Path, errors: Path, exit_codes: dict[int, int]) -> ForeframeError:
    """The error to show for ranks that failed: what a rank said itself comes before what befell it.

    exit_codes: by rank; negative where a signal ended it.
    """
    told = [json.loads(path.read_bytes()) for path in sorted(errors.glob("rank-*.json"))]
    first = next((record for record in told if record["exit_code"] != EXIT_LOST_PEER), None)
    if first is not None:
        return RankError(first["text"], first["exit_code"])
    killed = {rank: -code for rank, code in exit_codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        rank, number = next(iter(killed.items()))
        hint = ", often the kernel out of memory," if number == signal.SIGKILL else ""
        return LostPeerError(
            f"rank {rank} was killed by {signal.Signals(number).name}{hint} and the others stopped; "
            f"{how_to_go_on(run)}"
        )
    if told:
        return LostPeerError(told[0]["text"])
    rank, code = next(iter(exit_codes.items()))
    return RankError(f"rank {rank} failed with exit code {code}, see above; {how_to_go_on(run)}", 1)


def how_to_go_on(run: Path) -> str:
    """The sentence that ends every early end of a run."""
    from pretrain.checkpoint import newest_named

    newest = newest_named(run)
    if newest is None:
        return f"no checkpoint was written yet: `foreframe train {run}` starts over"
    return f"`foreframe train {run}`, at any --nproc, goes on from {newest[0].name}"


def threads_for(wanted: int | None, ranks_here: int) -> int:
    """CPU threads of one rank: as configured, or the machine's cores shared out."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // ranks_here)


def die_with_parent(launcher: int) -> None:
    """End this rank when the process that started it is gone, however that ended; Linux only.

    Else a launcher killed by SIGKILL would leave ranks training in a folder that nobody holds any more.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != launcher:  # it was gone before the call
        os._exit(EXIT_LOST_PEER)


def end_rank() -> None:
    """End a rank whose work is done and saved, without the interpreter's teardown.

    Collective libraries may keep threads of their own; one that is still running when C++ destroys it aborts
    the process (seen with gloo on a loaded machine), and a finished run would be told as a crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
