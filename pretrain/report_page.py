"""The report as one HTML file: no script, nothing fetched, readable on a phone, by day, by night, on paper.

Every word that comes from a run, a config or a data set goes through `esc`.
"""

from __future__ import annotations

import base64
import html
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pretrain.curves import AXIS, Picture
from pretrain.health import judged_features

if TYPE_CHECKING:
    from pretrain.report import Story

TONES = {"healthy": "good", "warning": "fair", "collapsed": "bad", "diverged": "bad"}

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --line: #d9dee3; --page: #fff; --card:
  #f5f7f9; --good: #1d7a50; --fair: #9a6100; --bad: #b3372f; --accent: #2f6fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa6b1; --line: #343c44; --page:
  #14181c; --card: #1c2228; --good: #5cc596; --fair: #e0a94a; --bad: #f08a80; --accent: #7fb5ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; background:
  var(--page); color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
p { margin: .4rem 0; max-width: 46rem; }
.lead { font-size: 1.06rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.word { display: inline-block; padding: .1rem .65rem; border-radius: 1rem; border: 1.5px solid currentColor;
  font-size: .85rem; font-weight: 600; vertical-align: .25rem; margin-left: .5rem; }
.good { color: var(--good); }
.fair { color: var(--fair); }
.bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin:
  1.2rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
figcaption { margin-top: .45rem; max-width: 46rem; }
h3 + img { margin-top: .4rem; }
figure img, figure svg { max-width: 100%; height: auto; display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: .5rem
  2rem; }
svg text { font-family: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; overflow-wrap:
  normal; }
th, td { text-align: right; padding: .35rem .8rem; border-bottom: 1px solid var(--line); vertical-align:
  top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words td, .words th { text-align: left; overflow-wrap: anywhere; }
thead th { font-weight: 600; white-space: nowrap; }
thead small { display: block; font-weight: 400; color: var(--soft); }
tr.ours td { font-weight: 650; }
td small { display: block; font-weight: 500; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .87rem; }
pre { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; overflow-x: auto; overflow-wrap:
  normal; }
details summary { cursor: pointer; color: var(--accent); }
.bar { display: flex; height: 1.1rem; border-radius: .4rem; overflow: hidden; max-width: 46rem; margin:
  .6rem 0 .3rem; }
.bar i:first-child { background: #3d85c6; }
.bar i { background: #dd7e2b; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; } figure,
  .card, tr { break-inside: avoid; } details:not([open]) { display: none; } }
"""


def esc(text: object) -> str:
    return html.escape(str(text), quote=True)


def page(story: Story) -> str:
    """The whole report."""
    by_name = {picture.path.stem: picture for picture in story.pictures}
    curves = [p for p in story.pictures if p.path.suffix == ".svg"]
    masks = [p for name, p in by_name.items() if name.startswith("masks-")]
    sections = [
        _header(story),
        _section("What the features know", _probe(story.probe)),
        _section("What the encoder sees, and what it has to predict", _grid(_png(p) for p in masks)),
        _section("Features as colours", _named(by_name, "features")),
        _section("Nearest neighbours", _named(by_name, "neighbours")),
        _section("Curves", _grid(_svg(p) for p in curves)),
        _section("Are the features healthy?", _health(story)),
        _section("Where the time went", _time(story)),
        _section("What could not be used", _letters(story)),
        _section("How to go on", _commands(story)),
        _section("Where it came from", _provenance(story.provenance)),
        _section(
            "Config",
            f"<details><summary>the resolved config</summary><pre>{esc(story.config_text)}</pre></details>",
        ),
        _section("What is missing here", _list(story.missing)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(story.title)}: foreframe</title><style>{STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{esc(title)}</h2>{body}</section>" if body else ""


def _grid(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="grid">{inside}</div>' if inside else ""


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{esc(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _header(story: Story) -> str:
    tone = TONES.get(story.health.word, "fair")
    state = "" if story.is_finished else '<span class="word fair">unfinished</span>'
    word = f'<span class="word {tone}">{esc(story.health.word)}</span>'
    return (
        f"<header><h1>{esc(story.title)} {word}{state}</h1>"
        f'<p class="lead">{esc(story.what)}</p><p class="lead">{esc(story.learned)}</p>'
        f'<div class="cards">{"".join(_cards(story))}</div></header>'
    )


def _cards(story: Story) -> list[str]:
    def card(label: str, value: str, note: str = "") -> str:
        small = '<span class="soft">{}</span>'
        return (
            f'<div class="card">{small.format(esc(label))}<b>{esc(value)}</b>{small.format(esc(note))}</div>'
        )

    metrics, cards = story.metrics, []
    cards.append(card("steps", f"{story.last_step:,}", f"of {story.config.train.steps:,}"))
    losses = _values(metrics, "loss")
    if losses:
        recent = statistics.fmean(losses[-10:])  # of a single step it jumps
        cards.append(card("loss", f"{recent:.3f}", f"from {losses[0]:.3f}; a proxy only"))
    spread = _values(metrics, f"health/{judged_features(metrics)}_std")
    if spread:
        cards.append(
            card("feature spread", f"{spread[-1] / max(spread[0], 1e-12):.0%}", "of the untrained encoder's")
        )
    speed, step_ms = _values(metrics, "perf/clips_per_s"), _values(metrics, "perf/step_ms")
    if speed:
        note = f"{statistics.median(step_ms):.0f} ms a step, median" if step_ms else "median"
        cards.append(card("clips a second", f"{statistics.median(speed):.3g}", note))
    waits = dict(story.times).get("waiting for data")
    if waits is not None:
        cards.append(card("waited for data", f"{waits:.1%}", "of the training time"))
    seconds = _values(metrics, "time_s")
    if seconds:
        cards.append(card("trained for", _duration(seconds[-1]), "since the last start" if seconds else ""))
    return cards


def _probe(probe: dict[str, Any] | None) -> str:
    if probe is None:
        return ""
    units = probe.get("units", {})
    untrained: dict[str, Any] = next(
        (row["scores"] for row in probe["rows"] if row["encoder"] == "untrained"), {}
    )
    head = "".join(f"<th>{esc(name)}<small>{esc(unit)}</small></th>" for name, unit in units.items())
    rows = []
    for row in probe["rows"]:
        cells = []
        for name in units:
            value, base = row["scores"].get(name), untrained.get(name)
            gain = ""
            if row["encoder"] == "trained" and value is not None and base is not None:
                tone = "good" if value - base > 0.005 else "bad" if value - base < -0.005 else "soft"
                gain = f'<small class="{tone}">{_score(value - base, "+")}</small>'
            cells.append(f"<td>{_score(value)}{gain}</td>")
        ours = ' class="ours"' if row["encoder"] == "trained" else ""
        rows.append(f"<tr{ours}><td>{esc(row['encoder'])}</td>{''.join(cells)}</tr>")
    counts = f"{probe['num_train_clips']} train and {probe['num_eval_clips']} eval clips"
    counts += f" of {probe.get('data', '?')}"
    skipped = len(probe.get("unreadable", []))
    note = f"Step {probe['step']}; {counts}" + (f", {skipped} unreadable ones left out" if skipped else "")
    return (
        "<p>Read out of frozen features, beside the same encoder before training; the gain is under each "
        'number.</p><div class="scroll"><table>'
        f"<thead><tr><th>encoder</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f'</table></div><p class="soft">{esc(note)}. How: {esc(probe.get("how", ""))}.</p>'
    )


def _health(story: Story) -> str:
    tone = TONES.get(story.health.word, "fair")
    reason = story.health.reason[:1].upper() + story.health.reason[1:]
    std = f"health/{judged_features(story.metrics)}_std"
    looks = [line for line in story.metrics if line.get(std) is not None]
    body = f'<p><b class="{tone}">{esc(story.health.word.capitalize())}.</b> {esc(reason)}.</p>'
    if len(looks) < 2:
        return body
    names = {
        "health/target_std": "target, std across clips",
        "health/context_std": "context, std across clips",
        "health/prediction_std": "prediction, std across clips",
        "health/target_rankme": "target, RankMe",
        "health/context_rankme": "context, RankMe",
    }
    rows = "".join(
        f"<tr><td>{esc(name)}</td><td>{_number(looks[0].get(key))}</td><td>{_number(looks[-1].get(key))}</td></tr>"
        for key, name in names.items()
        if looks[-1].get(key) is not None
    )
    return body + (
        f'<div class="scroll"><table><thead><tr><th></th><th>step {looks[0]["step"]}</th>'
        f"<th>step {looks[-1]['step']}</th></tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="soft">A loss may fall while every clip gets the same features; these numbers tell.</p>'
    )


def _time(story: Story) -> str:
    if not story.times:
        return ""
    bars = "".join(f'<i style="flex: {max(share, 0.002):.4f}"></i>' for _, share in story.times)
    words = ", ".join(f"{name} {share:.1%}" for name, share in story.times)
    device = story.provenance.get("device")
    where = f" on {device}" if device else ""
    speed = _values(story.metrics, "perf/clips_per_s")
    rate = f"; {statistics.median(speed):.3g} clips a second, median" if speed else ""
    return f'<div class="bar" aria-hidden="true">{bars}</div><p>{esc(words.capitalize() + rate + where)}.</p>'


def _letters(story: Story) -> str:
    if not story.num_dead_letters:
        return ""
    rows = "".join(f"<tr><td>{esc(name)}</td><td>{esc(why)}</td></tr>" for name, why in story.dead_letters)
    more = story.num_dead_letters - len(story.dead_letters)
    left = f'<p class="soft">and {more:,} more in dead_letters.jsonl</p>' if more else ""
    return (
        f"<p>{story.num_dead_letters:,} files or clips; the data set was made without them.</p>"
        f"<details{' open' if story.num_dead_letters <= 12 else ''}><summary>which, and why</summary>"
        f'<table class="words"><thead><tr><th>what</th><th>why</th></tr></thead><tbody>{rows}</tbody></table>'
        f"{left}</details>"
    )


def _commands(story: Story) -> str:
    run = shlex.quote(str(story.run))
    config = shlex.quote(str(story.run / "config.yaml"))
    lines = [] if story.is_finished else [("go on with this run", f"foreframe train {config}")]
    lines += [
        ("its curves in MLflow", f"foreframe ui {run}"),
        ("probe it again, and draw this page again", f"foreframe probe {run} && foreframe report {run}"),
        (
            "the same with another setting, as a run of its own",
            f"foreframe train {config} name=... optim.lr=...",
        ),
        ("what a setting means", f"foreframe config show {config}"),
    ]
    text = "\n".join(f"# {esc(why)}\n{esc(line)}" for why, line in lines)
    return f"<pre>{text}</pre>"


def _provenance(provenance: dict[str, Any]) -> str:
    if not provenance:
        return '<p class="soft">provenance.json is not in this run\'s folder.</p>'
    data = [
        f"{found['name']}, {found['num_clips']:,} clips, fingerprint {found['fingerprint']}"
        + (f", weight {found['weight']:g}" if len(provenance["datasets"]) > 1 else "")
        for found in provenance.get("datasets") or []
    ]
    commit = provenance.get("commit") or "not a git checkout"
    facts = {
        "data sets" if len(data) > 1 else "data set": "; ".join(data),
        "commit": f"{commit}{', with uncommitted changes' if provenance.get('patch') else ''}",
        "device": provenance.get("device"),
        "ranks": provenance.get("world_size"),
        "host": provenance.get("host"),
        "versions": ", ".join(
            f"{name} {version}" for name, version in (provenance.get("versions") or {}).items()
        ),
    }
    rows = "".join(f"<dt>{esc(name)}</dt><dd>{esc(fact)}</dd>" for name, fact in facts.items() if fact)
    return f"<dl>{rows}</dl>"


def _named(pictures: dict[str, Picture], name: str) -> str:
    return _png(pictures[name]) if name in pictures else ""


def _png(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img alt="{esc(picture.title)}" src="data:image/png;base64,{data}">'
    return (
        f"<figure><h3>{esc(picture.title)}</h3>{image}"
        f"<figcaption>{esc(picture.caption)}</figcaption></figure>"
    )


def _svg(picture: Picture) -> str:
    """A figure as part of the page: its axes take the page's colour, its ids cannot meet another figure's."""
    text = picture.path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :].replace(AXIS, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    name = re.sub(r"[^a-z0-9]", "", picture.path.stem.lower())
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return (
        f'<figure><h3>{esc(picture.title)}</h3>{head} role="img" aria-label="{esc(picture.title)}">{rest}'
        f"<figcaption>{esc(picture.caption)}</figcaption></figure>"
    )


def _values(metrics: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float(line[key]) for line in metrics if isinstance(line.get(key), (int, float))]


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def _score(value: float | None, sign: str = "") -> str:
    """Two digits, with a true minus, and no minus before 0.00."""
    if value is None:
        return "–"
    return f"{round(value, 2) + 0.0:{sign}.2f}".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
