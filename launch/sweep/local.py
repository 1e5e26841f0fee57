"""A sweep on this machine: its elements one after another, or some at a time, each under a supervisor.

What has finished is not run again, what was interrupted goes on from its checkpoint, and one that fails does
not stop the others.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import EXIT_OK, EXIT_PREEMPTED, ConfigError, UsageError, why
from launch.attempts import duration
from launch.config import CONFIG_FILE, diff, dump_config, read_config
from launch.failure import FAILURE_FILE
from launch.processes import Asked, send
from launch.run_folder import OPERATIONAL, check_data
from launch.run_state import State
from launch.status import Status, check_run, read_status
from launch.submit.base import Place
from launch.submit.shell import interpreter
from launch.sweep.elements import OWN, Element, Sweep, held, shown
from launch.sweep.record import CONFIGS_FOLDER
from pretrain.config import RunConfig

POLL_S = 0.2
LOOK_S = 1.0  # at elements that others started
LOGS_FOLDER = "logs"
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


@dataclass(frozen=True)
class Before:
    """An element that ran when this command came, as after a sweep that was killed. gpus: its own."""

    element: Element
    gpus: frozenset[str]


def state_of(element: Element) -> Status | None:
    """How an element is; None where it has not begun.

    Raises: UsageError when its folder holds another experiment's run.
    """
    _refuse_other_run(element)
    return _status_of(element.run)


def _status_of(run: Path) -> Status | None:
    try:
        check_run(run)
    except UsageError:
        return None
    return read_status(run)


def _refuse_other_run(element: Element) -> None:
    """A run may have gone on with other settings of how it is run; what it learns is as the element says."""
    known = element.run / CONFIG_FILE
    if not known.is_file():
        return
    try:
        found = read_config(known, [], RunConfig)
    except ConfigError as error:
        raise UsageError(
            f"{known} cannot be read, so nobody knows whose run it is: choose another --name"
        ) from error
    free = (*OPERATIONAL, *OWN)
    if found.init.weights is not None and element.config.init.weights is not None:
        free = (*free, "init.weights")  # the same weights lie elsewhere on another machine
    changed = [
        f"{key} {old!r} there, {new!r} here"
        for key, old, new in diff(found, element.config)
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if changed:
        told = "; ".join(changed[:3])
        raise UsageError(
            f"{element.run} holds another run ({told}): choose another --name, of an experiment another --out"
        )


def check_elements(sweep: Sweep) -> None:
    """Whether the data of every element can be read, each data set once. Raises: DataError, UsageError."""
    seen = set()
    for element in sweep.elements:
        config = element.config
        same = (config.data.model_dump_json(), config.objective.model_dump_json(), config.init.weights)
        if same not in seen:
            check_data(config)
        seen.add(same)


def check_python(place: Place) -> str:
    """The interpreter of the elements. Raises: UsageError when there is none of that name."""
    python = interpreter(place)
    if shutil.which(python, path=place.env.get("PATH")) is None:
        raise UsageError(f"python is {python}: no such program here that may be run")
    return python


def run_here(
    sweep: Sweep,
    *,
    nproc: int,
    parallel: int,
    env: Mapping[str, str],
    say: Callable[[str], None],
    python: str = sys.executable,
    look: Callable[[], None] = lambda: None,
) -> tuple[int, Sweep]:
    """Until every element has ended.

    Returns 0, or what those that have not finished ended with, 1 where that differs; and the elements as they
    are called in the sweep's folder. 75 is also of those that run elsewhere, of which the same command tells
    more later.
    nproc: ranks of an element. parallel: elements at a time. env: variables of all of them.
    look: called again and again until then.
    Raises: UsageError when another sweep runs in the folder, it holds another experiment's run, or GPUs do
    not suffice.
    """
    parallel = min(parallel, len(sweep.elements))
    devices = device_slots(nproc, parallel, {**os.environ, **env})
    with held(sweep) as named, Asked() as asked:
        try:
            for folder in (CONFIGS_FOLDER, LOGS_FOLDER):
                (named.folder / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{named.folder / folder} cannot be made: {why(error)}") from error
        codes = _Run(named, python, nproc, env, devices, say).until_all_ended(asked, look)
        if asked.number is not None:
            say(f"stopped by {asked.number.name}; the same command goes on")
            return EXIT_INTERRUPTED if asked.number == signal.SIGINT else EXIT_PREEMPTED, named
    failed = {code for code in codes.values() if code != EXIT_OK}
    return (EXIT_OK if not failed else failed.pop() if len(failed) == 1 else EXIT_FAILED), named


class _Run:
    """A sweep while it runs: which elements are left, which run, with which exit code each ended."""

    def __init__(
        self,
        sweep: Sweep,
        python: str,
        nproc: int,
        env: Mapping[str, str],
        devices: Sequence[str | None],
        say: Callable[[str], None],
    ) -> None:
        """devices: the GPUs of each of those at a time."""
        self._sweep, self._python, self._nproc, self._env = sweep, python, nproc, env
        self._devices, self._say = devices, say
        self._left: list[Element] = []
        self._running: list[Started] = []
        self._before: list[Before] = []
        self._codes: dict[str, int] = {}
        self._ended = 0
        self._looked_s = 0.0
        states = [
            (each, state_of(each)) for each in sweep.elements
        ]  # what is refused is so before any starts
        for element, status in states:
            self._place(element, status)

    def until_all_ended(self, asked: Asked, look: Callable[[], None]) -> dict[str, int]:
        """The exit code of each element that had not finished before, by name."""
        was_asked = False
        try:
            while self._running or ((self._left or self._before) and asked.number is None):
                while asked.number is None and self._left and (slot := self._free_slot()) is not None:
                    self._begin(self._left.pop(0), slot)
                if asked.number is not None and not was_asked:
                    was_asked = True
                    number_sent = signal.SIGTERM if asked.number == signal.SIGHUP else asked.number
                    for each in self._running:
                        send(each.process.pid, number_sent)
                self._look()
                look()
                time.sleep(POLL_S)
        finally:  # also after a second Ctrl-C; what a supervisor started ends with it
            for each in self._running:
                send(each.process.pid, signal.SIGKILL)
                each.process.wait()
        return self._codes

    def _tell(self, element: Element, told: str, *, has_ended: bool = False) -> None:
        """With how many have ended by now, which never goes back."""
        self._ended += has_ended
        count = str(len(self._sweep.elements))
        self._say(f"{self._ended:>{len(count)}}/{count} ended  {element.called}  {told}")

    def _place(self, element: Element, status: Status | None) -> None:
        """Among what is left, what runs already, or what needs nothing."""
        word = None if status is None else status.state.word
        if status is None or word not in ("finished", "running", "hung", "silent"):
            self._left.append(element)
        elif word == "finished":
            self._tell(element, "finished before, left as it is", has_ended=True)
        elif word == "silent":  # its own lock refuses a second process, should the first one live
            self._tell(element, f"silent, {status.state.known_by}: run again")
            self._left.append(element)
        elif status.state.host in (None, socket.gethostname()):
            pid = status.state.pid
            self._tell(element, f"{word} already{f', process {pid}' if pid else ''}: waited for")
            self._before.append(Before(element, _gpus_of(pid)))
        else:
            self._tell(element, f"{word} already on {status.state.host}, left alone")
            self._codes[element.name] = EXIT_PREEMPTED

    def _free_slot(self) -> int | None:
        """The first place for another element; None while as many run as shall."""
        if len(self._running) + len(self._before) >= len(self._devices):
            return None
        taken = {each.slot for each in self._running}
        used = frozenset[str]().union(*(each.gpus for each in self._before))
        free = [
            slot
            for slot, devices in enumerate(self._devices)
            if slot not in taken and (devices is None or used.isdisjoint(devices.split(",")))
        ]
        return free[0] if free else None

    def _begin(self, element: Element, slot: int) -> None:
        """One that cannot be started has failed, and stops no other."""
        log = _log(self._sweep, element)
        try:
            process = self._start(element, log, self._devices[slot])
        except OSError as error:
            self._tell(element, f"failed, could not be started: {why(error)}", has_ended=True)
            self._codes[element.name] = EXIT_FAILED
            return
        self._running.append(Started(element, process, slot, time.monotonic()))
        self._tell(element, f"started, {shown(log)}")

    def _start(self, element: Element, log: Path, devices: str | None) -> subprocess.Popen[bytes]:
        config = self._sweep.folder / CONFIGS_FOLDER / f"{element.name}.yaml"
        config.write_text(dump_config(element.config))
        own = {**os.environ, **self._env, **({DEVICES: devices} if devices is not None else {})}
        with log.open("ab") as file:
            return subprocess.Popen(
                command_of(config, self._nproc, self._python),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=own,
                start_new_session=True,
            )

    def _look(self) -> None:
        """At what has ended."""
        for each in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(each)
            code = each.process.returncode
            self._codes[each.element.name] = code if code >= 0 else EXIT_FAILED
            self._tell(each.element, _told(each, self._sweep), has_ended=True)
        if not self._before or time.monotonic() < self._looked_s + LOOK_S:
            return
        self._looked_s = time.monotonic()
        for one in list(self._before):
            status = _status_of(one.element.run)
            found = State("failed", "", "its folder is gone") if status is None else status.state
            if not found.is_alive:
                self._before.remove(one)
                is_over = found.word in ("finished", "failed")
                self._codes[one.element.name] = _code_of(found) if is_over else EXIT_PREEMPTED
                reason = f": {found.reason}" if found.reason else ""
                self._tell(one.element, f"{found.word}{reason}", has_ended=True)


def _code_of(state: State) -> int:
    return EXIT_OK if state.word == "finished" else state.exit_code or EXIT_FAILED


def _gpus_of(pid: int | None) -> frozenset[str]:
    """Those that a process of this machine was given; none where that cannot be seen."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return frozenset()
    given = [text.partition("=")[2] for text in found if text.startswith(f"{DEVICES}=")]
    return frozenset(each for text in given for each in text.split(",") if each)


def command_of(config: Path, nproc: int, python: str) -> list[str]:
    return [python, "-m", "launch", "supervise", str(config), "--nproc", str(nproc)]


def _log(sweep: Sweep, element: Element) -> Path:
    return sweep.folder / LOGS_FOLDER / f"{element.name}.log"


def _told(ended: Started, sweep: Sweep) -> str:
    """How an element ended."""
    element = ended.element
    status = _status_of(element.run)
    took = duration(time.monotonic() - ended.began_s)
    if ended.process.returncode != EXIT_OK or status is None:
        # A run's own record of its end says more than its log; without one the log's last line is all.
        is_said = status is not None and status.state.known_by in RECORDS
        reason = status.state.reason if status is not None and is_said else _last_line(_log(sweep, element))
        word = "failed" if status is None or status.state.word == "finished" else status.state.word
        return f"{word} after {took}: {reason or 'without a word'}"
    loss = "" if status.figures.loss is None else f", loss {status.figures.loss:.4f}"
    verdict = "" if status.verdict is None else f", {status.verdict[0]}"
    return f"{status.state.word} in {took}{loss}{verdict}"


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
