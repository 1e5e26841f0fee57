"""A job on hosts, followed: the first node's log as it comes, hosts that are gone, Ctrl-C, and its end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.errors import EXIT_LOST_PEER, EXIT_OK, EXIT_PREEMPTED, ForeframeError
from launch.remote import Connections
from launch.submit.base import Job, Started
from launch.submit.freeze import update_record
from launch.submit.node_process import exit_code, log_file, told_of
from launch.submit.ssh.nodes import Answer, Nodes
from launch.submit.ssh.place import SshPlace
from launch.submit.ssh.start import nodes_of

EXIT_INTERRUPTED = 130
POLL_S = 0.2
LOOK_S = 15.0  # at the hosts themselves; what they write is looked at all the time
GONE_LOOKS = 2  # a process that has ended has written its exit code by the second look


def follow(place: SshPlace, job: Job) -> Started:
    """Until all nodes have ended, or a second Ctrl-C. Its exit code is the job's."""
    following: Following | None = None
    interrupts, hint = 0, "Ctrl-C asks for a save and an end, a second one leaves it alone"
    try:
        while True:
            try:
                if following is None:  # all of it in here: the nodes run already, whenever Ctrl-C comes
                    update_record(job.folder, state="submitted", told=dict(told_of(job)))
                    following = Following(nodes_of(place, job), needs_all=job.kind == "train")
                if hint:
                    say(f"runs on {', '.join(place.names)}; {hint}")
                    hint = ""
                if interrupts and not following.was_asked:
                    following.ask_to_stop()
                return Started(None, exit_code=following.until_the_end())
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    say("left alone")
                    return Started(None, told_of(job), EXIT_INTERRUPTED)
    finally:
        if following is not None:
            following.leave()


def say(line: str) -> None:
    print(f"  ssh       {line}", flush=True)


class Following:
    """What is known of a job's nodes while it is followed."""

    def __init__(self, nodes: Nodes, *, needs_all: bool, say: Callable[[str], None] = say) -> None:
        self.was_asked, self._needs_all = False, needs_all
        self._nodes, self._say = nodes, say
        self._log = Log(log_file(nodes.logs, 0))
        self._codes: dict[int, int] = {}
        self._unreached: set[int] = set()
        self._dead_looks: dict[int, int] = {}
        self._looking: Look | None = None
        self._looked_s = time.monotonic()

    def until_the_end(self) -> int:
        """The job's exit code, once no node is left that may go on."""
        while True:
            self._log.show()
            self._read_codes()
            self._look()
            if not self._waits_for():
                self._log.show(to_the_end=True)
                return self._tell_end()
            time.sleep(POLL_S)

    def ask_to_stop(self) -> None:
        """Ask every node for a save and an end."""
        self.was_asked = True
        self._say("asking for a save and an end …")
        for answer in self._nodes.ask("ask", sorted(self._left())).values():
            if answer.problem is not None:
                self._say(f"not asked: {answer.problem}")

    def leave(self) -> None:
        """Look at the hosts no more: a look that hangs would hold up the end of this process."""
        if self._looking is not None:
            self._looking.connections.end()

    def _left(self) -> set[int]:
        return set(self._nodes.hosts) - set(self._codes)

    def _gone(self) -> set[int]:
        """Nodes that have ended, and nobody could write down how."""
        return {node for node, looks in self._dead_looks.items() if looks >= GONE_LOOKS} & self._left()

    def _waits_for(self) -> set[int]:
        """Nodes without which the job is not over: once the first has ended, or is lost with one that has
        ended, those that can be reached."""
        left, gone = self._left(), self._gone()
        is_over = 0 not in left or 0 in gone or (0 in self._unreached and bool(self._codes))
        return left - gone - (self._unreached if is_over else set())

    def _read_codes(self) -> None:
        for node in self._left():
            code = exit_code(self._nodes.logs, node)
            if code is not None:
                self._codes[node] = code
                if node != 0 and code != EXIT_OK:
                    where = f"node {node} on {self._nodes.hosts[node]}"
                    self._say(f"{where} has ended with exit code {code}: {log_file(self._nodes.logs, node)}")

    def _look(self) -> None:
        """Begin to ask the hosts from time to time, and hear what they have answered."""
        if self._looking is None:
            if self._left() and time.monotonic() - self._looked_s > LOOK_S:
                self._looking = Look(self._nodes, sorted(self._left()))
            return
        answers = self._looking.answers
        if answers is None:
            return
        self._looking, self._looked_s = None, time.monotonic()
        self._read_codes()
        for node in self._left() & set(answers):
            self._hear(node, answers[node])

    def _hear(self, node: int, answer: Answer) -> None:
        if answer.state is None:
            if node not in self._unreached:
                self._say(f"{answer.problem}; what runs there may go on")
            self._unreached.add(node)
            return
        if node in self._unreached:
            self._unreached.discard(node)
            self._say(f"{answer.host} is back")
        if answer.state.is_alive or answer.state.exit_code is not None:
            self._dead_looks.pop(node, None)
            return
        self._dead_looks[node] = self._dead_looks.get(node, 0) + 1
        if self._dead_looks[node] == GONE_LOOKS:
            self._say(f"node {node} on {answer.host} is gone: it was killed, or the host started anew")
            if not self.was_asked and (self._needs_all or node == 0):
                self.ask_to_stop()  # the others would wait for it

    def _tell_end(self) -> int:
        for node in sorted(self._left() - self._gone()):
            self._say(
                f"{self._nodes.hosts[node]} was not reached at the end; look there for what may be left"
            )
        return job_code(self._codes, self._gone(), was_asked=self.was_asked)


def job_code(codes: dict[int, int], gone: set[int], *, was_asked: bool) -> int:
    """The first node's exit code; where it stopped for another one that failed, that one's.

    codes: of the nodes that have ended by themselves. gone: that have ended otherwise.
    """
    first = codes.get(0, EXIT_LOST_PEER)
    if first != EXIT_PREEMPTED:
        return first
    if gone:
        return EXIT_LOST_PEER
    failed = [code for code in codes.values() if code not in (EXIT_OK, EXIT_PREEMPTED)]
    return failed[0] if failed and not was_asked else first


class Look:
    """One question to the hosts, in a thread: one that is cut off must not hold the log up."""

    def __init__(self, nodes: Nodes, only: list[int]) -> None:
        self.answers: dict[int, Answer] | None = None
        self.connections = Connections()
        self._nodes, self._only = nodes, only
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        try:
            self.answers = self._nodes.ask("state", self._only, self.connections)
        except ForeframeError as error:  # no ssh on this machine any more
            self.answers = {node: Answer(self._nodes.hosts[node], None, str(error)) for node in self._only}


class Log:
    """A file that another machine writes, printed as it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def show(self, *, to_the_end: bool = False) -> None:
        """What is new of it, in whole lines."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return  # not there yet, or the network's folder is away for a moment
        if not to_the_end:
            data = data[: data.rfind(b"\n") + 1]
        if data:
            self._read += len(data)
            sys.stdout.write(data.decode(errors="replace"))
            sys.stdout.flush()
