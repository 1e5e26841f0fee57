"""The data card as one HTML file: no script, nothing fetched; for screens, phones, the night and paper.

Every word that comes from a file's name, a list, a decoder or a config goes through `esc`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipeline.card.charts import draw
from data_pipeline.card.facts import Card, Distribution, Grouping
from data_pipeline.card.findings import Finding
from data_pipeline.card.losses import duplicates, failures, passed_over, rejected
from data_pipeline.card.markup import Cell, Html, code, esc, make_table, named, paragraph, share_bar
from data_pipeline.card.sheets import sheet
from data_pipeline.card.style import STYLE
from data_pipeline.card.words import duration, durations, number_of, score, share, shortened, size


def page(card: Card, findings: Sequence[Finding]) -> str:
    """The whole page."""
    sections = [
        _header(card),
        _section("Worth a look", _findings(findings)),
        _section("What is in it", _kept_sheet(card)),
        _section("Splits", _splits(card)),
        _section("Where the clips come from", _sources(card)),
        _section("How clips and videos are distributed", _distributions(card)),
        _section(f"What the {card.files} are", _formats(card)),
        _section("Labels", _labels(card)),
        _section("What was left out", rejected(card)),
        _section("Near-duplicates", duplicates(card)),
        _section("What failed", failures(card)),
        _section("What was passed over", passed_over(card)),
        _section("How it was made", _settings(card)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(card.info.name)}: data card, foreframe</title><style>{STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{esc(title)}</h2>{body}</section>"


def _header(card: Card) -> str:
    info, clips, videos = card.info, card.num_clips, card.num_videos
    revision = f'<span class="word">revision {info.revision}</span>' if info.revision else ""
    cut_from = _counted(info.num_videos - card.num_kept_pictures, card.num_kept_pictures)
    lead = f"{number_of(clips['kept'], 'clips')}, {duration(card.kept_s)}, cut from {cut_from}; fingerprint "
    passed = number_of(videos["ignored"], "files")
    found = f"{size(card.source_bytes)}; {videos['failed']:,} failed, {passed} passed over"
    of_pictures = ""
    if card.num_pictures:
        found = f"{_counted(videos['usable'] - card.num_pictures, card.num_pictures)}, {found}"
        of_pictures = ", a picture counting as one frame"
    tried = sum(clips.values())
    cards = [
        ("clips", f"{clips['kept']:,}", " + ".join(f"{side.num_clips:,} {side.name}" for side in card.sides)),
        ("length", duration(card.kept_s), f"of {duration(card.source_s)} of usable video{of_pictures}"),
        ("size", size(info.total_bytes), number_of(sum(info.num_shards.values()), "shards")),
        (
            "left out by filters",
            f"{clips['filtered']:,}",
            f"{share(clips['filtered'], tried)} of {tried:,} clips",
        ),
        ("clips failed", f"{clips['failed']:,}", f"{share(clips['failed'], tried)} of {tried:,} clips"),
        (
            f"{card.files} usable",
            f"{videos['usable']:,}",
            found,
        ),
    ]
    boxes = "".join(
        f'<div class="card"><span class="soft">{esc(label)}</span><b>{esc(value)}</b>'
        f'<span class="soft">{esc(note)}</span></div>'
        for label, value, note in cards
    )
    return (
        f"<header><h1>{esc(info.name)} {revision}</h1>"
        f'<p class="lead">{esc(lead)}{code(info.fingerprint)}.</p><p class="lead">{esc(_how(card))}</p>'
        f'<div class="cards">{boxes}</div></header>'
    )


def _counted(num_videos: int, num_pictures: int) -> str:
    """3 videos and 20 pictures; what there is none of is left out."""
    if not num_pictures:
        return number_of(num_videos, "videos")
    pictures = number_of(num_pictures, "pictures")
    return f"{number_of(num_videos, 'videos')} and {pictures}" if num_videos else pictures


def _how(card: Card) -> str:
    """How it was cut and encoded, in one plain sentence."""
    cut, encode, filters = card.config.cut, card.config.encode, card.config.filters
    windows = f"windows of {cut.length_s:g} s, one every {cut.stride_s:g} s"
    how = {
        "windows": f"Videos were cut into {windows}",
        "scenes": f"Videos were divided at their cuts (threshold {cut.scene_threshold:g}), "
        f"and each scene into {windows}",
        "spans": f"Each span of the list is one clip if it lasts {cut.length_s:g} s or longer",
    }[cut.kind]
    if card.num_pictures:
        one = "ach picture is a clip of one frame"
        how = f"{how}, e{one}" if card.num_pictures < card.num_videos["usable"] else f"E{one}"
    bars = "freed of black bars, " if filters.crop_letterbox else ""
    picture = f"scaled to a short side of {encode.short_side} px at {encode.fps:g} frames/s"
    if encode.encoding == "jpeg":
        coded = f"written as a JPEG a frame, quality {encode.jpeg_quality}"
    else:
        coded = f"written as H.264 (CRF {encode.crf}, {encode.preset}, a keyframe every {encode.gop} frames)"
    return f"{how}; clips were {bars}{picture}, and {coded}."


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return paragraph("Nothing stands out: see the pictures and the histograms all the same.")
    items = "".join(
        f'<li><b class="{finding.tone}">{esc(finding.subject)}.</b> {esc(finding.words)}</li>'
        for finding in findings
    )
    return f"<ul>{items}</ul>"


def _kept_sheet(card: Card) -> str:
    kept = [shown for shown in card.shown if shown.clip.status == "kept"]
    if not kept:
        return paragraph("There are no pictures of kept clips (previews.parquet holds none).", "soft")
    words = (
        f"{number_of(len(kept), 'kept clips')} of {card.num_clips['kept']:,}, drawn by a hash of their ids "
        f"and not by hand; three moments of each"
        f"{', and all of a picture' if card.num_pictures else ''}."
    )
    return paragraph(words) + sheet(kept)


def _splits(card: Card) -> str:
    def per_clip(num_bytes: int, count: int) -> str:
        return size(num_bytes / count) if count else "–"

    rows: list[Sequence[Cell]] = [
        (
            side.name,
            f"{side.num_clips:,}",
            f"{side.num_videos:,}",
            length,
            f"{side.num_shards:,}",
            size(side.size_bytes),
            per_clip(side.size_bytes, side.num_clips),
        )
        for side, length in zip(card.sides, durations([side.kept_s for side in card.sides]), strict=True)
    ]
    low, high = card.length_s
    lengths = f"All clips last {low:g} s." if low == high and card.num_clips["kept"] else ""
    if card.num_pictures:
        of_videos = f"All clips of videos last {low:g} s." if low == high and high else ""
        lengths = f"The clip of a picture is one frame. {of_videos}".strip()
    cut = card.config.cut
    overlap = ""
    if cut.kind != "spans" and cut.stride_s < cut.length_s:
        overlap = " Windows overlap, so that hours of clips are more than hours of video."
    words = f"{lengths}{overlap} The clips of one video are always on one side."
    heads = ("split", "clips", card.files, "length", "shards", "size", "a clip")
    return make_table(heads, rows) + paragraph(words.strip(), "soft")


def _grouping(grouping: Grouping, card: Card, title: str = "", has_yield: bool = False) -> str:
    """A table of groups. has_yield: with the share of each group's clips that is kept."""
    groups = list(grouping.groups)
    names: list[Cell] = [named(group.name) for group in groups]
    if grouping.rest is not None:
        groups.append(grouping.rest)
        names.append(f"{grouping.num_rest:,} more")
    lengths = durations([group.kept_s for group in groups])
    rows = [
        (
            name,
            f"{group.num_videos:,}",
            f"{group.num_kept:,}",
            *([share(group.num_kept, group.num_clips)] if has_yield else []),
            length,
            share_bar(group.kept_s, card.kept_s),
        )
        for name, group, length in zip(names, groups, lengths, strict=True)
    ]
    if not rows:
        return paragraph("There are none.", "soft")
    heads = (title, card.files, "kept clips", *(["of those cut"] if has_yield else []), "length", "share")
    return make_table(heads, rows)


def _sources(card: Card) -> str:
    listed = Html(", ".join(code(shortened(source)) for source in card.config.sources[:10]))
    more = f" and {len(card.config.sources) - 10:,} more" if len(card.config.sources) > 10 else ""
    words = Html(f"Sources: {listed}{more}. Grouped by folder, those with the longest kept clips first.")
    return paragraph(words) + _grouping(card.sources, card, "folder", has_yield=True)


def _distributions(card: Card) -> str:
    key = (
        '<p class="soft"><span class="key kept"></span>kept <span class="key out"></span>left out. A dashed '
        "line is a filter's threshold. A bar with a break is higher than the axis; its count is above it.</p>"
    )
    return key + f'<div class="grid">{"".join(_distribution(one) for one in card.distributions)}</div>'


def _distribution(one: Distribution) -> str:
    chart = one.histogram
    if not one.num:
        words = f"no {chart.what} have this score."
        return f'<figure><h3>{esc(chart.title)}</h3><p class="soft">{esc(words.capitalize())}</p></figure>'
    sentences = []
    if one.limit is not None and one.num_past is not None:
        past = f"{number_of(one.num_past, 'clips')} of {one.num:,} ({share(one.num_past, one.num)})"
        side = "under" if one.setting.endswith("min_motion") else "over"
        sentences.append(f"{past} lie {side} {one.setting} {one.limit:g}.")
    elif one.setting:
        sentences.append(f"{one.setting} is null: nothing is left out for it.")
    if one.quantiles is not None:
        shown = duration if chart.axis.startswith("seconds") else score
        low, middle, high = map(shown, one.quantiles)
        which = "kept clips" if chart.what == "clips" else chart.what
        if low == high:
            sentences.append(f"Nine of ten {which} have {middle}.")
        elif low == middle:
            sentences.append(f"Half of the {which} have {middle}; 5 % reach {high}.")
        else:
            sentences.append(
                f"Half of the {which} reach {middle}; 5 % stay at or under {low}, 5 % reach {high}."
            )
    if chart.what == "videos":
        sentences.append("Left out are those without a kept clip.")
    if chart.num_above:
        sentences.append(f"The last bar holds {chart.num_above:,} beyond it.")
    caption = f"<figcaption>{esc(' '.join(sentences))}</figcaption>"
    return f"<figure><h3>{esc(chart.title)}</h3>{draw(chart)}{caption}</figure>"


def _formats(card: Card) -> str:
    if not card.num_videos["usable"]:
        return paragraph("No video is usable.", "soft")
    tables = "".join(
        f"<div><h3>{esc(title)}</h3>{_grouping(grouping, card)}</div>" for title, grouping in card.formats
    )
    cropped = (
        f"Black bars were cut off {number_of(card.num_cropped, 'kept clips')} "
        f"({share(card.num_cropped, card.num_clips['kept'])})."
        if card.config.filters.crop_letterbox
        else "Black bars were not looked for (filters.crop_letterbox is false)."
    )
    words = f"The files as their headers describe them, sizes as displayed. {cropped}"
    return paragraph(words) + f'<div class="grid">{tables}</div>'


def _labels(card: Card) -> str:
    labels = card.labels
    if not labels.num:
        return paragraph("No clip has a label.", "soft")
    rows = [
        (
            named(label.name),
            f"{label.num_train + label.num_eval:,}",
            f"{label.num_train:,}",
            f"{label.num_eval:,}",
            share_bar(label.num_train + label.num_eval, card.num_clips["kept"]),
        )
        for label in labels.most
    ]
    more = f"; the {len(rows)} most frequent" if labels.num > len(rows) else ""
    words = f"{number_of(labels.num, 'different labels')}{more}. "
    words += f"Kept clips without a label: {labels.num_unlabelled:,}."
    return paragraph(words) + make_table(("label", "kept clips", "train", "eval", "share"), rows)


def _settings(card: Card) -> str:
    info = card.info
    names = {"states": info.state_names, "actions": info.action_names}
    facts: list[tuple[str, Cell]] = [
        ("fingerprint", Html(f"{code(info.fingerprint)} of the tars; equal data, equal fingerprint")),
        ("revision", str(info.revision)),
        ("config", code(info.config_fingerprint)),
        ("sources", code(info.source_fingerprint)),
        ("manifest", Html(f"sha256 {code(info.manifest_sha256)}")),
        ("format", f"version {info.format_version}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(info.versions.items()))),
        *((what, ", ".join(found)) for what, found in names.items() if found),
    ]
    rows = "".join(f"<dt>{esc(name)}</dt><dd>{esc(fact)}</dd>" for name, fact in facts)
    sections = ("cut", "filters", "encode", "shards", "split", "inspect")
    plain = card.config.model_dump(mode="json", include=set(sections))
    lines = [f"{part}.{key}: {_setting(value)}" for part in sections for key, value in plain[part].items()]
    if card.config.pictures:
        lines.append("pictures: true")
    text = "\n".join(map(esc, [*lines, f"max_failed_fraction: {card.config.max_failed_fraction:g}"]))
    return (
        f"<dl>{rows}</dl><details><summary>the settings it was made with</summary><pre>{text}</pre></details>"
    )


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
