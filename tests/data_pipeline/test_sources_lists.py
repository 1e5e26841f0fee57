import csv
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sources import Listing, list_sources

ROWS: list[dict[str, Any]] = [
    {"uri": "a.mp4", "start_s": 4.0, "end_s": 8.0, "label": 'push, then\n"pull"', "split": "train"},
    {"uri": "a.mp4", "start_s": 0.0, "end_s": 4.0, "label": None, "split": None},
    {"uri": "sub/ü 🎬.mp4", "start_s": None, "end_s": None, "label": "7", "split": "eval"},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of videos, and beside it a file that no list may reach."""
    folder = tmp_path / "root"
    for name in ("a.mp4", "b.mp4", "sub/ü 🎬.mp4", "a.npz", "other.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "secret.npz").write_bytes(b"secret")
    return folder


_opened: list[str] = []


def _listen(event: str, arguments: tuple) -> None:
    if event in ("open", "os.scandir", "os.listdir"):
        _opened.append(str(arguments[0]))


@pytest.fixture(scope="module")
def _ear() -> None:
    sys.addaudithook(_listen)  # cannot be taken off again: once


@pytest.fixture
def opened(_ear: None) -> list[str]:
    """Whatever this process opened or listed."""
    return _opened


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".csv":
        sink = io.StringIO()
        writer = csv.DictWriter(sink, keys)
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(sink.getvalue().encode("utf-8", "surrogateescape"))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def refused(listing: Listing) -> list[str]:
    assert all(entry.is_wanted for entry in listing.ignored)
    return [entry.reason for entry in listing.ignored]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_list_gives_its_spans_in_order_of_time(root: Path, ending: str) -> None:
    path = write(root / f"train.{ending}", ROWS)
    listing = list_sources((str(path),))
    assert [file.name for file in listing.files] == ["a.mp4", "sub/ü 🎬.mp4"]
    first, second = listing.files
    assert [(s.start_s, s.end_s, s.label, s.split) for s in first.spans] == [
        (0.0, 4.0, None, "train"),  # said by the other line, for the whole video
        (4.0, 8.0, 'push, then\n"pull"', "train"),
    ]
    assert [(s.start_s, s.end_s, s.label, s.split) for s in second.spans] == [(0.0, None, "7", "eval")]
    assert first.spans[0].sidecar is not None
    assert first.spans[0].sidecar.address == str(root / "a.npz")
    lines = {"csv": ("line 4", "line 2"), "jsonl": ("line 2", "line 1"), "parquet": ("row 2", "row 1")}[
        ending
    ]
    assert [span.origin for span in first.spans] == [f"train.{ending} {line}" for line in lines]
    assert listing.ignored == ()


def test_a_list_and_a_folder_name_a_file_alike(root: Path) -> None:
    path = write(root / "train.csv", [{"uri": "./a.mp4"}, {"uri": str(root / "sub//ü 🎬.mp4")}])
    listed = {file.name: file for file in list_sources((str(path),)).files}
    whole = {file.name: file for file in list_sources((str(root),)).files}
    for name, file in listed.items():
        assert (file.uri, file.address) == (whole[name].uri, whole[name].address)
        assert (file.size_bytes, file.mtime_ns) == (whole[name].size_bytes, whole[name].mtime_ns)
    both = list_sources((str(root), str(path)))
    assert both == list_sources((str(path), str(root)))
    assert {file.name: file.spans[0].origin for file in both.files} == {
        "a.mp4": "train.csv line 2",
        "b.mp4": "",
        "sub/ü 🎬.mp4": "train.csv line 3",
    }


def test_a_line_put_in_above_changes_no_fingerprint(root: Path) -> None:
    before = list_sources((str(write(root / "t.csv", [{"uri": "a.mp4"}])),)).files[0]
    after = list_sources((str(write(root / "t.csv", [{"uri": "b.mp4"}, {"uri": "a.mp4"}])),)).files[0]
    assert before.fingerprint() == after.fingerprint()
    assert before.spans[0].origin != after.spans[0].origin


@pytest.mark.parametrize("key", ["uri", "actions"])
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("../secret.mp4", r"has `\.\.` in it"),
        ("sub/../../secret.mp4", r"has `\.\.` in it"),
        ("{tmp}/secret.mp4", "outside"),
        ("/etc/passwd", "outside"),
        ("{tmp}/root-two/a.mp4", "outside"),
        ("file:///etc/passwd", "set `root`"),
        ("s3://bucket/a.mp4", "set `root`"),
        ("link.mp4", "link that leaves"),
        ("away/secret.mp4", "behind a link that leaves"),
        ("gone.mp4", "does not exist"),
        ("pipe.mp4", "named pipe"),
        ("sub", "is a folder"),
        ("bad\0name.mp4", "zero byte"),
        ("x" * 5000 + ".mp4", "cannot be looked at"),
    ],
)
def test_nothing_outside_the_root_is_reached(
    root: Path, tmp_path: Path, opened: list[str], key: str, uri: str, reason: str
) -> None:
    (root / "away").symlink_to(tmp_path)
    for ending in ("mp4", "npz"):
        (root / f"link.{ending}").symlink_to(tmp_path / f"secret.{ending}")
        os.mkfifo(root / f"pipe.{ending}")
    (root / "sub.npz").mkdir()
    uri = uri.replace("{tmp}", str(tmp_path))
    bad = {"uri": uri} if key == "uri" else {"uri": "b.mp4", "actions": actions_of(uri)}
    path = write(root / "list.jsonl", [{"uri": "a.mp4"}, bad])
    del opened[:]
    listing = list_sources((str(path),))
    assert str(path) in opened  # the ear hears
    assert not any("secret" in path or "passwd" in path or path.startswith(f"{root}/away") for path in opened)
    assert [file.name for file in listing.files] == ["a.mp4"]
    assert [entry.is_wanted for entry in listing.ignored] == [True]
    assert listing.ignored[0].reason.startswith("list.jsonl line 2: ")
    assert re.search(reason, listing.ignored[0].reason)


def actions_of(uri: str) -> str:
    """The same path, as it would name a sidecar."""
    return uri.replace(".mp4", ".npz") if ".mp4" in uri else uri + ".npz"


def test_a_sidecar_beside_that_is_a_link_out_of_the_root_is_not_read(root: Path, tmp_path: Path) -> None:
    (root / "b.npz").symlink_to(tmp_path / "secret.npz")
    path = write(root / "list.csv", [{"uri": "a.mp4"}, {"uri": "b.mp4"}])
    assert refused(list_sources((str(path),))) == [f"list.csv line 3: b.npz is a link that leaves {root}"]


def test_links_inside_the_root_and_a_root_that_is_a_link_are_followed(root: Path, tmp_path: Path) -> None:
    (root / "same.mp4").symlink_to(root / "b.mp4")
    (root / "folder").symlink_to(root / "sub")
    (tmp_path / "way").symlink_to(root)
    path = write(
        tmp_path / "list.csv", [{"uri": "same.mp4"}, {"uri": "folder/ü 🎬.mp4"}, {"uri": str(root / "a.mp4")}]
    )
    listing = list_sources((str(path),), root=str(tmp_path / "way"))
    assert [file.name for file in listing.files] == ["a.mp4", "folder/ü 🎬.mp4", "same.mp4"]


def test_actions_and_tables_are_found_below_the_root(root: Path) -> None:
    (root / "ep/cam").mkdir(parents=True)
    for name in ("ep/trajectory.parquet", "ep/cam/1.mp4", "ep/cam/2.mp4"):
        (root / name).write_bytes(b"x")
    rows = [{"uri": "ep/cam/1.mp4"}, {"uri": "ep/cam/2.mp4", "actions": "other.parquet"}, {"uri": "b.mp4"}]
    listing = list_sources((str(write(root / "l.jsonl", rows)),))
    refs = {file.name: file.spans[0].sidecar for file in listing.files}
    assert {name: ref and Path(ref.address).name for name, ref in refs.items()} == {
        "b.mp4": None,
        "ep/cam/1.mp4": "trajectory.parquet",
        "ep/cam/2.mp4": "other.parquet",
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"start_s": "soon"}, "its start_s 'soon' is no number of seconds"),
        ({"start_s": "nan"}, "its start_s is nan; need seconds from 0 on"),
        ({"start_s": -1}, "its start_s is -1; need seconds from 0 on"),
        ({"end_s": "inf"}, "its end_s is inf; need seconds from 0 on"),
        ({"start_s": 3, "end_s": 3}, "its end_s 3 is not after its start_s 3"),
        ({"end_s": 0}, "its end_s 0 is not after its start_s 0"),
        ({"split": "test"}, "its split is 'test'; need train or eval, or nothing"),
        ({"actions": "a.pkl"}, "its actions a.pkl end in none of .npz, .npy, .parquet"),
        ({"uri": ""}, "it has no uri"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_bad_line_is_passed_over_by_number(root: Path, ending: str, row: dict, reason: str) -> None:
    path = write(root / f"l.{ending}", [{"uri": "a.mp4"}, {"uri": "b.mp4"} | row])
    listing = list_sources((str(path),))
    assert [file.name for file in listing.files] == ["a.mp4"]
    assert refused(listing) == [f"l.{ending} line {3 if ending == 'csv' else 2}: {reason}"]


def test_lines_that_cannot_be_read_are_named(root: Path) -> None:
    (root / "l.csv").write_text('\ufeffuri,label\r\n\r\na.mp4,"two\nlines"\r\nb.mp4\r\na.mp4,x,y\r\n')
    assert refused(list_sources((str(root / "l.csv"),))) == [
        "l.csv line 6: it has 3 fields, the head of the list 2",
        "l.csv line 5: it has 1 fields, the head of the list 2",
    ]
    (root / "l.jsonl").write_text('{"uri": "a.mp4"}\n{"uri": "b.mp4", \n[1]\n\n{"uri": 7}\n')
    found = refused(list_sources((str(root / "l.jsonl"),)))
    assert [reason.split(":")[0] for reason in sorted(found)] == [f"l.jsonl line {n}" for n in (2, 3, 5)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("url,start_s\na.mp4,0\n", r"no column `uri`, its columns are url, start_s"),
        ("uri,start\na.mp4,0\n", r"a column `start`: rename it to `start_s`"),
        ("uri,lable\na.mp4,0\n", r"a column `lable`: rename it to `label`"),
        ("URI\na.mp4\n", r"a column `URI`: rename it to `uri`"),
        ("uri,uri\na.mp4,b.mp4\n", r"two columns `uri`"),
        ("", r"is empty: its first line names its columns"),
        ('uri,label\na.mp4,"never ends\n', r"l.csv line 2: unexpected end of data"),
        ('uri,label\na.mp4,x\nb.mp4,"a"b\n', r"l.csv line 3"),
    ],
)
def test_a_list_with_wrong_columns_is_refused(root: Path, data: str, reason: str) -> None:
    (root / "l.csv").write_text(data)
    with pytest.raises(DataError, match=reason):
        list_sources((str(root / "l.csv"),))


def test_a_list_of_other_forms_with_wrong_columns_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"l.parquet has a column `end`: rename it to `end_s`"):
        list_sources((str(write(root / "l.parquet", [{"uri": "a.mp4", "end": 1.0}])),))
    with pytest.raises(DataError, match=r"l.jsonl line 2 has a column `splits`: rename it to `split`"):
        list_sources((str(write(root / "l.jsonl", [{"uri": "a.mp4"}, {"uri": "b.mp4", "splits": "eval"}])),))
    with pytest.raises(DataError, match=r"no key `uri` in any line, those of its first are path"):
        list_sources((str(write(root / "l.jsonl", [{"path": "a.mp4"}])),))
    (root / "l.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"no parquet"):
        list_sources((str(root / "l.parquet"),))


def test_other_columns_are_not_read(root: Path) -> None:
    path = write(root / "l.csv", [{"uri": "a.mp4", "licence": "CC0", "views": 7}])
    assert list_sources((str(path),)).ignored == ()


def test_a_span_that_is_listed_twice_counts_once(root: Path) -> None:
    spans = [{"uri": "a.mp4", "start_s": s, "end_s": 9} for s in (0, 1, 0)]
    one = write(root / "one.csv", spans)
    two = write(root / "two.csv", [{"uri": "./a.mp4", "start_s": 1, "end_s": 9}])
    listing = list_sources((str(two), str(one)))
    assert listing == list_sources((str(one), str(two)))
    assert refused(listing) == [
        "one.csv line 4: listed twice (one.csv line 2)",
        "two.csv line 2: listed twice (one.csv line 3)",
    ]
    assert [span.start_s for span in listing.files[0].spans] == [0, 1]


def test_a_video_asked_for_in_both_splits_is_in_none(root: Path) -> None:
    train = write(
        root / "train.csv",
        [{"uri": "a.mp4", "end_s": 1, "split": "train"}, {"uri": "b.mp4", "split": "train"}],
    )
    held = write(root / "eval.csv", [{"uri": "a.mp4", "start_s": 1, "split": "eval"}])
    listing = list_sources((str(train), str(held)))
    assert [file.name for file in listing.files] == ["b.mp4"]
    assert len(refused(listing)) == 2
    assert all("eval (eval.csv line 2) and train (train.csv line 2)" in reason for reason in refused(listing))


def test_a_list_without_a_usable_line_says_why(root: Path) -> None:
    path = write(root / "l.csv", [{"uri": "gone.mp4"}, {"uri": "../secret.mp4"}])
    with pytest.raises(
        DataError, match=r"none of the 2 videos asked for(?s:.*)line 2: gone.mp4 does not exist"
    ):
        list_sources((str(path),))
    with pytest.raises(UsageError, match="is no folder"):
        list_sources((str(path),), root=str(root / "nowhere"))
    with pytest.raises(DataError, match="No such file"):
        list_sources((str(root / "nowhere.csv"),))


def test_a_name_that_is_no_utf8_can_be_listed(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        (root / name).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    listing = list_sources((str(write(root / "l.csv", [{"uri": name}, {"uri": name + "x"}])),))
    assert [file.name for file in listing.files] == ["caf\\xe9.mp4"]
    assert "caf\\xe9.mp4x does not exist" in refused(listing)[0]
