"""The whole pipeline on a store that stumbles or goes away: the bytes of an undisturbed run in the end."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline.clips import cut_video, plan_parts
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import DataError, RefusedError, StorageError
from data_pipeline.manifest import Video, read_parquet
from data_pipeline.redrive import redrive
from data_pipeline.s3 import objects, requests
from data_pipeline.sources import list_sources
from data_pipeline.stages import build_part, inspect_safely
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from tests.data_pipeline.conftest import at_both_ends, tiny_config
from tests.data_pipeline.films import quiet
from tests.data_pipeline.s3_jobs import at_stage, contents, is_whole, rows, shards, upload
from tests.servers.faults import FaultProxy
from tests.servers.s3 import unfinished_uploads
from tests.servers.swift import SECRET
from tests.servers.workers import take_along

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session", "s3_proxy")
STAGES = ("index", "encode", "pack", "finish")


@pytest.fixture
def faults(s3_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, which does no more harm afterwards."""
    yield s3_proxy
    s3_proxy.heal()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is given up after a second."""
    monkeypatch.setattr(requests, "RETRY_FOR_S", 1.0)
    take_along(monkeypatch)


@pytest.mark.parametrize("fault", ["503", "reset", "short body", "lost answer", "hang"])
def test_a_store_that_stumbles_costs_no_byte(
    s3_finished: DataConfig, videos_bucket: str, s3_out: str, faults: FaultProxy, fault: str
) -> None:
    config = at_both_ends(videos_bucket, s3_out)
    seen: set[str] = set()

    def stumble(stage: str, done: int, total: int, note: str) -> None:
        stage = "finish" if stage == "pack" and done == total else stage
        if stage not in seen:
            seen.add(stage)
            chosen = [("GET", "object"), ("PUT", "object"), ("PUT", "part"), ("GET", "list")]
            if fault == "hang":  # each takes seconds to be found out
                chosen = [chosen[len(seen) % 4]]
            for method, kind in chosen:
                if (method, fault) != ("PUT", "short body"):
                    faults.inject(fault, method, kind, times=1 if fault == "hang" else 2)
            faults.inject("503", "POST", "upload", times=1)

    assert not shard(config, stumble).dead_letters
    assert seen == set(STAGES)
    assert contents(s3_out) == contents(s3_finished.out)
    assert unfinished_uploads(Storage(s3_out)) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_goes_away_ends_the_job_and_the_same_command_goes_on(
    s3_finished: DataConfig, videos_bucket: str, s3_out: str, faults: FaultProxy, impatient: None, stage: str
) -> None:
    config = at_both_ends(videos_bucket, s3_out)
    with pytest.raises(StorageError, match=r"s3://.*(503|SlowDown).*the same command goes on") as told:
        shard(config, at_stage(stage, lambda: faults.inject("503", "*", "*", times=None)))
    assert told.value.exit_code == 3
    assert SECRET not in str(told.value)
    faults.heal()
    assert not Storage(s3_out).exists("dataset.json")
    assert is_whole(s3_out)
    shard(config, quiet)
    assert contents(s3_out) == contents(s3_finished.out)
    assert unfinished_uploads(Storage(s3_out)) == []


@pytest.mark.parametrize("stage", ["index", "encode"])
@pytest.mark.parametrize("fault", ["503", "403"])
def test_sources_whose_store_is_away_are_no_dead_letters(
    s3_finished: DataConfig,
    videos_bucket: str,
    make_config: MakeConfig,
    faults: FaultProxy,
    impatient: None,
    stage: str,
    fault: str,
) -> None:
    """403: as when credentials run out in mid-run."""
    config = make_config(f"{videos_bucket}/videos", max_failed_fraction=1.0)
    away = at_stage(stage, lambda: faults.inject(fault, "*", "*", times=None))
    with pytest.raises(RefusedError if fault == "403" else StorageError, match=f"{videos_bucket}/videos"):
        shard(config, away)
    faults.heal()
    assert not Path(config.out, "dataset.json").exists()
    assert not shard(config, quiet).dead_letters
    assert shards(config.out) == shards(s3_finished.out)


def test_an_output_that_does_not_take_what_is_written_ends_the_job_at_once(
    videos: Path, s3_out: str, faults: FaultProxy
) -> None:
    config = tiny_config(videos, Path("out"), max_failed_fraction=1.0).model_copy(update={"out": s3_out})
    seen: set[str] = set()
    faults.inject("403", "PUT", "*", times=None)
    with pytest.raises(RefusedError, match=f"{s3_out}/parts/begun: the store refused access"):
        shard(config, lambda stage, *_: seen.add(stage))
    faults.heal()
    with pytest.raises(RefusedError, match=f"{s3_out}/parts/part-.*: the store refused access"):
        shard(config, at_stage("encode", lambda: faults.inject("403", "*", "*", times=None)))
    faults.heal()
    assert not Storage(s3_out).exists("dataset.json")
    assert not json_lines(s3_out)


def json_lines(root: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Storage(root).read("dead_letters.jsonl").splitlines()]


def test_what_is_wrong_with_one_object_costs_that_object(
    finished: DataConfig,
    videos: Path,
    s3_out: str,
    make_config: MakeConfig,
    faults: FaultProxy,
    impatient: None,
) -> None:
    source = Storage(upload(videos, f"{s3_out}/videos"))
    config = make_config(source.root, max_failed_fraction=0.9)
    good = source.read("video-000003.mp4")

    def meddle() -> None:
        source.remove("video-000001.mp4")
        source.publish("video-000002.mp4", source.read("video-000000.mp4"))
        faults.inject("503", "GET", times=None, key="video-000003.mp4")

    faults.inject("403", "GET", times=None, key="video-000004.mp4")
    outcome = shard(config, at_stage("encode", meddle))
    letters = {letter.uri.rpartition("/")[2]: letter for letter in outcome.dead_letters}
    found = {name[:12]: (letter.stage, letter.error_class) for name, letter in letters.items()}
    assert found == {
        "video-000001": ("encode", "MissingError"),
        "video-000002": ("encode", "ChangedError"),
        "video-000003": ("encode", "StorageError"),
        "video-000004": ("inspect", "RefusedError"),
    }
    reasons = {name[:12]: letter.reason for name, letter in letters.items()}
    assert (
        reasons["video-000001"]
        == f"{source.root}/video-000001.mp4 does not exist: the store has no such object"
    )
    assert reasons["video-000002"].startswith("it changed since it was inspected")
    assert "SlowDown" in reasons["video-000003"]
    assert (
        f"{source.root}/video-000004.mp4: the store refused access (AccessDenied" in reasons["video-000004"]
    )
    whole = {clip.clip_id for clip in rows(finished)[0] if clip.uri == "video-000000.mp4"}
    assert {clip.clip_id for clip in outcome.clips if clip.status == "kept"} == whole

    faults.heal()
    source.publish("video-000002.mp4", (videos / "video-000002.mp4").read_bytes())
    source.publish("video-000001.mp4", (videos / "video-000001.mp4").read_bytes())
    assert source.read("video-000003.mp4") == good
    rescued = redrive(config, quiet)
    assert not rescued.dead_letters
    assert sum(rescued.info.num_clips.values()) == 25
    assert verify(config.out, deep=True).problems == ()


def test_clips_of_an_object_that_was_away_are_made_when_the_job_goes_on(
    s3_finished: DataConfig, videos_bucket: str, s3_out: str, faults: FaultProxy, impatient: None
) -> None:
    """In a part that was finished with them as failures, before a manifest was written of it."""
    config = at_both_ends(videos_bucket, s3_out, max_failed_fraction=0.5)

    def harm() -> None:
        faults.inject("503", "GET", times=None, key="video-000003.mp4")
        faults.inject("503", "PUT", times=None, key="manifest.parquet")

    with pytest.raises(StorageError, match=r"manifest\.parquet"):
        shard(config, at_stage("encode", harm))
    assert {letter["error_class"] for letter in json_lines(s3_out)} == {"StorageError"}
    assert any(name.endswith(".clips.parquet") for name in Storage(s3_out).names("parts"))
    faults.heal()
    assert not shard(at_both_ends(videos_bucket, s3_out), quiet).dead_letters  # the card names the limit
    assert contents(s3_out) == contents(s3_finished.out)


def test_a_full_scratch_disk_costs_no_video(
    s3_finished: DataConfig, videos_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = list_sources((f"{videos_bucket}/videos",)).files
    found, _ = read_parquet(Storage(s3_finished.out), "videos.parquet", Video)
    video = next(video for video in found if video.uri == files[0].uri)
    (plan, *_) = plan_parts(
        cut_video(video, files[0].spans, s3_finished), {video.video_id: video}, s3_finished, {}
    )
    monkeypatch.setattr(objects.Objects, "download", full)
    with pytest.raises(DataError, match="No space left on device: make room there"):
        inspect_safely(files[0], s3_finished.inspect)
    with pytest.raises(DataError, match="No space left on device: make room there"):
        list(build_part(plan, {video.video_id: (files[0], video)}, s3_finished, f"{videos_bucket}/nothing"))
