"""Shared in this folder: small real videos, rendered once; one Ray; data sets and large files on S3."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, RayConfig
from data_pipeline.encode import encode_frames
from data_pipeline.synthetic import Look, render_videos
from tests.data_pipeline.s3_jobs import upload
from tests.servers.faults import FaultProxy
from tests.servers.s3 import forget_s3, make_bucket, use_s3

LOOK = Look(size=64, fps=16.0, duration_s=2.5)
NUM_VIDEOS = 5
SMALLEST_PART_BYTES = 5 << 20  # that stores take


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five rendered videos of 2.5 s with their sidecars; read only."""
    folder = tmp_path_factory.mktemp("videos")
    render_videos(folder, NUM_VIDEOS, seed=3, workers=1, look=LOOK)
    return folder


@pytest.fixture
def own_videos(videos: Path, tmp_path: Path) -> Path:
    """A copy of the videos that a test may change."""
    return shutil.copytree(videos, tmp_path / "set")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with two workers; `cluster` inside the code under test joins it."""
    from data_pipeline.execute import cluster

    with cluster(RayConfig(workers=2)):
        yield


def tiny_config(source: Path | str, out: Path, **changes: object) -> DataConfig:
    """A config of half-second clips of 4 frames, packed into several shards."""
    plain: dict[str, object] = {
        "name": "tiny",
        "out": str(out),
        "sources": [str(source)],
        "cut": {"length_s": 0.5, "stride_s": 0.5},
        "encode": {"short_side": 32, "fps": 8.0},
        "shards": {"target_bytes": 64 * 1024},
        "split": {"eval_fraction": 0.25},
        "inspect": {"timeout_s": 20.0},
        "ray": {"workers": 2},
    }
    return DataConfig.model_validate(plain | changes)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """`tiny_config` of a source, written below the test's own folder."""

    def make(source: Path | str, out: str = "out", **changes: object) -> DataConfig:
        return tiny_config(source, tmp_path / out, **changes)

    return make


@pytest.fixture(scope="session")
def finished(videos: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A data set made without interruption; read only."""
    from data_pipeline.dataset import shard

    config = tiny_config(videos, tmp_path_factory.mktemp("finished") / "out")
    shard(config, lambda *_: None)
    return config


@pytest.fixture
def bad_files(tmp_path: Path, videos: Path) -> Path:
    """A folder of one good video and the files people have by mistake; good.mp4 alone is whole."""
    from tests.data_pipeline.hostile import write_sound

    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (videos / "video-000000.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "page.mp4").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    (folder / "moov-last.mp4").write_bytes(good[: len(good) // 2])
    (folder / "notes.txt").write_text("not a video")
    write_sound(folder / "sound.mp4")
    return folder


def draw_moving_bar(num_frames: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Frames (n, H, W, 3) that all differ: a bright bar moves to the right over a ramp."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:] = np.linspace(20, 120, height, dtype=np.uint8)[None, :, None, None]
    for k in range(num_frames):
        frames[k, :, (3 * k) % width : (3 * k) % width + 6] = (230, 40, 60)
    return frames


@pytest.fixture
def moving_bar() -> Callable[..., np.ndarray]:
    """The function that draws (num_frames, width, height) such frames."""
    return draw_moving_bar


@pytest.fixture(scope="session")
def look() -> Look:
    """Of the rendered videos."""
    return LOOK


@pytest.fixture
def clip_bytes() -> bytes:
    """An encoded clip of 16 frames at 8 fps."""
    return encode_frames([draw_moving_bar(16)], 64, 48, 8.0, gop=16, crf=18, preset="veryfast")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts of the smallest size that stores take."""
    monkeypatch.setattr("data_pipeline.s3.objects.PART_BYTES", SMALLEST_PART_BYTES)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three such parts."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(2 * SMALLEST_PART_BYTES + (1 << 20)))
    return path


@pytest.fixture(scope="module")
def s3_proxy(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy before moto's server, with the settings to reach it from here and from workers.

    A store that hangs is found out in two seconds, and shards go in parts.
    """
    from data_pipeline.s3 import objects, requests
    from tests.servers.workers import take_along

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


@pytest.fixture(scope="module")
def videos_bucket(s3_proxy: FaultProxy, videos: Path) -> str:
    """A bucket that holds the videos below videos/."""
    address = make_bucket()
    upload(videos, f"{address}/videos")
    return address


@pytest.fixture
def s3_out(request: pytest.FixtureRequest, videos_bucket: str) -> str:
    """An empty prefix for one test."""
    return f"{videos_bucket}/{re.sub('[^a-z0-9]+', '-', request.node.name)}"


def at_both_ends(bucket: str, out: str, **changes: object) -> DataConfig:
    """`tiny_config` of the videos in `videos_bucket`, written to a prefix."""
    return tiny_config(f"{bucket}/videos", Path("out"), **changes).model_copy(update={"out": out})


@pytest.fixture(scope="module")
def s3_finished(videos_bucket: str, ray_session: None) -> DataConfig:
    """A data set with S3 at both ends; read only."""
    from data_pipeline.dataset import shard

    config = at_both_ends(videos_bucket, f"{videos_bucket}/both")
    shard(config, lambda *_: None)
    return config
