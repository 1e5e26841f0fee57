"""Text as HTML: whatever it holds, it stays text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from data_pipeline.card.words import share, shortened, visible


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Cell = str | Html


def esc(text: object) -> Html:
    """A text as markup; hidden characters are made visible."""
    return text if isinstance(text, Html) else Html(html.escape(visible(str(text)), quote=True))


def named(text: str) -> Html:
    """A name of unknown origin: whatever its script, it does not turn the line around it."""
    return Html(f"<bdi>{esc(shortened(text))}</bdi>")


def code(text: str) -> Html:
    return Html(f"<code>{esc(text)}</code>")


def small(text: Cell) -> Html:
    return Html(f"<small>{esc(text)}</small>")


def paragraph(text: Cell, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{esc(text)}</p>"


def make_table(heads: Sequence[Cell], rows: Iterable[Sequence[Cell]], kind: str = "") -> str:
    head = "".join(f"<th>{esc(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    style = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def share_bar(part: float, whole: float) -> Html:
    """A share as a number beside a bar."""
    percent = 100 * part / whole if whole else 0.0
    bar = f'<i class="share"><i style="width:{percent:.1f}%"></i></i>'
    return Html(f'{bar}<span class="percent">{esc(share(part, whole))}</span>')
