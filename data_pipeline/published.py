"""Published files of labels as lists that `foreframe shard` takes: Kinetics, Something-Something, Diving48.

Only names are looked at: no video is opened. What is listed and not there is counted and named.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline.errors import DataError, UsageError, why
from data_pipeline.sources import VIDEO_ENDINGS
from data_pipeline.storage import write_whole

COLUMNS = ("uri", "label", "split", "start_s", "end_s")
SPLIT_WORDS = {"train": "train", "val": "eval", "validate": "eval", "validation": "eval", "eval": "eval"}


@dataclass(frozen=True)
class Entry:
    """A line of a published file. stems: names that its video may have, without ending, the likeliest first.

    span_s: seconds to cut out of a video that has the last of these names.
    """

    line: int
    stems: tuple[str, ...]
    label: str
    split: str | None = None
    span_s: tuple[float, float] | None = None


class EntryError(ValueError):
    """What makes a file none of its layout. line: or entry, from 1; 0 for the whole file."""

    def __init__(self, line: int, reason: object) -> None:
        super().__init__(str(reason))
        self.line = line


@dataclass(frozen=True)
class Passed:
    """A line that gives no entry, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Told:
    """What became of a file: lines written, their labels, videos that are not there, lines passed over."""

    num_lines: int
    num_labels: int
    missing: tuple[str, ...]
    passed: tuple[str, ...]


def convert(
    source: Path,
    out: Path,
    layout: str,
    videos: Path,
    *,
    names: Path | None = None,
    split: str | None = None,
    is_untrimmed: bool = False,
) -> Told:
    """Write a list of the videos that a published file names and that are below `videos`.

    names: ssv2's labels.json, diving48's vocabulary. split: for all lines; None: as the file says.
    is_untrimmed: of kinetics, a file named by its id alone is the whole video, and the times are cut out.
    Raises: DataError when a file is not of that layout, naming the line or entry; UsageError when none of its
    videos is there, or `out` is a file that is read.
    """
    for given in (source, names):
        if given is not None and is_same_file(given, out):
            raise UsageError(f"{out} is {given} itself, which would be lost: name another file to write")
    text = _text(source)
    known = None if names is None else _names(names, layout)
    found = list(_entries(source, layout, text, known))
    files = by_stem(videos)
    lines, missing, passed = [], [], []
    for entry in found:
        if isinstance(entry, Passed):
            passed.append(f"line {entry.line}: {entry.reason}")
            continue
        stem = next((stem for stem in entry.stems if stem in files), None)
        if stem is None:
            missing.append(entry.stems[0])
            continue
        if len(files[stem]) > 1:
            passed.append(
                f"line {entry.line}: {' and '.join(files[stem][:2])} have its name: keep one of them"
            )
            continue
        is_cut = is_untrimmed and entry.span_s is not None and stem == entry.stems[-1]
        span = entry.span_s if is_cut and entry.span_s is not None else ("", "")
        lines.append((files[stem][0], entry.label, split or entry.split or "", *span))
    if not lines:
        first = f", such as {missing[0]}" if missing else f": {passed[0]}" if passed else ""
        raise UsageError(f"none of the {len(found)} videos that {source} lists is below {videos}{first}")
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([COLUMNS, *lines])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, rows.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {why(error)}") from error
    return Told(len(lines), len({line[1] for line in lines}), tuple(missing), tuple(passed))


def is_same_file(source: Path, out: Path) -> bool:
    """Whether two paths lead to one file, also over links."""
    try:
        return source.samefile(out)
    except OSError:  # one of them is not there
        return False


def _entries(source: Path, layout: str, text: str, known: Any) -> Iterator[Entry | Passed]:
    """What a file lists. Raises: DataError that names the line or entry."""
    place = "line" if layout in ("kinetics", "paths") else "entry"
    try:
        for found in FORMATS[layout](text, known):
            if isinstance(found, Entry):
                _check(found)
            yield found
    except EntryError as error:
        where = f" at {place} {error.line}" if error.line else ""
        raise DataError(
            f"{source} is no file of labels as {layout} publishes them{where}: {error}"
        ) from error


def _check(entry: Entry) -> None:
    if not _is_text(entry.label):
        raise EntryError(
            entry.line, f"its label is {entry.label[:60]!r}: need text without control characters"
        )
    if entry.span_s is not None and not 0 <= entry.span_s[0] < entry.span_s[1]:
        begin, end = entry.span_s
        raise EntryError(
            entry.line, f"it is from {begin:g} to {end:g} s: need 0 or more, and an end after the begin"
        )


def _is_text(text: str) -> bool:
    """Whether a list, a table and a terminal can take it: no NUL, no line break, no half of a letter."""
    return not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)


def _names(path: Path, layout: str) -> Any:
    """The names of the labels: of ssv2 an object by name, of diving48 a list. Raises: DataError."""
    try:
        known = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} holds no names of labels: {error}") from error
    if layout == "ssv2" and not isinstance(known, dict):
        raise DataError(f"{path} holds no names of labels: need an object of them, as ssv2's labels.json")
    if layout == "diving48":
        rows = known if isinstance(known, list) else [None]
        for number, words in enumerate(rows):
            parts = words if isinstance(words, list) else [words]
            if not parts or not all(isinstance(part, str) and _is_text(part) for part in parts):
                raise DataError(
                    f"{path}, label {number}: {str(words)[:60]!r} is no name: need a list of "
                    f"words, or of lists of words, as diving48's vocabulary"
                )
    return known


def by_stem(videos: Path) -> dict[str, list[str]]:
    """Videos below a folder, relative to it, by their names without ending. Raises: UsageError."""
    if not videos.is_dir():
        raise UsageError(f"{videos} is no folder: need the one that holds the videos")
    found: dict[str, list[str]] = {}
    for folder, _, names in os.walk(videos):
        for name in names:
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in VIDEO_ENDINGS:
                path = (Path(folder) / name).relative_to(videos).as_posix()
                found.setdefault(PurePosixPath(name).stem, []).append(path)
    return {stem: sorted(paths) for stem, paths in found.items()}


def kinetics(text: str, _: Any = None) -> Iterator[Entry | Passed]:
    """`label,youtube_id,time_start,time_end,split`: a file is ID_000012_000022, or ID."""
    rows = csv.DictReader(io.StringIO(text))
    try:
        missing = {"label", "youtube_id", "time_start", "time_end"} - set(rows.fieldnames or ())
        numbered = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise EntryError(rows.reader.line_num, error) from error
    if missing:
        raise EntryError(1, f"its head has no column {', '.join(sorted(missing))}")
    for line, row in numbered:
        begin, end = _seconds(row["time_start"], line), _seconds(row["time_end"], line)
        word, label = (row.get("split") or "").strip(), (row["label"] or "").strip()
        if not label or word not in (*SPLIT_WORDS, ""):
            yield Passed(line, f"its split is {word}" if label else "it has no label")
            continue
        if not row["youtube_id"]:
            raise EntryError(line, "it has no youtube_id")
        stems = f"{row['youtube_id']}_{round(begin):06d}_{round(end):06d}", row["youtube_id"]
        yield Entry(line, stems, label, SPLIT_WORDS.get(word), (begin, end))


def paths(text: str, _: Any = None) -> Iterator[Entry | Passed]:
    """A path and a label a line, between them a space; the label is what follows the last one."""
    for line, said in enumerate(text.splitlines(), 1):
        path, _, label = said.strip().rpartition(" ")
        if path and label:
            yield Entry(line, (PurePosixPath(path.strip().strip('"')).stem,), label)
        elif said.strip():
            yield Passed(line, "it is not a path, a space and a label")


def ssv2(text: str, known: Mapping[str, Any] | None = None) -> Iterator[Entry | Passed]:
    """`[{"id": …, "template": …}]`: the label is the template without its brackets, as labels.json has it."""
    for line, video in enumerate(_objects(text), 1):
        label = str(video.get("template", "")).replace("[", "").replace("]", "").strip()
        if not label:
            yield Passed(line, "it has no template, so no label")
        elif known is not None and label not in known:
            yield Passed(line, f"{label!r} is not among the labels")
        else:
            yield Entry(line, (_told(video, "id", line),), label)


def diving48(text: str, known: Sequence[Any] | None = None) -> Iterator[Entry | Passed]:
    """`[{"vid_name": …, "label": 7}]`: the label is its number, or with the vocabulary its words."""
    for line, video in enumerate(_objects(text), 1):
        number = _number(video.get("label"), line)
        if known is not None and not 0 <= number < len(known):
            yield Passed(line, f"its label {number} is not among the {len(known)} of the vocabulary")
            continue
        words = number if known is None else known[number]
        label = " ".join(map(str, words)) if isinstance(words, list) else str(words)
        yield Entry(line, (_told(video, "vid_name", line),), label)


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EntryError(0, error) from error
    if not isinstance(found, list):
        raise EntryError(0, "it is no JSON list of objects")
    for line, one in enumerate(found, 1):
        if not isinstance(one, dict):
            raise EntryError(line, f"{str(one)[:60]} is no object")
    return found


def _seconds(text: str | None, line: int) -> float:
    try:
        found = float(text or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise EntryError(line, f"{text!r} is no time in seconds")
    return found


def _number(value: object, line: int) -> int:
    """A label's number, also as text or as 7.0."""
    try:
        found = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not found.is_integer():
        raise EntryError(line, f"its label is {str(value)[:60]!r}: need a whole number")
    return int(found)


def _told(video: Mapping[str, Any], key: str, line: int) -> str:
    """The name of a video."""
    found = video.get(key)
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise EntryError(line, f"its {key} is {str(found)[:60]!r}: need the name of its video")
    return str(found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = why(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path} cannot be read: {reason}") from error


FORMATS: dict[str, Callable[[str, Any], Iterator[Entry | Passed]]] = {
    "kinetics": kinetics,
    "paths": paths,
    "ssv2": ssv2,
    "diving48": diving48,
}
