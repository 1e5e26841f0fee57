"""Files of anywhere as files of this machine, for as long as one works on them.

Decoders and NumPy want a path: a local file is its own, a remote object is copied into a scratch folder.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from data_pipeline.scratch import scratch_folder
from data_pipeline.storage import Storage


class Scratch:
    """A folder of copies, made when first needed; a context manager that removes it."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._stack = contextlib.ExitStack()
        self._copies: dict[str, Path] = {}

    def local(self, address: str) -> Path:
        """The path of a file, or of a copy of a remote object. Raises: DataError as Storage does."""
        if "://" not in address:
            return Path(address)
        if address not in self._copies:
            root, name = address.rsplit("/", 1)
            ending = os.path.splitext(name)[1][:16]  # decoders look at it where the content is ambiguous
            path = self._made() / f"{len(self._copies):06d}{ending}"
            Storage(root).download(name, path)
            self._copies[address] = path
        return self._copies[address]

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch_folder())
        return self._folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        self._folder = None
        self._copies.clear()
