"""Opening a file of unknown origin with libav: which are refused unread, and what libav may touch.

A file can be a list that names other files or addresses (m3u8, ffconcat, dash, sdp). Only containers that
hold their video themselves are accepted, only local files are read, and mov's references to other files
(dref) stay off.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError

Source = str | Path | bytes

# libav's names. None of them follows a name inside the file; mov could, if `enable_drefs` were on.
CONTAINERS = (
    "mov",
    "matroska",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "m4v",
    "flv",
    "live_flv",
    "asf",
    "ogg",
    "mxf",
)
# decord and torchcodec cannot be told which containers to accept, so they get only what begins like one.
BEGINNINGS = (
    b"\x1a\x45\xdf\xa3",
    b"RIFF",
    b"OggS",
    b"FLV",
    b"\x00\x00\x01\xba",
    b"\x30\x26\xb2\x75",
    b"\x47",
)
# What people name .mp4 by mistake, by its first bytes.
NO_VIDEO = (
    (b"#EXTM3U", "it is a playlist (m3u8): it only names other files, and those are not followed"),
    (b"ffconcat", "it is a list of files (ffconcat): it only names other files, and those are not followed"),
    (b"v=0", "it is a session description (sdp): it only names a stream elsewhere"),
    (b"ID3", "it holds no video, only audio (MP3)"),
    (b"fLaC", "it holds no video, only audio (FLAC)"),
    (b"GIF8", "it is a GIF picture, not a video"),
    (b"PK\x03\x04", "it is a zip archive, not a video"),
    (b"%PDF", "it is a PDF, not a video"),
)
PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
BMP_HEADERS = (
    12,
    40,
    52,
    56,
    64,
    108,
    124,
)  # bytes of what follows a BMP's own 14, in its little-endian word
HEAD_BYTES = 512
SMALLEST_BYTES = 64  # no container with one frame in it is smaller
BAD_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Packets:
    """What a stream's packets tell without decoding.

    found: by presentation tick, whether the packet is a keyframe and the tick to seek to for it;
    decode_ticks: decoding times in file order; is_counted: frames cannot be known by their ticks.
    """

    found: dict[int, tuple[bool, int]]
    decode_ticks: list[int]
    is_counted: bool


def read_head(source: Source) -> tuple[bytes, int]:
    """The first bytes of a file (512 at most), and how many it has. Never waits, as opening a pipe would.

    Raises: DataError when it is no regular file, cannot be opened or is empty.
    """
    if isinstance(source, bytes):
        head, size_bytes = source[:HEAD_BYTES], len(source)
    else:
        try:
            found = os.stat(source)
            for is_type, words in BAD_TYPES:
                if is_type(found.st_mode):
                    raise DataError(f"it is {words}, not a file")
            size_bytes = found.st_size
            head = b""
            if size_bytes:
                with open(source, "rb") as file:
                    head = file.read(HEAD_BYTES)
        except OSError as error:
            what = "it is a link that leads nowhere" if os.path.islink(source) else "it cannot be opened"
            raise DataError(f"{what}: {error.strerror or error}") from error
    if not head:
        raise DataError("the file is empty (0 bytes)")
    return head, size_bytes


def picture_format(head: bytes) -> str:
    """JPEG, PNG, WEBP, BMP or TIFF, by the first bytes of a file; empty for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "BMP"
    return next((name for beginning, name in PICTURES if head.startswith(beginning)), "")


def refuse_early(source: Source) -> bytes:
    """What can be refused without libav, in microseconds: what is no regular file, empty, or no video at
    first sight.

    Returns: the first bytes (512 at most). Raises: DataError with the reason.
    """
    head, size_bytes = read_head(source)
    if words := known_at_sight(head):
        raise DataError(words)
    if not head.strip(b"\0"):
        raise DataError("no video container is recognised in it: it begins with zeros alone")
    if size_bytes < SMALLEST_BYTES:
        raise DataError(f"no video container is recognised in it: {size_bytes} bytes hold none")
    return head


def known_at_sight(head: bytes) -> str:
    """What a file is by its first bytes, in a sentence, where that is certain and no video; else empty."""
    if kind := picture_format(head):
        return f"it is a {kind} picture, not a video"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, words in NO_VIDEO:
        if text.startswith(beginning):
            return words
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "it holds no video, only audio (WAV)"
    if text.lower().startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, not a video"
    if text.startswith(b"<") and b"<MPD" in text:
        return "it is a playlist (dash): it only names other files, and those are not followed"
    return ""


def refuse_for_others(source: Source) -> None:
    """`refuse_early` for decoders that would open any container: the first bytes must be of a known one.

    Raises: DataError with the reason.
    """
    head = refuse_early(source)
    if not (
        head.startswith(BEGINNINGS) or head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
    ):
        raise DataError("no video container is recognised in its first bytes")


def open_container(source: Source) -> tuple[Any, Any]:
    """The container and its best video stream, ready to decode strictly on one thread.

    Raises: DataError with the reason, in plain words; MemoryError.
    """
    import av

    head = refuse_early(source)
    av.logging.set_level(av.logging.PANIC)
    limits = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file", "enable_drefs": "0"}
    try:
        container = av.open(
            # `file:` so that a name like `http:x.mp4` stays a name
            io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}",
            "r",
            container_options=limits,
            metadata_errors="replace",
        )
    except MemoryError:  # libav's is an FFmpegError too; the child tells how much was allowed
        raise
    except av.FFmpegError as error:
        raise DataError(_why_not_a_video(head, error)) from error
    stream: Any = container.streams.best("video")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        raise DataError(f"it holds no video, only {' and '.join(kinds) or 'an empty container'}")
    if stream.disposition & av.stream.Disposition.attached_pic:
        container.close()
        raise DataError("it holds no video, only audio with a cover picture")
    if stream.codec_context is None:
        container.close()
        raise DataError("its video stream is in a codec that this FFmpeg does not know")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all  # their packets are not even read
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    return container, stream


def read_packets(container: Any, stream: Any) -> Packets:
    """Read all packets, to the end or to the first that cannot be read. Raises: DataError when none can."""
    import av

    found: dict[int, tuple[bool, int]] = {}
    decode_ticks: list[int] = []
    # AVI has no presentation times: libav's guesses belong to another frame after reordering
    is_counted = container.format.name == "avi"
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts, dts = packet.pts, packet.dts
            if dts is not None:
                decode_ticks.append(dts)
            if pts is None:
                is_counted = True
            else:
                found[pts] = (packet.is_keyframe, pts if dts is None else min(pts, dts))
    except MemoryError:
        raise
    except av.FFmpegError as error:
        if not found and not decode_ticks:
            raise DataError(f"its packets cannot be read: {last_words(error)}") from error
    return Packets(found, decode_ticks, is_counted)


def last_words(error: BaseException) -> str:
    """One line of what a decoder says, without its source files and stack."""
    lines = [
        line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines() if line.strip()
    ]
    text = lines[0] if lines else type(error).__name__
    return text.rsplit(": ", 1)[-1][:160] if "/src/" in text else text[:160]


def _why_not_a_video(head: bytes, error: Exception) -> str:
    """A true reason, from the first bytes, where libav only says `invalid data`."""
    if getattr(error, "errno", None) == errno.EINVAL:  # so libav says that a container is not in the list
        return f"no video container is recognised in it that is read here ({', '.join(CONTAINERS)})"
    if head[4:8] == b"ftyp":
        return "its index (moov) is missing or broken: the file was cut short or never finished"
    return f"no video container is recognised in it: {last_words(error)}"
