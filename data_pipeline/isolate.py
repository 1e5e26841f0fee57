"""A child process that may hang, crash or eat memory without harm to its parent.

The child is a bare interpreter (no fork of a threaded parent), reused from task to task, and killed when
it stays silent past a deadline. A task is a generator function named "module:function"; its items come
back one by one over a pipe, and each item starts the deadline anew.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.errors import DataError

HEADER = struct.Struct("<Q")
START_S = 60.0  # a child that cannot even start in this time is a sick machine


class TimedOutError(DataError):
    """The child said nothing until the deadline and was killed."""


class CrashedError(DataError):
    """The child died, or raised something that no code of ours names."""


class OutOfMemoryError(DataError):
    """The child asked for more memory than it may have."""


# How a task may fail in the child, by the kind of message that says so.
ENDINGS: dict[str, type[DataError]] = {"memory": OutOfMemoryError, "data": DataError, "crash": CrashedError}


class Child:
    """One reusable child process. Not thread-safe."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def stream(self, task: str, *args: Any, timeout_s: float) -> Iterator[Any]:
        """The items that generator function `task` ("module:function") yields for `args`.

        Raises: DataError as the task raised it; TimedOutError, CrashedError, OutOfMemoryError.
        """
        process = self._started()
        finished = False
        try:
            self._send(process, (task, args))
            while True:
                kind, value = self._receive(process, timeout_s)
                if kind == "item":
                    yield value
                    continue
                if kind != "end" and kind not in ENDINGS:
                    raise CrashedError(f"the decoder's process said {kind!r}, which is no answer; killed")
                finished = kind != "memory"  # what one clip took, the next would lack
                if kind == "end":
                    return
                raise ENDINGS[kind](value)
        finally:
            if not finished:  # timed out, crashed, or the caller stopped listening half way
                self.close()

    def close(self) -> None:
        """Kill the child, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes to a dead child
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            folder = str(Path(__file__).resolve().parent.parent)
            paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONSAFEPATH": "1",  # else `-m` would look into the folder it is started in first
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "data_pipeline.isolate", str(self._memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            try:
                kind, _ = self._receive(self._process, START_S)
                if kind != "ready":
                    raise CrashedError(f"its first message is {kind!r}")
            except BaseException as error:
                # Left alive, its late "ready" would be read as the first answer of the next task.
                self.close()
                if isinstance(error, DataError):
                    raise type(error)(f"the decoder process did not start: {error}") from error
                raise
        return self._process

    def _send(self, process: subprocess.Popen[bytes], message: Any) -> None:
        data = pickle.dumps(message)
        assert process.stdin is not None
        try:
            process.stdin.write(HEADER.pack(len(data)) + data)
            process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed(process) from None

    def _receive(self, process: subprocess.Popen[bytes], timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        (size,) = HEADER.unpack(self._read(process, HEADER.size, deadline, timeout_s))
        return pickle.loads(self._read(process, size, deadline, timeout_s))  # our own child's bytes

    def _read(self, process: subprocess.Popen[bytes], size: int, deadline: float, timeout_s: float) -> bytes:
        assert process.stdout is not None
        handle, parts = process.stdout.fileno(), bytearray()
        while len(parts) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise TimedOutError(f"the decoder hung: silent for {timeout_s:g} s, killed")
            block = os.read(handle, min(size - len(parts), 1 << 20))
            if not block:
                raise self._crashed(process)
            parts += block
        return bytes(parts)

    def _crashed(self, process: subprocess.Popen[bytes]) -> CrashedError:
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            return CrashedError("the decoder's process closed its pipe")
        if code < 0:
            return CrashedError(f"the decoder crashed: {signal.Signals(-code).name}")
        return CrashedError(f"the decoder's process ended with exit code {code}")


_CHILDREN: dict[int, Child] = {}


def shared_child(memory_bytes: int) -> Child:
    """This process's own reusable child."""
    return _CHILDREN.setdefault(memory_bytes, Child(memory_bytes))


def _limit(memory_bytes: int) -> None:
    """Die with the parent, and take at most `memory_bytes` more address space than now; Linux only."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = taken + memory_bytes if hard == resource.RLIM_INFINITY else min(taken + memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(task: str, args: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Run one task; every way it can end becomes a message."""
    module, name = task.split(":")
    try:
        for item in getattr(importlib.import_module(module), name)(*args):
            yield "item", item
    except DataError as error:
        yield "data", str(error)
    except MemoryError:
        yield "memory", "it takes more memory to decode than inspect.memory_bytes allows"
    except Exception as error:  # whatever a hostile file provokes costs that file; the parent counts it
        yield "crash", f"unexpected {type(error).__name__}: {error}"
    else:
        yield "end", None


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer tasks until the parent closes the pipe."""

    def send(message: tuple[str, Any]) -> None:
        data = pickle.dumps(message)
        answers.write(HEADER.pack(len(data)) + data)
        answers.flush()

    send(("ready", None))
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        task, args = pickle.loads(requests.read(HEADER.unpack(header)[0]))  # our own parent's bytes
        for message in _answer(task, args):
            send(message)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):  # decoders print; nothing of it may reach the pipe or the terminal
        os.dup2(nothing, handle)
    import av  # noqa: F401  # loaded before the limit is set, so that the limit is for files alone
    import numpy  # noqa: F401

    _limit(int(sys.argv[1]))
    _serve(requests, answers)


if __name__ == "__main__":
    _main()
