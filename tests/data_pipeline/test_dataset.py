"""The whole road through real Ray: the same bytes whatever happens on the way."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import DataError, UsageError
from data_pipeline.format import finished_stems, read_info, read_shards, tar_name
from data_pipeline.manifest import Clip, from_parquet
from data_pipeline.storage import Storage
from tests.data_pipeline.films import quiet

MakeConfig = Callable[..., DataConfig]
LISTED = ("manifest.parquet", "dataset.json", "dead_letters.jsonl")


def contents(out: str) -> dict[str, bytes]:
    """Every byte that must be the same from run to run."""
    paths = [Path(out) / name for name in LISTED] + sorted((Path(out) / "shards").iterdir())
    return {path.name: path.read_bytes() for path in paths}


SCRIPT = """
import sys
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
shard(DataConfig.model_validate_json(sys.argv[1]), lambda s, d, t, n: print(s, d, flush=True))
"""


def start(config: DataConfig) -> subprocess.Popen[str]:
    """The same job in a process of its own, with a Ray of its own."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


def test_every_clip_is_in_the_shard_that_the_manifest_says(finished: DataConfig) -> None:
    storage = Storage(finished.out)
    info = read_info(storage)
    clips, _ = from_parquet(storage.read("manifest.parquet"), Clip)
    assert sum(info.num_clips.values()) == len(clips) == 25
    assert info.num_shards["train"] > 1
    assert info.num_shards["eval"] >= 1
    assert info.state_names[:2] == ("x", "y")
    assert info.action_names == ("ax", "ay")
    shards = {shard.done.stem: shard for shard in read_shards(storage, info.shards)}
    for clip in clips:
        sample = next(s for s in shards[clip.shard].samples if s.key == clip.clip_id)
        assert set(sample.members) == {"mp4", "json", "state.npy", "actions.npy"}
        stretch = storage.read(tar_name(clip.shard), clip.offset, clip.size_bytes)
        with tarfile.open(fileobj=io.BytesIO(stretch)) as tar:
            assert {name.split(".", 1)[1] for name in tar.getnames()} == set(sample.members)
            assert {name.split(".", 1)[0] for name in tar.getnames()} == {clip.clip_id}


def test_no_video_is_on_both_sides(finished: DataConfig) -> None:
    clips, _ = from_parquet(Storage(finished.out).read("manifest.parquet"), Clip)
    sides = {split: {clip.video_id for clip in clips if clip.split == split} for split in ("train", "eval")}
    assert sides["train"]
    assert sides["eval"]
    assert not sides["train"] & sides["eval"]


def test_another_order_of_listing_gives_the_same_bytes(
    finished: DataConfig, videos: Path, make_config: MakeConfig
) -> None:
    single = make_config(videos, sources=[str(path) for path in sorted(videos.glob("*.mp4"), reverse=True)])
    shard(single, quiet)
    assert contents(single.out) == contents(finished.out)


def test_one_worker_gives_the_same_bytes(finished: DataConfig, videos: Path, make_config: MakeConfig) -> None:
    alone = make_config(videos, ray={"workers": 1})
    process = start(alone)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert contents(alone.out) == contents(finished.out)


def test_a_killed_job_goes_on_to_the_same_bytes(
    finished: DataConfig, videos: Path, make_config: MakeConfig
) -> None:
    config = make_config(videos, ray={"workers": 1})
    process = start(config)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("encode") and int(line.split()[1]) >= 8:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30  # Ray's own processes notice within seconds; none may write on
    while time.monotonic() < deadline and (before := finished_stems(Storage(config.out))):
        time.sleep(1.0)
        if before == finished_stems(Storage(config.out)):
            break
    assert not (Path(config.out) / "dataset.json").exists()
    outcome = shard(config, quiet)
    assert outcome.is_new
    assert contents(config.out) == contents(finished.out)


def test_what_an_unfinished_job_left_is_kept_or_swept(
    finished: DataConfig, videos: Path, make_config: MakeConfig
) -> None:
    config = make_config(videos)
    shard(config, quiet)
    shards = Path(config.out) / "shards"
    (Path(config.out) / "dataset.json").unlink()
    (shards / "train-000000.done.json").unlink()
    (shards / "train-000099.done.json").write_bytes((shards / "train-000001.done.json").read_bytes())
    (shards / ".train-000000.tar.abc.part").write_bytes(b"half")
    kept = (shards / "train-000001.tar").stat().st_mtime_ns
    outcome = shard(config, quiet)
    assert outcome.num_kept_shards == sum(outcome.info.num_shards.values()) - 1
    assert (shards / "train-000001.tar").stat().st_mtime_ns == kept
    assert contents(config.out) == contents(finished.out)


def test_a_second_run_does_nothing_and_another_config_is_refused(
    finished: DataConfig, videos: Path, make_config: MakeConfig
) -> None:
    before = contents(finished.out)
    assert not shard(finished, quiet).is_new
    other = finished.model_copy(update={"encode": finished.encode.model_copy(update={"crf": 30})})
    with pytest.raises(UsageError, match="another config"):
        shard(other, quiet)
    fewer = finished.model_copy(update={"sources": (str(videos / "*1.mp4"),)})
    with pytest.raises(UsageError, match="another set of videos"):
        shard(fewer, quiet)
    assert contents(finished.out) == before


def test_force_replaces_a_data_set(videos: Path, make_config: MakeConfig, ray_session: None) -> None:
    config = make_config(videos)
    first = shard(config, quiet).info
    config = config.model_copy(update={"encode": config.encode.model_copy(update={"crf": 30})})
    second = shard(config, quiet, force=True).info
    assert first.fingerprint != second.fingerprint
    assert second.total_bytes < first.total_bytes


def test_bad_files_do_not_stop_the_good_one(
    bad_files: Path, make_config: MakeConfig, ray_session: None
) -> None:
    config = make_config(bad_files, max_failed_fraction=1.0)
    outcome = shard(config, quiet)
    assert outcome.info.num_clips == {"train": 5, "eval": 0}
    letters = [json.loads(line) for line in Path(config.out, "dead_letters.jsonl").read_text().splitlines()]
    assert {Path(letter["uri"]).name for letter in letters} == {
        "zero.mp4",
        "random.mp4",
        "page.mp4",
        "sound.mp4",
        "moov-last.mp4",
    }
    assert all(letter["reason"] and letter["error_class"] and letter["attempts"] for letter in letters)


def test_too_many_failures_are_an_error_after_the_letters_are_written(
    bad_files: Path, make_config: MakeConfig, ray_session: None
) -> None:
    config = make_config(bad_files, max_failed_fraction=0.5)
    with pytest.raises(DataError, match="5 of 6 videos failed"):
        shard(config, quiet)
    assert len(Path(config.out, "dead_letters.jsonl").read_text().splitlines()) == 5
    assert not Path(config.out, "dataset.json").exists()


def test_clips_that_fail_are_in_the_manifest_with_the_reason(
    videos: Path, tmp_path: Path, make_config: MakeConfig, ray_session: None
) -> None:
    folder = tmp_path / "hurt"
    folder.mkdir()
    for name in ("video-000000.mp4", "video-000001.mp4"):
        (folder / name).write_bytes((videos / name).read_bytes())
    data = bytearray((folder / "video-000001.mp4").read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 3000] = bytes(3000)
    (folder / "video-000001.mp4").write_bytes(data)
    outcome = shard(make_config(folder, max_failed_fraction=0.9), quiet)
    failed = [clip for clip in outcome.clips if clip.status == "failed"]
    assert failed
    assert outcome.info.num_failed == len(failed)
    assert all(clip.reason and not clip.shard for clip in failed)
    assert [letter.clip_id for letter in outcome.dead_letters] == [clip.clip_id for clip in failed]


def test_a_twin_from_a_second_source_is_no_second_video(
    videos: Path, tmp_path: Path, make_config: MakeConfig, ray_session: None
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").write_bytes((videos / "video-000000.mp4").read_bytes())
    config = make_config("", sources=[str(tmp_path / "a"), str(tmp_path / "b")], max_failed_fraction=0.5)
    outcome = shard(config, quiet)
    assert [video.status for video in outcome.videos] == ["usable", "failed"]
    assert "name and content" in outcome.videos[1].reason


def test_videos_shorter_than_a_clip_are_a_sentence(
    videos: Path, make_config: MakeConfig, ray_session: None
) -> None:
    with pytest.raises(
        DataError, match=r"as long as one clip.*longest video 2\.50 s.*cut\.length_s=2\.5 cut\.stride_s=2\.5"
    ):
        shard(make_config(videos, cut={"length_s": 60.0, "stride_s": 60.0}), quiet)


def test_an_index_is_used_again_until_a_file_changes(
    videos: Path, tmp_path: Path, make_config: MakeConfig, ray_session: None
) -> None:
    import shutil

    from data_pipeline.index import build_index, publish_index

    folder = tmp_path / "copy"
    shutil.copytree(videos, folder)
    config = make_config(folder)
    first = build_index(config, quiet)
    publish_index(config, first)
    assert first.num_new == 5
    assert build_index(config, quiet).num_new == 0
    os.utime(folder / "video-000000.mp4", ns=(1, 1))
    again = build_index(config, quiet)
    assert again.num_new == 1
    assert again.fingerprint() == first.fingerprint()
    assert dataclasses.replace(again.videos[0], listing="") == dataclasses.replace(
        first.videos[0], listing=""
    )


def test_a_look_that_failed_in_passing_is_taken_again(
    videos: Path, make_config: MakeConfig, ray_session: None
) -> None:
    from data_pipeline.index import build_index, publish_index

    config = make_config(videos, max_failed_fraction=0.5)
    whole = build_index(config, quiet)

    def with_first(error_class: str) -> None:
        changes = {"status": "failed", "error_class": error_class, "reason": "the decoder hung"}
        first = dataclasses.replace(whole.videos[0], **changes)
        publish_index(config, dataclasses.replace(whole, videos=(first, *whole.videos[1:])))

    with_first("TimedOutError")
    looked: list[int] = []
    again = build_index(config, lambda stage, done, total, note: looked.append(total))
    assert again.videos == whole.videos
    assert set(looked) == {1}  # the others are known
    with_first("DataError")
    assert build_index(config, quiet).videos[0].status == "failed"
    assert build_index(config, quiet, force=True).videos == whole.videos
    more_time = make_config(videos, max_failed_fraction=0.5, inspect={"timeout_s": 40.0})
    assert build_index(more_time, quiet).videos == whole.videos


def test_a_data_set_that_is_not_there_or_cut_short_is_a_sentence(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    with pytest.raises(DataError, match="does not exist: name a data set's folder"):
        read_info(storage)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="is no finished data set"):
        read_info(storage)
    for damage in ('{"format_version": 2, "na', "", "[]", "null", "{}", '{"format_version": 2}'):
        (tmp_path / "data" / "dataset.json").write_text(damage)
        with pytest.raises(DataError, match=r"dataset\.json is cut short or was changed \(.+\): remove it"):
            read_info(storage)
    (tmp_path / "data" / "dataset.json").write_text('{"format_version": 9}')
    with pytest.raises(DataError, match="has format version 9"):
        read_info(storage)


def test_tables_cut_short_are_made_again_or_named(finished: DataConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    config = finished.model_copy(update={"out": str(out)})
    (out / "videos.parquet").write_bytes(b"PAR1 cut")
    assert not shard(config, quiet).is_new
    (out / "manifest.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(
        DataError, match=r"out/manifest\.parquet is not the one .*remove it and dataset\.json"
    ):
        shard(config, quiet)
    (out / "manifest.parquet").unlink()
    (out / "dataset.json").unlink()
    assert shard(config, quiet).num_kept_shards == len(finished_stems(Storage(out)))
    assert contents(str(out)) == contents(finished.out)
