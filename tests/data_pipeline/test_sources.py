import os
import random
import socket
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sources import Listing, list_sources
from data_pipeline.sources.globs import compile_glob


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.mp4",
        "a/b.MOV",
        "a/notes.txt",
        "a/b.npz",
        "a/.hidden.mp4",
        ".cache/x.mp4",
        "a/c d 'e\n🎬.webm",
    ):
        put(tmp_path / name)
    return tmp_path


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(listing: Listing) -> list[str]:
    return [file.name for file in listing.files]


def sidecars(listing: Listing) -> dict[str, str | None]:
    """The name of each file's sidecar, by the file's."""
    found = {file.name: file.spans[0].sidecar for file in listing.files}
    return {name: ref and Path(ref.address).name for name, ref in found.items()}


def reasons(listing: Listing) -> dict[str, str]:
    return {Path(entry.uri).name: entry.reason for entry in listing.ignored}


def test_a_folder_gives_its_videos_by_relative_name(tree: Path) -> None:
    listing = list_sources((str(tree),))
    assert names(listing) == ["a/b.MOV", "a/c d 'e\n🎬.webm", "b.mp4"]
    assert [bool(file.spans[0].sidecar) for file in listing.files] == [True, False, False]
    assert reasons(listing) == {"notes.txt": "its ending .txt is no video's"}
    assert [Path(file.address).read_bytes() for file in listing.files] == [b"x"] * 3


def test_the_order_and_overlap_of_sources_do_not_matter(tree: Path) -> None:
    sources = [str(tree / "a"), str(tree / "b.mp4"), str(tree / "*.mp4"), str(tree)]
    listings = [list_sources(tuple(order)) for order in (sources, sources[::-1])]
    assert listings[0] == listings[1]
    assert names(listings[0]) == ["a/b.MOV", "a/c d 'e\n🎬.webm", "b.mp4"]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_a_disk_lists_does_not_matter(
    tree: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for number in range(20):
        put(tree / f"d{number % 3}" / f"{number}.mp4")
        put(tree / f"d{number % 3}" / f"{number}.{('npy', 'npz', 'parquet')[number % 3]}")
    before = list_sources((str(tree),))
    true_scandir = os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with true_scandir(path) as entries:
                self.entries = list(entries)
            random.Random(seed).shuffle(self.entries)

        def __enter__(self) -> list:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert list_sources((str(tree),)) == before


def test_the_fingerprint_moves_with_a_file_and_with_its_sidecar(tree: Path) -> None:
    before = {file.name: file.fingerprint() for file in list_sources((str(tree),)).files}
    os.utime(tree / "b.mp4", ns=(1, 1))
    os.utime(tree / "a/b.npz", ns=(1, 1))
    after = {file.name: file.fingerprint() for file in list_sources((str(tree),)).files}
    assert {name for name in before if before[name] != after[name]} == {"b.mp4", "a/b.MOV"}


def test_a_loop_of_links_ends_and_is_said(tree: Path) -> None:
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "self.mp4").symlink_to(tree / "self.mp4")
    (tree / "gone.mp4").symlink_to(tree / "nowhere")
    listing = list_sources((str(tree),))
    assert names(listing) == ["a/b.MOV", "a/c d 'e\n🎬.webm", "b.mp4", "gone.mp4", "self.mp4"]
    assert "link to a folder" in reasons(listing)["loop"]


def test_a_name_that_is_no_utf8_is_still_a_file(tree: Path) -> None:
    try:
        (tree / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"strange")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    file = next(file for file in list_sources((str(tree),)).files if "caf" in file.name)
    assert file.name == "caf\\xe9.mp4"
    assert Path(file.address).read_bytes() == b"strange"
    assert file.fingerprint()


def test_what_is_no_file_is_passed_over_with_its_kind(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tree / "pipe.mp4")
    monkeypatch.chdir(tree)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.mp4")
        listing = list_sources((str(tree),))
    assert reasons(listing)["pipe.mp4"] == "it is a named pipe, no file"
    assert reasons(listing)["socket.mp4"] == "it is a socket, no file"
    assert len(listing.files) == 3


def test_a_folder_that_cannot_be_listed_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return true_scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list whatever the mode is
    listing = list_sources((str(tree),))
    assert names(listing) == ["b.mp4"]
    assert reasons(listing) == {"a": "this folder cannot be listed: Permission denied"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["b.mp4"]),
        ("**/*.[mM]*", ["a/b.MOV", "a/deep/er/c.mp4", "b.mp4"]),
        ("**/[bc].[mM]*", ["a/b.MOV", "a/deep/er/c.mp4", "b.mp4"]),
        ("a/**/*.mp4", ["deep/er/c.mp4"]),
        ("*/?.M[!P]V", ["a/b.MOV"]),
        ("**", ["a/b.MOV", "a/c d 'e\n🎬.webm", "a/deep/er/c.mp4", "b.mp4"]),
    ],
)
def test_a_glob_names_files_below_its_fixed_folder(tree: Path, pattern: str, expected: list[str]) -> None:
    put(tree / "a/deep/er/c.mp4")
    assert names(list_sources((f"{tree}/{pattern}",))) == expected


def test_a_glob_matches_what_pathlib_matches(tmp_path: Path) -> None:
    for name in ("a.mp4", "b-1.mp4", "x/a.mp4", "x/y/a.mp4", "x/y/[1].mp4", "x/+.mp4", "x/^a.mp4"):
        put(tmp_path / name)
    everything = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    for pattern in (
        "*.mp4",
        "**/*.mp4",
        "x/**/*.mp4",
        "*/[a+]*",
        "**/[!a]*",
        "x/y/[[]1].mp4",
        "**/[+^]*",
        "[a-b]*",
    ):
        matches = compile_glob(pattern).fullmatch
        ours = sorted(name for name in everything if matches(name))
        theirs = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob(pattern) if p.is_file())
        assert ours == theirs, pattern


def test_a_file_whose_name_has_signs_of_a_glob_is_a_file(tmp_path: Path) -> None:
    put(tmp_path / "clip[1].dat")
    put(tmp_path / "clip[1].npz")
    listing = list_sources((str(tmp_path / "clip[1].dat"),))
    assert sidecars(listing) == {"clip[1].dat": "clip[1].npz"}


def test_of_several_sidecars_the_first_kind_counts(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.parquet", "a.npy", "b.mp4", "b.parquet", "b.npz", "alone.npz"):
        put(tmp_path / name)
    listing = list_sources((str(tmp_path),))
    assert sidecars(listing) == {"a.mp4": "a.npy", "b.mp4": "b.npz"}
    assert set(reasons(listing)) == {"a.parquet", "b.parquet", "alone.npz"}


def test_an_episodes_table_is_of_all_its_cameras(tmp_path: Path) -> None:
    for name in (
        "lab/ep1/trajectory.parquet",
        "lab/ep1/recordings/MP4/1.mp4",
        "lab/ep1/recordings/MP4/2.mp4",
        "lab/ep1/wrist.mp4",
        "lab/ep1/wrist.npz",
        "lab/ep2/actions.parquet",
        "lab/ep2/episode.parquet",
        "lab/ep2/front.mp4",
        "lab/none/front.mp4",
    ):
        put(tmp_path / name)
    listing = list_sources((str(tmp_path),))
    assert sidecars(listing) == {
        "lab/ep1/recordings/MP4/1.mp4": "trajectory.parquet",
        "lab/ep1/recordings/MP4/2.mp4": "trajectory.parquet",
        "lab/ep1/wrist.mp4": "wrist.npz",
        "lab/ep2/front.mp4": "episode.parquet",
        "lab/none/front.mp4": None,
    }


def test_a_table_above_a_whole_collection_is_no_episodes(tmp_path: Path) -> None:
    put(tmp_path / "actions.parquet")
    for number in range(17):
        put(tmp_path / f"{number}/a.mp4")
    listing = list_sources((str(tmp_path),))
    assert set(sidecars(listing).values()) == {None}
    assert "no episode's table" in reasons(listing)["actions.parquet"]


def test_what_is_missing_or_empty_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere does not exist"):
        list_sources((str(tmp_path / "nowhere"),))
    with pytest.raises(UsageError, match=r"no folder"):
        list_sources((str(tmp_path / "nowhere/*.mp4"),))
    with pytest.raises(DataError, match=r"no video is in"):
        list_sources((str(tmp_path),))
    with pytest.raises(UsageError, match="http:// is not read"):
        list_sources(("http://host/videos",))
