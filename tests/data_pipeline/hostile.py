"""The files that break pipelines, written small, each with what is to come of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

from tests.data_pipeline.numbered import numbered_frames, write_video

NUM_FRAMES = 30

Fate = Literal["whole", "damaged", "refused"]


@dataclass(frozen=True)
class Hostile:
    """A file and what is to come of it.

    fate: `whole`: every clip comes out, its frames numbered as `times_ms` says; `damaged`: each clip either
    comes out so, or fails with a reason that matches; `refused`: inspection fails with such a reason.
    times_ms: when frame 0, 1, … is shown. is_listed: whether a listing of the folder gives it.
    """

    path: Path
    fate: Fate
    reason: str = ""
    times_ms: tuple[int, ...] = tuple(100 * k for k in range(NUM_FRAMES))
    is_listed: bool = True


DAMAGE = r"damaged|does not decode|ends at|moov|container is recognised|no duration|cannot be read|no usable"


def write_hostile(folder: Path) -> dict[str, Hostile]:
    """Write all of them into `folder`, by name. Codecs that PyAV cannot write are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Hostile] = {}
    for write in (_no_videos, _odd_videos, _cut_short, _flipped, _liars, _names, _lists, _links_and_nodes):
        found |= write(folder)
    return found


def write_sound(path: Path) -> None:
    """A second of silence: an mp4 without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _no_videos(folder: Path) -> dict[str, Hostile]:
    rng = np.random.default_rng(0)
    write_sound(folder / "sound.mp4")
    page = b"<!DOCTYPE html><html><body>404 not found</body></html>" * 5
    files = {
        "zero": (b"", "the file is empty"),
        "one-byte": (b"\0", "container is recognised"),
        "hundred-bytes": (rng.bytes(100), "container is recognised"),
        "random": (rng.bytes(5000), "container is recognised"),
        "zeros": (bytes(5000), "container is recognised"),
        "page": (page, "an HTML page"),
        "picture": (b"\xff\xd8\xff\xe0" + rng.bytes(500), "a JPEG picture"),
        "archive": (b"PK\x03\x04" + rng.bytes(500), "a zip archive"),
        "song": (b"ID3\x04" + bytes(500), "only audio"),
        "ftyp-alone": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(100), "moov"),
    }
    found = {
        name: Hostile(_save(folder / f"{name}.mp4", data), "refused", reason)
        for name, (data, reason) in files.items()
    }
    return found | {"sound": Hostile(folder / "sound.mp4", "refused", "no video, only audio")}


def _odd_videos(folder: Path) -> dict[str, Hostile]:
    frames = numbered_frames(NUM_FRAMES)
    varied = np.cumsum([0] + [(40, 40, 200, 7, 100, 400)[k % 6] for k in range(NUM_FRAMES - 1)]).tolist()
    quiet = {"x265-params": "log-level=none"}
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        "plain": ("mp4", {"bf": "3", "g": "12"}),
        "hevc": ("mp4", {"codec": "libx265", **quiet}),
        "vp9": ("webm", {"codec": "libvpx-vp9"}),
        "av1": ("mkv", {"codec": "libsvtav1", "preset": "12"}),
        "ten-bit": ("mp4", {"pixel_format": "yuv420p10le"}),
        "444": ("mp4", {"pixel_format": "yuv444p"}),
        "turned": ("mp4", {"rotation": 90}),
        "upside-down": ("mov", {"rotation": 180}),
        "vfr": ("mp4", {"times_ms": varied, "bf": "3"}),
        "odd": ("mp4", {"pixel_format": "yuv444p", "size": (97, 65)}),
        "narrow": ("mp4", {"size": (48, 96)}),
        "wide-pixels": ("mp4", {"pixel_aspect": Fraction(4, 3)}),
        "late": ("mkv", {"times_ms": [5000 + 100 * k for k in range(NUM_FRAMES)]}),
        "thousand-fps": ("mp4", {"times_ms": list(range(900)), "count": 900}),
        "avi-b": ("avi", {"codec": "mpeg4", "bf": "2"}),
        "stream": ("ts", {"bf": "2", "g": "10"}),
    }
    found = {}
    for name, (ending, options) in kinds.items():
        codec = str(options.pop("codec", "libx264"))
        if codec not in av.codecs_available:
            continue
        count = int(options.pop("count", NUM_FRAMES))  # type: ignore[call-overload]
        size = options.pop("size", (96, 64))
        # 900 frames carry their number's lowest eight bits
        pictures = frames if (count, size) == (NUM_FRAMES, (96, 64)) else numbered_frames(count, *size)  # type: ignore[misc]
        path = write_video(folder / f"{name}.{ending}", pictures, codec, **options)  # type: ignore[arg-type]
        times = options.get("times_ms") or [100 * k for k in range(count)]
        found[name] = Hostile(path, "whole", times_ms=tuple(times))  # type: ignore[arg-type]
    single = write_video(folder / "single.mp4", frames[:1])
    found["single"] = Hostile(single, "damaged", DAMAGE, times_ms=(0,))
    return found


def _plain(folder: Path, name: str, **options: object) -> bytes:
    path = write_video(folder / name, numbered_frames(NUM_FRAMES), **options)  # type: ignore[arg-type]
    data = path.read_bytes()
    path.unlink()
    return data


def _cut_short(folder: Path) -> dict[str, Hostile]:
    last = _plain(folder, "cut.mp4", g="5", bf="2")
    first = _plain(folder, "cut.mp4", g="5", bf="2", mux={"movflags": "+faststart"})
    assert first.index(b"moov") < first.index(b"mdat")
    return {
        "moov-last": Hostile(_save(folder / "moov-last.mp4", last[: len(last) // 2]), "refused", "moov"),
        "moov-first": Hostile(
            _save(folder / "moov-first.mp4", first[: len(first) * 7 // 10]), "damaged", DAMAGE
        ),
        "tail-gone": Hostile(
            _save(folder / "tail-gone.ts", _plain(folder, "cut.ts", g="5")[:-700]), "damaged", DAMAGE
        ),
    }


def _flipped(folder: Path) -> dict[str, Hostile]:
    data = _plain(folder, "flip.mp4", g="5", bf="2")
    found = {}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        spoiled = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(100, len(data), 12)
        spoiled[places] ^= (1 << rng.integers(0, 8, 12)).astype(np.uint8)
        path = _save(folder / f"flipped-{seed}.mp4", spoiled.tobytes())
        found[f"flipped-{seed}"] = Hostile(path, "damaged", DAMAGE)
    return found


def _liars(folder: Path) -> dict[str, Hostile]:
    """Headers that claim what is not so."""
    avi = bytearray(_plain(folder, "lies.avi", codec="mpeg4"))
    claim = (NUM_FRAMES * 10).to_bytes(4, "little")
    header, stream = avi.index(b"avih"), avi.index(b"strh")
    avi[header + 24 : header + 28] = claim  # dwTotalFrames
    avi[stream + 40 : stream + 44] = claim  # dwLength
    still = bytearray(_plain(folder, "still.avi", codec="mpeg4"))
    at = still.index(b"strh")
    still[at + 32 : at + 36] = bytes(4)  # dwRate, of which the frame rate is a multiple
    return {
        "more-frames-claimed": Hostile(_save(folder / "more-frames-claimed.avi", avi), "damaged", "ends at"),
        "zero-fps": Hostile(
            _save(folder / "zero-fps.avi", still), "damaged", DAMAGE + "|tells neither|no clip|hours"
        ),
        # libav itself refuses the first; the second fits its limits and not a child's 512 MiB
        "huge": Hostile(_huge(folder / "huge.mov", 20000), "refused", "does not decode"),
        "large": Hostile(_huge(folder / "large.mov", 16000), "refused", "more memory to decode"),
    }


def _huge(path: Path, side: int) -> Path:
    """A video of PNG pictures whose headers say side × side pixels: three bytes each when decoded."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rgb_of_8_bits = bytes([8, 2, 0, 0, 0])
    header = struct.pack(">II", side, side) + rgb_of_8_bits
    row = zlib.compress(bytes(1 + 3 * side))
    picture = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", row) + part(b"IEND", b"")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        for number in range(5):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return path


def _names(folder: Path) -> dict[str, Hostile]:
    names = [
        "two  spaces.mp4",
        'it\'s "quoted".mp4',
        "line\nbreak.mp4",
        "\N{CLAPPER BOARD}.mp4",
        "http:a%d.mp4",
    ]
    data = _plain(folder, "name.mp4")
    return {name: Hostile(_save(folder / name, data), "whole") for name in names}


def _lists(folder: Path) -> dict[str, Hostile]:
    """Text that makes libav open other files, were it let."""
    other = folder / "plain.mp4"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{other}\n#EXT-X-ENDLIST\n" + "#\n" * 40
    endless = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n" + "#\n" * 40
    script = f"ffconcat version 1.0\nfile '{other.name}'\n" + "# \n" * 40
    files = {"playlist": playlist, "endless": endless, "script": script}
    return {
        name: Hostile(_save(folder / f"{name}.mp4", text.encode()), "refused", "only names other files")
        for name, text in files.items()
    }


def _links_and_nodes(folder: Path) -> dict[str, Hostile]:
    """Names behind which there is no file. Those not listed would never end if they were hashed."""
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "looping.mp4").symlink_to(folder / "looping.mp4")
    found = {
        "dangling": Hostile(folder / "dangling.mp4", "refused", "cannot be opened|leads nowhere"),
        "looping": Hostile(folder / "looping.mp4", "refused", "cannot be opened|leads nowhere"),
    }
    nodes: dict[str, tuple[Callable[[Path], object], str]] = {
        "pipe": (lambda path: os.mkfifo(path), "a named pipe"),
        "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
        "folder": (lambda path: path.mkdir(), "a folder"),
    }
    beside = folder.parent / f"{folder.name}-nodes"
    beside.mkdir()
    for name, (make, reason) in nodes.items():
        path = beside / f"{name}.mp4"
        make(path)
        found[name] = Hostile(path, "refused", reason, is_listed=False)
    return found
