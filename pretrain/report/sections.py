"""Parts of a page that say how a run went, whether it is healthy, and where its time went."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter

from pretrain.curves import COLOURS
from pretrain.figures import THREE
from pretrain.recent import recent_loss
from pretrain.report.markup import Cell, chip, esc, facts, listed, number, paragraph, table, tone
from pretrain.report.records import is_finite, numbers
from pretrain.report.spent import Spent, duration, memory_and_load
from pretrain.report.story import Story
from pretrain.report.verdicts import (
    OF_BOTH,
    OF_FEATURES,
    Measure,
    Stretch,
    Trivial,
    beside_trivial,
    measure,
    num_rollbacks,
    say_change,
    spread_share,
)

MOST_ROWS = 50  # of a table of attempts or verdicts
ADVICE = ("; `foreframe train ", "; no checkpoint was written yet")  # what was right at that time
# Of the bar of time: compute, waiting, then the rest as it comes.
PART_COLOURS = tuple(f"--c{number + 1}" for number in range(len(COLOURS)))


def header(story: Story) -> str:
    """Title, verdict, what was run and learned, and the figures one asks for first."""
    state = "" if story.is_finished else chip("unfinished", "fair")
    trivial = beside_trivial(story.metrics)
    if trivial is not None and not trivial.is_beaten:  # features may be healthy all the same
        state = chip("no better than a trivial answer", "fair") + state
    return (
        f"<header><h1>{esc(story.title)} {chip(story.health.word)}{state}</h1>"
        f"{paragraph(story.what, 'lead')}{paragraph(story.learned, 'lead')}"
        f'<div class="cards">{"".join(_cards(story))}</div></header>'
    )


def _cards(story: Story) -> list[str]:
    def card(label: str, value: str, note: str = "") -> str:
        small = '<span class="soft">{}</span>'
        return (
            f'<div class="card">{small.format(esc(label))}<b>{esc(value)}</b>{small.format(esc(note))}</div>'
        )

    metrics = story.metrics
    cards = [card("steps", f"{story.last_step:,}", f"of {story.config.train.steps:,}")]
    losses, loss = numbers(metrics, "loss"), recent_loss(metrics)
    if losses and loss is not None:
        cards.append(card("loss", f"{loss:.3f}", f"from {losses[0]:.3f}; a proxy only"))
    share = spread_share(metrics, is_frozen=story.config.target.kind == "frozen")
    if share is not None:
        whose = "the untrained encoder's" if story.start == "untrained" else "what it was at the start"
        cards.append(card("feature spread", f"{share:.0%}", f"of {whose}"))
    if story.best is not None:
        cards.append(
            card("best by probe", f"step {story.best.step:,}", f"{story.best.score:.3f}, {story.best.by}")
        )
    speed, step_ms = numbers(metrics, "perf/clips_per_s"), numbers(metrics, "perf/step_ms")
    if speed:
        note = f"{statistics.median(step_ms):.0f} ms a step, median" if step_ms else "median"
        cards.append(card("clips a second", f"{statistics.median(speed):.3g}", note))
    if story.spent.parts:
        waited = story.spent.share("waiting for data")
        cards.append(card("waited for data", f"{waited:.1%}", "of the training time"))
        cards.append(card("trained for", duration(story.spent.seconds), "of steps that count"))
    return cards


def how_it_went(story: Story) -> str:
    """Starts and restarts, rollbacks, skipped steps and samples, how it ended."""
    records = story.records
    said = [_ending(story)]
    starts = [each for each in records.attempts if not each.get("node")]  # the others start with the first
    if len(starts) > 1:
        again = sum(_lost(before, after) for before, after in itertools.pairwise(starts))
        said.append(
            f"It was started {len(starts)} times by `foreframe supervise`"
            + (f"; {again:,} steps were taken again." if again else ".")
        )
    if count := num_rollbacks(records.changes):
        lines = len(records.rolled_back)
        said.append(
            f"It was rolled back {'once' if count == 1 else f'{count} times'}"
            + (f"; {lines:,} logged steps that were taken back are in rolled_back.jsonl." if lines else ".")
        )
    skipped = (
        int(numbers(story.metrics, "optim/skipped_steps")[-1])
        if numbers(story.metrics, "optim/skipped_steps")
        else 0
    )
    said.append(
        f"{_counted(skipped, 'step was', 'steps were')} skipped for a gradient that was not finite"
        + ("; skipped_steps.jsonl names the samples." if records.skipped_steps else ".")
    )
    bad = len({str(line.get("id")) for line in records.skipped_samples})
    said.append(
        f"{_counted(bad, 'sample', 'samples')} could not be read, and others stood in for them"
        + (
            f": {_reasons(story)}. `foreframe verify {story.config.data.sources[0].shards} --deep` says more."
            if bad
            else "."
        )
        if bad
        else "Every sample could be read."
    )
    return listed(said) + _attempts(story)


def _ending(story: Story) -> str:
    done = f"{story.last_step:,} of {story.config.train.steps:,} steps are logged"
    stopped, changes = story.records.result.get("stopped"), story.records.changes
    if changes and changes[-1].get("response") == "stopped" and not story.is_finished:
        reason = str(changes[-1].get("reason") or "").rstrip(".")
        return f"{done}; it was stopped, as it was {changes[-1].get('verdict')}: {reason}."
    if stopped:
        return f"{done}; it was stopped: {stopped}."
    return f"It ran to its end, step {story.last_step:,}." if story.is_finished else f"{done}."


def _counted(count: int, one: str, many: str) -> str:
    return f"{count or 'No'} {one if count in (0, 1) else many}" if count < 1000 else f"{count:,} {many}"


def _lost(before: dict[str, object], after: dict[str, object]) -> int:
    """Steps that an attempt had logged beyond the checkpoint that the next one went on from."""
    reached, start = before.get("reached"), after.get("from_step")
    return max(0, reached - start) if isinstance(reached, int) and isinstance(start, int) else 0


def _reasons(story: Story) -> str:
    counts = Counter(str(line.get("reason") or "no reason given") for line in story.records.skipped_samples)
    return "; ".join(reason for reason, _ in counts.most_common(3))


def _attempts(story: Story) -> str:
    attempts = story.records.attempts
    if not attempts:
        return ""
    rows = []
    for each in attempts[-MOST_ROWS:]:
        ended = str(each.get("signal") or f"exit {each.get('exit_code')}")
        sentence = str(each.get("sentence") or "")
        for advice in ADVICE:
            sentence = sentence.partition(advice)[0]
        seconds = each.get("seconds")
        first, last = each.get("from_step", 0), max(_whole(each.get("reached")), _whole(each.get("to_step")))
        rows.append(
            [
                Cell(str(each.get("attempt", "?")) + (f", node {each['node']}" if each.get("node") else "")),
                Cell(str(each["began"]).replace("T", " ")[:19]),
                Cell(duration(float(seconds)) if is_finite(seconds) else "–"),
                Cell(f"{first} → {last}"),
                Cell(f"{ended}: {sentence}" if sentence else ended),
                Cell(str(each.get("next") or "")),
            ]
        )
    heads = [("#", ""), ("began, UTC", ""), ("took", ""), ("steps", ""), ("ended with", ""), ("then", "")]
    left = len(attempts) - len(rows)
    return table(heads, rows, caption="Attempts", kind="words") + (
        paragraph(f"and {left:,} before them", "soft") if left else ""
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def health(story: Story) -> str:
    """The verdict with its reason, how verdicts changed, and the numbers they come from."""
    reason = story.health.reason[:1].upper() + story.health.reason[1:]
    word = f'<b class="{tone(story.health.word)}">{esc(story.health.word.capitalize())}.</b>'
    body = f"<p>{word} {esc(reason.rstrip('.'))}.</p>"
    trivial = beside_trivial(story.metrics)
    if trivial is not None:
        body += beside(trivial)
    body += verdict_strip(story.stretches, story.last_step) + _changes(story)
    return body + _measures(story)


def beside(trivial: Trivial) -> str:
    """The predictions' loss beside the better trivial answer; coloured as a warning where it is no lower."""
    said = (
        f"The predictions' loss at the last look, {trivial.loss:.3f}, is {trivial.share:.0%} of that of the "
        f"better trivial answer ({trivial.name}: {trivial.answer:.3f})"
    )
    if trivial.is_beaten:
        return paragraph(f"{said}, below it.")
    return (
        f'<p><b class="fair">Predictions have learned nothing yet.</b> {esc(said)}, not below it. '
        "The verdict above is on the features alone: whether they keep their spread and rank.</p>"
    )


def _measures(story: Story) -> str:
    """A row a measure, a column for each kind of features, with what it was before training below."""
    rows = []
    for what, name in OF_FEATURES.items():
        each = [measure(story.metrics, f"health/{features}_{what}") for features in THREE]
        if any(each):
            rows.append([Cell(name), *[_measured(found) for found in each]])
    heads = [("measure", ""), *((features, "") for features in THREE)]
    caption = "Features at the last look, from what they were "
    caption += "untrained" if story.start == "untrained" else "at the start"
    both = [
        (name, f"{number(found.now)}, from {number(found.before)}")
        for key, name in OF_BOTH.items()
        if (found := measure(story.metrics, key)) is not None
    ]
    said = "A loss may fall while every clip gets the same features; these numbers tell."
    return (table(heads, rows, caption=caption) + paragraph(said, "soft") if rows else "") + facts(both)


def _measured(found: Measure | None) -> Cell:
    if found is None:
        return Cell("–")
    return Cell(number(found.now), None, f"from {number(found.before)}", "soft")


def verdict_strip(stretches: list[Stretch], last_step: int) -> str:
    """A strip along the steps, coloured by verdict, and the same in words."""
    if not stretches:
        return ""
    width, whole = 600.0, max(last_step, stretches[-1].last, 1)
    # A look judges what has gone on since the one before.
    starts = [0, *[s.last for s in stretches[:-1]], whole]
    blocks = "".join(
        f'<rect x="{width * starts[n] / whole:.1f}" y="0" height="18" '
        f'style="fill: var(--{tone(s.word)})" '
        f'width="{max(1.5, width * (starts[n + 1] - starts[n]) / whole):.1f}"/>'
        for n, s in enumerate(stretches)
    )
    words = "; ".join(
        f"{s.word} at step {s.first:,}"
        if s.first == s.last
        else f"{s.word} from step {s.first:,} to {s.last:,}"
        for s in stretches[:MOST_ROWS]
    )
    more = len(stretches) - MOST_ROWS
    told = f"Verdicts of the looks: {words}" + (f"; and {more:,} changes more." if more > 0 else ".")
    strip = (
        f'<svg viewBox="0 0 {width:.0f} 18" role="img" aria-label="Verdicts over the steps">{blocks}</svg>'
    )
    return f'<div class="line">{strip}</div>{paragraph(told, "soft")}'


def _changes(story: Story) -> str:
    changes = story.records.changes
    if not changes:
        return ""
    rows = [
        [
            Cell(f"{int(change['step']):,}"),
            Cell(str(change.get("verdict") or "?")),
            Cell(str(change.get("reason") or "")),
            Cell(say_change(change)),
        ]
        for change in changes[-MOST_ROWS:]
    ]
    heads = [("step", ""), ("verdict", ""), ("why", ""), ("what was done", "")]
    left = len(changes) - len(rows)
    return table(heads, rows, caption="When the verdict changed, and what was done", kind="words") + (
        paragraph(f"and {left:,} before them, in health.jsonl", "soft") if left else ""
    )


def time_bar(spent: Spent) -> str:
    """Shares of the training time as a bar, and beside their colours in words."""
    colours = {part: PART_COLOURS[n % len(PART_COLOURS)] for n, part in enumerate(spent.parts)}
    bars = "".join(
        f'<i style="flex: {max(share, 0.002):.4f}; background: var({colours[part]})"></i>'
        for part, share in spent.shares.items()
    )
    keys = "".join(
        f'<li><i style="background: var({colours[part]})"></i>{esc(part)} {share:.1%}</li>'
        for part, share in spent.shares.items()
    )
    return f'<div class="bar" aria-hidden="true">{bars}</div><ul class="key">{keys}</ul>'


def time_and_memory(story: Story) -> str:
    """Where the training time went, and what was taken of the machine."""
    device = story.records.provenance.get("device")
    uses = memory_and_load(story.metrics)
    body = ""
    if story.spent.parts:
        speed = numbers(story.metrics, "perf/clips_per_s")
        rate = f"{statistics.median(speed):.3g} clips a second, median; " if speed else ""
        where = f" on {device}" if device else ""
        body += time_bar(story.spent) + paragraph(
            f"{rate}{duration(story.spent.seconds)} of training{where}. Compute is what is left: forward, "
            f"backward, optimizer and target."
        )
    return body + facts((use.name, use.figure) for use in uses)
