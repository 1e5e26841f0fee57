"""Pillow: still pictures of unknown origin, and our own clips of a JPEG a frame."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import Frames, Size
from data_pipeline.decode.container import known_at_sight, last_words, picture_format, read_head
from data_pipeline.decode.scale import Scaler, resize_rgb
from data_pipeline.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # all that Pillow may try; GIF, PSD, EPS and others never
ANIMATIONS = ("PNG", "WEBP")  # the further pictures of a TIFF or MPO are pages, masks, thumbnails
LONGEST_ASPECT = 32  # a longer strip has no short side to speak of, and a long one that no encoder takes
ORIENTATION = 274  # the tag of EXIF and TIFF
# By orientation: degrees counterclockwise to the upright picture; of 2, 4, 5 and 7 behind a mirror.
ROTATIONS = {3: 180, 4: 180, 5: 90, 6: 270, 7: 270, 8: 90}
# What Pillow raises on damaged files: the first four were seen, parsers of headers raise the others.
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError),
    *(
        EOFError,
        KeyError,
        IndexError,
        OverflowError,
        ZeroDivisionError,
        RuntimeError,
        struct.error,
        zlib.error,
    ),
)


class PictureDecoder:
    """A `Decoder` of a still picture: one frame, at 0 s, upright as EXIF says, in RGB.

    Grey and palettes become the colours that they stand for; of 16 bits a colour the upper 8 are taken; CMYK
    and YCbCr are brought to RGB by their formulas, without colour profiles; what is transparent lies over
    black. Numbers of 32 bits and Lab colours (TIFF) are refused. A broken EXIF turns nothing. Of a TIFF of
    several pages, and of a phone's JPEG with others behind it (MPO), the first is the picture; an animation
    (PNG, WEBP) is refused. Missing bytes are an error, and so is damage that the decoder can see: JPEG, BMP
    and TIFF carry no checksum, so that a flipped bit may pass as a wrong patch, and a PNG whose own stream
    ends early, as no file that was cut does, is black below.

    codec: jpeg, png, webp, bmp or tiff; pixel_format: Pillow's mode of the file; rotation: degrees
    counterclockwise that were applied.
    """

    def __init__(self, source: str | Path | bytes, size: Size | None = None) -> None:
        """Raises: DataError with the reason; MemoryError."""
        head, _ = read_head(source)
        self.codec = picture_format(head).lower()
        if not self.codec:
            raise DataError(_why_no_picture(head))
        image, self.pixel_format, self.rotation = _read(source, self.codec.upper())
        self._image_HWC = image
        height, width = image.shape[:2]
        self.timestamps_s: NDArray[np.float64] = np.zeros(1)
        self.width: int
        self.height: int
        self.width, self.height = size or (width, height)

    def frames(
        self, indices: Sequence[int] | NDArray[np.int64], size: Size | None = None, keeps: bool = False
    ) -> Frames:
        """As a `Decoder` does; size: another (width, height). The picture is held as it was decoded, so that
        keeps, which PyAV wants to be told, changes nothing."""
        wanted = np.asarray(indices, np.int64)
        if len(wanted) == 0 or wanted.any():
            raise DataError("a picture has one frame: indices must be 0")
        frames = resize_rgb(self._image_HWC[None], Scaler(size or (self.width, self.height)))
        return frames if len(wanted) == 1 else np.repeat(frames, len(wanted), axis=0)

    def close(self) -> None:
        self._image_HWC = np.empty((0, 0, 3), np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _read(source: str | Path | bytes, kind: str) -> tuple[Frames, str, int]:
    """(H, W, 3) uint8 RGB, the mode that the file has, and the rotation that was applied."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels below its limit, and of tags that it passes over
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            with opened as image:
                _check_header(image)
                mode, turned = image.mode, _orientation(image) if image.format == "TIFF" else 1
                image.load()  # Pillow turns a TIFF here, and no other
                orientation = _orientation(image)
                upright = _turn(_to_rgb(image), orientation)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"its header claims more pixels than are read: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"it begins like a {kind} picture, and its header is damaged or cut short") from error
    except BROKEN as error:
        raise DataError(f"its {kind} picture is damaged or cut short: {last_words(error)}") from error
    return upright, mode, ROTATIONS.get(orientation if turned == 1 else turned, 0)


def _check_header(image: Image) -> None:
    if image.format in ANIMATIONS and getattr(image, "n_frames", 1) > 1:
        raise DataError(
            f"it is an animation of {getattr(image, 'n_frames', 0)} frames, no still picture: "
            f"make a video of it, or leave it out"
        )
    if max(image.size) > LONGEST_ASPECT * min(image.size):
        raise DataError(
            f"its sides are {image.width} × {image.height} pixels: one more than {LONGEST_ASPECT} times the "
            f"other is no picture to train on"
        )
    if image.mode in ("I", "F", "LAB"):
        what = (
            "Lab colours" if image.mode == "LAB" else "numbers of 32 bits, of which none is told to be white"
        )
        raise DataError(f"its pixels are {what}: save it with 8 or 16 bits a colour")


def _orientation(image: Image) -> int:
    """1 to 8 as EXIF counts them; 1, upright, where it is not told or its EXIF is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return 1


def _to_rgb(image: Image) -> Frames:
    from PIL import Image as Pillow

    if image.mode.startswith("I;16"):  # Pillow's own way to 8 bits cuts off what is above 255
        grey_HW = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        over_black = Pillow.new("RGB", picture.size)
        over_black.paste(picture, mask=picture.getchannel("A"))
        return np.asarray(over_black)
    return np.asarray(image.convert("RGB"))


def _turn(image_HWC: Frames, orientation: int) -> Frames:
    """The picture upright. orientation: which side of it the first row and column are, as EXIF counts."""
    if orientation in (2, 4, 5, 7):
        image_HWC = image_HWC[:, ::-1]
    return np.ascontiguousarray(np.rot90(image_HWC, ROTATIONS.get(orientation, 0) // 90))


def _why_no_picture(head: bytes) -> str:
    read = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis"):
        return f"it is a HEIC or AVIF picture; {read}"
    if words := known_at_sight(head):
        what, _, _ = words.partition(", not a video")
        return f"{what}; {read}" if "picture" in what else f"{what}, not a picture"
    return f"no picture is recognised in it by its first bytes; {read}"


def decode_jpegs(files: Sequence[bytes]) -> Frames:
    """The frames of JPEG files of one size: (T, H, W, 3) uint8 RGB. Raises: DataError."""
    from PIL import Image, UnidentifiedImageError

    frames = []
    for number, data in enumerate(files):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"its JPEG number {number} cannot be read: {error}") from error
    if len({frame.shape for frame in frames}) != 1:
        raise DataError(
            f"its JPEG frames have sizes {sorted({frame.shape for frame in frames})}; need one size"
        )
    return np.stack(frames)
