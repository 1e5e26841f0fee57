"""THE contract between the pipeline that writes shards and the trainer that reads them.

A data set is a folder (or s3:// prefix):

    dataset.json                       DatasetInfo with the done record of every shard that counts, written
                                       last: no dataset.json, no data set
    manifest.parquet                   one row a clip: kept, filtered or failed, with its source span
    videos.parquet                     one row a source file
    dead_letters.jsonl                 one object a video or clip that could not be used, with the reason
    dataset.html, previews.parquet     the data card, for people, and the pictures on it
    shards/train-000000.tar            plain WebDataset tar
    shards/train-000000.index.parquet  one row a member: key, suffix, offset, size, sha256
    shards/train-000000.done.json      ShardDone, written after the two: no done record, no shard

A sample is the members that share a key (a clip id, 20 hex digits):

    <key>.mp4          the clip, H.264, constant frame rate, closed GOP; or, with `encoding: jpeg`,
    <key>.0000.jpg …   a JPEG a frame
    <key>.json         ClipMeta
    <key>.state.npy    float32 (frames, S), optional: the true state at each frame's time
    <key>.actions.npy  float32 (frames, A), optional: the action applied from each frame to the next

docs/data-format.md says the same in prose; `FORMAT_VERSION` moves when a reader must change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from data_pipeline.errors import DataError
from data_pipeline.storage import Storage

FORMAT_VERSION = 2
DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
DEAD_LETTERS_FILE = "dead_letters.jsonl"
CARD_FILE = "dataset.html"
SHARDS_FOLDER = "shards"

VIDEO, META, STATE, ACTIONS = "mp4", "json", "state.npy", "actions.npy"
Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")


def frame_suffix(number: int) -> str:
    """`0007.jpg`: the suffix of a frame's member in a clip of JPEG frames."""
    return f"{number:04d}.jpg"


def shard_stem(split: str, number: int) -> str:
    """`train-000000`: the name of a shard without folder and ending."""
    return f"{split}-{number:06d}"


def tar_name(stem: str) -> str:
    return f"{SHARDS_FOLDER}/{stem}.tar"


def index_name(stem: str) -> str:
    return f"{SHARDS_FOLDER}/{stem}.index.parquet"


def done_name(stem: str) -> str:
    return f"{SHARDS_FOLDER}/{stem}.done.json"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def to_json(record: Any) -> bytes:
    """A record or plain dict as JSON whose bytes depend on its content alone."""
    is_record = dataclasses.is_dataclass(record) and not isinstance(record, type)
    plain = dataclasses.asdict(record) if is_record else record
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class ClipMeta:
    """What the `.json` member says of a clip; times in seconds of the source video.

    name: of the source file, relative to its source; the manifest has its full address.
    """

    clip_id: str
    video_id: str
    name: str
    start_s: float
    end_s: float
    fps: float
    num_frames: int
    width: int
    height: int
    label: str | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    encoding: str = "mp4"

    @classmethod
    def from_json(cls, data: bytes) -> ClipMeta:
        """Keys of later releases are passed over.

        Raises: DataError when these are not the bytes of such a member.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            plain = {key: value for key, value in json.loads(data).items() if key in known}
            plain["state_names"] = tuple(plain["state_names"])
            plain["action_names"] = tuple(plain["action_names"])
            return cls(**plain)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"a clip's .{META} member cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a tar: where its bytes start, how many, and their hash."""

    key: str
    suffix: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class ShardDone:
    """The record that makes a shard count: hashes of the tar and of its index.

    plan_fingerprint: what the shard was to hold, so that a job begun again keeps it or makes it anew.
    """

    stem: str
    split: str
    num_samples: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str
    plan_fingerprint: str = ""

    @classmethod
    def of(cls, plain: dict[str, Any]) -> ShardDone:
        """Keys of later releases are passed over. Raises: TypeError when one is missing."""
        known = {field.name for field in dataclasses.fields(cls)}
        return _checked(cls(**{key: value for key, value in plain.items() if key in known}))

    @classmethod
    def from_json(cls, data: bytes) -> ShardDone:
        """Raises: DataError when these are not the bytes of a done record."""
        try:
            return cls.of(json.loads(data))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"a done record cannot be read: {error}") from error


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`. `fingerprint` hashes the tar hashes in order: equal data, equal fingerprint.

    shards: the done records of the shards that count, in the order of their names; what else lies beside them
    does not. revision: 0, and one more with each `--redrive` that added shards.
    """

    format_version: int
    name: str
    fingerprint: str
    revision: int
    num_videos: int
    num_clips: dict[str, int]
    num_shards: dict[str, int]
    num_filtered: int
    num_failed: int
    total_bytes: int
    config_fingerprint: str
    source_fingerprint: str
    manifest_sha256: str
    versions: dict[str, str]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    shards: tuple[ShardDone, ...]

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> DatasetInfo:
        """Keys of later releases are passed over. Raises: KeyError, TypeError, when one is missing."""
        found = {field.name: plain[field.name] for field in dataclasses.fields(cls)}
        for key in ("state_names", "action_names"):
            found[key] = tuple(found[key])
        found["shards"] = tuple(ShardDone.of(shard) for shard in found["shards"])
        return _checked(cls(**found)).consistent()

    def consistent(self) -> DatasetInfo:
        """The same. Raises: ValueError when counts or fingerprint are not those of the shards."""
        for split in {*self.num_clips, *self.num_shards, *(s.split for s in self.shards)}:
            own = self.shards_of(split)
            told = self.num_clips.get(split, 0), self.num_shards.get(split, 0)
            if (counts := (sum(shard.num_samples for shard in own), len(own))) != told:
                raise ValueError(f"{split} has {counts} clips and shards, and {told} are told")
        is_twice = len({shard.stem for shard in self.shards}) < len(self.shards)
        if is_twice or self.fingerprint != dataset_fingerprint(self.shards):
            raise ValueError("a shard is listed twice, or the fingerprint is of other shards")
        return self

    def shards_of(self, split: str) -> list[ShardDone]:
        return [shard for shard in self.shards if shard.split == split]


Record = TypeVar("Record", ShardDone, DatasetInfo)


def _checked(record: Record) -> Record:
    """The record. Raises: TypeError when a field is of another type, or a split has an unknown name."""
    kinds = {"str": str, "int": int, "dict[str, int]": dict, "dict[str, str]": dict}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        kind: Any = kinds.get(str(field.type), object)
        if not isinstance(value, kind) or (kind is int and (type(value) is bool or not 0 <= value < 1 << 62)):
            raise TypeError(f"{field.name} is {value!r}")
        if field.type == "dict[str, int]" and not all(type(number) is int for number in dict(value).values()):
            raise TypeError(f"{field.name} is {value!r}")
    if isinstance(record, ShardDone) and (record.split not in SPLITS or "/" in record.stem):
        raise TypeError(f"stem and split are {record.stem!r} and {record.split!r}")
    return record


@dataclass(frozen=True)
class Sample:
    """Where one sample's members lie: `members[suffix]` in shard `stem`."""

    key: str
    stem: str
    members: dict[str, Member]


@dataclass(frozen=True)
class Shard:
    """A finished shard and its samples, in the order they lie in the tar."""

    done: ShardDone
    samples: tuple[Sample, ...]


def dataset_fingerprint(shards: Iterable[ShardDone]) -> str:
    """Hash of what the tars hold, in the order of their names."""
    lines = "\n".join(f"{s.stem} {s.tar_sha256}" for s in sorted(shards, key=lambda s: s.stem))
    return sha256(lines.encode())[:16]


def encode_index(members: list[Member]) -> bytes:
    """The index of a shard as parquet bytes; equal members give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {field.name: [getattr(m, field.name) for m in members] for field in dataclasses.fields(Member)}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def decode_index(data: bytes) -> list[Member]:
    """The members that an index lists; columns of later releases are passed over. Raises: DataError."""
    try:
        return [Member(**row) for row in _index_table(data).to_pylist()]
    except (ValueError, TypeError) as error:
        raise DataError(f"an index cannot be read: {error}") from error


def _index_table(data: bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [field.name for field in dataclasses.fields(Member)]
    try:
        # no threads: one that is still about when the process ends aborts it
        return pq.ParquetFile(io.BytesIO(data)).read(columns=names, use_threads=False).combine_chunks()
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"an index cannot be read: {error}") from error


class ShardIndex:
    """Where the members of one shard's samples lie, by columns: a hundred bytes a member.

    keys: of the samples, in the order they lie in the tar. Raises: DataError when it is no index.
    """

    def __init__(self, data: bytes) -> None:
        import pyarrow.compute as pc

        table = _index_table(data)
        keys = table["key"]
        if len(keys) == 0:
            raise DataError("an index cannot be read: it lists nothing")
        firsts = [0, *(pc.indices_nonzero(pc.not_equal(keys[1:], keys[:-1])).to_numpy() + 1).tolist()]
        self.keys: list[str] = keys.take(firsts).to_pylist()
        if len(set(self.keys)) != len(self.keys):
            raise DataError("an index cannot be read: the members of a sample do not lie side by side")
        self._firsts = [*firsts, len(keys)]
        self._columns = [table[name] for name in ("key", "suffix", "offset", "size", "sha256")]

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, row: int) -> dict[str, Member]:
        """The members of the sample at `row`, by suffix."""
        first, end = self._firsts[row], self._firsts[row + 1]
        columns = [column.slice(first, end - first).to_pylist() for column in self._columns]
        return {values[1]: Member(*values) for values in zip(*columns, strict=True)}


def read_info(storage: Storage) -> DatasetInfo:
    """The data set's `dataset.json`.

    Raises: DataError when it is missing (sharding did not finish), cannot be read, or is of another format
    version.
    """
    if storage.is_local and not storage.exists():
        raise DataError(
            f"{storage.root} does not exist: name a data set's folder, as `foreframe shard` writes it"
        )
    if not storage.exists(DATASET_FILE):
        raise DataError(
            f"{storage.root} is no finished data set: it has no {DATASET_FILE}; "
            f"write one with `foreframe shard`, or run the same command again if it was interrupted"
        )
    data = storage.read(DATASET_FILE)
    try:
        plain = json.loads(data)
        version = plain.get("format_version", FORMAT_VERSION)
        info = DatasetInfo.from_json(plain) if version == FORMAT_VERSION else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{storage.address(DATASET_FILE)} is cut short or was changed ({error}): remove it, and the same "
            f"`foreframe shard` again writes it anew; whole shards are kept"
        ) from error
    if info is None:
        raise DataError(
            f"{storage.root} has format version {version!r}; this release reads {FORMAT_VERSION}: "
            f"shard the videos again with it"
        )
    return info


def read_shards(storage: Storage, records: Sequence[ShardDone]) -> list[Shard]:
    """The samples of shards, in the order of their done records, each index checked against its record.

    Raises: DataError when an index is missing or not the one that its done record names.
    """
    indexes = storage.read_many([index_name(done.stem) for done in records])
    return [_decode_shard(storage, done, data) for done, data in zip(records, indexes, strict=True)]


def read_index(storage: Storage, done: ShardDone) -> bytes:
    """A shard's index file, checked against its done record. Raises: DataError when it is another."""
    return _checked_index(storage, done, storage.read(index_name(done.stem)))


def _checked_index(storage: Storage, done: ShardDone, index: bytes) -> bytes:
    if sha256(index) != done.index_sha256:
        address = storage.address(index_name(done.stem))
        raise DataError(f"{address} is not the index that its done record names")
    return index


def _decode_shard(storage: Storage, done: ShardDone, index: bytes) -> Shard:
    members: dict[str, dict[str, Member]] = defaultdict(dict)
    for member in decode_index(_checked_index(storage, done, index)):
        members[member.key][member.suffix] = member
    samples = tuple(Sample(key, done.stem, found) for key, found in members.items())
    return Shard(done, samples)


def check_files(storage: Storage, records: Sequence[ShardDone]) -> None:
    """One listing: are the files of all shards there, and the tars of the size recorded?

    Raises: DataError that names the first that are not.
    """
    sizes = {entry.name: entry.size_bytes for entry in storage.walk(SHARDS_FOLDER)}
    bad = []
    for done in records:
        tar, index = tar_name(done.stem), index_name(done.stem)
        bad += [f"{name} is missing" for name in (tar, index) if name not in sizes]
        if sizes.get(tar, done.tar_bytes) != done.tar_bytes:
            bad.append(f"{tar} has {sizes[tar]} bytes, not {done.tar_bytes}")
    if bad:
        raise DataError(
            f"{storage.root} is not whole: {'; '.join(bad[:3])}{' …' if len(bad) > 3 else ''} ({len(bad)} in "
            f"all): the same `foreframe shard` again makes what is missing anew"
        )


def finished_stems(storage: Storage) -> list[str]:
    """Stems with a done record, sorted: what a job may keep, not what a reader may read."""
    ending = ".done.json"
    return [name[: -len(ending)] for name in storage.names(SHARDS_FOLDER) if name.endswith(ending)]
