"""What is known beside the pixels: states and actions of .npz, .npy and .parquet, put on a clip's clock.

Sidecars are files of unknown origin: no pickles, and nothing is unpacked before its headers say how large
it is and the file is held to what they say. A flipped bit in a .parquet can still abort pyarrow itself, and
with it the process: read them in a child (isolate.py).
"""

from __future__ import annotations

import contextlib
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.sources.base import SidecarFile, printable

MAX_BYTES = 1 << 30  # of one sidecar in memory: two days of 20 numbers at 50 Hz are 0.7 GB
TIMES = ("t", "timestamp")
EPISODE = "episode_index"
STATES = ("state", "observation.state")
ACTIONS = ("actions", "action")
GRACE_S = 1e-3  # containers round
# What zipfile, numpy's header and the parsers below them raise, found by flipping bits.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, MemoryError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
HELD_PERIODS = 2  # a last row stands for so many periods; beyond, nobody knows what was done


@dataclass(frozen=True)
class Sidecar:
    """What is known beside the pixels: t (N,) seconds, state (N, S), actions (N, A), float32."""

    t: NDArray[np.float64]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]


Columns = Mapping[str, NDArray[Any]]


def read_sidecar(path: Path, ref: SidecarFile) -> Sidecar:
    """The rows of a sidecar that are of one video or episode.

    path: where its bytes lie on this machine; ref: what the listing says of it.
    Raises: DataError with the reason when it is not what it should be.
    """
    name = printable(ref.address.rpartition("/")[2])
    reader = {".npz": _read_npz, ".npy": _read_npy, ".parquet": _read_parquet}.get(Path(name).suffix)
    try:
        if reader is None:
            raise DataError("its ending is none of .npz, .npy, .parquet")
        columns = reader(path, ref.episode)
        return _sidecar(columns, ref)
    except DataError as error:
        raise DataError(f"its sidecar {name} {error}") from error


def resample_sidecar(
    sidecar: Sidecar, shown_s: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """State and actions on a clip's clock.

    shown_s: (F + 1,) source seconds of the frames shown, and of the one that would follow.
    Returns: state (F, S) as of each frame shown; actions (F, A), the mean of those applied from each
    frame to the next.
    Raises: DataError when the rows begin after the clip or end before it by more than two of their periods,
    so that what was done would be invented, or when one of its numbers is not finite.
    """
    last = len(sidecar.t) - 1
    period_s = float(np.median(np.diff(sidecar.t))) if last else 0.0
    slack_s = HELD_PERIODS * period_s + GRACE_S
    if shown_s[-1] > sidecar.t[-1] + slack_s or shown_s[0] < sidecar.t[0] - slack_s:
        raise DataError(
            f"its sidecar tells of {sidecar.t[0]:.2f} to {sidecar.t[-1]:.2f} s, the clip is of "
            f"{shown_s[0]:.2f} to {shown_s[-1]:.2f} s"
        )
    rows = np.clip(np.searchsorted(sidecar.t, shown_s[:-1] + GRACE_S, side="right") - 1, 0, last)
    ends = np.maximum(np.searchsorted(sidecar.t, shown_s[1:] - GRACE_S, side="left"), rows + 1)
    spans = [slice(a, b) for a, b in zip(rows, ends, strict=True)]
    state = sidecar.state[rows]
    actions = np.stack([sidecar.actions[span].mean(axis=0, dtype=np.float64) for span in spans])
    for table, what in ((state, "state"), (actions, "actions")):
        if not np.all(np.isfinite(table)):
            raise DataError(f"its sidecar's {what} holds NaN or infinity within the clip")
    return state, actions.astype(np.float32)


def _sidecar(columns: Columns, ref: SidecarFile) -> Sidecar:
    clock = next((name for name in TIMES if name in columns), None)
    if clock is None:
        raise DataError(f"has no times: it needs `t`, ascending seconds, one for each row{_has(columns)}")
    t = _seconds(columns[clock], clock)
    keep = np.ones(len(t), bool)
    if ref.episode is not None:
        if EPISODE not in columns:
            raise DataError(f"has no `{EPISODE}` to find episode {ref.episode} by{_has(columns)}")
        keep = np.asarray(columns[EPISODE]) == ref.episode
        if keep.shape != t.shape:
            raise DataError(f"has {len(t)} times and {keep.size} of `{EPISODE}`")
    state, state_names = _table(columns, STATES, "state", ref.state_names, len(t))
    actions, action_names = _table(columns, ACTIONS, "actions", ref.action_names, len(t))
    if not state_names and not action_names:
        raise DataError(f"tells of neither state nor actions{_has(columns)}")
    t = t[keep] + ref.offset_s
    if len(t) == 0:
        raise DataError("has no rows" if ref.episode is None else f"has no rows of episode {ref.episode}")
    if not np.all(np.isfinite(t)) or not np.all(np.diff(t) > 0):
        raise DataError(f"needs `{clock}`: ascending seconds, one for each row")
    return Sidecar(t, state[keep], actions[keep], state_names, action_names)


def _has(columns: Columns) -> str:
    return f"; it has {', '.join(list(columns)[:12])}" if columns else "; it is empty"


def _seconds(values: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Seconds from numbers, from durations, or since the first of some dates."""
    if values.ndim != 1:
        raise DataError(f"has `{name}` of shape {values.shape}; need one number for each row")
    if values.dtype.kind == "M":
        values = values - values[:1] if len(values) else values.astype("m8[ns]")
    if values.dtype.kind == "m":
        unknown = np.isnat(values)
        return np.where(unknown, np.nan, values.astype("m8[ns]").astype(np.float64) / 1e9)
    if values.dtype.kind not in "iuf":
        raise DataError(f"has `{name}` of type {values.dtype}; need seconds")
    return values.astype(np.float64)


def _table(
    columns: Columns, keys: tuple[str, ...], what: str, given: tuple[str, ...], num_rows: int
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """One block of columns, or the single columns whose names begin with its name and a dot."""
    whole = next((key for key in keys if key in columns), None)
    if whole is not None:
        table = _numbers(columns[whole], whole)
        if table.ndim == 1 and len(table) == num_rows:
            table = table[:, None]
        if table.ndim != 2 or len(table) != num_rows:
            raise DataError(f"has {what} of shape {table.shape}; need ({num_rows}, size)")
        said = columns.get({"state": "state_names", "actions": "action_names"}[what])
        names = tuple(printable(str(name)) for name in said) if said is not None and said.ndim == 1 else ()
        if names and len(names) != table.shape[1]:
            raise DataError(f"names {len(names)} columns of {table.shape[1]} in {what}")
        names = names or (given if len(given) == table.shape[1] else ())
        return table, names or tuple(f"{what}_{column}" for column in range(table.shape[1]))
    starts = tuple(f"{key}." for key in keys)
    single = [name for name in columns if name.startswith(starts)]
    parts = [_numbers(columns[name], name) for name in single]
    for name, part in zip(single, parts, strict=True):
        if part.shape != (num_rows,):
            raise DataError(f"has `{name}` of shape {part.shape}; need ({num_rows},)")
    stems = (next(name[len(start) :] for start in starts if name.startswith(start)) for name in single)
    table = np.stack(parts, axis=1) if parts else np.zeros((num_rows, 0), np.float32)
    return table, tuple(stems)


def _numbers(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    if values.dtype.kind not in "biuf":
        raise DataError(f"has `{name}` of type {values.dtype}; need numbers")
    with np.errstate(over="ignore"):  # infinity is said where a clip would hold it
        return values.astype(np.float32)


def _is_wanted(name: str) -> bool:
    known = (*TIMES, EPISODE, *STATES, *ACTIONS, "state_names", "action_names")
    return name in known or name.startswith(tuple(f"{key}." for key in (*STATES, *ACTIONS)))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Whatever a damaged file raises, as one sentence."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"cannot be read: {error or type(error).__name__}") from error


def _read_npz(path: Path, episode: int | None) -> Columns:
    columns: dict[str, NDArray[Any]] = {}
    left = MAX_BYTES
    with _readable(), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if _is_wanted(name):
                left -= member.file_size
                if left < 0:
                    raise DataError(f"would take more than {MAX_BYTES >> 20} MiB unpacked")
                with archive.open(member) as file:
                    columns[name] = _read_array(file, member.file_size)
    return columns


def _read_npy(path: Path, episode: int | None) -> Columns:
    with _readable(), open(path, "rb") as file:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"takes more than {MAX_BYTES >> 20} MiB")
        array = _read_array(file, size)
    if array.dtype.names is None or array.ndim != 1:
        raise DataError("is no table: it needs an array of one dimension with fields, `t` one of them")
    return {name: array[name] for name in array.dtype.names if _is_wanted(name)}


def _read_array(file: IO[bytes], size_bytes: int) -> NDArray[Any]:
    """An array of .npy format, read only when its header and the size of the file agree.

    np.load would make room for whatever a header claims.
    """
    form = np.lib.format
    version = form.read_magic(file)
    reader = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"it is of .npy version {version[0]}.{version[1]}; 1.0 and 2.0 are read")
    shape, is_fortran, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which only pickle reads; save numbers and text")
    count = 1
    for side in shape:
        count *= side
    data = file.read(size_bytes)
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"it holds {len(data)} bytes, its header claims {count * dtype.itemsize}")
    array = np.frombuffer(data, dtype, count) if dtype.itemsize and count else np.zeros(count, dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")


def _read_parquet(path: Path, episode: int | None) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _readable(), pq.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if _is_wanted(name)]
            groups = _groups_with(file, episode)
            paths = [file.schema.column(k).path.split(".") for k in range(len(file.schema))]
            leaves = [k for k, path_ in enumerate(paths) if any(_is_leaf_of(path_, name) for name in wanted)]
            count = sum(file.metadata.row_group(g).column(k).num_values for g in groups for k in leaves)
            if count * 8 > MAX_BYTES:
                raise DataError(f"would take more than {MAX_BYTES >> 20} MiB unpacked")
            table = (
                file.read_row_groups(groups, columns=wanted) if groups else file.schema_arrow.empty_table()
            )
            if episode is not None and EPISODE in wanted:
                table = table.filter(pa.compute.equal(table.column(EPISODE), episode))
            return {name: _from_arrow(table.column(name), name) for name in wanted}
    except pa.ArrowException as error:
        raise DataError(f"cannot be read: {error}") from error


def _is_leaf_of(path: list[str], name: str) -> bool:
    """Whether a column chunk belongs to a top-level column, whose name may hold dots itself."""
    parts = name.split(".")
    return path[: len(parts)] == parts


def _groups_with(file: Any, episode: int | None) -> list[int]:
    """The row groups that can hold rows of an episode, by their statistics."""
    found = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        columns = [group.column(k) for k in range(group.num_columns)]
        key = next((column for column in columns if column.path_in_schema == EPISODE), None)
        about = key.statistics if key is not None and key.is_stats_set else None
        if episode is None or about is None or not about.has_min_max or about.min <= episode <= about.max:
            found.append(number)
    return found


def _from_arrow(column: Any, name: str) -> NDArray[Any]:
    """A column of numbers or times as (N,), of lists of one length as (N, size)."""
    import pyarrow as pa

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pa.compute.list_value_length(array)
        sizes = set(pa.compute.unique(lengths).to_pylist())
        if len(sizes) > 1 or None in sizes:
            raise DataError(f"has `{name}` with rows of different lengths, or none")
        size = sizes.pop() if sizes else 0
        return _from_arrow(pa.chunked_array([array.flatten()]), name).reshape(len(array), size)
    if name not in ("state_names", "action_names") and not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_temporal(kind)
    ):
        raise DataError(f"has `{name}` of type {kind}; need numbers")
    return np.asarray(array.to_numpy(zero_copy_only=False))
