"""Lines that are drawn again in place, on terminals that can."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live


def takes_panel(console: Console) -> bool:
    """Whether lines can be drawn again in place, and nobody asked for plain ones."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")


class LinesLive(Live):
    """Draws for the width of the terminal, also when that becomes narrower.

    Terminals then break the lines that stand there into more rows than rich has drawn, and it would go up too
    few of them. Where rich keeps its count under another name, that is all that happens.

    draw: what is shown, for a width in characters. often: times a second.
    """

    def __init__(self, draw: Callable[[int], RenderableType], console: Console, often: float) -> None:
        self._draw, self._lengths = draw, [0]
        super().__init__(get_renderable=self._drawn, console=console, refresh_per_second=often)

    def _drawn(self) -> RenderableType:
        width = self.console.width
        drawn = getattr(self, "_live_render", None)  # not there while rich makes it
        shape = getattr(drawn, "_shape", None)
        if drawn is not None and shape is not None and shape[0] > width:
            rows = sum(max(1, -(-length // width)) for length in self._lengths)
            drawn._shape = (width, max(shape[1], rows))
        found = self._draw(width)
        lines = self.console.render_lines(found, self.console.options.update(width=width), pad=False)
        self._lengths = [sum(segment.cell_length for segment in line) for line in lines]
        return found
