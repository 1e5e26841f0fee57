"""The page's sections on what is not in the data set: left out, near-duplicates, failed, passed over."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.card.facts import Card, Reason
from data_pipeline.card.markup import Html, esc, make_table, named, paragraph, small
from data_pipeline.card.sheets import sheet
from data_pipeline.card.words import durations, number_of, share, shortened
from data_pipeline.manifest import Clip, Video


def rejected(card: Card) -> str:
    tried = sum(card.num_clips.values())
    if not card.rules:
        return paragraph("No clip was left out: no filter hit, and no video was too short.", "soft")
    rows = [
        (
            named(rule.name),
            f"{rule.num_clips:,}",
            share(rule.num_clips, tried),
            f"{rule.num_videos:,}",
            length,
            Html(f"{esc(shortened(_after_rule(rule.example)))}{small(_where(rule.example))}"),
        )
        for rule, length in zip(card.rules, durations([rule.length_s for rule in card.rules]), strict=True)
    ]
    words = "Each clip counts under the first rule that it breaks."
    listed = make_table(("rule", "clips", "of all", card.files, "length", "for example"), rows, "last-words")
    sheets = []
    for rule in card.rules:
        shown = [one for one in card.shown if one.clip.status == "filtered" and one.preview.rule == rule.name]
        title = f"{rule.name}: {number_of(len(shown), 'clips')} of {rule.num_clips:,}"
        sheets.append(f"<h3>{esc(title)}</h3>{sheet(shown)}" if shown else "")
    pictures = "".join(sheets) or paragraph("There are no pictures of clips that were left out.", "soft")
    return paragraph(words) + listed + pictures


def _after_rule(clip: Clip) -> str:
    return clip.reason.split(":", 1)[-1].strip()


def _where(row: Video | Clip) -> Html:
    """Address and span of a row."""
    if isinstance(row, Video):
        return named(row.uri)
    return Html(f"{named(row.uri)} {row.start_s:,.2f} to {row.end_s:,.2f} s")


def duplicates(card: Card) -> str:
    limit, found = card.config.filters.max_distance, card.duplicates
    if limit is None:
        return paragraph("They were not looked for (filters.max_distance is null).", "soft")
    how = f"perceptual hashes of 192 bits that differ in {limit} at most"
    if not found.num:
        return paragraph(f"None among the clips that passed the other filters ({how}).", "soft")
    passed = share(found.num, found.num + card.num_clips["kept"])
    words = (
        f"{number_of(found.num, 'clips')} left out as copies of {found.num_groups:,} that stayed, "
        f"by {how}: {passed} of what passed the other filters."
    )
    if found.largest is None:
        return paragraph(words)
    clip, num = found.largest
    return paragraph(words) + paragraph(
        Html(f"The largest group: {esc(number_of(num, 'clips'))} like that of {_where(clip)}.")
    )


def failures(card: Card) -> str:
    videos, clips = card.num_videos["failed"], card.num_clips["failed"]
    if not videos and not clips:
        return paragraph("Nothing failed: no video and no clip.", "soft")
    words = f"{number_of(videos, 'videos')} and {number_of(clips, 'clips')}; all are in dead_letters.jsonl. "
    words += "Reasons that differ in numbers alone count as one."
    left = f" Of other reasons: {card.num_failures_left:,}." if card.num_failures_left else ""
    return paragraph(words + left) + _reasons(card.failures) + _examples(card.failures)


def _reasons(reasons: Sequence[Reason]) -> str:
    rows = [
        (
            esc(shortened(reason.words)),
            reason.error_class or "–",
            f"{reason.num_videos:,}",
            f"{reason.num_clips:,}",
        )
        for reason in reasons
    ]
    return make_table(("reason", "error", "videos", "clips"), rows, "words")


def _examples(reasons: Sequence[Reason]) -> str:
    rows = [(_where(row), esc(shortened(row.reason))) for reason in reasons for row in reason.examples]
    is_open = " open" if len(rows) <= 6 else ""
    return (
        f"<details{is_open}><summary>{number_of(len(rows), 'examples')}</summary>"
        f"{make_table(('which', 'why'), rows, 'words last-words')}</details>"
    )


def passed_over(card: Card) -> str:
    num = card.num_videos["ignored"]
    if not num:
        return paragraph("No other file lies in the sources.", "soft")
    rows = [
        (esc(shortened(reason.words)), f"{reason.num_videos:,}", _where(reason.examples[0]))
        for reason in card.passed_over
    ]
    words = f"{number_of(num, 'files')} that lie in the sources and were not read as videos."
    return paragraph(words) + make_table(("reason", "files", "for example"), rows, "words last-words")
