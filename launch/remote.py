"""Commands on other machines, over the system's ssh, on all of them at once; what goes wrong as sentences."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UsageError

CONNECT_S = 10  # that a machine may take to answer at all
AT_ONCE = 64  # connections; a login node has few cores
KILL_AFTER_S = 5  # a command over its time has this long to end after SIGTERM, there
LOST_AFTER_S = 15  # a connection that is silent for so long is given up
LOST = "the connection was lost"
SSH_FAILED, OVER_TIME, KILLED_THERE = 255, 124, 137  # exit codes of ssh, and of coreutils' timeout


@dataclass(frozen=True)
class Ran:
    """How a command went on one machine.

    exit_code: of the command; None when it did not run to its end as far as is known.
    problem: a sentence with the machine's name where ssh or the time was what failed; then it says no more
    of the command than what `out` and `err` hold.
    """

    host: str
    exit_code: int | None
    out: str
    err: str
    problem: str | None = None

    @property
    def is_done(self) -> bool:
        return self.exit_code == 0

    @property
    def last_line(self) -> str:
        """The last thing that it printed, of errors rather than of output; empty when it printed nothing."""
        lines = [line.strip() for text in (self.out, self.err) for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run_on(
    hosts: Sequence[str],
    command: str | Mapping[str, str],
    *,
    timeout_s: float,
    ssh_config: Path | None = None,
    input: str | None = None,
    connections: Connections | None = None,
) -> dict[str, Ran]:
    """Run a shell command on every host at once, and wait for all: what came of it, in the order of `hosts`.

    command: for all, or by host; run by `sh`, whatever the login shell is. input: what it reads; without it,
    nothing. timeout_s: for all of it on one machine; after it the command is ended there too, but for what it
    has started in a session of its own. connections: by which another thread can end it all; a call's own
    without it. Nothing is asked for: keys and known hosts must be in order.
    An exit code of the command is no problem here.
    Raises: UsageError without ssh on this machine, for a name that cannot be a host's, or for settings of ssh
    that are not there.
    """
    _check(hosts, ssh_config)
    each = {host: command if isinstance(command, str) else command[host] for host in hosts}
    if not each:
        return {}
    connections = connections or Connections()
    with ThreadPoolExecutor(min(AT_ONCE, len(each))) as pool, connections.ended_early():
        waiting = {
            host: pool.submit(_run, connections, host, words, timeout_s, ssh_config, input)
            for host, words in each.items()
        }
        return {host: found.result() for host, found in waiting.items()}


def ssh_command(host: str, ssh_config: Path | None = None) -> list[str]:
    """The words before a command that is run on `host`, without a terminal and without questions."""
    settings = ["-F", str(ssh_config)] if ssh_config is not None else []
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_S),
        "ServerAliveInterval": str(LOST_AFTER_S // 3),
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",  # no banners; and what fails is always said
        "ControlPath": "none",  # else the first one would stay behind, and keep this command's output open
        "RemoteCommand": "none",  # of a user whose login goes on into something else
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
    }
    given = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return ["ssh", *settings, "-T", *given, "--", host]


def _check(hosts: Sequence[str], ssh_config: Path | None) -> None:
    if shutil.which("ssh") is None:
        raise UsageError("there is no ssh on this machine: apt-get install openssh-client")
    for host in hosts:
        if not host or host.startswith("-") or re.search(r"\s", host):
            raise UsageError(f"{host!r} cannot be the name of a host: need a name, an address or user@name")
    if ssh_config is not None and not ssh_config.is_file():
        raise UsageError(f"{ssh_config}, the settings of ssh, does not exist")


class Connections:
    """The ssh processes of one call, so that none is left when it is interrupted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[subprocess.Popen[str]] = set()
        self._is_ended = False

    @contextmanager
    def ended_early(self) -> Iterator[None]:
        """End them when a Ctrl-C, or another exception, ends the block: the pool waits for its threads."""
        try:
            yield
        except BaseException:  # whatever it was, no ssh is left running; it goes on
            self.end()
            raise

    def start(self, command: Sequence[str], *, is_fed: bool) -> subprocess.Popen[str] | None:
        """None when all are ended already."""
        with self._lock:
            if self._is_ended:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if is_fed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C"},  # what the system says is read below
                start_new_session=True,  # a Ctrl-C is for this process, which may want to ask something more
            )
            self._open.add(process)
            return process

    def close(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._open.discard(process)

    def end(self) -> None:
        with self._lock:
            self._is_ended = True
            for process in self._open:
                process.kill()


def _run(
    connections: Connections,
    host: str,
    command: str,
    timeout_s: float,
    ssh_config: Path | None,
    input: str | None,
) -> Ran:
    there = shlex.join(["timeout", "-k", str(KILL_AFTER_S), str(math.ceil(timeout_s)), "sh", "-c", command])
    process = connections.start([*ssh_command(host, ssh_config), there], is_fed=input is not None)
    if process is None:
        return Ran(host, None, "", "", f"{host}: interrupted")
    began_s, over_time = time.monotonic(), f"{host}: not done within {timeout_s:g} s"
    try:
        out, err = process.communicate(input, timeout=timeout_s + KILL_AFTER_S + 1)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return Ran(host, None, out, err, over_time)
    finally:
        connections.close(process)
    code = process.returncode
    if code == SSH_FAILED:
        return Ran(host, None, out, err, f"{host}: {_why(host, err)}")
    if code in (OVER_TIME, KILLED_THERE) and time.monotonic() - began_s >= timeout_s:
        return Ran(host, None, out, err, over_time)
    if code < 0:
        return Ran(host, None, out, err, f"{host}: ssh was ended by {signal.Signals(-code).name}")
    return Ran(host, code, out, err)


# What OpenSSH prints (in the C locale), and what to say of it; the first that fits counts.
_REASONS: tuple[tuple[str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is another than the known one: look whether it is the machine that you mean, then "
        "`ssh-keygen -R {name}` and `ssh {host}` once by hand",
    ),
    (
        "Host key verification failed|host key is known for",
        "its host key is not known here: `ssh {host}` once by hand, and accept it",
    ),
    (
        "Could not resolve hostname",
        "there is no host of that name: look at its spelling, and at Host and HostName in ssh's settings",
    ),
    (
        "Permission denied|Too many authentication failures|no mutual signature|passphrase",
        "it refuses the login: put your public key there (`ssh-copy-id {host}`), and the key into ssh-agent "
        "if it has a passphrase; `ssh -o BatchMode=yes {host} true` must succeed",
    ),
    (
        "Connection refused",
        "it is there and nothing answers on ssh's port: start sshd there, or name the port in ssh's settings",
    ),
    (
        "Connection timed out|Operation timed out|No route to host|Network is unreachable|Host is down|"
        "Connection to .* port .* timed out|banner exchange",
        "it cannot be reached: look whether it is up, and at the network between",
    ),
    (
        "not responding|Broken pipe|Connection reset|closed by|Connection to .* closed|Connection lost",
        LOST,
    ),
    ("Bad configuration option|bad configuration options|Bad owner or permissions", "ssh: {line}"),
)


def _why(host: str, err: str) -> str:
    """The sentence for a connection that failed, by what ssh printed."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    for pattern, sentence in _REASONS:
        found = next((line for line in lines if re.search(pattern, line)), None)
        if found is not None:
            return sentence.format(host=host, name=host.rpartition("@")[2], line=found)
    return f"ssh failed: {lines[-1]}" if lines else LOST
