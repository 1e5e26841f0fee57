import json
import tarfile
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.format import done_name, finished_stems, index_name, read_shards, tar_name
from data_pipeline.shards import (
    ShardFile,
    hash_file,
    publish_records,
    read_members,
    samples_in_tar,
    tar_end,
)
from data_pipeline.storage import Storage

SAMPLES = [
    (f"{k:020x}", {"mp4": bytes([k]) * (700 * k), "json": b"{}", "state.npy": b"s" * k}) for k in range(4)
]


def write(path: Path):
    with ShardFile(path) as tar:
        for key, members in SAMPLES:
            tar.add(key, members)
        return tar.finish()


def test_equal_samples_give_equal_bytes_and_true_offsets(tmp_path: Path) -> None:
    members = write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert data == (tmp_path / "b.tar").read_bytes()
    wanted = dict(SAMPLES)
    for member in members:
        assert data[member.offset : member.offset + member.size] == wanted[member.key][member.suffix]


def test_a_tar_holds_no_clock_and_no_user(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(i.mtime, i.uid, i.gid, i.uname, i.mode) for i in tar} == {(0, 0, 0, "foreframe", 0o444)}


def test_the_done_record_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = write(tmp_path / "a.tar")
    storage, published = Storage(tmp_path / "out"), []
    publish = storage.publish
    monkeypatch.setattr(storage, "publish", lambda name, data: (published.append(name), publish(name, data)))
    storage.publish(tar_name("train-000000"), tmp_path / "a.tar")
    tar = hash_file(tmp_path / "a.tar")
    done = publish_records(storage, "train-000000", "train", tar, members, "plan")
    assert published == [f("train-000000") for f in (tar_name, index_name, done_name)]
    assert finished_stems(storage) == ["train-000000"]
    (shard,) = read_shards(storage, [done])
    assert [(sample.key, set(sample.members)) for sample in shard.samples] == [
        (k, set(m)) for k, m in SAMPLES
    ]


def test_a_tar_that_reads_back_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_after_damage(path: Path):
        with open(path, "r+b") as file:
            file.seek(1536 + 600)
            file.write(b"!")
        return read_members(path)

    monkeypatch.setattr("data_pipeline.shards.read_members", read_after_damage)
    with ShardFile(tmp_path / "a.tar") as tar:
        tar.add(*SAMPLES[3])
        with pytest.raises(DataError, match="does not read back"):
            tar.finish()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tarfile, of its unsent block
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence() -> None:
    def fill() -> None:
        with ShardFile(Path("/dev/full")) as tar:
            for key, members in SAMPLES * 50:
                tar.add(key, members)
            tar.finish()

    with pytest.raises(DataError, match="No space left"):
        fill()


def test_the_stock_library_reads_the_tars(tmp_path: Path) -> None:
    import webdataset

    write(tmp_path / "a.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [key for key, _ in SAMPLES]
    assert [s["mp4"] for s in samples] == [members["mp4"] for _, members in SAMPLES]
    assert json.loads(samples[0]["json"]) == {}


def test_samples_copied_with_their_headers_make_the_same_tar(tmp_path: Path) -> None:
    spans = samples_in_tar(write(tmp_path / "a.tar"))
    data = (tmp_path / "a.tar").read_bytes()
    copied = b"".join(data[offset : offset + size] for offset, size in spans.values())
    assert list(spans) == [key for key, _ in SAMPLES]
    assert copied + tar_end(len(copied)) == data
