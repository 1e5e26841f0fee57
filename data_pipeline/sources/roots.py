"""The root that no line of a list may leave: names are checked before anything is looked at, links too."""

from __future__ import annotations

import os
import posixpath
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable

from data_pipeline.errors import UsageError, why
from data_pipeline.sources import folders
from data_pipeline.sources.base import KINDS_OF_FILE, SIDECAR_ENDINGS, Found
from data_pipeline.sources.match import EPISODE_TABLES


class RefusedLineError(Exception):
    """Why a line of a list is passed over; its text is the reason. Never leaves this package."""


class Root(ABC):
    """A folder or s3:// prefix. Names are relative to it, without `.` or `..`."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"

    @abstractmethod
    def name_of(self, uri: str) -> str:
        """The name of a file that a list calls `uri`. Raises: RefusedLineError when it leaves the root."""

    @abstractmethod
    def look(self, names: Iterable[str]) -> None:
        """Find out, all at once, what can be about these names; `find` is asked for no others after it."""

    @abstractmethod
    def find(self, name: str) -> Found:
        """The file of that name. Raises: RefusedLineError: there is none, or it is a link out of the root."""

    @abstractmethod
    def candidates(self, name: str) -> Iterable[str]:
        """Names of the files that could be sidecars of `name`: those beside it, and tables above it."""

    def uri(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


def _check(uri: str, root: str) -> None:
    if not uri:
        raise RefusedLineError("it has no uri")
    if "\0" in uri:
        raise RefusedLineError("its name holds a zero byte")
    if ".." in uri.split("/"):
        raise RefusedLineError(f"{uri} has `..` in it, which may leave {root}; write the path from there")


class LocalRoot(Root):
    """A folder. Links are followed and have to end inside it."""

    def __init__(self, root: str) -> None:
        super().__init__(root or ".")
        if not os.path.isdir(self.root):
            raise UsageError(
                f"the root {self.root} is no folder; `root` is the one that holds a list's videos"
            )
        self.absolute = os.path.abspath(self.root)
        self.real = os.path.realpath(self.root)
        self._is_inside: dict[str, bool] = {}
        self._sidecars: dict[str, frozenset[str]] = {}

    def name_of(self, uri: str) -> str:
        _check(uri, self.root)
        if "://" in uri:
            raise RefusedLineError(f"{uri} is no file below {self.root}: set `root` to where it is")
        name = uri
        if uri.startswith("/"):
            path = posixpath.normpath(uri)
            inside = [at for at in (self.absolute, self.real) if path.startswith(at.rstrip("/") + "/")]
            if not inside:
                raise RefusedLineError(
                    f"{uri} lies outside {self.root}: set `root` to a folder that holds it"
                )
            name = path[len(inside[0].rstrip("/")) + 1 :]
        elif "./" in name or "//" in name or name.endswith("/"):
            name = posixpath.normpath(name)
        if name == ".":
            raise RefusedLineError(f"{uri} is the root itself, no video")
        return name

    def look(self, names: Iterable[str]) -> None:
        """Nothing: a file is looked at when it is asked for, which costs as much."""

    def find(self, name: str) -> Found:
        path = f"{self.absolute}/{name}"
        if not self._holds_folder(posixpath.dirname(name)):
            raise RefusedLineError(f"{name} is behind a link that leaves {self.root}")
        try:
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                if not self._holds(os.path.realpath(path)):
                    raise RefusedLineError(f"{name} is a link that leaves {self.root}")
                about = os.stat(path)
        except FileNotFoundError:
            raise RefusedLineError(f"{name} does not exist in {self.root}") from None
        except (OSError, ValueError) as error:
            reason = why(error) if isinstance(error, OSError) else str(error)
            raise RefusedLineError(f"{name} cannot be looked at: {reason}") from error
        if not stat.S_ISREG(about.st_mode):
            kind = KINDS_OF_FILE.get(stat.S_IFMT(about.st_mode), "special file")
            raise RefusedLineError(f"{name} is a {kind}, no file")
        return folders.about_file(self.root, name, about)

    def candidates(self, name: str) -> Iterable[str]:
        folder, base = posixpath.split(name)
        stem = posixpath.splitext(base)[0]
        here = self._sidecars_in(folder)
        for ending in SIDECAR_ENDINGS if here else ():
            if stem + ending in here:
                yield posixpath.join(folder, stem + ending)
        while True:
            if here := self._sidecars_in(folder):
                yield from (posixpath.join(folder, table) for table in EPISODE_TABLES if table in here)
            if not folder:
                return
            folder = posixpath.dirname(folder)

    def _sidecars_in(self, folder: str) -> frozenset[str]:
        found = self._sidecars.get(folder)
        if found is None:
            names: frozenset[str] = frozenset()
            if self._holds_folder(folder):
                try:
                    with os.scandir(posixpath.join(self.absolute, folder)) as entries:
                        names = frozenset(e.name for e in entries if e.name.endswith(SIDECAR_ENDINGS))
                except OSError:  # the video itself is found without listing, or says what is wrong
                    names = frozenset()
            found = self._sidecars[folder] = names
        return found

    def _holds_folder(self, folder: str) -> bool:
        known = self._is_inside.get(folder)
        if known is None:
            real = os.path.realpath(posixpath.join(self.absolute, folder))
            known = self._is_inside[folder] = real == self.real or self._holds(real)
        return known

    def _holds(self, real: str) -> bool:
        return real.startswith(self.real.rstrip("/") + "/")


class RemoteRoot(Root):
    """An s3:// prefix, looked at with one listing of what the names have in common."""

    def __init__(self, root: str) -> None:
        from data_pipeline.sources.remote import check_scheme

        super().__init__(root)
        check_scheme(root)
        self._found: dict[str, Found] = {}

    def name_of(self, uri: str) -> str:
        _check(uri, self.root)
        name = uri.removeprefix(self.root + "/")
        if "://" in name or name.startswith("/"):
            raise RefusedLineError(f"{uri} lies outside {self.root}: set `root` to a prefix that holds it")
        while name.startswith("./"):
            name = name[2:]
        if not name:
            raise RefusedLineError(f"{uri} is the root itself, no video")
        return name

    def look(self, names: Iterable[str]) -> None:
        from data_pipeline.sources.remote import list_objects

        wanted = set(names)
        if not wanted:
            return
        common = posixpath.commonpath([posixpath.dirname(name) for name in wanted])
        for found in list_objects(self.root, common):
            if found.name in wanted or found.name.endswith(SIDECAR_ENDINGS):
                self._found[found.name] = found

    def find(self, name: str) -> Found:
        found = self._found.get(name)
        if found is None:
            raise RefusedLineError(f"{name} does not exist in {self.root}")
        return found

    def candidates(self, name: str) -> Iterable[str]:
        folder, base = posixpath.split(name)
        stem = posixpath.join(folder, posixpath.splitext(base)[0])
        yield from (stem + ending for ending in SIDECAR_ENDINGS if stem + ending in self._found)
        while True:
            tables = (posixpath.join(folder, table) for table in EPISODE_TABLES)
            yield from (table for table in tables if table in self._found)
            if not folder:
                return
            folder = posixpath.dirname(folder)


def open_root(root: str) -> Root:
    return RemoteRoot(root) if "://" in root else LocalRoot(root)
