"""The table of an experiment drawn for a terminal and no wider than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO

from rich.console import Console

from launch.console import make_table
from launch.experiment.summary import Spread, cells_of_level

WIDTH = 120
GAP = 2  # characters between columns
Rows = list[list[str]]


def drawn_table(
    spreads: Sequence[Spread], measures: Mapping[str, int], axis: str | None, width: int = WIDTH
) -> str:
    """A table a level: arms by measures; where that is too wide, measures by arms; where both are, in parts.

    measures: digits by name.
    """
    parts = []
    for level in dict.fromkeys(each.level for each in spreads):
        own = [each for each in spreads if each.level == level]
        title = "" if level is None else f"{axis} {level:g}"
        head, rows = cells_of_level(own, measures)
        if _width(head, rows) <= width:
            parts.append(_text(title, head, rows, width))
            continue
        turned = [list(each) for each in zip(head, *rows, strict=True)]
        if _width(turned[0], turned[1:]) <= width:
            parts.append(_text(title, turned[0], turned[1:], width))
            continue
        parts += [_text(title, *part, width) for part in _split(head, rows, width)]
    return "\n\n".join(parts)


def _widths(head: Sequence[str], rows: Rows) -> list[int]:
    return [max(map(len, column)) + GAP for column in zip(head, *rows, strict=True)]


def _width(head: Sequence[str], rows: Rows) -> int:
    return sum(_widths(head, rows))


def _split(head: list[str], rows: Rows, width: int) -> list[tuple[list[str], Rows]]:
    """Parts with as many measures as there is room for, the arm before each."""
    first, *others = _widths(head, rows)
    groups: list[list[int]] = [[]]
    used = first
    for number, own in enumerate(others, start=1):
        if groups[-1] and used + own > width:
            groups.append([])
            used = first
        groups[-1].append(number)
        used += own
    return [
        ([head[0], *(head[at] for at in group)], [[row[0], *(row[at] for at in group)] for row in rows])
        for group in groups
    ]


def _text(title: str, head: list[str], rows: Rows, width: int) -> str:
    console = Console(
        file=StringIO(), width=width, highlight=False, color_system=None, emoji=False, markup=False
    )
    with console.capture() as found:
        console.print(make_table(title, head, rows))
    return "\n".join(line.rstrip() for line in found.get().splitlines()).strip("\n")
