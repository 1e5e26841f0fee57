"""Still pictures drawn for tests, and what their files are, byte by byte where a test needs that."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.finish import Outcome
from data_pipeline.manifest import Clip

LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True, "exact": True},
}
# By orientation: on which side of the upright picture the first row and the first column of the file lie.
# Source: EXIF 2.32, 4.6.4 A, Orientation.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def draw(seed: int = 0, width: int = 96, height: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: smooth blobs of colour that no turn or mirror leaves as they are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 230, (5, 7, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encode(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    sink = io.BytesIO()
    image.save(sink, kind, **(options or LOSSLESS.get(kind, {"quality": 95, "subsampling": "4:4:4"})))  # type: ignore[arg-type]
    return sink.getvalue()


def write(path: Path, picture: np.ndarray | Image.Image, **options: object) -> Path:
    """A file of the kind that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(
        path.suffix[1:].lower(), path.suffix[1:].upper()
    )
    path.write_bytes(encode(picture, kind, **options))
    return path


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as a file of that orientation holds it, pixel by pixel."""
    height, width = upright.shape[:2]
    row_side, column_side = SIDES[orientation]
    is_turned = row_side in ("left", "right")
    found = np.empty((width, height, 3) if is_turned else (height, width, 3), np.uint8)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            place = {row_side: row, column_side: column}
            y = place["top"] if "top" in place else height - 1 - place["bottom"]
            x = place["left"] if "left" in place else width - 1 - place["right"]
            found[row, column] = upright[y, x]
    return found


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of one row whose header says width × height."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    row = zlib.compress(bytes(1 + 3 * min(width, 1000)))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", row) + part(b"IEND", b"")


def by_name(outcome: Outcome) -> dict[str, Clip]:
    """The clips of pictures."""
    pictures = {video.video_id for video in outcome.videos if video.is_picture}
    found = {Path(clip.uri).stem: clip for clip in outcome.clips if clip.video_id in pictures}
    assert len(found) == sum(clip.video_id in pictures for clip in outcome.clips)
    return found
