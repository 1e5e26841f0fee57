"""A redrive adds what failed and can be read now, and changes nothing that readers saw."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import UsageError
from data_pipeline.finish import Outcome
from data_pipeline.format import SHARDS_FOLDER, read_info
from data_pipeline.redrive import redrive
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from pretrain.data.reader import ClipReader
from tests.data_pipeline.films import quiet

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def one_mended(own_videos: Path, make_config: MakeConfig, ray_session: None) -> tuple[DataConfig, Outcome]:
    """A data set made while one video was empty, which is whole again by now."""
    path = own_videos / "video-000001.mp4"
    good = path.read_bytes()
    path.write_bytes(b"")
    config = make_config(own_videos, max_failed_fraction=0.9)
    first = shard(config, quiet)
    path.write_bytes(good)
    return config, first


def test_a_redrive_adds_shards_and_changes_none(own_videos: Path, make_config: MakeConfig) -> None:
    good = {name: (own_videos / name).read_bytes() for name in ("video-000001.mp4", "video-000003.mp4")}
    (own_videos / "video-000001.mp4").write_bytes(b"")
    hurt = bytearray(good["video-000003.mp4"])
    middle = len(hurt) * 3 // 4
    hurt[middle : middle + 3000] = bytes(3000)
    (own_videos / "video-000003.mp4").write_bytes(hurt)
    config = make_config(own_videos, max_failed_fraction=0.9)
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

    (own_videos / "video-000001.mp4").write_bytes(good["video-000001.mp4"])
    (own_videos / "new.mp4").write_bytes(
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
    (own_videos / "new.mp4").unlink()
    assert not shard(config, quiet).is_new


def test_a_redrive_that_was_cut_short_is_finished_by_the_next(
    one_mended: tuple[DataConfig, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, first = one_mended
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
    own_videos: Path, one_mended: tuple[DataConfig, Outcome]
) -> None:
    config, first = one_mended
    (own_videos / "video-000000.mp4").unlink()
    second = redrive(config, quiet)
    assert sum(second.info.num_clips.values()) == sum(first.info.num_clips.values()) + 5
    assert first.info.shards == tuple(s for s in second.info.shards if s in first.info.shards)
    assert verify(config.out, deep=True).problems == ()
