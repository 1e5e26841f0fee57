"""THE contract between the pipeline that writes shards and the trainer that reads them.

A data set is a folder (or s3:// prefix):

    dataset.json                       DatasetInfo, written last: no dataset.json, no data set
    manifest.parquet                   one row a clip: kept, filtered or failed, with its source span
    dead_letters.jsonl                 one object a video or clip that could not be used, with the reason
    shards/train-000000.tar            plain WebDataset tar
    shards/train-000000.index.parquet  one row a member: key, suffix, offset, size, sha256
    shards/train-000000.done.json      ShardDone, written last: no done record, no shard

A sample is the members that share a key (a clip id, 20 hex digits):

    <key>.mp4          the clip, H.264, constant frame rate, closed GOP
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
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.errors import DataError
from data_pipeline.storage import Storage

FORMAT_VERSION = 1
DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
DEAD_LETTERS_FILE = "dead_letters.jsonl"
SHARDS_FOLDER = "shards"

VIDEO, META, STATE, ACTIONS = "mp4", "json", "state.npy", "actions.npy"
Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")


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
    """What the `.json` member says of a clip; times in seconds of the source video."""

    clip_id: str
    video_id: str
    uri: str
    start_s: float
    end_s: float
    fps: float
    num_frames: int
    width: int
    height: int
    split: str
    label: str | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: bytes) -> ClipMeta:
        """Raises: DataError when these are not the bytes of such a member."""
        try:
            plain = json.loads(data)
            plain["state_names"] = tuple(plain["state_names"])
            plain["action_names"] = tuple(plain["action_names"])
            return cls(**plain)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"a clip's .{META} member cannot be read: {error}") from error


@dataclass(frozen=True)
class Member:
    """One file inside a tar: where its bytes start, how many, and their hash."""

    key: str
    suffix: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class FailedClip:
    """A clip that was planned for a shard and is not in it."""

    clip_id: str
    error_class: str
    reason: str
    attempts: int = 1


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
    failed: tuple[FailedClip, ...] = ()

    @classmethod
    def from_json(cls, data: bytes) -> ShardDone:
        """Raises: DataError when these are not the bytes of a done record."""
        try:
            plain = json.loads(data)
            plain["failed"] = tuple(FailedClip(**clip) for clip in plain.get("failed", ()))
            return cls(**plain)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"a done record cannot be read: {error}") from error


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`. `fingerprint` hashes the tar hashes in order: equal data, equal fingerprint."""

    format_version: int
    name: str
    fingerprint: str
    num_videos: int
    num_clips: dict[str, int]
    num_shards: dict[str, int]
    num_filtered: int
    num_failed: int
    total_bytes: int
    config_fingerprint: str
    source_fingerprint: str
    versions: dict[str, str]
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()


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


def dataset_fingerprint(shards: list[ShardDone]) -> str:
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
    import pyarrow.parquet as pq

    return [Member(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


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
        info = DatasetInfo(**plain) if version == FORMAT_VERSION else None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{storage.address(DATASET_FILE)} is cut short or was changed: remove it, and the same "
            f"`foreframe shard` again writes it anew; whole shards are kept"
        ) from error
    if info is None:
        raise DataError(
            f"{storage.root} has format version {version}; this release reads {FORMAT_VERSION}: "
            f"shard the videos again with it"
        )
    state_names, action_names = tuple(info.state_names), tuple(info.action_names)
    return dataclasses.replace(info, state_names=state_names, action_names=action_names)


def read_shard(storage: Storage, stem: str) -> Shard:
    """A finished shard's samples, its index checked against its done record.

    Raises: DataError when the done record is missing or the index is not the one it names.
    """
    done = ShardDone.from_json(storage.read(done_name(stem)))
    data = storage.read(index_name(stem))
    if sha256(data) != done.index_sha256:
        raise DataError(f"{storage.address(index_name(stem))} is not the index that its done record names")
    members: dict[str, dict[str, Member]] = defaultdict(dict)
    for member in decode_index(data):
        members[member.key][member.suffix] = member
    samples = tuple(Sample(key, stem, found) for key, found in members.items())
    return Shard(done, samples)


def finished_stems(storage: Storage, split: str | None = None) -> list[str]:
    """Stems of the shards that have a done record, sorted."""
    ending = ".done.json"
    found = [name[: -len(ending)] for name in storage.names(SHARDS_FOLDER) if name.endswith(ending)]
    return [stem for stem in found if split is None or stem.rsplit("-", 1)[0] == split]
