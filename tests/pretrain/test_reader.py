"""Reading clips: by the clip's own clock, hash checked, with states and actions of the same times."""

from __future__ import annotations

import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.decode import decode_clip, open_video
from data_pipeline.decode.base import Frames
from data_pipeline.decode.scale import Scaler
from data_pipeline.encode import encode_frames
from data_pipeline.errors import DataError, MissingError
from data_pipeline.format import ShardIndex, encode_index, read_index, read_info, read_shards, tar_name
from data_pipeline.storage import Storage
from pretrain.data.reader import ClipReader, mean_until_next
from tests.small_dataset import write_dataset


@pytest.fixture
def copy(small_dataset: Path, tmp_path: Path) -> Path:
    """A data set that a test may damage."""
    return Path(shutil.copytree(small_dataset, tmp_path / "copy"))


def test_frames_follow_the_clips_own_clock_and_states_go_with_them(small_dataset: Path) -> None:
    reader = ClipReader(str(small_dataset), "train")
    every, half = reader.read(0, 8, 8.0), reader.read(0, 4, 4.0)
    assert np.array_equal(half.frames_THWC, every.frames_THWC[::2])
    assert half.state is not None and every.state is not None
    assert np.array_equal(half.state, every.state[::2])
    assert half.actions is not None and every.actions is not None
    pairs = every.actions.reshape(4, 2, -1).mean(1)
    np.testing.assert_allclose(half.actions, pairs, atol=1e-6, err_msg="of the whole time to the next frame")
    late = reader.read(0, 4, 8.0, start=lambda spare: spare)
    assert np.array_equal(late.frames_THWC, every.frames_THWC[4:])
    slow = reader.read(0, 16, 16.0)
    assert np.array_equal(slow.frames_THWC, np.repeat(every.frames_THWC, 2, axis=0)), (
        "each is shown twice as long"
    )
    with pytest.raises(DataError, match=r"lasts 1.00 s; 16 frames at 8 a second need 2.00 s"):
        reader.read(0, 16, 8.0)


def test_a_short_clip_holds_its_last_frame_when_asked_to(small_dataset: Path) -> None:
    reader = ClipReader(str(small_dataset), "train")
    every, held = reader.read(2, 8, 8.0), reader.read(2, 12, 8.0, holds=True)
    assert np.array_equal(held.frames_THWC[:8], every.frames_THWC)
    assert (held.frames_THWC[8:] == every.frames_THWC[-1]).all()
    assert held.state is not None
    assert (held.state[8:] == held.state[7]).all()


def test_a_picture_is_shown_in_all_frames(tmp_path: Path) -> None:
    reader = ClipReader(str(write_dataset(tmp_path / "stills", {"train": [3]}, num_frames=1)), "train")
    clip = reader.read(1, 8, 4.0)
    assert clip.frames_THWC.shape[0] == 8
    assert (clip.frames_THWC == clip.frames_THWC[0]).all()


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("gop", [4, 100])
def test_a_clip_decoded_in_one_pass_has_the_frames_of_every_decoder(decoder: str, gop: int) -> None:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (20, 4, 6, 3), dtype=np.uint8).repeat(24, axis=1).repeat(16, axis=2)
    data = encode_frames([frames], 96, 96, 10.0, gop=gop, crf=18, preset="veryfast")
    with open_video(data, "pyav") as video:
        every, times_s = video.frames(range(20)), video.timestamps_s
    for wanted in ([0], [19], [3, 4, 5], [7, 7, 12, 12, 19], list(range(20))):
        pictures, found_s, shown = decode_clip(data, times_s[wanted] + 0.02, decoder)  # type: ignore[arg-type]
        assert shown.tolist() == wanted
        assert found_s == pytest.approx(times_s[wanted], abs=1e-6)
        assert np.array_equal(pictures, every[wanted])
    beyond, _, shown = decode_clip(data, np.array([-1.0, 1.95, 7.0]), decoder)  # type: ignore[arg-type]
    assert shown.tolist() == [0, 19, 19]
    assert np.array_equal(beyond, every[[0, 19, 19]])


def test_threads_that_decode_at_once_have_each_a_scaler_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one context of swscale, two frames at once are a crash, now and then."""
    scalers: dict[int, set[int]] = {}

    def image(self: Scaler, frame: object) -> Frames:
        scalers.setdefault(id(self), set()).add(threading.get_ident())
        return plain(self, frame)

    plain = Scaler.image
    monkeypatch.setattr(Scaler, "image", image)
    rng = np.random.default_rng(6)
    pictures = [
        rng.integers(0, 256, (8, 6, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2) for _ in "ab"
    ]
    clips = [encode_frames([frames], 64, 48, 8.0, gop=8, crf=18, preset="veryfast") for frames in pictures]
    wanted_s, together = np.arange(8) / 8 + 0.02, threading.Barrier(2)

    def decoded(data: bytes) -> Frames:
        together.wait()
        return decode_clip(data, wanted_s)[0]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(decoded, clips))
    assert len(scalers) == 2
    assert all(len(users) == 1 for users in scalers.values())
    assert all(
        np.array_equal(each, decode_clip(data, wanted_s)[0]) for each, data in zip(found, clips, strict=True)
    )


def test_a_clip_cut_short_is_an_error_or_has_all_its_frames() -> None:
    """Without its last bytes, which name the encoder, it has."""
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    data = encode_frames([frames], 64, 64, 8.0, gop=8, crf=18, preset="veryfast")
    wanted_s = np.arange(16) / 8 + 0.02
    whole, _, _ = decode_clip(data, wanted_s)
    for cut in range(0, len(data) - 100, len(data) // 25):
        with pytest.raises(DataError):
            decode_clip(data[:cut], wanted_s)
    assert np.array_equal(decode_clip(data[:-20], wanted_s)[0], whole)


def test_a_flipped_byte_is_seen_in_whatever_member_it_lies(copy: Path) -> None:
    reader = ClipReader(str(copy), "train")
    shard = read_shards(Storage(copy), reader.info.shards_of("train"))[0]
    tar = copy / tar_name(shard.done.stem)
    whole = tar.read_bytes()
    for suffix, member in shard.samples[2].members.items():
        damaged = bytearray(whole)
        damaged[member.offset + member.size // 2] ^= 1
        tar.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"sample {member.key} in {tar}: its .{suffix} is damaged"):
            reader.read(2, 8, 8.0)
        assert reader.read(1, 8, 8.0).key == shard.samples[1].key


def test_a_truncated_tar_is_an_error_not_a_picture(copy: Path) -> None:
    tar = copy / "shards" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    reader = ClipReader(str(copy), "train")
    with pytest.raises(DataError, match="cut short"):
        reader.read(6, 8, 8.0)
    with pytest.raises(DataError, match=r"train-000000.tar has 2000 bytes"):
        reader.check_files()


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000002.index.parquet"])
def test_a_missing_file_is_named_before_any_training(copy: Path, name: str) -> None:
    (copy / "shards" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing \(1 in all\)"):
        ClipReader(str(copy), "train").check_files()


def test_one_lost_shard_leaves_the_samples_of_the_others(copy: Path) -> None:
    reader = ClipReader(str(copy), "train")
    (copy / "shards" / "train-000001.tar").unlink()
    (copy / "shards" / "train-000002.index.parquet").write_bytes(b"no index")
    found = reader.fetch(range(23))
    assert [isinstance(each, DataError) for each in found] == [False] * 7 + [True] * 13 + [False] * 3
    assert isinstance(found[8], MissingError)
    assert reader.name(13) == "train-000002#1", "its id cannot be known"


@pytest.mark.parametrize(
    "table", [np.zeros((0, 6), np.float32), np.zeros((5, 6), np.float32), np.zeros(8, np.float32)]
)
def test_a_table_of_another_length_than_the_clip_is_an_error(
    table: np.ndarray, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "load", lambda *_, **__: table)
    with pytest.raises(DataError, match=r"its .state.npy cannot be read: shape \("):
        ClipReader(str(small_dataset), "train").read(0, 8, 8.0)


def test_indexes_are_read_one_by_one_and_kept_up_to_a_number(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Storage.read

    def counted(self: Storage, name: str, *span: int) -> bytes:
        read.append(name)
        return real(self, name, *span)

    monkeypatch.setattr(Storage, "read", counted)
    reader = ClipReader(str(small_dataset), "train", kept_indexes=2)
    assert read == ["dataset.json"]
    keys = [reader.key(number) for number in range(23)]
    assert len(set(keys)) == 23
    assert [name for name in read if name.endswith(".index.parquet")] == [
        f"shards/train-{shard:06d}.index.parquet" for shard in range(4)
    ]
    assert reader.key(22) == keys[22]
    assert len(read) == 5
    assert reader.key(0) == keys[0]
    assert len(read) == 6


def test_the_columns_of_an_index_say_what_its_records_say(small_dataset: Path) -> None:
    storage = Storage(small_dataset)
    for done in read_info(storage).shards:
        shard = read_shards(storage, [done])[0]
        index = ShardIndex(read_index(storage, done))
        assert index.keys == [sample.key for sample in shard.samples]
        assert [index.members(row) for row in range(len(index))] == [
            sample.members for sample in shard.samples
        ]
    members = list(shard.samples[0].members.values()) + list(shard.samples[1].members.values())
    with pytest.raises(DataError, match="do not lie side by side"):
        ShardIndex(encode_index([members[0], members[-1], members[1]]))
    for data in (b"", b"text", encode_index([])):
        with pytest.raises(DataError, match="index cannot be read"):
            ShardIndex(data)


def test_a_data_set_of_jpegs_reads_the_frames_asked_for(tmp_path: Path) -> None:
    from PIL import Image

    root = write_dataset(tmp_path / "jpegs", {"train": [2]}, encoding="jpeg")
    clip = ClipReader(str(root), "train").read(1, 4, 4.0, start=lambda spare: 0.13)
    shard = read_shards(Storage(root), read_info(Storage(root)).shards)[0]
    tar = (root / tar_name(shard.done.stem)).read_bytes()
    for frame, number in zip(clip.frames_THWC, (1, 3, 5, 7), strict=True):
        member = shard.samples[1].members[f"{number:04d}.jpg"]
        with Image.open(io.BytesIO(tar[member.offset : member.offset + member.size])) as image:
            assert np.array_equal(frame, np.asarray(image))
    assert np.allclose(clip.times_s, np.array([1, 3, 5, 7]) / 8)


def test_counts_that_are_not_those_of_the_shards_are_told(copy: Path) -> None:
    path = copy / "dataset.json"
    plain = json.loads(path.read_text())

    def told(words: str) -> None:
        path.write_text(json.dumps(plain))
        with pytest.raises(DataError, match=rf"dataset\.json is cut short or was changed \({words}"):
            ClipReader(str(copy), "train")

    first = plain["shards"][0]
    for count in (-3, 10**30, True, first["num_samples"] + 1, 0):
        kept, first["num_samples"] = first["num_samples"], count
        told(r"(num_samples is|train has \(\d+, \d+\) clips and shards, and \(\d+, \d+\) are told)")
        first["num_samples"] = kept
    plain["shards"].append(first)
    told("train has")
    plain["shards"].pop()
    plain["fingerprint"] = "0" * 16
    told("a shard is listed twice, or the fingerprint is of other shards")


def test_actions_between_two_frames_are_averaged() -> None:
    actions = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    for shown, spans in (
        ([0, 2, 4], [(0, 2), (2, 4), (4, 6)]),
        ([1, 2, 5], [(1, 2), (2, 5), (5, 6)]),  # the last: as long as the one before, as far as there is any
        ([0, 0, 1, 1], [(0, 1), (0, 1), (1, 2), (1, 2)]),  # shown twice
        ([3], [(3, 4)]),
        ([5, 5], [(5, 6), (5, 6)]),
    ):
        wanted = [actions[a:b].mean(0) for a, b in spans]
        found = mean_until_next(actions, np.array(shown, dtype=np.int64))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert found.dtype == np.float32
