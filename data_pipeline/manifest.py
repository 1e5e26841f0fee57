"""Video and Clip records, dead letters, and their parquet and JSONL forms.

Equal records give equal bytes; the order of rows is the caller's.
"""

from __future__ import annotations

import dataclasses
import io
import json
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.decode import PICTURE, VideoFacts
from data_pipeline.errors import DataError
from data_pipeline.storage import Storage

VIDEOS_FILE = "videos.parquet"
SMALL_ROWS = 256  # of a table that is as small without compression
ROWS_AT_ONCE = 1 << 16  # as columns in memory beside the records; a row group


@dataclass(frozen=True, slots=True)
class Video:
    """One source file: a video, or a still picture.

    When `status` is not usable, `reason` says why and the facts are empty.

    video_id: from name (relative to its source) and content; see docs/data-format.md.
    Sizes in pixels as displayed; facts the headers do not tell are 0 or None.
    etag: as the store tells, empty for files. sidecars_sha256: of all its sidecars, empty without.
    cuts_s: seconds at which a scene ends and the next begins; None when nobody looked for them.
    asked: digest of the spans, labels and splits asked for. listing: fingerprint of the entry that was looked
    at, by which a later job knows it again.
    """

    video_id: str
    uri: str
    name: str
    status: Literal["usable", "failed", "ignored"]
    reason: str = ""
    error_class: str = ""
    attempts: int = 1
    size_bytes: int = 0
    etag: str = ""
    content_sha256: str = ""
    sidecars_sha256: str = ""
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    width: int = 0
    height: int = 0
    rotation: int = 0
    pixel_aspect: float = 1.0
    average_fps: float = 0.0
    nominal_fps: float = 0.0
    is_vfr: bool | None = None
    duration_s: float = 0.0
    num_frames: int = 0
    has_audio: bool = False
    cuts_s: tuple[float, ...] | None = None
    asked: str = ""
    listing: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether it is a still picture: one frame, which is one clip."""
        return self.container == PICTURE

    def with_facts(self, facts: VideoFacts) -> Video:
        return dataclasses.replace(self, status="usable", reason="", **dataclasses.asdict(facts))


@dataclass(frozen=True, slots=True)
class Clip:
    """One span of a video. Times in seconds of the source since its first frame.

    shard, offset and size_bytes locate a kept clip in its tar: all its members, one after the other;
    members_sha256 is of their names and hashes.
    width, height: of the encoded frames. crop: (left, top, width, height) of the picture that was kept, in
    pixels of the source as displayed, where bars were cut off. black, frozen: shares of frames; motion: see
    data_pipeline/scores.py; phash: 48 hex digits. Scores are None where the clip was not decoded.
    span: which of its source's spans it was cut from. recording: what the split goes by: the video, or the
    episode that several cameras saw.
    """

    clip_id: str
    video_id: str
    uri: str
    start_s: float
    end_s: float
    status: Literal["kept", "filtered", "failed"]
    reason: str = ""
    error_class: str = ""
    attempts: int = 1
    split: str = ""
    shard: str = ""
    offset: int | None = None
    size_bytes: int | None = None
    members_sha256: str = ""
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    crop: tuple[int, ...] = ()
    brightness: float | None = None
    black: float | None = None
    frozen: float | None = None
    motion: float | None = None
    phash: str = ""
    duplicate_of: str = ""
    label: str | None = None
    etag: str = ""
    span: int = 0
    recording: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One line of dead_letters.jsonl: a video (clip_id empty) or clip that could not be used, and why."""

    uri: str
    video_id: str
    stage: Literal["list", "inspect", "encode"]
    error_class: str
    reason: str
    attempts: int = 1
    clip_id: str = ""
    start_s: float | None = None
    end_s: float | None = None


def _schema(record: type) -> Any:
    """The parquet schema of a dataclass, from its annotations."""
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}

    def column(hint: Any) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is Literal:
            return pa.string()
        if origin is tuple:
            return pa.list_(column(arguments[0]))
        if origin in (types.UnionType, typing.Union):
            return column(next(a for a in arguments if a is not type(None)))
        return plain[hint]

    hints = typing.get_type_hints(record)
    return pa.schema([(field.name, column(hints[field.name])) for field in dataclasses.fields(record)])


def to_parquet(records: Sequence[Any], record: type, notes: dict[str, str] | None = None) -> bytes:
    """Dataclass records as parquet bytes; `notes` go into the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(record).with_metadata(notes or {})
    sink = io.BytesIO()
    # Over the few rows of a part, setting up zstd for each column takes three times as long as the rest.
    is_small = len(records) <= SMALL_ROWS
    with pq.ParquetWriter(
        sink, schema, compression="none" if is_small else "zstd", use_dictionary=not is_small
    ) as file:
        for start in range(0, max(1, len(records)), ROWS_AT_ONCE):
            some = records[start : start + ROWS_AT_ONCE]
            columns = [pa.array([getattr(r, field.name) for r in some], field.type) for field in schema]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
    return sink.getvalue()


def from_parquet(data: bytes, record: type) -> tuple[list[Any], dict[str, str]]:
    """The records and notes that `to_parquet` wrote.

    Raises: DataError when the columns are not those of `record`, or the bytes are not parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # read_table takes twice as long over the few rows of a part: it sets a data set up
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        tables = (file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups))
        wanted = [field.name for field in dataclasses.fields(record)]
        if names != wanted:
            raise DataError(f"a {record.__name__} table has columns {names}, not {wanted}")
        rows = [record(*row) for table in tables for row in zip(*map(_values, table.columns), strict=True)]
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"a {record.__name__} table cannot be read: {error}") from error
    return rows, {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}


def _values(column: Any) -> list[Any]:
    """The values of a column; equal ones are one object, since the clips of a video repeat many."""
    import pyarrow as pa

    values: list[Any] = column.to_pylist()
    if pa.types.is_list(column.type):
        values = [value if value is None else tuple(value) for value in values]
    seen: dict[Any, Any] = {}
    return list(map(seen.setdefault, values, values))


def read_parquet(storage: Storage, name: str, record: type) -> tuple[list[Any], dict[str, str]]:
    """`from_parquet` of a file of a data set; the DataError names the file and what to do."""
    data = storage.read(name)
    try:
        return from_parquet(data, record)
    except DataError as error:
        raise DataError(
            f"{storage.address(name)}: {error}; remove it and dataset.json, and run the same "
            f"`foreframe shard` again: whole shards are kept"
        ) from error


def to_jsonl(letters: Iterable[DeadLetter]) -> bytes:
    """One JSON object a line, keys sorted."""
    return b"".join(
        json.dumps(dataclasses.asdict(letter), sort_keys=True, ensure_ascii=False).encode() + b"\n"
        for letter in letters
    )
