"""Numbers with units, which no line breaks apart, and texts of unknown origin, as a card writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Controls, marks that turn the direction of a line or cannot be seen, and halves of surrogate pairs. Joiners
# stay: emoji and several scripts need them.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
LONGEST_TEXT = 240


def visible(text: str) -> str:
    """What a text holds, nothing of it hidden: a newline is shown as `\\n`."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str) -> str:
    """The text, or of a very long one both ends."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[: LONGEST_TEXT // 2]} … {text[-LONGEST_TEXT // 2 :]}"


def number_of(count: int, noun: str) -> str:
    """1,234 clips; 1 clip."""
    return f"{count:,} {noun if count != 1 else noun.removesuffix('s')}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g}\u00a0s"
    if seconds < 5400:
        return f"{seconds / 60:.1f}\u00a0min"
    return f"{seconds / 3600:,.1f}\u00a0h"


def durations(seconds: Sequence[float]) -> list[str]:
    """Of a column: all in the unit of the longest, so that they compare."""
    longest = max(seconds, default=0.0)
    unit, divisor = ("h", 3600) if longest >= 5400 else ("min", 60) if longest >= 100 else ("s", 1)
    digits = 0 if longest >= 100 * divisor else 1 if longest >= 10 * divisor else 2
    return [f"{value / divisor:,.{digits}f}\u00a0{unit}" for value in seconds]


def share(part: float, whole: float) -> str:
    """Per cent; never 0 % or 100 % for what is a little more or less."""
    if not whole:
        return "–"
    if 0 < part < whole / 1000:
        return "<\u00a00.1\u00a0%"
    percent = 100 * part / whole
    if part < whole and percent > 99.9:
        return ">\u00a099.9\u00a0%"
    is_round = not part or 10 <= percent < 99 or part >= whole
    return f"{percent:.{0 if is_round else 1}f}\u00a0%"


def size(num_bytes: float) -> str:
    """Three digits, or four of what is nearly the next unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.{0 if unit == 'B' or num_bytes >= 100 else 1}f}\u00a0{unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.2f}\u00a0TiB"


def score(value: float | None) -> str:
    """Three digits at most, and no 0 for what is a little more."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
