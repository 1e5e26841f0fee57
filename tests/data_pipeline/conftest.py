"""For all tests of this folder: small real videos, rendered once; one Ray; a file that is sent in parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, RayConfig
from data_pipeline.encode import encode_frames
from data_pipeline.s3 import objects
from data_pipeline.synthetic import Look, render_videos

LOOK = Look(size=64, fps=16.0, duration_s=2.5)
NUM_VIDEOS = 5
SMALLEST_PART_BYTES = 5 << 20  # that stores take


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five rendered videos of 2.5 s with their sidecars; read only."""
    folder = tmp_path_factory.mktemp("videos")
    render_videos(folder, NUM_VIDEOS, seed=3, workers=1, look=LOOK)
    return folder


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
    import av

    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (videos / "video-000000.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "page.mp4").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    (folder / "moov-last.mp4").write_bytes(good[: len(good) // 2])
    (folder / "notes.txt").write_text("not a video")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
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
    monkeypatch.setattr(objects, "PART_BYTES", SMALLEST_PART_BYTES)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three such parts."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(2 * SMALLEST_PART_BYTES + (1 << 20)))
    return path
