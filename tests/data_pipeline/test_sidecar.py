import contextlib
import datetime
import itertools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError
from data_pipeline.sidecar import Sidecar, read_sidecar, resample_sidecar
from data_pipeline.sources import SidecarFile

T = np.arange(6) / 4
STATE = np.arange(12, dtype=np.float32).reshape(6, 2)
ACTIONS = -STATE[:, :1]


def read(path: Path, **ref: Any) -> Sidecar:
    return read_sidecar(path, SidecarFile(str(path), **ref))


def write_npz(path: Path) -> None:
    names = {"state_names": ["x", "y"], "action_names": ["dx"]}
    np.savez_compressed(path, t=T, state=STATE, actions=ACTIONS, **names)


def write_npy(path: Path) -> None:
    table = np.zeros(
        6, [("t", "<f8"), ("state.x", "<f4"), ("state.y", "<i4"), ("note", "U5"), ("actions.dx", "<f2")]
    )
    table["t"], table["state.x"], table["state.y"], table["actions.dx"] = T, *STATE.T, ACTIONS[:, 0]
    np.save(path, table)


def write_parquet(path: Path) -> None:
    columns = {"timestamp": T, "observation.state.x": STATE[:, 0], "observation.state.y": STATE[:, 1]}
    pq.write_table(
        pa.table(columns | {"action.dx": ACTIONS[:, 0], "note": ["a"] * 6}), path, row_group_size=4
    )


@pytest.mark.parametrize("write", [write_npz, write_npy, write_parquet])
def test_each_form_tells_the_same(tmp_path: Path, write: Any) -> None:
    path = tmp_path / f"talk.{write.__name__.removeprefix('write_')}"
    write(path)
    found = read(path)
    np.testing.assert_array_equal(found.t, T)
    np.testing.assert_array_equal(found.state, STATE)
    np.testing.assert_array_equal(found.actions, ACTIONS)
    assert (found.state_names, found.action_names) == (("x", "y"), ("dx",))
    assert (found.t.dtype, found.state.dtype, found.actions.dtype) == (np.float64, np.float32, np.float32)
    np.testing.assert_array_equal(read(path, offset_s=2.5).t, T + 2.5)


def test_blocks_of_columns_are_read_from_tables_too(tmp_path: Path) -> None:
    table = np.zeros(6, [("t", "<f8"), ("state", "<f4", (2,)), ("actions", "<f8")])
    table["t"], table["state"], table["actions"] = T, STATE, ACTIONS[:, 0]
    np.save(tmp_path / "a.npy", table)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(ACTIONS.ravel()), 1)
    columns = {"t": T, "observation.state": STATE.tolist(), "action": fixed}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=4)
    for name in ("a.npy", "a.parquet"):
        found = read(tmp_path / name, state_names=("x", "y"), action_names=("one", "too many"))
        np.testing.assert_array_equal(found.state, STATE)
        np.testing.assert_array_equal(found.actions, ACTIONS)
        assert (found.state_names, found.action_names) == (("x", "y"), ("actions_0",))


def test_dates_and_durations_become_seconds(tmp_path: Path) -> None:
    start = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    steps = [datetime.timedelta(seconds=float(t)) for t in T]
    for unit in ("ms", "us", "ns"):
        dates = pa.array([start + step for step in steps], pa.timestamp(unit, "UTC"))
        lengths = pa.array(steps, pa.duration(unit))
        for times in (dates, lengths):
            pq.write_table(pa.table({"t": times, "action": ACTIONS.tolist()}), tmp_path / "a.parquet")
            np.testing.assert_array_equal(read(tmp_path / "a.parquet").t, T)


def test_an_episodes_rows_are_found_among_others(tmp_path: Path) -> None:
    path = tmp_path / "file-000.parquet"
    episode = np.repeat([4, 7, 9], 5)
    t = np.tile(np.arange(5) / 10, 3)
    action = np.arange(15.0)
    pq.write_table(
        pa.table({"timestamp": t, "episode_index": episode, "action": action}), path, row_group_size=4
    )
    for number in (4, 7, 9):
        found = read(path, episode=number, offset_s=100.0)
        np.testing.assert_array_equal(found.actions[:, 0], action[episode == number])
        np.testing.assert_allclose(found.t, t[episode == number] + 100)
    for number in (5, 8, 10):
        with pytest.raises(DataError, match=f"file-000.parquet has no rows of episode {number}"):
            read(path, episode=number)
    with pytest.raises(DataError, match="ascending"):  # the rows of all, which start again
        read(path)
    pq.write_table(pa.table({"t": t, "action": action}), path)
    with pytest.raises(DataError, match="no `episode_index` to find episode 4 by; it has t, action"):
        read(path, episode=4)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"state": np.zeros((3, 2))}, "needs `t`"),
        ({"time": [0, 1], "state": np.zeros((2, 2))}, "needs `t`"),
        ({"t": [0, 2, 1], "state": np.zeros((3, 2))}, "ascending"),
        ({"t": [0, 1, 1], "state": np.zeros((3, 2))}, "ascending"),
        ({"t": [0, np.nan, 2], "state": np.zeros((3, 2))}, "ascending"),
        ({"t": [0, 1, np.inf], "state": np.zeros((3, 2))}, "ascending"),
        ({"t": np.zeros((2, 2)), "state": np.zeros((2, 2))}, r"`t` of shape \(2, 2\)"),
        ({"t": ["0", "1"], "state": np.zeros((2, 2))}, "need seconds"),
        ({"t": np.zeros(0), "state": np.zeros((0, 2))}, "has no rows"),
        ({"t": [0, 1, 2], "state": np.zeros((2, 2))}, r"shape \(2, 2\); need \(3, size\)"),
        ({"t": [0, 1], "state": np.zeros((2, 2, 2))}, "shape"),
        ({"t": [0, 1], "state": np.zeros((2, 2)), "state_names": ["x"]}, "names 1 columns of 2"),
        ({"t": [0, 1], "state": np.array([{}, {}], dtype=object)}, "cannot be read.*Python objects"),
        ({"t": [0, 1], "state": [["a"], ["b"]]}, "`state` of type <U1; need numbers"),
        ({"t": [0, 1], "state": np.ones((2, 1), complex)}, "need numbers"),
        ({"t": [0, 1]}, "neither state nor actions"),
        ({}, "needs `t`"),
    ],
)
def test_a_bad_npz_says_what_is_wrong(tmp_path: Path, arrays: dict, reason: str) -> None:
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=rf"its sidecar v.npz .*{reason}"):
        read(tmp_path / "v.npz")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"action": [[1.0]]}, "needs `t`"),
        ({"t": [0.0, 1.0], "action": [[1.0], [1.0, 2.0]]}, "rows of different lengths"),
        ({"t": [0.0, 1.0], "action": [[1.0], None]}, "rows of different lengths, or none"),
        ({"t": [0.0, 1.0], "action.x": ["a", "b"]}, "`action.x` of type string; need numbers"),
        ({"t": [0.0, 1.0], "action": [["a"], ["b"]]}, "`action` of type string; need numbers"),
        ({"t": [0.0, 1.0], "action": [{"x": 1}, {"x": 2}]}, "need numbers"),
        ({"t": [0.0, None], "action": [1.0, 2.0]}, "ascending"),
    ],
)
def test_a_bad_table_says_what_is_wrong(tmp_path: Path, columns: dict, reason: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=rf"its sidecar v.parquet .*{reason}"):
        read(tmp_path / "v.parquet")


def npy_bytes(shape: tuple[int, ...], data: bytes) -> bytes:
    """A .npy whose header claims `shape` of float64, whatever is behind it."""
    head = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def test_what_claims_to_be_large_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.npy", npy_bytes((2,), bytes(16)))
        with archive.open("state.npy", "w", force_zip64=True) as member:
            member.write(npy_bytes((1 << 28,), b""))
            for _ in range(1100):
                member.write(bytes(1 << 20))
    assert path.stat().st_size < 4 << 20
    with pytest.raises(DataError, match="more than 1024 MiB unpacked"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.npy", npy_bytes((1 << 45,), bytes(16)))
    with pytest.raises(DataError, match="holds 16 bytes, its header claims"):
        read(path)
    (tmp_path / "bomb.npy").write_bytes(npy_bytes((1 << 45,), bytes(16)))
    with pytest.raises(DataError, match="its header claims"):
        read(tmp_path / "bomb.npy")
    count = 1 << 27
    pq.write_table(
        pa.table({"t": pa.array(np.zeros(count, np.int8)), "action": pa.nulls(count, pa.int8())}),
        tmp_path / "b.parquet",
    )
    assert (tmp_path / "b.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataError, match="more than 1024 MiB unpacked"):
        read(tmp_path / "b.parquet")


def test_large_arrays_of_no_concern_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.sidecar.MAX_BYTES", 2000)
    np.savez(tmp_path / "a.npz", t=T, actions=ACTIONS, images=np.zeros((6, 1000)))
    assert len(read(tmp_path / "a.npz").t) == 6


@pytest.mark.parametrize("write", [write_npz, write_npy, write_parquet])
def test_a_damaged_file_is_a_sentence(tmp_path: Path, write: Any) -> None:
    path = tmp_path / f"talk.{write.__name__.removeprefix('write_')}"
    write(path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [whole[: len(whole) * k // 7] for k in range(7)]
    for _ in range(60 if path.suffix != ".parquet" else 0):  # some abort pyarrow, and the tests with it
        spoilt = bytearray(whole)
        spoilt[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        damaged.append(bytes(spoilt))
    for data in damaged:
        path.write_bytes(data)
        with contextlib.suppress(DataError):  # some flips hurt nothing that is read
            read(path)


def test_fortran_order_and_pickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", t=T, state=np.asfortranarray(STATE))
    np.testing.assert_array_equal(read(tmp_path / "f.npz").state, STATE)
    np.save(tmp_path / "p.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        read(tmp_path / "p.npy")
    np.save(tmp_path / "q.npy", np.zeros((3, 2)))
    with pytest.raises(DataError, match="is no table"):
        read(tmp_path / "q.npy")


def sidecar(t: np.ndarray, actions: np.ndarray) -> Sidecar:
    names = tuple("abc"[: actions.shape[1]])
    return Sidecar(t, np.zeros((len(t), 0), np.float32), actions.astype(np.float32), (), names)


def test_the_last_action_of_a_video_is_not_lost() -> None:
    t = np.arange(8) / 16
    _, actions = resample_sidecar(sidecar(t, np.arange(8)[:, None]), np.array([0.25, 0.375, 0.5]))
    assert actions[:, 0].tolist() == [4.5, 6.5]


@pytest.mark.parametrize("seed", range(10))
def test_resampling_is_what_a_plain_loop_does(seed: int) -> None:
    generator = np.random.default_rng(seed)
    t = np.cumsum(generator.uniform(0.02, 0.06, 200))
    state, actions = generator.normal(size=(2, 200, 3)).astype(np.float32)
    shown_s = np.linspace(t[0] + 0.01, t[-1] - 0.01, generator.integers(5, 60))
    found = resample_sidecar(Sidecar(t, state, actions, ("a",) * 3, ("b",) * 3), shown_s)
    for frame, (begin, end) in enumerate(itertools.pairwise(shown_s)):
        row = max(k for k in range(200) if t[k] <= begin + 1e-3)
        applied = [actions[k] for k in range(200) if k == row or (k > row and t[k] < end - 1e-3)]
        np.testing.assert_array_equal(found[0][frame], state[row])
        np.testing.assert_allclose(found[1][frame], np.mean(applied, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shown_s", "is_told"),
    [
        ((0.0, 0.5, 1.0), True),
        ((0.0, 0.5, 1.25), True),  # the last row stands until two periods later
        ((0.0, 0.5, 1.35), False),
        ((2.0, 2.5, 3.0), False),
        ((-0.1, 0.3, 0.8), True),
        ((-0.4, 0.1, 0.6), False),
    ],
)
def test_a_clip_beyond_its_sidecar_fails_and_invents_nothing(
    shown_s: tuple[float, ...], is_told: bool
) -> None:
    known = sidecar(np.arange(11) / 10 + 0.05, np.ones((11, 1)))
    if is_told:
        assert resample_sidecar(known, np.array(shown_s))[1].tolist() == [[1.0], [1.0]]
    else:
        with pytest.raises(DataError, match=r"tells of 0.05 to 1.05 s, the clip is of"):
            resample_sidecar(known, np.array(shown_s))


def test_a_clip_with_unknown_numbers_fails_and_its_neighbour_does_not() -> None:
    actions = np.ones((20, 1))
    actions[15] = np.nan
    known = sidecar(np.arange(20) / 10, actions)
    assert resample_sidecar(known, np.array([0.0, 0.5, 1.0]))[1].tolist() == [[1.0], [1.0]]
    with pytest.raises(DataError, match="actions holds NaN or infinity"):
        resample_sidecar(known, np.array([1.0, 1.4, 1.8]))
