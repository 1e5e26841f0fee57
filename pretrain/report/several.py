"""The page of several runs side by side."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pretrain.curves import COLOURS, draw_figures
from pretrain.figures import Figure
from pretrain.report import one, sections
from pretrain.report.compare import (
    FEWEST_SEEDS,
    Final,
    Series,
    facts_that_differ,
    final_figures,
    is_same_data,
    names_of,
    series_of,
    settings_that_differ,
)
from pretrain.report.markup import (
    Cell,
    chip,
    contents,
    esc,
    figure,
    grid,
    listed,
    paragraph,
    section,
    table,
)
from pretrain.report.story import Story
from pretrain.report.style import whole_page


def page(stories: Sequence[Story], figures: Sequence[Figure]) -> str:
    """The whole comparison. figures: curves of the runs together."""
    names, series = names_of(stories), series_of(stories)
    with tempfile.TemporaryDirectory(prefix="foreframe-report-") as folder:
        curves = [figure(picture) for picture in draw_figures(figures, Path(folder))]
    parts = [
        section("final", "What they came to", _final_table(stories, names), _seeds(series)),
        section("differ", "What differs", _differences(stories, names)),
        section("curves", "Curves", _key(series), _said_of_groups(series), grid(curves)),
        section("healthy", "Are they healthy, and what was learned?", _each(stories, names)),
        section("time", "Where the time went", _times(stories, names)),
        section("next", "What to try next", _advice(stories, names)),
        section("missing", "What is missing here", _missing(stories, names)),
    ]
    title = " · ".join(names) if len(names) <= 4 else f"{len(names)} runs"
    lead = f"Side by side. {_said_of_data(stories)} {_said_of_settings(stories)}"
    head = f"<header><h1>{esc(title)}</h1>{paragraph(lead, 'lead')}</header>"
    return whole_page(esc(title), f"{head}{contents(parts)}<main>{''.join(parts)}</main>")


def _said_of_data(stories: Sequence[Story]) -> str:
    same = is_same_data(stories)
    if same is None:
        return "Whether they read the same data is not known: a run's provenance.json does not say."
    return "They read the same data." if same else "They did not read the same data: scores may not compare."


def _said_of_settings(stories: Sequence[Story]) -> str:
    keys = list(settings_that_differ(stories))
    if not keys:
        return "No setting differs."
    more = f" and {len(keys) - 6} settings more" if len(keys) > 6 else ""
    return f"They differ in {', '.join(f'`{key}`' for key in keys[:6])}{more}."


def _said_of_groups(series: Sequence[Series]) -> str:
    if not any(each.is_group for each in series):
        return ""
    return paragraph(
        "Seeds of one config are one line, their mean, in a band from the lowest to the highest, up to the "
        "end of the shortest. Losses and the like are smoothed before.",
        "soft",
    )


def _final_table(stories: Sequence[Story], names: Sequence[str]) -> str:
    """A row a run, a column a figure; it can be sorted by any."""
    finals = [{(f.name, f.unit): f for f in final_figures(story)} for story in stories]
    columns = _columns(finals)
    rows = [
        [
            Cell(name, name),
            Cell(story.health.word, story.health.word, kind=""),
            *[_final_cell(final.get(column)) for column in columns],
        ]
        for name, story, final in zip(names, stories, finals, strict=True)
    ]
    heads = [("run", ""), ("verdict", ""), *columns]
    return table(heads, rows, caption="Final figures", kind="sort")


def _columns(finals: Sequence[dict[tuple[str, str], Final]]) -> list[tuple[str, str]]:
    """Figures that any run has, in the order of the run that has most; others before the last three."""
    order: list[tuple[str, str]] = []
    for final in sorted(finals, key=len, reverse=True):
        order += [c for c in final if c not in order]
    last = [column for column in order if column[0] in ("clips/s", "waited", "trained")]
    order = [column for column in order if column not in last] + last
    return [c for c in order if any(c in final and final[c].value is not None for final in finals)]


def _final_cell(final: Final | None) -> Cell:
    if final is None or final.value is None:
        return Cell("–", math.nan)
    return Cell(final.shown, final.value)


def _seeds(series: Sequence[Series]) -> str:
    """Mean, and from the lowest to the highest, of seeds of one config."""
    groups = [each for each in series if each.is_group]
    if not groups:
        return ""
    finals = [[{(f.name, f.unit): f for f in final_figures(s)} for s in each.stories] for each in groups]
    columns = _columns([final for group in finals for final in group])
    rows = []
    for each, group in zip(groups, finals, strict=True):
        cells = [Cell(each.name, each.name)]
        for column in columns:
            known = [f for final in group if (f := final.get(column)) is not None and f.value is not None]
            cells.append(_range_cell(known))
        rows.append(cells)
    said = f"Runs that differ in nothing but the seed, where there are at least {FEWEST_SEEDS}."
    return paragraph(said) + table(
        [("config", ""), *columns], rows, caption="Seeds of one config: mean, and range below it", kind="sort"
    )


def _range_cell(known: Sequence[Final]) -> Cell:
    """The mean, written as the values are, and below it the lowest and the highest."""
    values = [(f.value, f.shown) for f in known if f.value is not None]
    if not values:
        return Cell("–", math.nan)
    mean = sum(value for value, _ in values) / len(values)
    (_, low), (_, high) = min(values), max(values)
    return Cell(_like(low, mean), mean, f"{low} – {high}", "soft")


def _like(shown: str, value: float) -> str:
    """A number written as another one of its kind is: a percentage, or as many digits."""
    if shown.endswith("%"):
        return f"{value:.{len(shown.rstrip('%').partition('.')[2])}%}"
    return f"{value:,.{len(shown.partition('.')[2])}f}".replace("-", "−")


def _differences(stories: Sequence[Story], names: Sequence[str]) -> str:
    """Settings and facts that are not the same in all runs, a column a run."""
    body = ""
    for caption, head, found in (
        ("Settings", "setting", settings_that_differ(stories)),
        ("Data, code and machine", "fact", facts_that_differ(stories)),
    ):
        rows = [[Cell(key), *map(Cell, values)] for key, values in found.items()]
        if rows:
            heads = [(head, ""), *((name, "") for name in names)]
            body += table(heads, rows, caption=f"{caption} that differ", kind="words")
        else:
            body += paragraph(f"{caption}: the same in all.")
    return body


def _key(series: Sequence[Series]) -> str:
    """Which colour is which run; where colours are used again, lines are dashed."""
    items = "".join(
        f'<li><i{" class=again" if each.colour >= len(COLOURS) else ""} style="{_fill(each.colour)}"></i>'
        f"{esc(each.name)}</li>"
        for each in series
    )
    return f'<ul class="key" aria-label="Colours of the runs">{items}</ul>'


def _fill(colour: int) -> str:
    number = colour % len(COLOURS) + 1
    return f"background: var(--c{number}); color: var(--c{number})"


def _each(stories: Sequence[Story], names: Sequence[str]) -> str:
    parts = []
    for name, story in zip(names, stories, strict=True):
        reason = story.health.reason[:1].upper() + story.health.reason[1:].rstrip(".")
        parts.append(
            f"<h3>{esc(name)} {chip(story.health.word)}</h3>{paragraph(f'{reason}. {story.learned}')}"
            + sections.verdict_strip(story.stretches, story.last_step)
        )
    return "".join(parts)


def _times(stories: Sequence[Story], names: Sequence[str]) -> str:
    return "".join(
        f"<h3>{esc(name)}</h3>{sections.time_bar(story.spent)}"
        for name, story in zip(names, stories, strict=True)
        if story.spent.parts
    )


def _advice(stories: Sequence[Story], names: Sequence[str]) -> str:
    parts = [
        f"<h3>{esc(name)}</h3>{one.advice(story)}"
        for name, story in zip(names, stories, strict=True)
        if story.advice
    ]
    return "".join(parts) or paragraph("Nothing in these runs' figures asks for a change.")


def _missing(stories: Sequence[Story], names: Sequence[str]) -> str:
    return listed(
        f"{name}: {sentence}"
        for name, story in zip(names, stories, strict=True)
        for sentence in story.missing
    )
