import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import open_video
from data_pipeline.errors import DataError
from data_pipeline.scenes import find_cuts
from data_pipeline.synthetic import generator, render_frames, render_texture, simulate

SHARED_VIDEOS = Path(__file__).parents[3] / "shared" / "videos"
TINTS = ((1.0, 0.3, 0.2), (0.2, 1.0, 0.4), (0.3, 0.4, 1.0), (0.9, 0.9, 0.2), (1.2, 1.2, 1.2))


def scene(index: int, num_frames: int) -> np.ndarray:
    """Frames of one tinted world with a moving object, (num_frames, 96, 96, 3)."""
    rng = generator(7, index)
    states, _ = simulate(rng, num_frames)
    frames = render_frames(states, render_texture(rng, 192), 96)
    return np.clip(frames * np.array(TINTS[index % len(TINTS)]), 0, 255).astype(np.uint8)


def write(path: Path, frames: np.ndarray, times_ms: Sequence[int]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for time, image in zip(times_ms, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cuts(path: Path, threshold: float = 27.0) -> list[float]:
    with open_video(path) as video:
        return [item for item in find_cuts(video, threshold) if item is not None]


def test_cuts_are_found_where_scenes_were_joined(tmp_path: Path) -> None:
    frames = np.concatenate([scene(k, n) for k, n in enumerate((30, 50, 17, 40))])
    path = write(tmp_path / "film.mp4", frames, [40 * k for k in range(len(frames))])
    assert cuts(path) == [1.2, 3.2, 3.88]


def test_a_variable_rate_gives_the_times_of_its_own_clock(tmp_path: Path) -> None:
    frames = np.concatenate([scene(k, 20) for k in range(3)])
    times = np.cumsum([0, *np.random.default_rng(0).integers(15, 120, len(frames) - 1)]).tolist()
    path = write(tmp_path / "vfr.mp4", frames, times)
    assert cuts(path) == [times[20] / 1000, times[40] / 1000]


def test_cuts_close_to_the_start_and_to_each_other_are_not_lost(tmp_path: Path) -> None:
    frames = np.concatenate([scene(k, n) for k, n in enumerate((5, 30, 4, 30))])
    path = write(tmp_path / "quick.mp4", frames, [40 * k for k in range(len(frames))])
    assert cuts(path) == [0.2, 1.4, 1.56]


def test_a_dissolve_is_no_cut_and_neither_is_motion(tmp_path: Path) -> None:
    share = np.clip((np.arange(60) - 10) / 40, 0, 1)[:, None, None, None]
    frames = (scene(0, 60) * (1 - share) + scene(1, 60) * share).astype(np.uint8)
    path = write(tmp_path / "dissolve.mp4", frames, [40 * k for k in range(60)])
    assert cuts(path) == []
    assert cuts(path, threshold=0.1) != []


def test_every_chunk_shows_that_the_search_is_alive_and_few_frames_are_asked_for(tmp_path: Path) -> None:
    frames = np.concatenate([scene(k, 30) for k in range(2)])
    path = write(tmp_path / "film.mp4", frames, [40 * k for k in range(60)])
    with open_video(path) as video:
        asked: list[int] = []
        inner = video.frames

        def frames_of(indices: Sequence[int]) -> np.ndarray:
            asked.append(len(indices))
            return inner(indices)

        video.frames = frames_of  # type: ignore[method-assign, assignment]
        items = list(find_cuts(video, 27.0))
    assert items == [None, 1.2, None, None, None]
    assert asked == [16, 16, 16, 12]


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "film.mp4", scene(0, 2), [0, 40])
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(DataError, match=r"pip install foreframe\[scenes\]"):
        cuts(path)


def test_pyscenedetect_reading_the_file_itself_finds_the_same(tmp_path: Path) -> None:
    scenedetect = pytest.importorskip("scenedetect")
    frames = np.concatenate([scene(k, 40) for k in range(4)])
    paths = [write(tmp_path / "film.mp4", frames, [40 * k for k in range(len(frames))])]
    paths += [path for path in [SHARED_VIDEOS / "cc_test_clip_10s.mp4"] if path.exists()]
    for path in paths:
        found = scenedetect.detect(str(path), scenedetect.ContentDetector(min_scene_len=0))
        assert cuts(path) == pytest.approx([start.seconds for start, _ in found[1:]], abs=2e-3)
