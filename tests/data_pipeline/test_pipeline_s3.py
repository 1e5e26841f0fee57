"""The whole pipeline with S3 at one end, the other, or both: the bytes of a local run, whatever happens."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.clips import cut_video, plan_parts
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import DataError, RefusedError, StorageError
from data_pipeline.format import SHARDS_FOLDER, read_info, sha256
from data_pipeline.manifest import Clip, Video, read_parquet
from data_pipeline.redrive import redrive
from data_pipeline.s3 import objects, requests
from data_pipeline.sources import list_sources
from data_pipeline.stages import build_part, inspect_safely
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from pretrain.data.reader import ClipReader
from tests.data_pipeline.conftest import tiny_config
from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import forget_s3, make_bucket, unfinished_uploads, use_s3
from tests.servers.swift import KEY, SECRET
from tests.servers.workers import take_along

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session", "store")


def quiet(stage: str, done: int, total: int, note: str) -> None:
    pass


@pytest.fixture(scope="module")
def store(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy before moto's server, with the settings to reach it from here and from workers.

    A store that hangs is found out in two seconds, and shards go in parts.
    """
    proxy = FaultProxy(s3_server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "READ_TIMEOUT_S", 2)
        patch.setattr(requests, "RETRY_FOR_S", 30.0)
        patch.setattr(requests, "LONGEST_PAUSE_S", 0.1)
        patch.setattr(objects, "PART_BYTES", 32 << 10)
        use_s3(patch, proxy.endpoint)
        take_along(patch)
        yield proxy
        proxy.close()
    forget_s3()


@pytest.fixture
def faults(store: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, which does no more harm afterwards."""
    yield store
    store.heal()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is given up after a second."""
    monkeypatch.setattr(requests, "RETRY_FOR_S", 1.0)
    take_along(monkeypatch)


def upload(folder: Path, prefix: str) -> str:
    storage = Storage(prefix)
    for path in sorted(folder.iterdir()):
        storage.publish(path.name, path.read_bytes())
    return prefix


@pytest.fixture(scope="module")
def bucket(store: FaultProxy, videos: Path) -> str:
    """A bucket that holds the videos below videos/."""
    address = make_bucket()
    upload(videos, f"{address}/videos")
    return address


@pytest.fixture
def out(request: pytest.FixtureRequest, bucket: str) -> str:
    """An empty prefix for one test."""
    return f"{bucket}/{re.sub('[^a-z0-9]+', '-', request.node.name)}"


def contents(root: str) -> dict[str, bytes]:
    """Every file below a data set's root, save the lock of local ones."""
    storage = Storage(root)
    names = [entry.name for entry in storage.walk() if entry.name != ".lock"]
    return dict(zip(names, storage.read_many(names), strict=True))


def shards(root: str) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name.startswith(SHARDS_FOLDER)}


def rows(config: DataConfig) -> tuple[list[Clip], list[Video]]:
    """The manifest and the index without what tells where the videos lie."""
    storage = Storage(config.out)
    clips, _ = read_parquet(storage, "manifest.parquet", Clip)
    videos, _ = read_parquet(storage, "videos.parquet", Video)
    placeless = [dataclasses.replace(clip, uri=clip.uri.rpartition("/")[2], etag="") for clip in clips]
    plain = [
        dataclasses.replace(video, uri=video.uri.rpartition("/")[2], etag="", listing="") for video in videos
    ]
    return placeless, [video for video in plain if video.status == "usable"]


def is_whole(root: str) -> bool:
    """Whether each done record that is there has the very shard that it names."""
    found = shards(root)
    stems = [name.removesuffix(".done.json") for name in found if name.endswith(".done.json")]
    for stem in stems:
        done = json.loads(found[f"{stem}.done.json"])
        if sha256(found[f"{stem}.tar"]) != done["tar_sha256"]:
            return False
        if sha256(found[f"{stem}.index.parquet"]) != done["index_sha256"]:
            return False
    return True


def test_a_prefix_gives_the_shards_that_a_folder_gives(
    finished: DataConfig, bucket: str, make_config: MakeConfig
) -> None:
    config = make_config(f"{bucket}/videos")
    outcome = shard(config, quiet)
    assert shards(config.out) == shards(finished.out)
    local = read_info(Storage(finished.out))
    assert dataclasses.replace(outcome.info, manifest_sha256=local.manifest_sha256) == local
    assert rows(config) == rows(finished)
    assert {clip.uri.rpartition("/")[0] for clip in outcome.clips} == {f"{bucket}/videos"}
    etags = {entry.name: entry.etag for entry in Storage(f"{bucket}/videos").walk()}
    for row in (*(v for v in outcome.videos if v.status == "usable"), *outcome.clips):
        assert row.etag == etags[row.uri.rpartition("/")[2]] != ""
    assert not shard(config, quiet).is_new


@pytest.mark.parametrize("where", ["the list on S3", "the list here, its uris whole", "a root on S3"])
def test_a_list_of_objects_gives_what_a_list_of_files_gives(
    videos: Path, bucket: str, tmp_path: Path, make_config: MakeConfig, where: str
) -> None:
    lines = ["video-000000.mp4,0.5,1.5,jump,eval", "video-000003.mp4,,,run,train", "gone.mp4,,,run,train"]
    head = "uri,start_s,end_s,label,split"
    folder = shutil.copytree(videos, tmp_path / "set")
    (folder / "list.csv").write_text("\n".join([head, *lines]))
    changes = {"cut": {"kind": "spans", "length_s": 0.5}, "max_failed_fraction": 0.5}
    local = make_config(folder / "list.csv", "local", **changes)
    shard(local, quiet)
    if where == "the list on S3":
        Storage(f"{bucket}/videos").publish("list.csv", (folder / "list.csv").read_bytes())
        config = make_config(f"{bucket}/videos/list.csv", **changes)
    else:
        whole = [f"{bucket}/videos/{line}" if where != "a root on S3" else line for line in lines]
        (tmp_path / "list.csv").write_text("\n".join([head, *whole]))
        config = make_config(tmp_path / "list.csv", root=f"{bucket}/videos", **changes)
    outcome = shard(config, quiet)
    assert shards(config.out) == shards(local.out)
    assert rows(config) == rows(local)
    (letter,) = outcome.dead_letters
    assert letter.uri == f"{bucket}/videos/gone.mp4"
    assert "list.csv line 4: gone.mp4 does not exist in" in letter.reason


def test_an_output_on_s3_holds_what_a_folder_holds(
    finished: DataConfig, videos: Path, out: str, store: FaultProxy
) -> None:
    config = tiny_config(videos, Path("out")).model_copy(update={"out": out})
    before = store.counts["PUT", "part"]
    outcome = shard(config, quiet)
    assert store.counts["PUT", "part"] > before
    assert contents(out) == contents(finished.out)
    assert unfinished_uploads(Storage(out)) == []
    assert verify(out, deep=True).problems == ()
    assert len(ClipReader(out, "train")) == outcome.info.num_clips["train"]
    again = shard(config, quiet)
    assert not again.is_new
    assert contents(out) == contents(finished.out)


@pytest.fixture(scope="module")
def remote(bucket: str) -> DataConfig:
    """A data set with S3 at both ends; read only."""
    config = at_both_ends(bucket, f"{bucket}/both")
    shard(config, quiet)
    return config


def at_both_ends(bucket: str, out: str, **changes: object) -> DataConfig:
    return tiny_config(f"{bucket}/videos", Path("out"), **changes).model_copy(update={"out": out})


def test_the_trainer_reads_from_s3_what_it_reads_from_a_folder(
    finished: DataConfig, remote: DataConfig
) -> None:
    assert shards(remote.out) == shards(finished.out)
    assert verify(remote.out, deep=True).problems == ()
    for split in ("train", "eval"):
        ours, theirs = ClipReader(remote.out, split), ClipReader(finished.out, split)
        assert ours.keys == theirs.keys
        for number in (0, len(ours) - 1):
            here, there = ours.read(number, 3, 8.0), theirs.read(number, 3, 8.0)
            assert here.meta == there.meta
            for name in ("frames_THWC", "times_s", "state", "actions"):
                np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


STAGES = ("index", "encode", "pack", "finish")


def at_stage(wanted: str, act: Callable[[], None]) -> Callable[[str, int, int, str], None]:
    """A progress that calls `act` once, when that stage begins."""
    told: list[str] = []

    def progress(stage: str, done: int, total: int, note: str) -> None:
        is_there = (stage, done) == (wanted, 0) or (wanted == "finish" and stage == "pack" and done == total)
        if is_there and not told:
            told.append(stage)
            act()

    return progress


@pytest.mark.parametrize("fault", ["503", "reset", "short body", "lost answer", "hang"])
def test_a_store_that_stumbles_costs_no_byte(
    remote: DataConfig, bucket: str, out: str, faults: FaultProxy, fault: str
) -> None:
    config = at_both_ends(bucket, out)
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
    assert contents(out) == contents(remote.out)
    assert unfinished_uploads(Storage(out)) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_goes_away_ends_the_job_and_the_same_command_goes_on(
    remote: DataConfig, bucket: str, out: str, faults: FaultProxy, impatient: None, stage: str
) -> None:
    config = at_both_ends(bucket, out)
    with pytest.raises(StorageError, match=r"s3://.*(503|SlowDown).*the same command goes on") as told:
        shard(config, at_stage(stage, lambda: faults.inject("503", "*", "*", times=None)))
    assert told.value.exit_code == 3
    assert SECRET not in str(told.value)
    faults.heal()
    assert not Storage(out).exists("dataset.json")
    assert is_whole(out)
    shard(config, quiet)
    assert contents(out) == contents(remote.out)
    assert unfinished_uploads(Storage(out)) == []


@pytest.mark.parametrize("stage", ["index", "encode"])
@pytest.mark.parametrize("fault", ["503", "403"])
def test_sources_whose_store_is_away_are_no_dead_letters(
    remote: DataConfig,
    bucket: str,
    make_config: MakeConfig,
    faults: FaultProxy,
    impatient: None,
    stage: str,
    fault: str,
) -> None:
    """403: as when credentials run out in mid-run."""
    config = make_config(f"{bucket}/videos", max_failed_fraction=1.0)
    away = at_stage(stage, lambda: faults.inject(fault, "*", "*", times=None))
    with pytest.raises(RefusedError if fault == "403" else StorageError, match=f"{bucket}/videos"):
        shard(config, away)
    faults.heal()
    assert not Path(config.out, "dataset.json").exists()
    assert not shard(config, quiet).dead_letters
    assert shards(config.out) == shards(remote.out)


def test_an_output_that_does_not_take_what_is_written_ends_the_job_at_once(
    videos: Path, out: str, faults: FaultProxy
) -> None:
    config = tiny_config(videos, Path("out"), max_failed_fraction=1.0).model_copy(update={"out": out})
    seen: set[str] = set()
    faults.inject("403", "PUT", "*", times=None)
    with pytest.raises(RefusedError, match=f"{out}/parts/begun: the store refused access"):
        shard(config, lambda stage, *_: seen.add(stage))
    faults.heal()
    with pytest.raises(RefusedError, match=f"{out}/parts/part-.*: the store refused access"):
        shard(config, at_stage("encode", lambda: faults.inject("403", "*", "*", times=None)))
    faults.heal()
    assert not Storage(out).exists("dataset.json")
    assert not json_lines(out)


def json_lines(root: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Storage(root).read("dead_letters.jsonl").splitlines()]


def test_what_is_wrong_with_one_object_costs_that_object(
    finished: DataConfig, videos: Path, out: str, make_config: MakeConfig, faults: FaultProxy, impatient: None
) -> None:
    source = Storage(upload(videos, f"{out}/videos"))
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
    remote: DataConfig, bucket: str, out: str, faults: FaultProxy, impatient: None
) -> None:
    """In a part that was finished with them as failures, before a manifest was written of it."""
    config = at_both_ends(bucket, out, max_failed_fraction=0.5)

    def harm() -> None:
        faults.inject("503", "GET", times=None, key="video-000003.mp4")
        faults.inject("503", "PUT", times=None, key="manifest.parquet")

    with pytest.raises(StorageError, match=r"manifest\.parquet"):
        shard(config, at_stage("encode", harm))
    assert {letter["error_class"] for letter in json_lines(out)} == {"StorageError"}
    assert any(name.endswith(".clips.parquet") for name in Storage(out).names("parts"))
    faults.heal()
    assert not shard(at_both_ends(bucket, out), quiet).dead_letters  # the card names the limit
    assert contents(out) == contents(remote.out)


def test_a_full_scratch_disk_costs_no_video(
    remote: DataConfig, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = list_sources((f"{bucket}/videos",)).files
    found, _ = read_parquet(Storage(remote.out), "videos.parquet", Video)
    video = next(video for video in found if video.uri == files[0].uri)
    (plan, *_) = plan_parts(cut_video(video, files[0].spans, remote), {video.video_id: video}, remote, {})
    monkeypatch.setattr(objects.Objects, "download", full)
    with pytest.raises(DataError, match="No space left on device: make room there"):
        inspect_safely(files[0], remote.inspect)
    with pytest.raises(DataError, match="No space left on device: make room there"):
        list(build_part(plan, {video.video_id: (files[0], video)}, remote, f"{bucket}/nothing"))


NUM_OBJECTS = 60


def test_requests_do_not_grow_where_they_need_not(
    videos: Path, bucket: str, out: str, store: FaultProxy
) -> None:
    source = Storage(f"{bucket}/many")
    for number in range(NUM_OBJECTS):
        source.publish(f"{number:02d}.mp4", (videos / f"video-{number % 5:06d}.mp4").read_bytes())
    config = tiny_config(
        source.root, Path("out"), cut={"length_s": 1.25, "stride_s": 1.25}, filters={"max_distance": None}
    )
    config = config.model_copy(update={"out": out})
    store.counts.clear()
    store.paths.clear()
    looked: list[int] = []
    listing = at_stage("index", lambda: looked.append(len(store.paths)))
    info = shard(config, listing).info
    assert sum(info.num_clips.values()) == 2 * NUM_OBJECTS
    assert sum(info.num_shards.values()) > 10
    assert store.counts["GET", "list"] <= 12
    assert looked[0] <= 6  # a page of the listing, and what an earlier run left
    of_sources = [method for method, path in store.paths if "/many/" in path]
    assert set(of_sources) == {"GET"}
    assert len(of_sources) == 2 * NUM_OBJECTS  # once to look at, once to encode


def test_a_deep_look_reads_each_shard_once(remote: DataConfig, store: FaultProxy) -> None:
    store.paths.clear()
    report = verify(remote.out, deep=True)
    assert report.num_frames_decoded == 25 * 4
    assert sum(".tar" in path for _, path in store.paths) == len(report.info.shards)


@pytest.mark.cluster
@pytest.mark.parametrize("end", ["sources", "output"])
@pytest.mark.parametrize(("key", "secret"), [(KEY, "a-wrong-secret"), ("nobody:here", SECRET)])
def test_refused_credentials_are_a_sentence_before_any_work(
    videos: Path,
    swift_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    make_config: MakeConfig,
    end: str,
    key: str,
    secret: str,
) -> None:
    use_s3(monkeypatch, swift_server.endpoint, KEY, SECRET)
    address = make_bucket()
    use_s3(monkeypatch, swift_server.endpoint, key, secret)
    config = make_config(f"{address}/videos" if end == "sources" else videos)
    config = config.model_copy(update={"out": f"{address}/out"}) if end == "output" else config
    began: list[str] = []
    with pytest.raises(RefusedError, match=f"{address}.*AWS_ACCESS_KEY_ID.*AWS_ENDPOINT_URL") as told:
        shard(config, lambda stage, *_: began.append(stage))
    assert not began
    assert told.value.exit_code == 3
    assert "\n" not in str(told.value)
    assert secret not in str(told.value)
    assert SECRET not in str(told.value)
    assert not Path(config.out).exists()
    forget_s3()
