"""Servers that tests start: one process each, which says its port and dies with pytest."""

from __future__ import annotations

import ctypes
import select
import signal
import subprocess
import sys
from pathlib import Path

READY_WITHIN_S = 60  # a loaded machine takes long to import a server
_LIBC = ctypes.CDLL(None)


class Server:
    """A process that prints its port, once it listens, as the first line of its output.

    Start it from the main thread: it dies with the thread that started it.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self.port = 0
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,  # pytest may be killed, and then ends nothing
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], READY_WITHIN_S)
        line = self._process.stdout.readline() if ready else b""
        if not line.strip().isdigit():
            self.kill()
            raise RuntimeError(f"{self._command[:3]} did not start:\n{self._log.read_text()[-3000:]}")
        self.port = int(line)

    def kill(self) -> None:
        """SIGKILL, as a loss of power would end it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
