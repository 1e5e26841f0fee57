"""What the pipeline makes of changed settings, changed files, damage, and what earlier jobs left."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import DataError, UsageError
from data_pipeline.finish import Limit
from data_pipeline.format import SHARDS_FOLDER, read_info
from data_pipeline.manifest import Clip
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from pretrain.data.reader import ClipReader
from tests.data_pipeline.films import quiet, write_list

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")


def test_another_label_or_action_is_in_the_shards_too(own_videos: Path, make_config: MakeConfig) -> None:
    """Members are padded to blocks: a tar of other labels can have the very same sizes."""
    names = [f"video-{k:06d}" for k in range(5)]
    config = make_config(write_list(own_videos, [f"{name}.mp4,,,cat," for name in names]))
    before = shard(config, quiet).info
    write_list(own_videos, [f"{name}.mp4,,,dog," for name in names])
    with pytest.raises(UsageError, match="another set of videos"):
        shard(config, quiet)
    after = shard(config, quiet, force=True)
    assert after.num_kept_shards == 0
    assert after.info.fingerprint != before.fingerprint
    assert {ClipReader(config.out, "train").meta(k).label for k in range(10)} == {"dog"}
    with np.load(own_videos / f"{names[0]}.npz") as found:
        arrays = dict(found)
    for name in names:
        np.savez(own_videos / f"{name}.npz", **(arrays | {"actions": arrays["actions"] * 0 + 7}))
    assert shard(config, quiet, force=True).num_kept_shards == 0
    assert (ClipReader(config.out, "train").read(0, 2, 8.0).actions == 7).all()


def test_which_sidecar_a_span_has_counts(own_videos: Path, make_config: MakeConfig) -> None:
    with np.load(own_videos / "video-000000.npz") as found:
        arrays = dict(found)
    for name, value in (("p", 1.0), ("q", 2.0)):
        np.savez(own_videos / f"{name}.npz", **(arrays | {"actions": arrays["actions"] * 0 + value}))
    rows = ["video-000000.mp4,0,0.5,,p.npz", "video-000000.mp4,0.5,1,,q.npz", "video-000000.mp4,1,1.5,,p.npz"]
    config = make_config(write_list(own_videos, rows))
    first = shard(config, quiet).info
    write_list(own_videos, [*rows[:2], rows[2].replace("p.npz", "q.npz")])
    with pytest.raises(UsageError, match="another set of videos"):
        shard(config, quiet)
    assert shard(config, quiet, force=True).info.fingerprint != first.fingerprint


def test_a_video_that_can_be_read_now_is_not_forgotten(
    own_videos: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is killed behind its manifest; then a file that failed in passing is usable."""
    from data_pipeline import dataset, index

    config = make_config(own_videos, max_failed_fraction=0.5)
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
    own_videos: Path, videos: Path, make_config: MakeConfig
) -> None:
    times = {path: path.stat().st_mtime_ns for path in own_videos.iterdir()}

    def touch(stage: str, done: int, total: int, note: str) -> None:
        if stage == "encode" and done == 0:
            for path in own_videos.glob("*.mp4"):
                os.utime(path, ns=(1, 1))

    config = make_config(own_videos, max_failed_fraction=0.5)
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


def test_a_finished_set_is_not_decided_anew_because_dataset_json_is_gone(
    own_videos: Path, make_config: MakeConfig
) -> None:
    config = make_config(own_videos)
    shard(config, quiet)
    before = {path.name: path.read_bytes() for path in (Path(config.out) / SHARDS_FOLDER).iterdir()}
    Path(config.out, "dataset.json").unlink()
    shutil.copy(own_videos / "video-000000.mp4", own_videos / "new.mp4")
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


def test_what_a_killed_worker_left_of_a_shard_is_gone_in_the_end(
    videos: Path, make_config: MakeConfig
) -> None:
    config = make_config(videos)
    left = Path(config.out, SHARDS_FOLDER, ".eval-000000.tar.e342is3a.part")

    def kill(stage: str, done: int, total: int, note: str) -> None:
        if stage == "pack" and not left.exists():
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"half")

    assert shard(config, kill).is_new
    assert not left.exists()
    assert verify(config.out).problems == ()
