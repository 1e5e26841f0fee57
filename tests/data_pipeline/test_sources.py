import os
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sources import list_sources


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
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_gives_its_videos_by_relative_name(tree: Path) -> None:
    listing = list_sources((str(tree),))
    assert [file.name for file in listing.files] == ["a/b.MOV", "a/c d 'e\n🎬.webm", "b.mp4"]
    assert [bool(file.sidecar) for file in listing.files] == [True, False, False]
    assert listing.ignored[0][1] == "its ending .txt is no video's"


def test_the_order_and_overlap_of_sources_do_not_matter(tree: Path) -> None:
    one = list_sources((str(tree / "a"), str(tree / "b.mp4"), str(tree / "*.mp4")))
    two = list_sources((str(tree / "*.mp4"), str(tree / "b.mp4"), str(tree / "a")))
    assert one.files == two.files
    assert one.fingerprint() == two.fingerprint()


def test_the_fingerprint_moves_with_a_file(tree: Path) -> None:
    before = list_sources((str(tree),)).fingerprint()
    os.utime(tree / "b.mp4", ns=(1, 1))
    assert list_sources((str(tree),)).fingerprint() != before


def test_a_loop_of_links_ends_and_is_said(tree: Path) -> None:
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "gone.mp4").symlink_to(tree / "nowhere")
    listing = list_sources((str(tree),))
    assert len(listing.files) == 4
    assert any("link to a folder" in reason for _, reason in listing.ignored)


def test_a_name_that_is_no_utf8_is_still_a_file(tree: Path) -> None:
    try:
        (tree / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    names = [file.name for file in list_sources((str(tree),)).files]
    assert "caf\\xe9.mp4" in names


def test_what_is_missing_or_empty_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere does not exist"):
        list_sources((str(tmp_path / "nowhere"),))
    with pytest.raises(DataError, match=r"no video is in"):
        list_sources((str(tmp_path),))
    with pytest.raises(UsageError, match="remote"):
        list_sources(("s3://bucket/videos",))
