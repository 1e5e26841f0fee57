"""Colours of frames, scaled and not, against the formulas of BT.601 and BT.709."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import DecoderName, open_video
from data_pipeline.errors import DataError
from tests.data_pipeline.numbered import numbered_frames, write_video
from tests.data_pipeline.test_decoders_agree import DECODERS

# Y, Cb, Cr of eight upright bands, as fractions of their ranges: colours that RGB can show.
BANDS = np.array(
    [
        (0.15, 0.0, 0.0),
        (0.50, 0.0, 0.0),
        (0.90, 0.0, 0.0),
        (0.40, 0.2, -0.1),
        (0.60, -0.2, 0.1),
        (0.45, -0.1, 0.3),
        (0.55, 0.1, -0.25),
        (0.40, 0.25, 0.1),
    ]
)
WIDTH, HEIGHT = 256, 128


def rgb_of(matrix: str) -> np.ndarray:
    """(8, 3): what the bands are in RGB, in 0..255. Source: ITU-R BT.601-7 sec. 2.5, BT.709-6 sec. 3."""
    red, blue = (0.299, 0.114) if matrix == "bt601" else (0.2126, 0.0722)
    y, cb, cr = BANDS.T
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.stack([r, g, b], axis=-1) * 255


def write_bands(path: Path, matrix: str, is_full: bool, pixel_format: str) -> Path:
    """Three frames of the bands, all but lossless, with the tags that name matrix and range."""
    depth = 10 if "10" in pixel_format else 8
    unit = 1 << (depth - 8)
    y, chroma = BANDS[:, :1], BANDS[:, 1:]
    top = 256 * unit - 1
    luma = y * top if is_full else (16 + 219 * y) * unit
    chroma = 128 * unit + chroma * (top if is_full else 224 * unit)
    levels = np.round(np.concatenate([luma, chroma], axis=1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        context.color_range = 2 if is_full else 1
        context.colorspace = 1 if matrix == "bt709" else 6
        stream.options = {"crf": "1"}
        for number in range(3):
            frame = av.VideoFrame(WIDTH, HEIGHT, pixel_format)
            for plane, level in zip(frame.planes, levels.T, strict=True):
                row = np.repeat(level, plane.width // 8).astype(np.uint8 if depth == 8 else np.uint16)
                full = np.zeros(plane.line_size // row.itemsize, row.dtype)
                full[: len(row)] = row
                plane.update(np.tile(full, plane.height).tobytes())
            frame.color_range, frame.colorspace = context.color_range, context.colorspace
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("size", [None, (64, 32), (120, 50), (512, 256)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("is_full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("decoder", DECODERS[1:])
def test_colours_are_those_of_the_matrix_and_range(
    decoder: DecoderName,
    matrix: str,
    is_full: bool,
    pixel_format: str,
    size: tuple[int, int] | None,
    tmp_path: Path,
) -> None:
    """Within 2 of 255 scaled (Y, Cb and Cr are rounded to 8 bits), 3 as they are (swscale's fast path)."""
    path = write_bands(tmp_path / "bands.mp4", matrix, is_full, pixel_format)
    if decoder == "torchcodec" and is_full and "10" in pixel_format:
        with pytest.raises(DataError, match="takes full-range frames"):
            open_video(path, decoder, size=size)
        return
    with open_video(path, decoder, size=size) as video:
        image = video.frames([1])[0].astype(float)
    width = image.shape[1]
    centres = image[:, ((np.arange(8) + 0.5) * width / 8).astype(int)]
    np.testing.assert_allclose(
        centres, np.broadcast_to(rgb_of(matrix), centres.shape), atol=2 if size and decoder == "pyav" else 3
    )


def test_scaling_averages_what_it_shrinks(tmp_path: Path) -> None:
    """A board of single black and white pixels is grey at a quarter of its size, not a pattern of its own."""
    board = np.indices((128, 192)).sum(axis=0) % 2 * 219 + 16
    frames = [np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)] * 2
    path = write_video(tmp_path / "board.mp4", frames, crf="1")
    with open_video(path, "pyav", size=(48, 32)) as video:
        found = video.frames([0])[0].astype(int)
    assert np.abs(found - board.mean()).max() <= 3


def test_all_decoders_scale_alike(tmp_path: Path) -> None:
    """Within 2 of 255 on grey slopes: the others average RGB where PyAV averages YUV."""
    slope = np.add.outer(np.arange(96), np.arange(160)).astype(np.uint8)
    path = write_video(tmp_path / "slope.mp4", [np.repeat(slope[:, :, None], 3, axis=2)] * 3, crf="4")
    with open_video(path, "pyav", size=(60, 36)) as video:
        expected = video.frames([0, 1]).astype(int)
    for parameter in DECODERS[2:]:
        if parameter.marks:  # type: ignore[attr-defined]
            continue
        with open_video(path, parameter.values[0], size=(60, 36)) as video:  # type: ignore[attr-defined]
            assert np.abs(video.frames([0, 1]) - expected).max() <= 2


def test_a_turned_video_is_scaled_to_the_size_displayed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", numbered_frames(3, 64, 96), rotation=90)
    with open_video(path, "pyav", size=(32, 50)) as video:
        assert video.frames([2]).shape == (1, 50, 32, 3)
        assert (video.width, video.height) == (32, 50)


def test_a_size_of_nothing_is_refused(clip_bytes: bytes) -> None:
    with pytest.raises(DataError, match="must be 1 or more"):
        open_video(clip_bytes, size=(0, 8))
