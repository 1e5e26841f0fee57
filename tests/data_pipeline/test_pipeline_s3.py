"""The whole pipeline with S3 at one end, the other, or both: the bytes of a local run, in few requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import RefusedError
from data_pipeline.format import read_info
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from pretrain.data.reader import ClipReader
from tests.data_pipeline.conftest import tiny_config
from tests.data_pipeline.films import quiet
from tests.data_pipeline.s3_jobs import at_stage, contents, rows, shards
from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import forget_s3, make_bucket, unfinished_uploads, use_s3
from tests.servers.swift import KEY, SECRET

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session", "s3_proxy")


def test_a_prefix_gives_the_shards_that_a_folder_gives(
    finished: DataConfig, videos_bucket: str, make_config: MakeConfig
) -> None:
    config = make_config(f"{videos_bucket}/videos")
    outcome = shard(config, quiet)
    assert shards(config.out) == shards(finished.out)
    local = read_info(Storage(finished.out))
    assert dataclasses.replace(outcome.info, manifest_sha256=local.manifest_sha256) == local
    assert rows(config) == rows(finished)
    assert {clip.uri.rpartition("/")[0] for clip in outcome.clips} == {f"{videos_bucket}/videos"}
    etags = {entry.name: entry.etag for entry in Storage(f"{videos_bucket}/videos").walk()}
    for row in (*(v for v in outcome.videos if v.status == "usable"), *outcome.clips):
        assert row.etag == etags[row.uri.rpartition("/")[2]] != ""
    assert not shard(config, quiet).is_new


@pytest.mark.parametrize("where", ["the list on S3", "the list here, its uris whole", "a root on S3"])
def test_a_list_of_objects_gives_what_a_list_of_files_gives(
    own_videos: Path, videos_bucket: str, tmp_path: Path, make_config: MakeConfig, where: str
) -> None:
    lines = ["video-000000.mp4,0.5,1.5,jump,eval", "video-000003.mp4,,,run,train", "gone.mp4,,,run,train"]
    head = "uri,start_s,end_s,label,split"
    (own_videos / "list.csv").write_text("\n".join([head, *lines]))
    changes = {"cut": {"kind": "spans", "length_s": 0.5}, "max_failed_fraction": 0.5}
    local = make_config(own_videos / "list.csv", "local", **changes)
    shard(local, quiet)
    if where == "the list on S3":
        Storage(f"{videos_bucket}/videos").publish("list.csv", (own_videos / "list.csv").read_bytes())
        config = make_config(f"{videos_bucket}/videos/list.csv", **changes)
    else:
        whole = [f"{videos_bucket}/videos/{line}" if where != "a root on S3" else line for line in lines]
        (tmp_path / "list.csv").write_text("\n".join([head, *whole]))
        config = make_config(tmp_path / "list.csv", root=f"{videos_bucket}/videos", **changes)
    outcome = shard(config, quiet)
    assert shards(config.out) == shards(local.out)
    assert rows(config) == rows(local)
    (letter,) = outcome.dead_letters
    assert letter.uri == f"{videos_bucket}/videos/gone.mp4"
    assert "list.csv line 4: gone.mp4 does not exist in" in letter.reason


def test_an_output_on_s3_holds_what_a_folder_holds(
    finished: DataConfig, videos: Path, s3_out: str, s3_proxy: FaultProxy
) -> None:
    config = tiny_config(videos, Path("out")).model_copy(update={"out": s3_out})
    before = s3_proxy.counts["PUT", "part"]
    outcome = shard(config, quiet)
    assert s3_proxy.counts["PUT", "part"] > before
    assert contents(s3_out) == contents(finished.out)
    assert unfinished_uploads(Storage(s3_out)) == []
    assert verify(s3_out, deep=True).problems == ()
    assert len(ClipReader(s3_out, "train")) == outcome.info.num_clips["train"]
    again = shard(config, quiet)
    assert not again.is_new
    assert contents(s3_out) == contents(finished.out)


def test_the_trainer_reads_from_s3_what_it_reads_from_a_folder(
    finished: DataConfig, s3_finished: DataConfig
) -> None:
    assert shards(s3_finished.out) == shards(finished.out)
    assert verify(s3_finished.out, deep=True).problems == ()
    for split in ("train", "eval"):
        ours, theirs = ClipReader(s3_finished.out, split), ClipReader(finished.out, split)
        assert [ours.key(n) for n in range(len(ours))] == [theirs.key(n) for n in range(len(theirs))]
        for number in (0, len(ours) - 1):
            here, there = ours.read(number, 3, 8.0), theirs.read(number, 3, 8.0)
            assert here.meta == there.meta
            for name in ("frames_THWC", "times_s", "state", "actions"):
                np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


NUM_OBJECTS = 60


def test_requests_do_not_grow_where_they_need_not(
    videos: Path, videos_bucket: str, s3_out: str, s3_proxy: FaultProxy
) -> None:
    source = Storage(f"{videos_bucket}/many")
    for number in range(NUM_OBJECTS):
        source.publish(f"{number:02d}.mp4", (videos / f"video-{number % 5:06d}.mp4").read_bytes())
    config = tiny_config(
        source.root, Path("out"), cut={"length_s": 1.25, "stride_s": 1.25}, filters={"max_distance": None}
    )
    config = config.model_copy(update={"out": s3_out})
    s3_proxy.counts.clear()
    s3_proxy.paths.clear()
    looked: list[int] = []
    listing = at_stage("index", lambda: looked.append(len(s3_proxy.paths)))
    info = shard(config, listing).info
    assert sum(info.num_clips.values()) == 2 * NUM_OBJECTS
    assert sum(info.num_shards.values()) > 10
    assert s3_proxy.counts["GET", "list"] <= 12
    assert looked[0] <= 6  # a page of the listing, and what an earlier run left
    of_sources = [method for method, path in s3_proxy.paths if "/many/" in path]
    assert set(of_sources) == {"GET"}
    assert len(of_sources) == 2 * NUM_OBJECTS  # once to look at, once to encode


def test_a_deep_look_reads_each_shard_once(s3_finished: DataConfig, s3_proxy: FaultProxy) -> None:
    s3_proxy.paths.clear()
    report = verify(s3_finished.out, deep=True)
    assert report.num_frames_decoded == 25 * 4
    assert sum(".tar" in path for _, path in s3_proxy.paths) == len(report.info.shards)


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
