"""The page of one run."""

from __future__ import annotations

import shlex

from pretrain.curves import Picture
from pretrain.report import sections
from pretrain.report.advice import Suggestion
from pretrain.report.learned import Table, probe_tables, say_best, say_tables
from pretrain.report.markup import (
    Cell,
    contents,
    esc,
    facts,
    figure,
    grid,
    listed,
    paragraph,
    score_cell,
    section,
    table,
)
from pretrain.report.records import Record, is_finite
from pretrain.report.story import ATTENTION, Story, datasets_of, is_trained_on
from pretrain.report.style import whole_page

# Which figures stand in which section; all others come last.
OF_HEALTH = (
    "loss",
    "trivial",
    "spread",
    "rankme",
    "effective-rank",
    "alignment",
    "correlation",
    "ema-distance",
)
OF_TIME = ("throughput", "compute", "memory")


def page(story: Story) -> str:
    """The whole report of a run."""
    by_name = {picture.path.stem: picture for picture in story.pictures}
    probes = [p for name, p in by_name.items() if name.startswith("probe-")]
    masks = [p for name, p in by_name.items() if name.startswith("masks-")]
    clips = [by_name[name] for name in ("features", ATTENTION, "neighbours") if name in by_name]
    placed = {*OF_HEALTH, *OF_TIME, *(p.path.stem for p in (*probes, *masks, *clips))}
    rest = [picture for name, picture in by_name.items() if name not in placed]
    parts = [
        section("went", "How it went", sections.how_it_went(story)),
        section("healthy", "Is it healthy?", sections.health(story), _grid(by_name, OF_HEALTH)),
        section("learned", "What was learned", _learned(story, probes), "".join(figure(p) for p in clips)),
        section("seen", "What the encoder sees, and what it has to predict", grid(figure(p) for p in masks)),
        section(
            "time", "Where time and memory went", sections.time_and_memory(story), _grid(by_name, OF_TIME)
        ),
        section("next", "What to try next", advice(story)),
        section("curves", "More curves", grid(figure(p) for p in rest)),
        section("unused", "What could not be used", _letters(story)),
        section("on", "How to go on", _commands(story)),
        section("from", "Where it came from", _provenance(story)),
        section("config", "Config", _folded("the resolved config", f"<pre>{esc(story.config_text)}</pre>")),
        section("missing", "What is missing here", listed(story.missing)),
    ]
    body = f"{sections.header(story)}{contents(parts)}<main>{''.join(parts)}</main>"
    return whole_page(esc(story.title), body)


def _grid(pictures: dict[str, Picture], names: tuple[str, ...]) -> str:
    return grid(figure(pictures[name]) for name in names if name in pictures)


def _learned(story: Story, probes: list[Picture]) -> str:
    probe = story.records.probe
    parts = [probe_table(probe, found) for found in probe_tables(probe or {})]
    parts += [paragraph(sentence) for sentence in (say_tables(probe)[1:] if probe else [])]
    if story.best is not None:
        is_kept = story.best.step in story.kept_steps
        there = "Its checkpoint is kept." if is_kept else "Its checkpoint is not in the run's folder."
        parts.append(paragraph(f"{say_best(story.best)} {there}"))
    if probes:
        shown = grid(figure(p) for p in probes)
        parts.append(f"<h3>Scores over steps, beside the untrained encoder</h3>{shown}")
    return "".join(parts)


def probe_table(probe: Record | None, found: Table) -> str:
    """Scores read out of frozen features, with the gain over the untrained encoder below each."""
    probe = probe or {}
    rows = [
        [
            Cell(row.label),
            *[
                score_cell(
                    row.scores.get(name),
                    other.scores.get(name)
                    if row.encoder == "trained" and (other := found.beside(row))
                    else None,
                )
                for name in found.units
            ],
        ]
        for row in found.rows
    ]
    trained = [n for n, row in enumerate(found.rows) if row.encoder == "trained"]
    title = "Read from frozen features" + (f": {found.title}" if found.title else "")
    kind = "sort" if len(found.rows) > 4 else ""
    shown = table([("encoder", ""), *found.units.items()], rows, caption=title, kind=kind, marked=trained)
    if found.title:
        return shown + (paragraph(f"How: {found.how}.", "soft") if found.how else "")
    counts = f"{probe.get('num_train_clips', '?')} train and {probe.get('num_eval_clips', '?')} eval clips"
    skipped = probe.get("unreadable")
    left = f", {len(skipped)} unreadable ones left out" if isinstance(skipped, list) and skipped else ""
    note = f"Step {probe.get('step', '?')}; {counts} of {probe.get('data', '?')}{left}."
    return shown + paragraph(f"{note} How: {found.how}." if found.how else note, "soft")


def advice(story: Story) -> str:
    """Each suggestion with the figure that leads to it and the command that tries it."""
    if not story.metrics:
        return ""
    if not story.advice:
        return paragraph("Nothing in this run's figures asks for a change.")
    return "".join(_suggestion(story, number, each) for number, each in enumerate(story.advice, 1))


def _suggestion(story: Story, number: int, each: Suggestion) -> str:
    config = shlex.quote(str(story.run / "config.yaml"))
    changes = " ".join(shlex.quote(override) for override in each.overrides)
    name = shlex.quote(f"name={story.config.name}-next{number}")
    command = f"foreframe train {config} {name} {changes}"
    figure_said = each.figure[:1].upper() + each.figure[1:]
    return (
        f'<div class="try"><p><b>{esc(" ".join(each.overrides))}</b></p>'
        f'{paragraph(f"{figure_said}. {each.why}")}<pre class="wrap">{esc(command)}</pre></div>'
    )


def _letters(story: Story) -> str:
    if not story.num_dead_letters:
        return ""
    rows = [[Cell(name), Cell(reason)] for name, reason in story.dead_letters]
    more = story.num_dead_letters - len(story.dead_letters)
    left = paragraph(f"and {more:,} more in dead_letters.jsonl", "soft") if more else ""
    shown = table([("what", ""), ("why", "")], rows, caption="Left out", kind="words")
    count = story.num_dead_letters
    what = "1 file or clip" if count == 1 else f"{count:,} files or clips"
    return paragraph(f"{what}; the data set was made without.") + _folded(
        "which, and why", shown + left, is_open=story.num_dead_letters <= 12
    )


def _folded(summary: str, body: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{esc(summary)}</summary>{body}</details>"


def _commands(story: Story) -> str:
    run = shlex.quote(str(story.run))
    config = shlex.quote(str(story.run / "config.yaml"))
    lines = [] if story.is_finished else [("go on with this run", f"foreframe train {config}")]
    if story.records.mlflow:
        lines.append(("its curves in MLflow", f"foreframe ui {run}"))
    lines += [
        ("probe it again, and draw this page again", f"foreframe probe {run} && foreframe report {run}"),
        ("these figures as files for a paper, SVG and PDF", f"foreframe report {run} --figures figures"),
        ("side by side with another run", f"foreframe report {run} OTHER"),
        ("what a setting means", f"foreframe config show {config}"),
    ]
    text = "\n".join(f"# {esc(what)}\n{esc(line)}" for what, line in lines)
    return f'<pre class="wrap">{text}</pre>'


def _provenance(story: Story) -> str:
    provenance = story.records.provenance
    if not provenance:
        return paragraph("provenance.json is not in this run's folder.", "soft")
    found = datasets_of(provenance)
    versions = provenance.get("versions")
    commit = provenance.get("commit") or "not a git checkout"
    patch = ", with uncommitted changes" if provenance.get("patch") else ""
    if is_finite(count := provenance.get("num_untracked")) and count:
        patch += f", {count:,} untracked file" + ("s" if count != 1 else "")
    return facts(
        [
            (
                "data sets" if len(found) > 1 else "data set",
                "; ".join(say_dataset(d, len(found)) for d in found),
            ),
            ("commit", f"{commit}{patch}"),
            ("device", provenance.get("device")),
            ("ranks", provenance.get("world_size")),
            ("host", provenance.get("host")),
            ("weights at the start", story.config.init.weights or "drawn from the seed"),
            (
                "versions",
                ", ".join(f"{n} {v}" for n, v in versions.items()) if isinstance(versions, dict) else "",
            ),
        ]
    ) + _tracker(story)


def say_dataset(data: Record, count: int = 1) -> str:
    """A data set with what tells it from others."""
    clips = data.get("num_clips")
    size = f"{clips:,} clips" if isinstance(clips, int) else "? clips"
    weight = (
        f", weight {data['weight']:g}" if count > 1 and isinstance(data.get("weight"), (int, float)) else ""
    )
    use = "" if is_trained_on(data) else ", for probes"
    return f"{data.get('name', '?')}, {size}, fingerprint {data.get('fingerprint', '?')}{weight}{use}"


def _tracker(story: Story) -> str:
    """Where MLflow has it: a link only to a server."""
    address = str(story.records.mlflow.get("address") or "")
    if not address.startswith(("http://", "https://")):
        return ""
    experiment, run = story.records.mlflow.get("experiment_id"), story.records.mlflow.get("run_id")
    link = esc(f"{address.rstrip('/')}/#/experiments/{experiment}/runs/{run}")
    return f'<p>The same run in MLflow: <a href="{link}" rel="noreferrer">{link}</a></p>'
