"""Sheets of small frames in rows, as PNG: the form of a run's pictures.

They have a clear background and mid-grey words, so that they read on light and on dark pages.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.storage import write_whole

CELL, GAP, GUTTER = 112, 6, 84  # pixels: a frame's side, between frames, left of a row for its name
GREY = (127, 127, 127)

Pixels = NDArray[np.uint8]


def spread(total: int, count: int) -> list[int]:
    """`count` different numbers of the whole range, the middle of equal parts; all where there are fewer."""
    count = min(count, total)
    return [int((k + 0.5) * total / count) for k in range(count)]


def scale(frame: Pixels, smooth: bool = True) -> Pixels:
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(frame).resize((CELL, CELL), how))


def framed(picture: Pixels, colour: tuple[int, int, int]) -> Pixels:
    """A picture with an edge of four pixels of a colour."""
    found = picture.copy()
    for side in (np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]):
        found[side] = colour
    return found


def sheet_of(names: Sequence[str], rows: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Frames in rows on a clear background, each row's name left of it."""
    gutter = GUTTER if any(names) else 0
    width = gutter + max(map(len, rows)) * (CELL + GAP) - GAP
    sheet = Image.new("RGBA", (width, len(rows) * (CELL + GAP) - GAP), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = number * (CELL + GAP)
        if name:
            draw.text((0, top + CELL // 2), name, fill=(*GREY, 255), font=font, anchor="lm")
        for place, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (gutter + place * (CELL + GAP), top))
    return sheet


def save_small(path: Path, sheet: Image.Image, max_bytes: int) -> int:
    """Write a PNG of at most so many bytes, whole or not at all; its bytes.

    With as many colours as fit, and smaller where sixteen are still too many.
    """
    while True:
        for colours in (256, 128, 64, 32, 16):
            sink = io.BytesIO()
            sheet.quantize(colours, method=Image.Quantize.FASTOCTREE).save(sink, "PNG", optimize=True)
            if len(data := sink.getvalue()) <= max_bytes or min(sheet.size) < 2:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, data)
                return len(data)
        sheet = sheet.resize((max(1, sheet.width * 3 // 4), max(1, sheet.height * 3 // 4)))
