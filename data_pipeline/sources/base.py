"""What a listing holds: the files to look at, the spans asked for in each, and what lies beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.format import Split

VIDEO_ENDINGS = frozenset(
    "." + name
    for name in (
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "ogv", "ts", "vob", "webm", "wmv"),
    )
)
PICTURE_ENDINGS = frozenset("." + name for name in ("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp"))
SIDECAR_ENDINGS = (".npz", ".npy", ".parquet")  # where a video has several, the first counts
KINDS_OF_FILE = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A file or object as it was listed; fields as those of SourceFile. name: relative to its source."""

    name: str
    uri: str
    address: str
    size_bytes: int = 0
    mtime_ns: int = 0
    etag: str = ""


@dataclass(frozen=True, slots=True)
class SidecarFile:
    """Where the states and actions of a span are.

    address: absolute path or s3:// address of an .npz, .npy or .parquet. mtime_ns: of its last change, 0 when
    it is not known. etag: as the store tells, empty for files. episode: rows of a table of several episodes,
    by its `episode_index`; None: all rows. offset_s: second of the video at which the sidecar's time is 0.
    state_names, action_names: of the columns of a table that does not name them itself.
    """

    address: str
    mtime_ns: int = 0
    etag: str = ""
    episode: int | None = None
    offset_s: float = 0.0
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Found) -> SidecarFile:
        return cls(found.address, found.mtime_ns, found.etag)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a video that was asked for; start_s 0 and end_s None: all of it.

    origin: where that is said, such as `train.csv line 7`; empty when nobody had to say it.
    group: of spans that show one recording (the cameras of an episode), which are never on both sides of
    the split; empty: the video is a recording of its own.
    """

    start_s: float = 0.0
    end_s: float | None = None
    label: str | None = None
    split: Split | None = None
    sidecar: SidecarFile | None = None
    origin: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to look at.

    name: relative to its source, which is what ids are made of; uri: as the manifest names it;
    address: absolute path (bytes that are no UTF-8 as surrogates) or s3:// address to read it from.
    size_bytes and mtime_ns are 0 when not known. etag: as the store tells, empty for files.
    spans: at least one.
    """

    name: str
    uri: str
    address: str
    size_bytes: int = 0
    mtime_ns: int = 0
    etag: str = ""
    spans: tuple[Span, ...] = (Span(),)

    def fingerprint(self) -> str:
        """16 hex digits that change when the file or a sidecar is written again, or other spans are wanted.

        Origins do not count: a line put in at the top of a list moves all others, and no video is another.
        """
        lines = [f"{self.name}\0{self.uri}\0{self.size_bytes}\0{self.mtime_ns}\0{self.etag}"]
        lines += [repr(dataclasses.replace(span, origin="")) for span in self.spans]
        return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file or a line of a list that is passed over.

    reason: a sentence. is_wanted: somebody asked for it by name (a line of a list), so that passing it over
    is a failure; else it is one of the other files that lie in a folder.
    """

    uri: str
    reason: str
    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Files to look at, and what is passed over; both sorted, whatever order they were found in."""

    files: tuple[SourceFile, ...]
    ignored: tuple[Ignored, ...]

    @classmethod
    def of(cls, files: Iterable[SourceFile], ignored: Iterable[Ignored]) -> Listing:
        return cls(
            tuple(sorted(files, key=lambda file: (file.name, file.uri))),
            tuple(sorted(ignored, key=lambda entry: (entry.uri, entry.reason))),
        )


SECRETS = re.compile(r"(?<=://)[^/@\s]*@|\?\S*(?:Signature|Credential|Token|Secret)\S*", re.IGNORECASE)


def printable(path: str) -> str:
    """A path as valid UTF-8 text, whatever bytes its name has; an address without credentials in it."""
    if "://" in path:
        path = SECRETS.sub("", path)
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair, as JSON may spell it
        return path.encode("utf-8", "backslashreplace").decode()
