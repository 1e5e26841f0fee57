"""A store that is killed while a job writes to it: nothing half-written shows, and nothing is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import StorageError
from data_pipeline.s3 import objects, requests
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from tests.data_pipeline.conftest import finished, ray_session, tiny_config, videos  # noqa: F401  fixtures
from tests.data_pipeline.films import quiet
from tests.data_pipeline.s3_jobs import contents, is_whole, shards, upload
from tests.data_pipeline.test_dataset import start
from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import make_bucket, unfinished_uploads
from tests.servers.workers import take_along

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def swift_proxy(swift_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """It reaches the workers too, and shards go in parts."""
    monkeypatch.setattr(objects, "PART_BYTES", 32 << 10)
    take_along(monkeypatch)
    return swift_proxy


@pytest.mark.cluster
@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "stays away"])
@pytest.mark.parametrize("stage", ["index", "encode", "pack"])
def test_a_store_killed_in_mid_run_leaves_nothing_half_written(
    finished: DataConfig,  # noqa: F811
    videos: Path,  # noqa: F811
    swift_server: Server,
    swift_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    comes_back: bool,
) -> None:
    """In the middle of an upload, save for the look at the sources."""
    if not comes_back:
        monkeypatch.setattr(requests, "RETRY_FOR_S", 2.0)
        take_along(monkeypatch)
    bucket = make_bucket()
    source, out = upload(videos, f"{bucket}/videos"), f"{bucket}/out"
    config = tiny_config(source, Path("out")).model_copy(update={"out": out})
    reached, killed = threading.Event(), threading.Event()
    lock = threading.Lock()
    before = swift_proxy.counts["PUT", "part"]

    def kill(method: str, kind: str) -> None:
        wanted = ("GET", "object") if stage == "index" else ("PUT", "part")
        with lock:
            is_amid = stage == "index" or swift_proxy.counts["PUT", "part"] > before
            if reached.is_set() and not killed.is_set() and (method, kind) == wanted and is_amid:
                swift_server.kill()
                killed.set()

    def progress(at: str, done: int, total: int, note: str) -> None:
        nonlocal before
        if at == stage and not reached.is_set():
            before = swift_proxy.counts["PUT", "part"]
            reached.set()

    swift_proxy.before = kill
    with ThreadPoolExecutor(1) as pool:  # a server dies with the thread that started it
        job = pool.submit(shard, config, progress)
        assert killed.wait(100)
        if comes_back:
            swift_server.start()
            assert not job.result().dead_letters
        else:
            with pytest.raises(StorageError, match=f"{bucket}/.*does not answer.*the same command goes on"):
                job.result()
            swift_server.start()
    if not comes_back:
        assert not Storage(out).exists("dataset.json")
        assert is_whole(out)
        assert not shard(config, quiet).dead_letters
    assert shards(out) == shards(finished.out)
    assert unfinished_uploads(Storage(out)) == []
    assert not Storage(out).names("parts")
    assert verify(out, deep=True).problems == ()


@pytest.mark.cluster
def test_workers_have_what_was_exported_before_the_command(
    finished: DataConfig,  # noqa: F811
    videos: Path,  # noqa: F811
    swift_bucket: str,
) -> None:
    """A Ray of its own, as from the command line; Swift refuses those that lack the credentials."""
    source = upload(videos, f"{swift_bucket}/videos")
    config = tiny_config(source, Path("out")).model_copy(update={"out": f"{swift_bucket}/out"})
    process = start(config)
    process.communicate(timeout=200)
    assert process.returncode == 0
    ours, theirs = contents(config.out), contents(finished.out)
    assert ours.keys() == theirs.keys()
    assert shards(config.out) == shards(finished.out)
