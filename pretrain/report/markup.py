"""Pieces of a page: every word that comes from a run, a config or a data set goes through `esc`."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pretrain.curves import AXIS, COLOURS, Picture
from pretrain.report.records import is_finite
from pretrain.tracking.base import without_credentials

TONES = {
    "healthy": "good",
    "warning": "fair",
    "collapsing": "bad",
    "collapsed": "bad",
    "diverged": "bad",
    "not looked at": "soft",
}


def esc(text: object) -> str:
    """Text for HTML, without the credentials that an address in it may hold."""
    return html.escape(without_credentials(str(text)), quote=True)


def tone(word: str) -> str:
    return TONES.get(word, "fair")


def chip(word: str, kind: str = "") -> str:
    return f'<span class="word {kind or tone(word)}">{esc(word)}</span>'


@dataclass(frozen=True)
class Cell:
    """A cell of a table. value: what it is sorted by; note: smaller, below it, in the colour of `kind`."""

    text: str
    value: float | str | None = None
    note: str = ""
    kind: str = ""


def score_cell(value: float | None, before: float | None = None) -> Cell:
    """A score, with its gain over the encoder before training where there is one."""
    if value is None:
        return Cell("–", math.nan)
    if before is None:
        return Cell(score(value), value)
    gain = value - before
    kind = "good" if gain > 0.005 else "bad" if gain < -0.005 else "soft"
    return Cell(score(value), value, score(gain, "+"), kind)


def table(
    heads: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Cell]],
    *,
    caption: str,
    kind: str = "",
    marked: Iterable[int] = (),
) -> str:
    """A table with its name; heads: name and unit of each column. The first cell of a row names the row.

    kind: "sort" where it may be sorted, "words" where cells are text. marked: rows that stand out.
    """
    top = "".join(
        f'<th scope="col">{esc(name)}' + (f"<small>{esc(unit)}</small>" if unit else "") + "</th>"
        for name, unit in heads
    )
    bold = set(marked)
    body = "".join(
        f"<tr{' class=ours' if number in bold else ''}>"
        + "".join(_cell(cell, is_head=place == 0) for place, cell in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table class="{kind}">'
        f"<caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, *, is_head: bool) -> str:
    value = "" if cell.value is None else f' data-v="{esc(cell.value)}"'
    note = f'<small class="{cell.kind}">{esc(cell.note)}</small>' if cell.note else ""
    name = 'th scope="row"' if is_head else "td"
    return f"<{name}{value}>{esc(cell.text)}{note}</{name.split(' ')[0]}>"


def section(name: str, title: str, *parts: str) -> str:
    """A part of the page with its heading; nothing when it has no content."""
    body = "".join(parts)
    if not body:
        return ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{esc(title)}</h2>{body}</section>'
    )


def contents(sections: Iterable[str]) -> str:
    """Links to the sections that are there."""
    found = [m for text in sections if (m := re.match(r'<section id="([^"]+)".*?<h2[^>]*>(.*?)</h2>', text))]
    links = "".join(f'<li><a href="#{m[1]}">{m[2]}</a></li>' for m in found)
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(found) > 1 else ""


def listed(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{prose(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names with what they are; those without anything are left out."""
    rows = "".join(f"<dt>{esc(name)}</dt><dd>{esc(fact)}</dd>" for name, fact in pairs if fact)
    return f"<dl>{rows}</dl>" if rows else ""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{prose(text)}</p>' if kind else f"<p>{prose(text)}</p>"


def prose(text: str) -> str:
    """A sentence, with what stands in `backticks` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", esc(text))


def grid(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="grid">{inside}</div>' if inside else ""


def figure(picture: Picture) -> str:
    """A picture as part of the page, with its title and what to say under it."""
    shown = _svg(picture) if picture.path.suffix == ".svg" else _png(picture)
    title, caption = esc(picture.title), esc(picture.caption)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure><h3>{title}</h3>{shown}{below}</figure>"


def _png(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    alt = picture.alt or f"{picture.title}. {picture.caption}"
    return f'<img alt="{esc(alt)}" src="data:image/png;base64,{data}">'


def _svg(picture: Picture) -> str:
    """A figure whose colours are the page's, by day and by night, and whose ids meet no other figure's."""
    text = picture.path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :].replace(AXIS, "currentColor")
    for number, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--c{number + 1})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    name = re.sub(r"[^a-z0-9]", "", picture.path.stem.lower())
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{esc(picture.alt or picture.title)}">{rest}'


def number(value: object) -> str:
    """Three digits, with a true minus."""
    return f"{value:.3g}".replace("-", "−") if is_finite(value) else "–"


def score(value: float, sign: str = "") -> str:
    """Two digits, with a true minus, and no minus before 0.00."""
    return f"{round(value, 2) + 0.0:{sign}.2f}".replace("-", "−")
