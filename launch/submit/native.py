"""Stops a job of a cluster by the cluster's own commands, as the submission has left them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence

from data_pipeline.errors import UsageError
from launch.submit.freeze import Submission
from launch.submitted import RECORD_FILE, place_kind

NATIVE = ("scancel", "scontrol", "squeue", "kubectl", "ray")  # programs that a submission may have run
NATIVE_S = 60.0
POLL_S = 5.0
GONE = "Invalid job id"  # squeue of a job that ended some minutes ago
COMPLETED = "already completing or completed"
Say = Callable[[str], None]


def stop_natively(found: Submission, say: Say, *, now: bool, waits: bool) -> None:
    """On Slurm it saves, however long that takes; `now`: it is ended at once. Elsewhere the place decides.

    Raises: UsageError when it cannot be done from here, or not there at all.
    """
    told = _told(found, "stop")
    kind = place_kind(found.record)
    if kind == "slurm":
        _stop_slurm(found, say, now=now)
        if waits:
            _wait_for_slurm(str(found.record.get("id")))
            say("all has ended")
        return
    for asked, option, reason in (
        (now, "--now", "its own command, which leaves time for a save, is the only one known"),
        (waits, "--wait", f"its end is not seen from here; this shows it: {_watch(found)}"),
    ):
        if asked:
            raise UsageError(f"{option} cannot be done for a job on {kind}: {reason}; leave {option} out")
    _run(told, say)


def _stop_slurm(found: Submission, say: Say, *, now: bool) -> None:
    stop, save, job = _told(found, "stop"), _told(found, "save", ""), str(found.record.get("id"))
    if now or not save:
        _run(stop, say)
        return
    states = _states(job)
    if not states:
        say(f"job {job} has ended")
        return
    # A signal does not reach what waits; what runs, or is being started, ends by itself once it has saved.
    waiting = states & {"PENDING", "REQUEUED", "SUSPENDED"}
    if waiting == states:
        _run(stop, say)
        return
    if waiting:
        _run(f"scancel --state=PENDING {shlex.quote(job)}", say)
    for command in re.split(" && |; ", save):
        _run(command, say)


def _states(job: str) -> set[str]:
    """Of a Slurm job, or of the elements of an array; empty once all have ended. Raises: UsageError."""
    words = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    done = _done(words)
    if done.returncode != 0 and GONE not in done.stderr:
        raise UsageError(f"`{shlex.join(words)}` failed: {_printed(done)}")
    return set(done.stdout.split())


def _wait_for_slurm(job: str) -> None:
    while _states(job):
        time.sleep(POLL_S)


def _told(found: Submission, label: str, otherwise: str | None = None) -> str:
    told = found.record.get("told")
    text = told.get(label) if isinstance(told, dict) else None
    if text:
        return str(text)
    if otherwise is not None:
        return otherwise
    raise UsageError(
        f"{found.folder / RECORD_FILE} does not say how it is stopped: {found.record.get('state')}"
    )


def _watch(found: Submission) -> str:
    return _told(found, "watch", "the cluster's own tools")


def _run(told: str, say: Say) -> None:
    """One command. Raises: UsageError when it is none of a cluster's, or fails."""
    words = shlex.split(told)
    if words[0] not in NATIVE:
        raise UsageError(f"{words[0]} is no cluster's program, and is not run: {told}")
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]} is not on PATH here; where it is, this stops the job: {told}")
    say(told)
    done = _done(words)
    if done.returncode != 0:
        if words[0] == "scontrol" and _is_of_elements(done):
            return
        raise UsageError(f"`{told}` failed: {_printed(done)}")
    if done.stdout.strip() or done.stderr.strip():
        say(_printed(done))


def _is_of_elements(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether scontrol complains of an array whose elements fared differently, none of them badly.

    It prints a line an element then, such as `17_0: No error`.
    """
    lines = _printed(done).splitlines()
    return all(line.endswith(": No error") or COMPLETED in line for line in lines)


def _done(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=NATIVE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"`{shlex.join(words)}` failed: {error}") from error


def _printed(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
