"""Output that nobody reads any more: a pipe whose reader has ended, a terminal that was closed.

A run of weeks must not end of that. What cannot be written is dropped, once and for good; the run's files and
its exit code tell the rest.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

# After these nobody will ever read there again; a full disk (of a log) may have room for a later line.
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ESHUTDOWN, errno.ECONNRESET)


class Unbroken:
    """A text stream to which writing never fails; in all else it is the stream that it was made of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_unread = False

    @classmethod
    def of(cls, stream: TextIO) -> TextIO:
        return cast(TextIO, stream if isinstance(stream, cls) else cls(stream))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno in GONE:
            self.is_unread = True
            # Also what children write there, and what is still in the stream's buffer.
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def is_unread() -> bool:
    """Whether somebody read what this process prints, and is gone."""
    return any(getattr(stream, "is_unread", False) for stream in (sys.stdout, sys.stderr))


def silence_unread_output() -> None:
    """From now on this process's stdout and stderr are such streams; call it before anything prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # it was closed before the start: print() writes nothing then
            setattr(sys, name, Unbroken.of(stream))
