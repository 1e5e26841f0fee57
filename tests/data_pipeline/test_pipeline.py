"""The whole pipeline on what people have: lists, scenes, filters, JPEG frames, files that change under it."""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.claim import alone
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import DataError, UsageError
from data_pipeline.format import SHARDS_FOLDER
from data_pipeline.manifest import Clip, from_parquet
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from pretrain.data.reader import ClipReader
from tests.data_pipeline.films import noise, quiet, write_list, write_video

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")


def test_each_filter_leaves_its_clip_out_with_score_and_reason(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = tmp_path / "videos"
    write_video(folder / "black.mp4", np.full((16, 64, 96, 3), 3, np.uint8))
    write_video(folder / "frozen.mp4", np.repeat(noise(1), 16, axis=0))
    write_video(folder / "lively.mp4", noise(16, seed=1))
    slow = np.clip(noise(1, seed=2).astype(int) + np.arange(16)[:, None, None, None], 0, 255).astype(np.uint8)
    write_video(folder / "slow.mp4", slow)
    filters = {"max_black": 0.5, "max_frozen": 0.9, "min_motion": 0.1}
    config = make_config(folder, cut={"length_s": 1.0, "stride_s": 1.0}, filters=filters)
    outcome = shard(config, quiet)
    found = {Path(clip.uri).stem: clip for clip in outcome.clips}
    assert {name: (c.status, c.reason.split(":")[0]) for name, c in found.items()} == {
        "black": ("filtered", "black"),
        "frozen": ("filtered", "frozen"),
        "slow": ("filtered", "motion"),
        "lively": ("kept", ""),
    }
    assert found["black"].black == found["frozen"].frozen == 1.0
    assert found["slow"].motion < 0.1 < found["lively"].motion
    assert outcome.info.num_filtered == 3
    assert not outcome.dead_letters
    assert verify(config.out, deep=True).problems == ()
    everything = make_config(
        folder, "all", cut={"length_s": 1.0, "stride_s": 1.0}, filters={"max_black": None, "max_frozen": None}
    )
    assert shard(everything, quiet).info.num_filtered == 0


def test_filters_that_leave_nothing_are_a_sentence(tmp_path: Path, make_config: MakeConfig) -> None:
    write_video(tmp_path / "videos" / "black.mp4", np.zeros((16, 64, 96, 3), np.uint8))
    with pytest.raises(DataError, match=r"filters leave no clip \(2 black\)"):
        shard(make_config(tmp_path / "videos"), quiet)


def test_a_copy_encoded_anew_is_a_duplicate_of_the_larger_one(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = tmp_path / "videos"
    frames = noise(32, seed=5, size=(96, 144))
    write_video(folder / "large.mp4", frames)
    write_video(folder / "small.mp4", frames[:, ::2, ::2])
    write_video(folder / "other.mp4", noise(32, seed=6, size=(96, 144)))
    cut = {"length_s": 1.0, "stride_s": 1.0}
    config = make_config(folder, cut=cut, filters={"max_distance": 10})
    clips = shard(config, quiet).clips
    kept = Counter(Path(clip.uri).stem for clip in clips if clip.status == "kept")
    assert kept == {"large": 2, "other": 2}
    ids = {(Path(clip.uri).stem, clip.start_s): clip.clip_id for clip in clips}
    for clip in clips:
        if clip.status == "filtered":
            assert clip.duplicate_of == ids["large", clip.start_s]
            assert "large.mp4 at" in clip.reason
    without = make_config(folder, "without", cut=cut)
    assert shard(without, quiet).info.num_filtered == 0


def test_black_bars_are_cut_off_and_the_crop_is_written_down(tmp_path: Path, make_config: MakeConfig) -> None:
    frames = np.zeros((16, 96, 128, 3), np.uint8)
    frames[:, 16:80] = noise(16, seed=3, size=(64, 128))
    write_video(tmp_path / "videos" / "wide.mp4", frames)
    cut = {"length_s": 1.0, "stride_s": 1.0}
    config = make_config(tmp_path / "videos", cut=cut, split={"eval_fraction": 0.0})
    (clip,) = shard(config, quiet).clips
    left, top, width, height = clip.crop
    assert (left, width) == (0, 128)
    assert 16 <= top <= 20
    assert 76 <= top + height <= 80
    assert clip.height == 32
    assert clip.width == pytest.approx(32 * width / height, abs=2)
    pictures = ClipReader(config.out, "train").read(0, 4, 4.0).frames_THWC
    assert pictures.shape[1:3] == (clip.height, clip.width)
    assert pictures.mean(axis=(0, 2, 3)).min() > 60  # no row of a bar
    uncropped = make_config(tmp_path / "videos", "bars", cut=cut, filters={"crop_letterbox": False})
    assert shard(uncropped, quiet).clips[0].crop == ()


@pytest.mark.parametrize("edges", [(26, 37, 360, 640, 128), (10, 0, 480, 854, 96), (33, 21, 540, 960, 128)])
def test_a_crop_keeps_no_row_of_a_bar(
    edges: tuple[int, ...], tmp_path: Path, make_config: MakeConfig
) -> None:
    above, below, height, width, side = edges
    frames = np.zeros((8, height, width, 3), np.uint8)
    level = np.linspace(150, 250, 8).astype(np.uint8)[:, None, None, None]
    frames[:, above : height - below] = level
    write_video(tmp_path / "videos" / "bars.mp4", frames, fps=8.0)
    encode = {"short_side": side, "fps": 8.0, "crf": 1}
    config = make_config(
        tmp_path / "videos",
        cut={"length_s": 1.0, "stride_s": 1.0},
        encode=encode,
        split={"eval_fraction": 0.0},
    )
    (clip,) = shard(config, quiet).clips
    assert clip.crop
    pictures = ClipReader(config.out, "train").read(0, 8, 8.0).frames_THWC.astype(int)
    assert abs(pictures - pictures[:, 8:9, 8:9]).max() < 12


def test_no_clip_runs_through_a_cut_of_the_film(tmp_path: Path, make_config: MakeConfig) -> None:
    film = np.concatenate(
        [noise(1, seed=k).repeat(20, axis=0) for k in (10, 11, 12)]
    )  # cuts at 1.25 and 2.5 s
    write_video(tmp_path / "videos" / "film.mp4", film)
    config = make_config(
        tmp_path / "videos",
        cut={"kind": "scenes", "length_s": 0.5, "stride_s": 0.5},
        filters={"max_frozen": None},
    )
    clips = shard(config, quiet).clips
    assert [clip.start_s for clip in clips] == pytest.approx([0.0, 0.5, 1.25, 1.75, 2.5, 3.0], abs=0.002)


def test_a_clip_of_jpeg_frames_is_read_as_its_twin_in_mp4_is(videos: Path, make_config: MakeConfig) -> None:
    encode = {"short_side": 32, "fps": 8.0, "encoding": "jpeg", "jpeg_quality": 95}
    config = make_config(videos, encode=encode)
    mp4 = make_config(videos, "mp4", encode=encode | {"encoding": "mp4", "crf": 6})
    infos = [shard(each, quiet).info for each in (config, mp4)]
    assert infos[0].num_clips == infos[1].num_clips
    assert verify(config.out, deep=True).problems == ()
    readers = [ClipReader(each.out, "train") for each in (config, mp4)]
    twins = {key: number for number, key in enumerate(map(readers[1].key, range(len(readers[1]))))}
    for number, key in enumerate(map(readers[0].key, range(5))):
        ours, theirs = readers[0].read(number, 2, 4.0), readers[1].read(twins[key], 2, 4.0)
        np.testing.assert_array_equal(ours.times_s, theirs.times_s)
        np.testing.assert_array_equal(ours.state, theirs.state)
        assert np.abs(ours.frames_THWC.astype(int) - theirs.frames_THWC).mean() < 6


def test_a_list_decides_spans_labels_and_splits(own_videos: Path, make_config: MakeConfig) -> None:
    (own_videos / "list.csv").write_text(
        "uri,start_s,end_s,label,split\n"
        "video-000000.mp4,0.5,1.5,jump,eval\n"
        "video-000001.mp4,,,run,train\n"
        "video-000002.mp4,1,9,far,train\n"
        "../outside.mp4,,,x,train\n"
        "video-000009.mp4,,,gone,train\n"
    )
    config = make_config(
        own_videos / "list.csv", cut={"kind": "spans", "length_s": 0.5}, max_failed_fraction=0.6
    )
    outcome = shard(config, quiet)
    kept = {
        (Path(c.uri).stem, c.start_s, c.end_s, c.label, c.split) for c in outcome.clips if c.status == "kept"
    }
    assert kept == {
        ("video-000000", 0.5, 1.5, "jump", "eval"),
        ("video-000001", 0.0, 2.5, "run", "train"),
    }
    reasons = {Path(letter.uri).name: letter for letter in outcome.dead_letters}
    assert "the video ends at 2.50 s" in reasons["video-000002.mp4"].reason
    assert "line 4" in reasons["video-000002.mp4"].reason
    assert {reasons[name].stage for name in ("outside.mp4", "video-000009.mp4")} == {"list"}
    meta = ClipReader(config.out, "eval").meta(0)
    assert (meta.label, meta.name, meta.num_frames) == ("jump", "video-000000.mp4", 8)


def test_two_labels_for_one_clip_are_said(own_videos: Path, make_config: MakeConfig) -> None:
    rows = ["video-000000.mp4,0,0.5,cat,", "video-000000.mp4,0,1,dog,"]
    outcome = shard(make_config(write_list(own_videos, rows), max_failed_fraction=0.9), quiet)
    assert [(c.start_s, c.label, c.status) for c in outcome.clips if c.status == "kept"] == [
        (0.0, "cat", "kept"),
        (0.5, "dog", "kept"),
    ]
    (letter,) = outcome.dead_letters
    assert letter.reason == "list.csv line 3 asks for the same seconds with label 'dog'; 'cat' stands"


def test_where_videos_lie_does_not_change_a_byte_of_the_shards(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    moved = shutil.copytree(videos, tmp_path / "elsewhere")
    infos = [shard(make_config(source, out), quiet).info for source, out in ((videos, "a"), (moved, "b"))]
    assert infos[0].shards == infos[1].shards
    assert infos[0].source_fingerprint == infos[1].source_fingerprint


def test_a_file_that_changes_under_the_job_is_a_dead_letter(
    own_videos: Path, make_config: MakeConfig
) -> None:
    def meddle(stage: str, done: int, total: int, note: str) -> None:
        if stage == "encode" and done == 0:
            (own_videos / "video-000001.mp4").write_bytes((own_videos / "video-000000.mp4").read_bytes())
            (own_videos / "video-000002.mp4").unlink()

    outcome = shard(make_config(own_videos, max_failed_fraction=0.5), meddle)
    classes = {Path(letter.uri).name: letter.error_class for letter in outcome.dead_letters}
    assert classes == {"video-000001.mp4": "ChangedError", "video-000002.mp4": "MissingError"}
    assert sum(outcome.info.num_clips.values()) == 15


def test_a_doomed_job_stops_before_its_end(videos: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(30):
        shutil.copy(videos / "video-000000.mp4", folder / f"{number:02d}.mp4")
    seen: list[int] = []

    def meddle(stage: str, done: int, total: int, note: str) -> None:
        if stage == "encode":
            seen.append(done)
            if done == 0:
                for path in folder.iterdir():
                    path.unlink()

    config = make_config(folder, max_failed_fraction=0.1)
    with pytest.raises(DataError, match=r"16 of 150 clips failed, more than max_failed_fraction 0\.1"):
        shard(config, meddle)
    assert max(seen) == 16
    letters = [json.loads(line) for line in Path(config.out, "dead_letters.jsonl").read_text().splitlines()]
    assert {letter["error_class"] for letter in letters} == {"MissingError"}
    assert not Path(config.out, "dataset.json").exists()


def test_two_jobs_never_write_to_one_folder(videos: Path, make_config: MakeConfig) -> None:
    config = make_config(videos)
    with alone(config), pytest.raises(UsageError, match="another job is writing"):
        shard(config, quiet)
    assert not Path(config.out).exists()
    assert shard(config, quiet).is_new


@pytest.mark.parametrize("without", ["dataset.json", "the shard alone"])
def test_one_damaged_shard_is_made_again_without_the_others(
    finished: DataConfig, tmp_path: Path, without: str
) -> None:
    out = shutil.copytree(finished.out, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (out / SHARDS_FOLDER).iterdir()}
    (out / SHARDS_FOLDER / "train-000001.tar").unlink()
    (out / SHARDS_FOLDER / "train-000009.done.json").write_bytes(b"{}")  # of a job that was killed
    (out / ".manifest.parquet.abc.part").write_bytes(b"half")
    if without == "dataset.json":
        (out / "dataset.json").unlink()
    done: list[tuple[str, int]] = []
    config = finished.model_copy(update={"out": str(out)})
    outcome = shard(config, lambda stage, k, total, note: done.append((stage, total)))
    assert outcome.is_new == (without == "dataset.json")
    assert not list(out.glob(".*.part"))
    assert {path.name: path.read_bytes() for path in (out / SHARDS_FOLDER).iterdir()} == before
    (wanted,) = [s.num_samples for s in outcome.info.shards if s.stem == "train-000001"]
    assert {total for stage, total in done if stage == "encode"} == {wanted}
    assert (out / "dataset.json").read_bytes() == Path(finished.out, "dataset.json").read_bytes()
    assert not (out / "parts").exists()


def test_every_row_of_the_manifest_leads_to_its_second_and_back(finished: DataConfig) -> None:
    storage = Storage(finished.out)
    clips, _ = from_parquet(storage.read("manifest.parquet"), Clip)
    by_id = {clip.clip_id: clip for clip in clips}
    reader = ClipReader(finished.out, "train")
    for number, key in enumerate(map(reader.key, range(len(reader)))):
        meta, row = reader.meta(number), by_id[key]
        assert (meta.start_s, meta.end_s, meta.video_id) == (row.start_s, row.end_s, row.video_id)
        assert row.uri.endswith(meta.name)
        assert os.path.isfile(row.uri)
    assert all(dataclasses.asdict(clip)["brightness"] is not None for clip in clips)


def test_the_cameras_of_an_episode_are_on_one_side(tmp_path: Path, make_config: MakeConfig) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for episode in range(6):
        folder = tmp_path / "robot" / f"episode-{episode}"
        for camera in range(2):
            write_video(folder / f"camera-{camera}.mp4", noise(16, seed=10 * episode + camera))
        t = [k / 16 for k in range(17)]
        pq.write_table(pa.table({"t": t, "action.x": t}), folder / "trajectory.parquet")
    config = make_config(tmp_path / "robot", split={"eval_fraction": 0.4})
    clips = shard(config, quiet).clips
    sides: dict[str, set[str]] = {}
    for clip in clips:
        sides.setdefault(Path(clip.uri).parent.name, set()).add(clip.split)
    assert len(sides) == 6
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "eval"}
    assert ClipReader(config.out, "train").read(0, 2, 8.0).actions.shape == (2, 1)
