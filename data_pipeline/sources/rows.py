"""The lines of a list (.csv, .jsonl, .parquet), each with its number; damaged ones are said, not raised."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from data_pipeline.errors import DataError, why
from data_pipeline.format import SPLITS, Split
from data_pipeline.sources.base import printable
from data_pipeline.sources.remote import is_remote, read_object

LIST_ENDINGS = (".csv", ".jsonl", ".parquet")
KEYS = ("uri", "start_s", "end_s", "label", "actions", "split")
BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Row:
    """One line as it stands there, checked as far as that is possible without its root."""

    line: int
    uri: str
    start_s: float = 0.0
    end_s: float | None = None
    label: str | None = None
    actions: str | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    line: int
    uri: str
    reason: str


def line_word(address: str) -> str:
    """What the lines of a list are called: a table has rows."""
    return "row" if address.endswith(".parquet") else "line"


def read_list(address: str) -> Iterator[Row | BadRow]:
    """The lines of a list in order; bytes that are no UTF-8 stay as they are: names of files hold such.

    Raises: DataError when it cannot be read, has no column `uri`, or one that misspells another.
    """
    ending = posixpath.splitext(address)[1].lower()
    reader = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[ending]
    try:
        with io.BytesIO(read_object(address)) if is_remote(address) else open(address, "rb") as file:
            for line, values in reader(address, file):
                yield values if isinstance(values, BadRow) else _row(line, values)
    except OSError as error:
        raise DataError(f"{address} cannot be read: {why(error)}") from error


def check_columns(address: str, spot: str, columns: Sequence[str], needs_uri: bool = True) -> None:
    """Raises: DataError when `uri` is missing, a column stands twice, or one looks like a known one."""
    where = f"{address}{spot}"
    shown = ", ".join(columns[:20]) or "none"
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"{where} has two columns `{twice}`; leave one")
    free = [key for key in KEYS if key not in columns]
    for column in columns:
        near = [] if column in KEYS else difflib.get_close_matches(column.lower(), free, n=1, cutoff=0.75)
        if near:
            raise DataError(
                f"{where} has a column `{column}`: rename it to `{near[0]}` if that is what it is, or take "
                f"it out; known columns are {', '.join(KEYS)}, others are not read"
            )
    if needs_uri and "uri" not in columns:
        raise DataError(
            f"{where} has no column `uri`, its columns are {shown}: name the one with the videos' paths `uri`"
        )


Values = Sequence[Any]  # of KEYS, None where not given


def _read_csv(address: str, file: IO[bytes]) -> Iterator[tuple[int, Values | BadRow]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    lines = csv.reader(text, strict=True)
    line, columns, places = 1, [], []  # type: tuple[int, list[str], list[int | None]]
    try:
        for values in lines:
            first, line = line, lines.line_num + 1  # a quoted field may hold line ends
            if not values:
                continue
            if not columns:
                columns = [column.strip() for column in values]
                check_columns(address, "", columns)
                places = [columns.index(key) if key in columns else None for key in KEYS]
            elif len(values) != len(columns):
                reason = f"it has {len(values)} fields, the head of the list {len(columns)}"
                yield first, BadRow(first, values[0], reason)
            else:
                yield first, [None if place is None else values[place] or None for place in places]
    except csv.Error as error:
        raise DataError(
            f'{address} line {line}: {error}; a `"` within a field is written twice, and the field in quotes'
        ) from error
    finally:
        text.detach()
    if not columns:
        raise DataError(f"{address} is empty: its first line names its columns, `uri` among them")


def _read_jsonl(address: str, file: IO[bytes]) -> Iterator[tuple[int, Values | BadRow]]:
    known: set[tuple[str, ...]] = set()
    has_uri, first_keys = False, ""
    for number, data in enumerate(file, 1):
        data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        if not data.strip():
            continue
        try:
            row = json.loads(data.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            yield number, BadRow(number, "", f"it is no JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield number, BadRow(number, "", 'it is no JSON object, such as {"uri": "a.mp4"}')
            continue
        keys = tuple(row)
        if keys not in known:
            check_columns(address, f" line {number}", keys, needs_uri=False)
            known.add(keys)
            has_uri = has_uri or "uri" in keys
            first_keys = first_keys or ", ".join(keys) or "none"
        yield number, [row.get(key) for key in KEYS]
    if not has_uri:
        raise DataError(
            f"{address} has no key `uri` in any line, those of its first are {first_keys or 'none'}: a line "
            f'looks like {{"uri": "a.mp4", "start_s": 0, "end_s": 4}}'
        )


def _read_parquet(address: str, file: IO[bytes]) -> Iterator[tuple[int, Values | BadRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        columns = table.schema_arrow.names
        check_columns(address, "", columns)
        here = [key for key in KEYS if key in columns]
        number = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=here):
            found = {key: batch.column(key).to_pylist() for key in here}
            absent = [None] * len(batch)
            for values in zip(*(found.get(key, absent) for key in KEYS), strict=True):
                number += 1
                yield number, values
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{address} is no parquet that can be read: {error}") from error


class _BadValueError(Exception):
    pass


def _row(line: int, values: Values) -> Row | BadRow:
    uri, start, end, label, actions, split = values
    try:
        if not isinstance(uri, str) or not uri:
            raise _BadValueError("it has no uri" if not uri else f"its uri {uri!r} is no text")
        start_s = 0.0 if start is None else _seconds("start_s", start)
        end_s = None if end is None else _seconds("end_s", end)
        if end_s is not None and end_s <= start_s:
            raise _BadValueError(f"its end_s {end_s:g} is not after its start_s {start_s:g}")
        if split is not None and split not in SPLITS:
            raise _BadValueError(
                f"its split is {_text('split', split)!r}; need {' or '.join(SPLITS)}, or nothing"
            )
        label = None if label is None else printable(_text("label", label)) or None
        actions = None if actions is None else _text("actions", actions) or None
        return Row(line, uri, start_s, end_s, label, actions, split)
    except _BadValueError as error:
        return BadRow(line, uri if isinstance(uri, str) else "", str(error))


def _seconds(key: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or "_" in str(value):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _BadValueError(f"its {key} {str(value)[:40]!r} is no number of seconds") from None
    if not 0 <= found < math.inf:
        raise _BadValueError(f"its {key} is {found:g}; need seconds from 0 on")
    return found


def _text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):  # classes are often numbered
        return str(value)
    raise _BadValueError(f"its {key} {str(value)[:40]!r} is no text")
