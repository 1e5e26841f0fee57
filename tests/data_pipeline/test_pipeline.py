"""The whole pipeline on what people have: lists, scenes, filters, JPEG frames, files that change under it."""

import dataclasses
import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import alone, shard
from data_pipeline.encode import encode_frames
from data_pipeline.errors import DataError, UsageError
from data_pipeline.finish import Limit
from data_pipeline.format import SHARDS_FOLDER, read_info
from data_pipeline.manifest import Clip, from_parquet
from data_pipeline.redrive import redrive
from data_pipeline.sources.base import printable
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from pretrain.data.reader import ClipReader
from tests.data_pipeline.hostile import write_hostile
from tests.data_pipeline.tasks import UNFILTERED

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")


def quiet(stage: str, done: int, total: int, note: str) -> None:
    pass


def write_video(path: Path, frames: np.ndarray, fps: float = 16.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    path.write_bytes(encode_frames([frames], width, height, fps, gop=16, crf=12, preset="veryfast"))
    return path


def noise(num_frames: int, seed: int = 0, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Frames of moving blobs: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (num_frames // 4 + 2, 6, 9, 3)).astype(np.float32)
    steps = np.linspace(0, len(coarse) - 1.01, num_frames)
    low, part = steps.astype(int), (steps % 1)[:, None, None, None]
    mixed = coarse[low] * (1 - part) + coarse[low + 1] * part
    return np.kron(mixed, np.ones((1, size[0] // 6 + 1, size[1] // 9 + 1, 1)))[
        :, : size[0], : size[1]
    ].astype(np.uint8)


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
    twins = {key: number for number, key in enumerate(readers[1].keys)}
    for number, key in enumerate(readers[0].keys[:5]):
        ours, theirs = readers[0].read(number, 2, 4.0), readers[1].read(twins[key], 2, 4.0)
        np.testing.assert_array_equal(ours.times_s, theirs.times_s)
        np.testing.assert_array_equal(ours.state, theirs.state)
        assert np.abs(ours.frames_THWC.astype(int) - theirs.frames_THWC).mean() < 6


def test_a_list_decides_spans_labels_and_splits(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    (folder / "list.csv").write_text(
        "uri,start_s,end_s,label,split\n"
        "video-000000.mp4,0.5,1.5,jump,eval\n"
        "video-000001.mp4,,,run,train\n"
        "video-000002.mp4,1,9,far,train\n"
        "../outside.mp4,,,x,train\n"
        "video-000009.mp4,,,gone,train\n"
    )
    config = make_config(folder / "list.csv", cut={"kind": "spans", "length_s": 0.5}, max_failed_fraction=0.6)
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


def test_where_videos_lie_does_not_change_a_byte_of_the_shards(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    moved = shutil.copytree(videos, tmp_path / "elsewhere")
    infos = [shard(make_config(source, out), quiet).info for source, out in ((videos, "a"), (moved, "b"))]
    assert infos[0].shards == infos[1].shards
    assert infos[0].source_fingerprint == infos[1].source_fingerprint


def test_a_file_that_changes_under_the_job_is_a_dead_letter(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")

    def meddle(stage: str, done: int, total: int, note: str) -> None:
        if stage == "encode" and done == 0:
            (folder / "video-000001.mp4").write_bytes((folder / "video-000000.mp4").read_bytes())
            (folder / "video-000002.mp4").unlink()

    outcome = shard(make_config(folder, max_failed_fraction=0.5), meddle)
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


def test_a_redrive_adds_shards_and_changes_none(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    good = {name: (folder / name).read_bytes() for name in ("video-000001.mp4", "video-000003.mp4")}
    (folder / "video-000001.mp4").write_bytes(b"")
    hurt = bytearray(good["video-000003.mp4"])
    middle = len(hurt) * 3 // 4
    hurt[middle : middle + 3000] = bytes(3000)
    (folder / "video-000003.mp4").write_bytes(hurt)
    config = make_config(folder, max_failed_fraction=0.9)
    first = shard(config, quiet)
    failed = [clip for clip in first.clips if clip.status == "failed"]
    assert failed
    assert [letter.stage for letter in first.dead_letters if not letter.clip_id] == ["inspect"]
    before = {path.name: path.read_bytes() for path in (Path(config.out) / SHARDS_FOLDER).iterdir()}

    same = redrive(config, quiet)
    assert not same.is_new
    assert same.info.revision == 0
    assert {letter.attempts for letter in same.dead_letters} == {2}
    assert verify(config.out).problems == ()

    (folder / "video-000001.mp4").write_bytes(good["video-000001.mp4"])
    (folder / "new.mp4").write_bytes(
        good["video-000003.mp4"]
    )  # not known to the set: no business of a redrive
    second = redrive(config, quiet)
    assert second.is_new
    assert second.info.revision == 1
    after = {path.name: path.read_bytes() for path in (Path(config.out) / SHARDS_FOLDER).iterdir()}
    assert before.items() <= after.items()
    assert first.info.shards == tuple(s for s in second.info.shards if s in first.info.shards)
    rescued = [c for c in second.clips if c.status == "kept" and Path(c.uri).name == "video-000001.mp4"]
    assert len(rescued) == 5
    assert {clip.shard + ".tar" for clip in rescued}.isdisjoint(before)
    assert sum(second.info.num_clips.values()) == sum(first.info.num_clips.values()) + 5
    sides = {clip.video_id: clip.split for clip in first.clips if clip.status == "kept"}
    assert all(sides.get(c.video_id, c.split) == c.split for c in second.clips)
    assert {letter.attempts for letter in second.dead_letters} == {3}
    assert verify(config.out, deep=True).problems == ()
    assert len(ClipReader(config.out, "train")) == second.info.num_clips["train"]
    (folder / "new.mp4").unlink()
    assert not shard(config, quiet).is_new


def test_a_redrive_that_was_cut_short_is_finished_by_the_next(
    videos: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    good = (folder / "video-000001.mp4").read_bytes()
    (folder / "video-000001.mp4").write_bytes(b"")
    config = make_config(folder, max_failed_fraction=0.9)
    first = shard(config, quiet)
    (folder / "video-000001.mp4").write_bytes(good)
    publish = Storage.publish

    def fail_at_the_end(self: Storage, name: str, data: bytes | Path) -> None:
        if name == "dataset.json":
            raise KeyboardInterrupt
        publish(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "publish", fail_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            redrive(config, quiet)
    assert read_info(Storage(config.out)) == first.info  # readers see what they saw
    assert len(ClipReader(config.out, "train")) == first.info.num_clips["train"]
    assert any("--redrive was cut short" in problem for problem in verify(config.out).problems)
    second = redrive(config, quiet)
    assert sum(second.info.num_clips.values()) == sum(first.info.num_clips.values()) + 5
    assert verify(config.out, deep=True).problems == ()


def test_a_redrive_wants_a_finished_set_of_this_config(videos: Path, make_config: MakeConfig) -> None:
    config = make_config(videos)
    with pytest.raises(UsageError, match="no finished data set"):
        redrive(config, quiet)
    shard(config, quiet)
    with pytest.raises(UsageError, match="another config"):
        redrive(config.model_copy(update={"name": "other"}), quiet)


def test_every_row_of_the_manifest_leads_to_its_second_and_back(finished: DataConfig) -> None:
    storage = Storage(finished.out)
    clips, _ = from_parquet(storage.read("manifest.parquet"), Clip)
    by_id = {clip.clip_id: clip for clip in clips}
    reader = ClipReader(finished.out, "train")
    for number, key in enumerate(reader.keys):
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


def write_list(folder: Path, rows: list[str]) -> Path:
    (folder / "list.csv").write_text("\n".join(["uri,start_s,end_s,label,actions", *rows]) + "\n")
    return folder / "list.csv"


def test_another_label_or_action_is_in_the_shards_too(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    """Members are padded to blocks: a tar of other labels can have the very same sizes."""
    folder = shutil.copytree(videos, tmp_path / "set")
    names = [f"video-{k:06d}" for k in range(5)]
    config = make_config(write_list(folder, [f"{name}.mp4,,,cat," for name in names]))
    before = shard(config, quiet).info
    write_list(folder, [f"{name}.mp4,,,dog," for name in names])
    with pytest.raises(UsageError, match="another set of videos"):
        shard(config, quiet)
    after = shard(config, quiet, force=True)
    assert after.num_kept_shards == 0
    assert after.info.fingerprint != before.fingerprint
    assert {ClipReader(config.out, "train").meta(k).label for k in range(10)} == {"dog"}
    with np.load(folder / f"{names[0]}.npz") as found:
        arrays = dict(found)
    for name in names:
        np.savez(folder / f"{name}.npz", **(arrays | {"actions": arrays["actions"] * 0 + 7}))
    assert shard(config, quiet, force=True).num_kept_shards == 0
    assert (ClipReader(config.out, "train").read(0, 2, 8.0).actions == 7).all()


def test_which_sidecar_a_span_has_counts(videos: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    with np.load(folder / "video-000000.npz") as found:
        arrays = dict(found)
    for name, value in (("p", 1.0), ("q", 2.0)):
        np.savez(folder / f"{name}.npz", **(arrays | {"actions": arrays["actions"] * 0 + value}))
    rows = ["video-000000.mp4,0,0.5,,p.npz", "video-000000.mp4,0.5,1,,q.npz", "video-000000.mp4,1,1.5,,p.npz"]
    config = make_config(write_list(folder, rows))
    first = shard(config, quiet).info
    write_list(folder, [*rows[:2], rows[2].replace("p.npz", "q.npz")])
    with pytest.raises(UsageError, match="another set of videos"):
        shard(config, quiet)
    assert shard(config, quiet, force=True).info.fingerprint != first.fingerprint


def test_a_video_that_can_be_read_now_is_not_forgotten(
    videos: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is killed behind its manifest; then a file that failed in passing is usable."""
    from data_pipeline import dataset, index

    config = make_config(shutil.copytree(videos, tmp_path / "set"), max_failed_fraction=0.5)
    true = index.look_at

    def one_hangs(*given: object) -> object:
        found = true(*given)  # type: ignore[arg-type]
        hung = dataclasses.replace(
            found.videos[0], status="failed", error_class="TimedOutError", reason="hung"
        )
        return dataclasses.replace(found, videos=(hung, *found.videos[1:]))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index, "look_at", one_hangs)
        patch.setattr(dataset, "pack_all", killed)
        with pytest.raises(KeyboardInterrupt):
            shard(config, quiet)
    outcome = shard(config, quiet)
    assert sum(outcome.info.num_clips.values()) == 25
    assert not outcome.dead_letters


def test_clips_that_failed_in_passing_are_made_by_the_next_run(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def touch(stage: str, done: int, total: int, note: str) -> None:
        if stage == "encode" and done == 0:
            for path in folder.glob("*.mp4"):
                os.utime(path, ns=(1, 1))

    config = make_config(folder, max_failed_fraction=0.5)
    with pytest.raises(DataError, match="failed, more than"):
        shard(config, touch)
    for path, time_ns in times.items():
        os.utime(path, ns=(time_ns, time_ns))
    outcome = shard(config, quiet)
    assert outcome.info.num_clips == shard(make_config(videos, "other"), quiet).info.num_clips
    assert not outcome.dead_letters


def test_a_twin_is_one_only_while_the_first_is_there(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(videos / "video-000000.mp4", tmp_path / name / "x.mp4")
    both = make_config("", sources=[str(tmp_path / "a"), str(tmp_path / "b")], max_failed_fraction=0.1)
    with pytest.raises(DataError, match="name and content"):
        shard(both, quiet)
    assert shard(make_config(tmp_path / "b"), quiet).info.num_videos == 1


@pytest.mark.parametrize(("num_failed", "total", "limit"), [(29, 100, 0.29), (57, 100, 0.57), (29, 50, 0.58)])
def test_a_limit_that_is_just_reached_is_not_passed(num_failed: int, total: int, limit: float) -> None:
    config = DataConfig(name="t", out="o", sources=("s",), max_failed_fraction=limit)
    clips = [Clip(f"{k}", f"v{k}", "u", 0, 1, "failed", "why", "DataError") for k in range(num_failed + 1)]
    reached = Limit(config, total, clips[:-1])
    assert not reached.is_past
    reached.stop()
    reached.count(clips[-1:])
    assert reached.is_past
    with pytest.raises(DataError, match=f"{num_failed + 1} of {total} clips"):
        reached.stop()


def test_one_lying_header_does_not_end_the_job(videos: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """Matroska's duration is a float that anybody can write: a video of 2.5 s claims an hour."""
    import av

    folder = shutil.copytree(videos, tmp_path / "set")
    path = folder / "liar.mkv"
    with av.open(str(folder / "video-000000.mp4")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", 3_600_000.0)
    path.write_bytes(data)
    outcome = shard(make_config(folder, max_failed_fraction=0.1, filters={"max_distance": None}), quiet)
    liar = [clip for clip in outcome.clips if clip.uri.endswith("liar.mkv")]
    assert [clip.status for clip in liar[:5]] == ["kept"] * 5
    assert {(clip.status, clip.error_class) for clip in liar[5:]} == {("failed", "EndedError")}


def test_hostile_text_in_lists_and_sidecars_is_written_as_text(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    (folder / "list.jsonl").write_text(
        '{"uri": "video-000000.mp4", "label": "\\ud800\\u001b[2J"}\n'
        '{"uri": "\\ud800.mp4"}\n'
        '{"uri": "s3://KEY:SECRET@bucket/x.mp4"}\n'
        '{"uri": "https://host/x.mp4?X-Amz-Signature=SECRET"}\n'
        '{"uri": "video-000001.mp4"}\n'
    )
    with np.load(folder / "video-000001.npz") as found:
        arrays = dict(found)
    arrays["action_names"] = np.array(["a\ud800", "b"])
    np.savez(folder / "video-000001.npz", **arrays)
    config = make_config(folder / "list.jsonl", max_failed_fraction=0.9)
    outcome = shard(config, quiet)
    assert len(outcome.dead_letters) == 3
    assert sum(outcome.info.num_clips.values()) == 10
    for path in Path(config.out).rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


def test_two_labels_for_one_clip_are_said(videos: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    rows = ["video-000000.mp4,0,0.5,cat,", "video-000000.mp4,0,1,dog,"]
    outcome = shard(make_config(write_list(folder, rows), max_failed_fraction=0.9), quiet)
    assert [(c.start_s, c.label, c.status) for c in outcome.clips if c.status == "kept"] == [
        (0.0, "cat", "kept"),
        (0.5, "dog", "kept"),
    ]
    (letter,) = outcome.dead_letters
    assert letter.reason == "list.csv line 3 asks for the same seconds with label 'dog'; 'cat' stands"


def test_a_finished_set_is_not_decided_anew_because_dataset_json_is_gone(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    config = make_config(folder)
    shard(config, quiet)
    before = {path.name: path.read_bytes() for path in (Path(config.out) / SHARDS_FOLDER).iterdir()}
    Path(config.out, "dataset.json").unlink()
    shutil.copy(folder / "video-000000.mp4", folder / "new.mp4")
    with pytest.raises(UsageError, match=r"held a finished data set of another config, of other videos"):
        shard(config, quiet)
    assert {path.name: path.read_bytes() for path in (Path(config.out) / SHARDS_FOLDER).iterdir()} == before


def test_damage_to_a_part_is_named(
    videos: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipeline import dataset

    config = make_config(videos)
    true = dataset.pack_all

    def damage(*given: object) -> None:
        for tar in Path(config.out, "parts").glob("*.tar"):
            data = bytearray(tar.read_bytes())
            data[3] ^= 1  # the name of the first member
            tar.write_bytes(data)
        true(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "pack_all", damage)
        with pytest.raises(
            DataError, match=r"does not read back as its clips were encoded.*remove parts/part-"
        ):
            shard(config, quiet)
    for tar in Path(config.out, "parts").glob("*.tar"):
        tar.unlink()
    assert shard(config, quiet).is_new
    assert verify(config.out, deep=True).problems == ()


def test_a_heap_of_hostile_files_comes_to_an_end(tmp_path: Path, make_config: MakeConfig) -> None:
    corpus = write_hostile(tmp_path / "files")
    config = make_config(
        tmp_path / "files",
        max_failed_fraction=1.0,
        filters=UNFILTERED,
        inspect={"timeout_s": 20.0, "memory_bytes": 512 << 20},
    )
    outcome = shard(config, quiet)
    videos = {Path(video.uri).name: video for video in outcome.videos}
    for name, hostile in corpus.items():
        video = videos.get(printable(hostile.path.name))
        if not hostile.is_listed or hostile.fate == "any":
            continue
        assert video is not None, name
        if hostile.fate in ("whole", "refused"):
            assert video.status == {"whole": "usable", "refused": "failed"}[hostile.fate], (
                name,
                video.reason,
            )
    assert verify(config.out, deep=True).problems == ()
    assert {letter.error_class for letter in outcome.dead_letters} <= {
        "DataError",
        "EndedError",
        "OutOfMemoryError",
    }


def test_nothing_of_the_users_is_ever_deleted(videos: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "holiday.mp4").write_bytes(b"mine")
    config = make_config(videos)
    with pytest.raises(UsageError, match="holds parts that no job of ours wrote"):
        shard(config, quiet)
    shutil.rmtree(out / "parts")
    shard(config, quiet)
    strangers = [
        out / "parts" / "holiday.mp4",
        out / "shards" / "train-000077.txt",
        out / "shards" / ".notes.part",
    ]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    assert not shard(config, quiet).is_new
    (out / "dataset.json").unlink()
    assert shard(config, quiet).is_new
    assert all(path.read_bytes() == b"mine" for path in strangers)


def test_an_empty_folder_of_the_users_stays(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match="no video"):
        shard(make_config(tmp_path / "videos"), quiet)
    assert (tmp_path / "out").is_dir()


def test_sources_that_move_between_two_tries_are_where_the_manifest_says(
    videos: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipeline import dataset

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    shutil.copytree(videos, tmp_path / "before")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "pack_all", killed)
        with pytest.raises(KeyboardInterrupt):
            shard(make_config(tmp_path / "before"), quiet)
    (tmp_path / "before").rename(tmp_path / "after")
    outcome = shard(make_config(tmp_path / "after"), quiet)
    assert all(os.path.isfile(clip.uri) for clip in outcome.clips)
    whole = shard(make_config(tmp_path / "after", "whole"), quiet)
    assert whole.info == outcome.info


@pytest.mark.parametrize("damage", ["tar cut", "index", "done record"])
def test_a_shard_is_kept_only_when_it_is_whole(finished: DataConfig, tmp_path: Path, damage: str) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    (out / "dataset.json").unlink()
    tar = out / SHARDS_FOLDER / "train-000000.tar"
    index, done = tar.with_suffix(".index.parquet"), tar.with_suffix(".done.json")
    if damage == "tar cut":
        tar.write_bytes(tar.read_bytes()[:5000])
    elif damage == "index":
        index.write_bytes(b"PAR1" + bytes(100))
    else:
        done.write_text(done.read_text().replace('"split":"train"', '"split":"eval"'))
    config = finished.model_copy(update={"out": str(out)})
    assert shard(config, quiet).num_kept_shards == len(read_info(Storage(out)).shards) - 1
    assert verify(str(out), deep=True).problems == ()


def test_a_redrive_wants_the_sources_where_they_were(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(videos)
    shard(config, quiet)
    before = Path(config.out, "dataset.json").read_bytes()
    with pytest.raises(UsageError, match="wants the sources where they were"):
        redrive(make_config(shutil.copytree(videos, tmp_path / "moved")), quiet)
    assert Path(config.out, "dataset.json").read_bytes() == before


def test_a_redrive_after_the_raw_videos_were_deleted_changes_nothing_else(
    videos: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = shutil.copytree(videos, tmp_path / "set")
    good = (folder / "video-000001.mp4").read_bytes()
    (folder / "video-000001.mp4").write_bytes(b"")
    config = make_config(folder, max_failed_fraction=0.9)
    first = shard(config, quiet)
    (folder / "video-000001.mp4").write_bytes(good)
    (folder / "video-000000.mp4").unlink()
    second = redrive(config, quiet)
    assert sum(second.info.num_clips.values()) == sum(first.info.num_clips.values()) + 5
    assert first.info.shards == tuple(s for s in second.info.shards if s in first.info.shards)
    assert verify(config.out, deep=True).problems == ()


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


def test_a_video_takes_no_more_memory_than_its_clip(tmp_path: Path, make_config: MakeConfig) -> None:
    """A span that needs too much fails alone: the next ones get a child of their own."""
    folder = tmp_path / "set"
    write_video(folder / "long.mp4", noise(640, seed=4, size=(128, 192)), fps=16.0)
    (folder / "list.csv").write_text("uri,start_s,end_s\nlong.mp4,0,40\nlong.mp4,0,1\nlong.mp4,1,2\n")
    config = make_config(
        folder / "list.csv",
        cut={"kind": "spans", "length_s": 0.5},
        encode={"short_side": 512, "fps": 16.0, "preset": "ultrafast"},
        inspect={"timeout_s": 60.0, "memory_bytes": 400 << 20},
        max_failed_fraction=0.9,
        filters=UNFILTERED,
    )
    clips = shard(config, quiet).clips
    assert [(c.end_s, c.status, c.error_class) for c in sorted(clips, key=lambda c: c.end_s)] == [
        (1.0, "kept", ""),
        (2.0, "kept", ""),
        (40.0, "failed", "OutOfMemoryError"),
    ]
