"""Numbers with their units, short enough for a table."""

from __future__ import annotations

import math


def operations(count: float) -> str:
    """Such as 5.09 TFLOP, 15.6 PFLOP."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP"


def bytes_of(count: float) -> str:
    """Such as 124 kB, 3.2 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            return f"{short(count / size)} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Such as 120 ms, 4.5 s, 2.1 h, 3.4 days."""
    if math.isinf(seconds):
        return "never"
    for unit, size in (("days", 172_800.0), ("h", 5_400.0), ("min", 120.0), ("s", 1.0)):
        if seconds >= size:
            divisor = {"days": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}[unit]
            return f"{short(seconds / divisor)} {unit}"
    return f"{short(1000 * seconds)} ms"


def percent(share: float) -> str:
    """Two digits, such as 14 %, 1.2 %, 0.031 %; what is nothing, and what is all, is said so."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
