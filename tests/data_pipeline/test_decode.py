from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import DecoderName, inspect, open_video
from data_pipeline.encode import encode_frames
from data_pipeline.errors import DataError
from tests.data_pipeline.numbered import Forgetful, same_scheduling

Draw = Callable[..., np.ndarray]

BOTH: tuple[DecoderName, ...] = ("decord", "pyav")
SHARED_VIDEOS = Path(__file__).parents[3] / "shared" / "videos"


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    times: list[int] | None = None,
    rotation: int = 0,
    **options: str,
) -> Path:
    """A video of one frame every 1/10 s, or at `times` in hundredths of a second."""
    with same_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 100)
        stream.options = options
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = Fraction(1, 100)
            frame.pts = times[number] if times else number * 10
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_both_decoders_give_the_same_frames_for_the_same_times(videos: Path) -> None:
    path = videos / "video-000001.mp4"
    picks = [39, 0, 7, 7, 20]
    with open_video(path, "decord") as one, open_video(path, "pyav") as two:
        np.testing.assert_allclose(one.timestamps_s, two.timestamps_s, atol=1e-6)
        np.testing.assert_array_equal(one.frames(picks), two.frames(picks))
        assert (one.height, one.width) == (two.height, two.width) == (64, 64)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied_by_both(moving_bar: Draw, tmp_path: Path, rotation: int) -> None:
    path = write(tmp_path / "turned.mp4", moving_bar(6, 96, 64), rotation=rotation)
    with open_video(path, "decord") as one, open_video(path, "pyav") as two:
        assert (one.height, one.width) == (two.height, two.width)
        assert (two.height, two.width) == ((64, 96) if rotation == 180 else (96, 64))
        np.testing.assert_array_equal(one.frames([0, 5]), two.frames([0, 5]))
    facts = inspect(path)
    assert (facts.height, facts.width) == (two.height, two.width)


def test_a_variable_rate_keeps_its_times_in_both(moving_bar: Draw, tmp_path: Path) -> None:
    times = [0, 10, 15, 60, 61, 100]
    path = write(tmp_path / "vfr.mp4", moving_bar(6), times=times)
    for name in BOTH:
        with open_video(path, name) as video:
            np.testing.assert_allclose(video.timestamps_s, np.array(times) / 100, atol=1e-6)
    assert inspect(path).is_vfr


@pytest.mark.parametrize(
    "options", [{"bf": "3"}, {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}]
)
def test_any_order_of_reading_gives_the_frames_of_reading_through(
    moving_bar: Draw, tmp_path: Path, options: dict[str, str]
) -> None:
    path = write(tmp_path / "b.mp4", moving_bar(60), g="12", **options)
    with open_video(path, "pyav") as video:
        video._recent = Forgetful()  # type: ignore[attr-defined]
        through = video.frames(range(60))
        for pick in np.random.default_rng(0).permutation(60):
            np.testing.assert_array_equal(video.frames([pick])[0], through[pick])


@pytest.mark.parametrize(
    ("codec", "ending"), [("libsvtav1", "mkv"), ("libvpx-vp9", "webm"), ("mpeg4", "avi")]
)
def test_codecs_and_containers_that_decord_cannot_read_are_read(
    moving_bar: Draw, tmp_path: Path, codec: str, ending: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV cannot write {codec}")
    frames = moving_bar(12, 128, 96)
    path = write(tmp_path / f"other.{ending}", frames, codec, **({"bf": "2"} if codec == "mpeg4" else {}))
    with open_video(path) as video:
        found = video.frames(range(12))
        np.testing.assert_allclose(video.timestamps_s, np.arange(12) / 10, atol=1e-3)
    bars = [int(frame[48, :, 0].astype(int).argmax()) for frame in found]
    assert all(3 * k - 4 <= bar <= 3 * k + 8 for k, bar in enumerate(bars)), bars


def test_a_clip_in_memory_is_read_by_both(clip_bytes: bytes) -> None:
    with open_video(clip_bytes, "decord") as one, open_video(clip_bytes, "pyav") as two:
        assert len(one.timestamps_s) == 16
        np.testing.assert_array_equal(one.frames(range(16)), two.frames(range(16)))


def test_bytes_without_decord_fall_back_to_pyav(clip_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "decord", None)
    with open_video(clip_bytes) as video:
        assert video.frames([3]).shape == (1, 48, 64, 3)
    with pytest.raises(DataError, match="not installed"):
        open_video(clip_bytes, "decord")


def test_frames_too_narrow_for_decord_are_read_all_the_same(moving_bar: Draw) -> None:
    data = encode_frames([moving_bar(4, 48, 64)], 48, 64, 8.0, gop=16, crf=18, preset="veryfast")
    with pytest.raises(DataError):
        open_video(data, "decord")
    with open_video(data) as video:
        assert video.frames(range(4)).shape == (4, 64, 48, 3)


def test_a_damaged_frame_is_an_error_and_the_next_group_is_not(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (48, 48, 64, 3), np.uint8)
    path = write(tmp_path / "hurt.mp4", frames, g="12", bf="0")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) * 3 // 8  # in the second group of four
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    with open_video(path) as video:
        video.frames([0, 11])
        with pytest.raises(DataError, match=r"damaged|does not decode"):
            video.frames(range(12, 24))
        video.frames([36, 47])


def test_indices_outside_are_refused(clip_bytes: bytes) -> None:
    for name in BOTH:
        with open_video(clip_bytes, name) as video, pytest.raises(DataError):
            video.frames([16])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero.mp4", "the file is empty"),
        ("random.mp4", "no video container is recognised"),
        ("page.mp4", "an HTML page"),
        ("sound.mp4", "no video, only audio"),
        ("moov-last.mp4", r"index \(moov\) is missing"),
        ("gone.mp4", "cannot be opened"),
    ],
)
def test_each_bad_file_has_a_true_reason(bad_files: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        inspect(bad_files / name)


def test_facts_come_from_the_headers(videos: Path) -> None:
    facts = inspect(videos / "video-000000.mp4")
    assert (facts.codec, facts.container, facts.num_frames, facts.is_vfr) == ("h264", "mov", 40, False)
    assert (facts.average_fps, facts.duration_s, facts.has_audio) == (16.0, 2.5, False)


@pytest.mark.skipif(not SHARED_VIDEOS.is_dir(), reason="the folder of real videos is not beside the project")
def test_any_order_of_reading_real_videos_gives_the_frames_of_reading_through() -> None:
    """Every second to fifth frame too, so that pictures between those asked for are not decoded."""
    for path in sorted(SHARED_VIDEOS.glob("*.[ma][pokv][4viv]")):
        with open_video(path, "pyav", size=(64, 48)) as video:
            count = min(len(video.timestamps_s), 100)
            if path.name == "decord_corrupted.mp4":
                with pytest.raises(DataError, match="damaged"):
                    video.frames(range(count))
                continue
            through = video.frames(range(count))
        for step in (2, 5):
            with open_video(path, "pyav", size=(64, 48)) as video:
                np.testing.assert_array_equal(video.frames(range(0, count, step)), through[::step])
        with open_video(path, "pyav", size=(64, 48)) as video:
            video._recent = Forgetful()  # type: ignore[attr-defined]
            for pick in np.random.default_rng(0).permutation(count)[:10]:
                np.testing.assert_array_equal(video.frames([pick])[0], through[pick], err_msg=path.name)


@pytest.mark.skipif(not SHARED_VIDEOS.is_dir(), reason="the folder of real videos is not beside the project")
def test_real_videos_are_read_alike_by_both_where_both_can() -> None:
    for name in ("cc_test_clip_10s.mp4", "decord_video_90.mov", "pancake_decord.mkv", "tc_nasa_13013.mp4"):
        with (
            open_video(SHARED_VIDEOS / name, "decord") as one,
            open_video(SHARED_VIDEOS / name, "pyav") as two,
        ):
            np.testing.assert_allclose(one.timestamps_s, two.timestamps_s, atol=1e-3)
            picks = [len(one.timestamps_s) // 2, 0, len(one.timestamps_s) - 1]
            np.testing.assert_array_equal(one.frames(picks), two.frames(picks))
