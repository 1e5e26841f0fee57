"""What a clip's frames say of its worth: brightness, black, frozen, motion, a perceptual hash; and bars.

All of it is integer arithmetic, or rounded far above what floats differ by between machines, so equal
frames give equal scores everywhere.

Shape legend: T frames, H height, W width, C colours (RGB); h w the reduced picture, P its pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

LUMA = (77, 150, 29)  # BT.601 in 256ths
FULL_SCALE = 255 * sum(LUMA)
SHORT_SIDE = 64  # of the reduced picture, at least; of smaller frames every pixel counts

BLACK_PIXEL = 0.1  # ffmpeg blackdetect's pixel_black_th
BLACK_SHARE = 0.98  # and its picture_black_ratio_th
FROZEN_DIFFERENCE = 0.001  # ffmpeg freezedetect's noise, -60 dB
MOTION_FPS = (
    8.0  # faster clips are looked at about this often, so that rates compare and noise does not add up
)
MOTION_DIFFERENCE = 4 / 255  # change of a reduced pixel that may be noise

HASH_SIDE = 32  # of the picture that is hashed
HASH_COEFFICIENTS = 8
HASH_GRID = 8.0  # of DCT coefficients, in levels of 255: a quarter of a level over the whole picture
HASH_MOMENTS = (1, 3, 5)  # sixths of the clip

BAR_LEVEL = 24  # of 255: the brightest a bar gets; ffmpeg cropdetect's limit
BAR_SHARE = 0.99  # of a row's pixels are black: a hot pixel or a speck is no picture
BAR_MIN_SHARE = 0.02  # of the side: thinner ones are left
BAR_SPREAD = 6.0  # standard deviation over a bar, and mean range over time, in levels: a night sky has more
BAR_STEP = 24.0  # from a bar to the picture beside it, in levels
MIN_PICTURE_SHARE = 0.25  # an upright phone video in a wide frame keeps 0.32


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one clip; numbers are rounded to 6 digits.

    brightness: mean luma, 0..1. black: share of frames that are black. frozen: share of consecutive pairs
    of frames that are equal, noise apart. motion: mean change of luma in a second, full scale 1. Both are
    None of a still picture, which is neither frozen nor moving.
    phash: 48 hex digits, three perceptual hashes of 64 bits.
    Exact definitions: docs/data-format.md.
    """

    brightness: float
    black: float
    frozen: float | None
    motion: float | None
    phash: str


def score_frames(frames_THWC: Frames, fps: float) -> Scores:
    """Scores of a clip. frames_THWC: uint8 RGB, at least one; fps: their rate.

    A single frame is neither frozen nor moving.
    """
    luma_Thw, block = _reduced_luma(frames_THWC)
    scale = FULL_SCALE * block * block
    num_frames, pixels = len(luma_Thw), luma_Thw[0].size
    luma_TP = luma_Thw.reshape(num_frames, pixels)
    dark = np.count_nonzero(luma_TP < np.float32(BLACK_PIXEL * scale), axis=1)
    frozen = motion = 0.0
    if num_frames > 1:
        changes = np.diff(luma_TP, axis=0)
        np.abs(changes, out=changes)
        means = changes.sum(axis=1, dtype=np.float64) / (pixels * scale)
        frozen = float(np.mean(means < FROZEN_DIFFERENCE))
        step = min(max(1, round(fps / MOTION_FPS)), num_frames - 1)
        if step > 1:
            changes = np.abs(np.diff(luma_TP[::step], axis=0))
        changes *= changes >= np.float32(MOTION_DIFFERENCE * scale)
        motion = float(changes.sum(dtype=np.float64) / (changes.size * scale)) * fps / step
    hashed = luma_Thw[[num_frames * k // 6 for k in HASH_MOMENTS]].astype(np.float64) / (FULL_SCALE // 255)
    sides = tuple(side / block for side in frames_THWC.shape[1:3])
    return Scores(
        brightness=round(float(luma_TP.sum(dtype=np.float64) / (luma_TP.size * scale)), 6),
        black=round(float(np.mean(dark >= BLACK_SHARE * pixels)), 6),
        frozen=round(frozen, 6),
        motion=round(motion, 6),
        phash="".join(_hash(luma / block**2, *sides) for luma in hashed),
    )


def _reduced_luma(frames_THWC: Frames) -> tuple[Floats, int]:
    """Sums of luma over square blocks (T, h, w), and the side of a block in pixels.

    The short side becomes SHORT_SIDE or a little more; what is left over at the right and bottom is less than
    a block and is not looked at. The sums are whole numbers below 2**24, so that float32 holds them exactly.
    """
    num_frames, height, width, _ = frames_THWC.shape
    block = max(1, min(height, width) // SHORT_SIDE)
    h, w = height // block, width // block
    exact = np.float32 if block <= 16 else np.float64
    weights = np.tile(np.array(LUMA, exact), block)
    luma_Thw = np.empty((num_frames, h, w), exact)
    columns = np.empty((h, w * block * 3), np.uint16)
    floats = np.empty((h, w, block * 3), exact)
    for image, luma in zip(frames_THWC, luma_Thw, strict=True):  # one by one, in the processor's cache
        rows = image[: h * block, : w * block].reshape(h, block, w * block * 3)
        np.add.reduce(rows, axis=1, dtype=np.uint16, out=columns)
        floats[:] = columns.reshape(floats.shape)
        np.matmul(floats, weights, out=luma)
    return luma_Thw, block


def _hash(luma_hw: Doubles, height: float, width: float) -> str:
    """16 hex digits: which of the 63 lowest frequencies of a picture lie above their median.

    luma_hw: in levels of 255. height, width: of the picture in pixels of luma_hw, which may lack a last part.
    The bits run row by row; the first, of the constant, is always 0. Coefficients lie on a grid, so that
    those of a flat picture are 0 and none of its bits is chance.
    """
    h, w = luma_hw.shape
    coefficients = _hash_matrix(h, height) @ luma_hw @ _hash_matrix(w, width).T
    steps = np.rint(coefficients / HASH_GRID).ravel()
    bits = steps > np.median(steps[1:])
    bits[0] = False
    return np.packbits(bits).tobytes().hex()


@functools.lru_cache(maxsize=64)
def _hash_matrix(num_pixels: int, length: float) -> Doubles:
    """(8, num_pixels): area mean of a side to 32, then the 8 lowest rows of its orthonormal DCT-II.

    length: of the side in pixels; the last pixel stands for what is missing.
    """
    edges = np.linspace(0, length, HASH_SIDE + 1)
    starts = np.arange(num_pixels)
    ends = np.append(starts[1:], length)
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], starts)
    mean = np.maximum(overlap, 0) * (HASH_SIDE / length)
    k, n = np.arange(HASH_COEFFICIENTS)[:, None], np.arange(HASH_SIDE)
    dct = np.cos(np.pi * (2 * n + 1) * k / (2 * HASH_SIDE)) * np.sqrt(2 / HASH_SIDE)
    dct[0] /= np.sqrt(2)
    return np.asarray(dct @ mean)


def find_bars(frames_THWC: Frames) -> tuple[int, int, int, int] | None:
    """(left, top, width, height) of the picture inside black bars, in pixels; None without bars.

    A side has a bar when its outermost rows are black in every frame and an even black, the picture begins
    at once over most of its length, and no black comes again behind it: subtitles, logos and dark skies leave
    a side as it is. The crop keeps no row of a bar.
    """
    brightest_HW = _over_colours(np.maximum, frames_THWC.max(axis=0))
    is_black = brightest_HW <= BAR_LEVEL
    rows, columns = ((is_black.mean(axis=axis) >= BAR_SHARE) for axis in (1, 0))
    if rows.all() or columns.all():
        return None
    darkest_HW = _over_colours(np.minimum, frames_THWC.min(axis=0))
    range_HW = (brightest_HW - darkest_HW).astype(np.float32)
    height, width = brightest_HW.shape
    top, bottom = _outer_black(rows), _outer_black(rows[::-1])
    left, right = _outer_black(columns), _outer_black(columns[::-1])
    across, along = brightest_HW[:, left : width - right], brightest_HW[top : height - bottom].T
    top = _bar(across, range_HW, rows, top)
    bottom = _bar(across[::-1], range_HW[::-1], rows[::-1], bottom)
    left = _bar(along, range_HW.T, columns, left)
    right = _bar(along[::-1], range_HW.T[::-1], columns[::-1], right)
    kept = (width - left - right, height - top - bottom)
    if kept == (width, height) or kept[0] < MIN_PICTURE_SHARE * width or kept[1] < MIN_PICTURE_SHARE * height:
        return None
    return left, top, *kept


def _over_colours(extreme: np.ufunc, image_HWC: Frames) -> Frames:
    """Over an axis of three, ten times as fast as a reduction."""
    red, green, blue = np.moveaxis(image_HWC, -1, 0)
    found: Frames = extreme(extreme(red, green), blue)
    return found


def _outer_black(is_black: NDArray[np.bool_]) -> int:
    """Number of rows before the first that is not black."""
    return int(np.argmin(is_black))


def _bar(brightest: Frames, spread: Floats, is_black: NDArray[np.bool_], depth: int) -> int:
    """Rows that the bar at the top takes away, 0 when the black there is none.

    brightest: (rows, columns) between the bars at both ends. spread: range over time. is_black: by row.
    depth: rows of black.
    """
    num_rows = len(is_black)
    strip = max(4, math.ceil(BAR_MIN_SHARE * num_rows))
    if depth < BAR_MIN_SHARE * num_rows or is_black[depth : max(depth + strip, round(0.4 * num_rows))].any():
        return 0
    bar, edge = brightest[:depth].astype(np.float32), brightest[depth : depth + strip].astype(np.float32)
    if bar.std() > BAR_SPREAD or spread[:depth].mean() > BAR_SPREAD:
        return 0
    levels = edge.mean(axis=1)
    if levels[1:].mean() - bar.mean() < BAR_STEP or np.mean(edge.max(axis=0) > BAR_LEVEL) < 0.5:
        return 0
    is_picture = levels >= 0.8 * levels.max()  # what the codec, or scaling, smeared into the bar goes with it
    return depth + int(np.argmax(is_picture))
