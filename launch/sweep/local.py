"""A sweep on this machine: its elements one after another, or some at a time, each under a supervisor.

What has finished is not run again, what was interrupted goes on from its checkpoint, and one that fails does
not stop the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import EXIT_OK, EXIT_PREEMPTED, UsageError
from launch.attempts import duration
from launch.config import dump_config
from launch.failure import FAILURE_FILE
from launch.lock import lock_run
from launch.processes import Asked, send
from launch.run_folder import check_data
from launch.status import Status, check_run, read_status
from launch.sweep.elements import Element, Sweep, shown, write_sweep

POLL_S = 0.2
CONFIGS_FOLDER, LOGS_FOLDER, LOCK = "configs", "logs", ".lock-sweep"
EXIT_INTERRUPTED, EXIT_FAILED = 130, 1
RECORDS = (FAILURE_FILE, "restarts.jsonl", "result.json")
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Started:
    """An element that runs. slot: which of those at a time; it has GPUs of its own."""

    element: Element
    process: subprocess.Popen[bytes]
    slot: int
    began_s: float


def state_of(element: Element) -> Status | None:
    """How an element is; None where it has not begun."""
    try:
        check_run(element.run)
    except UsageError:
        return None
    return read_status(element.run)


def check_elements(sweep: Sweep) -> None:
    """Whether the data of every element can be read, each data set once. Raises: DataError, UsageError."""
    seen = set()
    for element in sweep.elements:
        config = element.config
        same = (config.data.model_dump_json(), config.objective.model_dump_json(), config.init.weights)
        if same not in seen:
            check_data(config)
        seen.add(same)


def run_here(
    sweep: Sweep,
    *,
    nproc: int,
    parallel: int,
    env: Mapping[str, str],
    say: Callable[[str], None],
) -> int:
    """Until every element has ended. Returns 0, or what failed elements ended with: 1 where that differs.

    nproc: ranks of an element. parallel: elements at a time. env: variables of all of them.
    Raises: UsageError when another sweep runs in the folder, or GPUs do not suffice.
    """
    devices = device_slots(nproc, parallel, {**os.environ, **env})
    write_sweep(sweep)
    for folder in (CONFIGS_FOLDER, LOGS_FOLDER):
        (sweep.folder / folder).mkdir(exist_ok=True)
    with lock_run(sweep.folder, LOCK, "swept"), Asked() as asked:
        codes = _run_all(sweep, nproc, parallel, env, devices, asked, say)
        if asked.number is not None:
            say(f"stopped by {asked.number.name}; the same command goes on")
            return EXIT_INTERRUPTED if asked.number == signal.SIGINT else EXIT_PREEMPTED
    failed = {code for code in codes.values() if code != EXIT_OK}
    return EXIT_OK if not failed else failed.pop() if len(failed) == 1 else EXIT_FAILED


def _run_all(
    sweep: Sweep,
    nproc: int,
    parallel: int,
    env: Mapping[str, str],
    devices: Sequence[str | None],
    asked: Asked,
    say: Callable[[str], None],
) -> dict[str, int]:
    """The exit code of each element that ran, by name."""
    left = [
        (number, each)
        for number, each in enumerate(sweep.elements, 1)
        if _is_to_run(number, each, sweep, say)
    ]
    running: list[Started] = []
    codes: dict[str, int] = {}
    was_asked = False
    try:
        while running or (left and asked.number is None):
            while left and len(running) < parallel and asked.number is None:
                number, element = left.pop(0)
                slot = min(set(range(parallel)) - {each.slot for each in running})
                say(f"{_of(number, sweep)}  {element.name}  started, {shown(_log(sweep, element))}")
                running.append(_start(sweep, element, nproc, env, devices[slot], slot))
            if asked.number is not None and not was_asked:
                was_asked = True
                number_sent = signal.SIGTERM if asked.number == signal.SIGHUP else asked.number
                for each in running:
                    send(each.process.pid, number_sent)
            for each in [one for one in running if one.process.poll() is not None]:
                running.remove(each)
                codes[each.element.name] = _code(each.process.returncode)
                say(_told(each, sweep))
            time.sleep(POLL_S)
    finally:  # also after a second Ctrl-C; what a supervisor started ends with it
        for each in running:
            send(each.process.pid, signal.SIGKILL)
            each.process.wait()
    return codes


def _is_to_run(number: int, element: Element, sweep: Sweep, say: Callable[[str], None]) -> bool:
    status = state_of(element)
    word = None if status is None else status.state.word
    if word == "finished":
        say(f"{_of(number, sweep)}  {element.name}  finished before, left as it is")
    elif word in ("running", "hung", "silent"):
        say(f"{_of(number, sweep)}  {element.name}  {word} already, left alone")
    return word not in ("finished", "running", "hung", "silent")


def _start(
    sweep: Sweep, element: Element, nproc: int, env: Mapping[str, str], devices: str | None, slot: int
) -> Started:
    config = sweep.folder / CONFIGS_FOLDER / f"{element.name}.yaml"
    config.write_text(dump_config(element.config))
    command = command_of(config, nproc)
    own = {**os.environ, **env, **({DEVICES: devices} if devices is not None else {})}
    with _log(sweep, element).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=own,
            start_new_session=True,
        )
    return Started(element, process, slot, time.monotonic())


def command_of(config: Path, nproc: int) -> list[str]:
    return [sys.executable, "-m", "launch", "supervise", str(config), "--nproc", str(nproc)]


def _log(sweep: Sweep, element: Element) -> Path:
    return sweep.folder / LOGS_FOLDER / f"{element.name}.log"


def _of(number: int, sweep: Sweep) -> str:
    count = str(len(sweep.elements))
    return f"{number:>{len(count)}}/{count}"


def _code(status: int) -> int:
    return status if status >= 0 else EXIT_FAILED


def _told(ended: Started, sweep: Sweep) -> str:
    """How an element ended, in a line."""
    element, status = ended.element, state_of(ended.element)
    number = sweep.elements.index(element) + 1
    line = f"{_of(number, sweep)}  {element.name}  "
    took = duration(time.monotonic() - ended.began_s)
    if ended.process.returncode != EXIT_OK or status is None:
        # A run's own record of its end says more than its log; without one the log's last line is all.
        is_said = status is not None and status.state.known_by in RECORDS
        reason = status.state.reason if status is not None and is_said else _last_line(_log(sweep, element))
        word = "failed" if status is None or status.state.word == "finished" else status.state.word
        return f"{line}{word} after {took}: {reason or 'without a word'}"
    loss = "" if status.figures.loss is None else f", loss {status.figures.loss:.4f}"
    verdict = "" if status.verdict is None else f", {status.verdict[0]}"
    return f"{line}{status.state.word} in {took}{loss}{verdict}"


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    return told[-1] if told else ""


def device_slots(nproc: int, parallel: int, env: Mapping[str, str]) -> list[str | None]:
    """GPUs of each of the elements that run at a time; None where there are none, or one element has all.

    Raises: UsageError when there are GPUs, and fewer than these elements would have ranks.
    """
    if parallel == 1:
        return [None]
    named = [each for each in env.get(DEVICES, "").split(",") if each.strip()]
    if not named and DEVICES not in env:
        import torch

        named = [str(number) for number in range(torch.cuda.device_count())]
    if not named:
        return [None] * parallel
    if len(named) < nproc * parallel:
        raise UsageError(
            f"--parallel {parallel} of {nproc} ranks needs {nproc * parallel} GPUs: there are {len(named)}"
        )
    return [",".join(named[slot * nproc : (slot + 1) * nproc]) for slot in range(parallel)]
