"""A run in a dozen lines of a terminal, drawn for its width; the same live and from the run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from textwrap import wrap

from rich.text import Text

from launch.attempts import duration, without_advice
from launch.figures import Figures, left, memory, percent, speed, troubles
from launch.run_files import Folder, Probed, Saved, finite, printable

INDENT, LABEL = 2, 8
MOST_LINES = 3  # of a sentence that is long
TWO_COLUMNS = 74  # narrower, and each figure has a line of its own
GAP, WIDEST = 2, 54  # between two columns, and of one
STYLES = {"healthy": "green", "warning": "yellow"}  # others are bad
DASH = "—"
RESPONSES = ("stopped", "rolled back")


@dataclass(frozen=True)
class View:
    """What is shown of a run. verdict: a word and its reason. steps: None where it is not known.

    pace: what stands for the time left before any is known, such as `starting`. best: the checkpoint with the
    highest score, and that score.
    """

    run: str
    figures: Figures
    steps: int | None
    verdict: tuple[str, str] | None
    folder: Folder
    now_s: float
    pace: str = ""
    best: tuple[Saved, float] | None = None


@dataclass(frozen=True)
class Cell:
    """A figure with its label. is_wide: it may be long, and has whole lines of its own."""

    label: str
    text: Text
    is_wide: bool = False


def panel_lines(view: View, width: int, above: Sequence[Cell] = (), below: Sequence[Cell] = ()) -> list[Text]:
    """All lines, none wider than `width` - 1: a terminal that is full to its last column may wrap."""
    inside = max(20, width - 1)
    figures = _laid_out(list(_cells(view)), inside)
    rows = [*_laid_out(above, inside), _bar(view, inside), *figures, *_laid_out(below, inside)]
    return _cut(rows, inside)


def cell_lines(cells: Sequence[Cell], width: int) -> list[Text]:
    """Of what has no figures."""
    inside = max(20, width - 1)
    return _cut(_laid_out(cells, inside), inside)


def _cut(rows: list[Text], inside: int) -> list[Text]:
    for row in rows:
        row.no_wrap, row.overflow = True, "ellipsis"
        row.truncate(inside, overflow="ellipsis")
    return rows


def _bar(view: View, width: int) -> Text:
    """How far the run is: a bar, steps, and the time left."""
    step, steps = view.figures.step, view.steps
    of = f"{step:,}" if steps is None else f"{step:,}/{steps:,}"
    share = step / steps if steps else 0.0
    told = [of, *([f"{min(1.0, share):.0%}"] if steps else []), left(view.figures) or view.pace]
    tail = "  ".join(part for part in told if part)
    row = _label("train")
    room = max(4, min(44, width - len(row) - len(tail) - 2))
    done = min(room, int(room * min(1.0, share)))
    row.append("━" * done, style="cyan").append("╌" * (room - done), style="dim")
    return row.append(f"  {tail}")


def _cells(view: View) -> Iterable[Cell]:
    figures, folder = view.figures, view.folder
    word, reason = view.verdict or ("", "")
    yield Cell("loss", _loss(figures))
    yield Cell("health", Text(word or DASH, STYLES.get(word, "bold red") if word else "dim"))
    yield Cell("speed", Text(speed(figures) or DASH))
    waits = figures.wait_share
    yield Cell("data", Text(DASH if waits is None else f"{percent(waits)} waiting", _waiting_style(waits)))
    yield Cell("optim", _optim(figures))
    yield Cell("memory", Text(", ".join(memory(figures)) or DASH))
    yield Cell("saved", _saved(view))
    if found := troubles(figures):
        yield Cell("trouble", Text(", ".join(found), "yellow"), is_wide=True)
    if word and word != "healthy" and reason:
        yield Cell("why", Text(reason), is_wide=True)
    if folder.probes:
        yield Cell("probe", Text(probe_words(folder.probes[-1])), is_wide=True)
    if (taken := response(folder)) is not None:
        yield Cell("answer", Text(taken.removesuffix(f": {reason}"), "yellow"), is_wide=True)
    if (again := restarts(folder)) is not None:
        yield Cell("restart", Text(again, "yellow"), is_wide=True)
    yield Cell("run", Text(view.run), is_wide=True)
    if folder.page is not None:
        link = f"link {folder.page}" if "://" in folder.page else ""
        yield Cell("mlflow", Text(folder.page, link), is_wide=True)


def _loss(figures: Figures) -> Text:
    if figures.loss is None:
        return Text(DASH)
    text = Text(f"{figures.loss:.4f}", "bold")
    if figures.loss_change is not None:
        text.append(f" {trend(figures.loss_change)}", "not bold")
    return text


def trend(change: float) -> str:
    """Of the loss against the lines before: a falling one need not be good, nor a rising one bad."""
    if change == 0:
        return "→ steady"
    arrow = "↓" if change < 0 else "↑"
    return f"{arrow} {percent(abs(change))}"


def _waiting_style(share: float | None) -> str:
    return "yellow" if share is not None and share > 0.05 else ""


def _optim(figures: Figures) -> Text:
    told = [] if figures.lr is None else [f"lr {short(figures.lr)}"]
    if figures.momentum is not None:
        told.append(f"momentum {f'{figures.momentum:.5f}'.rstrip('0').rstrip('.')}")
    return Text(", ".join(told) or DASH)


def short(value: float) -> str:
    """A small number with three digits, such as 6.25e-4."""
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if value else "0"


def _saved(view: View) -> Text:
    if not view.folder.saved:
        return Text("no checkpoint yet", "dim")
    newest = view.folder.saved[0]
    best = "" if view.best is None else f", best {view.best[0].step:,}"
    return Text(f"step {newest.step:,}, {duration(max(0.0, view.now_s - newest.at_s))} ago{best}")


def probe_words(probed: Probed, most: int = 4) -> str:
    """Scores of the trained encoder, each beside the untrained one's."""

    shown: list[str] = []
    for name, score in list(probed.scores.items())[:most]:
        beside = probed.untrained.get(name)
        words = "" if shown else "untrained "
        shown.append(f"{name} {score:.2f}" + ("" if beside is None else f" ({words}{beside:.2f})"))
    more = [f"{len(probed.scores) - most} more"] if len(probed.scores) > most else []
    return f"{', '.join([*shown, *more])}, at step {probed.step:,}"


def response(folder: Folder) -> str | None:
    """What was done about its health at last, where it was more than a word."""
    done = [each for each in folder.responses if each.get("response") in RESPONSES]
    if not done:
        return None
    last = done[-1]
    back = "" if last.get("to_step") is None else f" to step {last['to_step']}"
    changes = last.get("changes")
    told = ""
    if isinstance(changes, dict):
        lr, momentum = finite(changes.get("lr_scale")), finite(changes.get("momentum"))
        told += "" if lr is None else f", learning rate × {lr:g}"
        told += "" if not momentum else f", momentum at least {momentum:g}"
    return f"{last['response']} at step {last['step']}{back}{told}: {last.get('reason', '')}".rstrip(": ")


def restarts(folder: Folder) -> str | None:
    """How often a supervisor started it again, and why at last."""
    failed = [attempt for attempt in folder.attempts if attempt.next.startswith("restarted")]
    if not failed:
        return None
    times = "once" if len(failed) == 1 else f"{len(failed)} times"
    last = failed[-1]
    why = without_advice(last.sentence) or (last.signal or f"exit {last.exit_code}")
    return f"{times}; last: {why}"


def _laid_out(cells: Sequence[Cell], width: int) -> list[Text]:
    """Cells in two columns, in their order, or in one; wide ones below, on lines of their own.

    A figure that is too long is cut: the others must not move from one moment to the next.
    """
    cells = [replace(cell, text=_printable(cell.text)) for cell in cells]
    narrow = [cell for cell in cells if not cell.is_wide]
    rows: list[Text] = []
    if width < TWO_COLUMNS:
        rows += [_label(cell.label).append_text(cell.text) for cell in narrow]
    else:
        half = min(WIDEST, (width - GAP) // 2)
        for left, right in zip_longest(narrow[::2], narrow[1::2]):
            row = _label(left.label).append_text(left.text)
            if right is not None:
                row.truncate(half, overflow="ellipsis", pad=True)
                row.append(" " * GAP).append_text(_label(right.label, indent=0)).append_text(right.text)
            rows.append(row)
    for cell in (cell for cell in cells if cell.is_wide):
        rows += _folded(cell, width)
    return rows


def _printable(text: Text) -> Text:
    """The same without what a damaged file, or somebody, put there to act on the terminal."""
    return text if text.plain.isprintable() else Text(printable(text.plain), text.style)


def _folded(cell: Cell, width: int) -> list[Text]:
    """A sentence over as many lines as it needs, MOST_LINES at most."""
    parts = wrap(
        cell.text.plain,
        width - INDENT - LABEL,
        max_lines=MOST_LINES,
        placeholder=" …",
        break_on_hyphens=False,
    )
    labels = [cell.label, *[""] * (MOST_LINES - 1)]
    return [
        _label(label).append(part, cell.text.style)
        for label, part in zip(labels, parts or [""], strict=False)
    ]


def _label(name: str, indent: int = INDENT) -> Text:
    return Text(" " * indent).append(f"{name:<{LABEL}}", "dim")


def verdict_of(line: Mapping[str, object]) -> tuple[str, str] | None:
    """The verdict, with its reason, of a line of metrics or of health.jsonl; None where it says none."""
    word, reason = line.get("verdict"), line.get("verdict_reason") or line.get("reason")
    return (word, str(reason or "")) if isinstance(word, str) else None
