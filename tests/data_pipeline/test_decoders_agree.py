"""Every decoder gives the frame that belongs to each time, or refuses; the frames' own numbers judge."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import DecoderName, inspect, open_video
from data_pipeline.decode.with_pyav import PyAvDecoder
from data_pipeline.errors import DataError
from tests.data_pipeline.numbered import Forgetful, draw_number, numbered_frames, read_number, write_video

NUM_FRAMES = 30
VARIED_MS = np.cumsum([0] + [(40, 40, 200, 7, 100, 1000)[k % 6] for k in range(NUM_FRAMES - 1)]).tolist()
OPEN_GOP = "open-gop=1:keyint=10:min-keyint=10:b-pyramid=normal"

Options = dict[str, object]
# By kind: the file's name and how it is written.
KINDS: dict[str, tuple[str, Options]] = {
    "h264 with B frames": ("a.mp4", {"bf": "3", "g": "10"}),
    "h264, open groups": ("a.mp4", {"bf": "3", "g": "10", "x264-params": OPEN_GOP}),
    "h264 in Matroska": ("a.mkv", {"bf": "3", "g": "10"}),
    "h264 in MPEG-TS": ("a.ts", {"bf": "2", "g": "10"}),
    "MPEG-4 in AVI": ("a.avi", {"codec": "mpeg4"}),
    "MPEG-4 with B frames in AVI": ("a.avi", {"codec": "mpeg4", "bf": "2"}),
    "VP9": ("a.webm", {"codec": "libvpx-vp9", "g": "10"}),
    "AV1": ("a.mkv", {"codec": "libsvtav1", "preset": "12", "svtav1-params": "keyint=10"}),
    "HEVC": ("a.mp4", {"codec": "libx265", "x265-params": "keyint=10:log-level=none"}),
    "HEVC, open groups": (
        "a.mkv",
        {"codec": "libx265", "x265-params": "keyint=10:log-level=none:open-gop=1"},
    ),
    "10 bit": ("a.mp4", {"pixel_format": "yuv420p10le"}),
    "4:4:4": ("a.mp4", {"pixel_format": "yuv444p"}),
    "variable rate": ("a.mp4", {"times_ms": VARIED_MS, "bf": "3"}),
    "variable rate in Matroska": ("a.mkv", {"times_ms": VARIED_MS, "bf": "3"}),
    "turned by 90": ("a.mp4", {"rotation": 90}),
    "turned by 180": ("a.mp4", {"rotation": 180}),
    "turned by 270": ("a.mp4", {"rotation": 270}),
    "odd size": ("a.mp4", {"pixel_format": "yuv444p", "size": (97, 65)}),
    "wide pixels": ("a.mp4", {"pixel_aspect": Fraction(4, 3)}),
    "late start": ("a.mp4", {"times_ms": [5000 + 100 * k for k in range(NUM_FRAMES)], "bf": "2"}),
    "late start in Matroska": ("a.mkv", {"times_ms": [5000 + 100 * k for k in range(NUM_FRAMES)], "bf": "2"}),
    "edit list": (
        "a.mp4",
        {
            "times_ms": [100 * k - 400 for k in range(NUM_FRAMES)],
            "bf": "2",
            "g": "10",
            "mux": {"avoid_negative_ts": "disabled", "use_editlist": "1"},
        },
    ),
    "narrow": ("a.mp4", {"size": (48, 64)}),
    "no duration": ("a.webm", {"codec": "libvpx-vp9", "mux": {"live": "1"}}),
}
HIDDEN = {"edit list": 4}  # frames before the start that the list sets
# What a decoder refuses, with the reason; `auto` and PyAV read all of them.
REFUSED: dict[tuple[str, str], str] = {
    ("decord", "AV1"): "decord cannot read it",
    ("decord", "narrow"): "decord cannot read it",
    ("decord", "MPEG-4 with B frames in AVI"): "no usable frame times",
    ("decord", "HEVC"): "wrong frames of hevc",
    ("decord", "HEVC, open groups"): "wrong frames of hevc",
    ("decord", "h264 in MPEG-TS"): "wrong frames of h264 in mpegts",
    ("decord", "no duration"): "decord cannot read it|no usable frame times",
    ("decord", "edit list"): "30 frames where 26 are shown",
    ("torchcodec", "MPEG-4 in AVI"): "do not tell when frames are shown",
    ("torchcodec", "MPEG-4 with B frames in AVI"): "do not tell when frames are shown",
}
# Files of which torchcodec reads some frames and refuses others; never a wrong one.
READ_IN_PART = {("torchcodec", "h264 in MPEG-TS"), ("torchcodec", "edit list")}


def installed(name: DecoderName) -> object:
    """The name as a parameter, with a skip and its reason where the decoder is not there."""
    reason = ""
    try:
        if name == "decord":
            import decord  # noqa: F401
        if name == "torchcodec":
            import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"{name} is not installed here or does not load: {str(error).splitlines()[0]}"
    return pytest.param(name, marks=[pytest.mark.skip(reason=reason)] if reason else [])


DECODERS = [installed(name) for name in ("auto", "pyav", "decord", "torchcodec")]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a kind, written once."""
    made: dict[str, Path] = {}

    def of_kind(kind: str) -> Path:
        if kind not in made:
            name, options = KINDS[kind]
            options = dict(options)
            codec = str(options.pop("codec", "libx264"))
            if codec not in av.codecs_available:
                pytest.skip(f"this build of PyAV cannot write {codec}")
            frames = numbered_frames(NUM_FRAMES, *options.pop("size", (96, 64)))  # type: ignore[misc]
            path = tmp_path_factory.mktemp("kind") / name
            made[kind] = write_video(path, frames, codec, **options)  # type: ignore[arg-type]
        return made[kind]

    return of_kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_each_time_has_its_own_frame(decoder: DecoderName, kind: str, make: Callable[[str], Path]) -> None:
    path = make(kind)
    if refusal := REFUSED.get((decoder, kind)):
        with pytest.raises(DataError, match=refusal):
            open_video(path, decoder)
        return
    times = np.array(KINDS[kind][1].get("times_ms") or [100 * k for k in range(NUM_FRAMES)])
    numbers = list(range(HIDDEN.get(kind, 0), NUM_FRAMES))
    width, height = KINDS[kind][1].get("size", (96, 64))  # type: ignore[misc]
    with open_video(path, decoder) as video, open_video(path, decoder, size=(48, 40)) as small:
        assert (video.width, video.height, small.width, small.height) == (width, height, 48, 40)
        clock = "default" if path.suffix in (".mp4", ".avi") else "milliseconds"
        shown = (times[numbers] - times[numbers[0]]) / 1000
        np.testing.assert_allclose(video.timestamps_s, shown, atol=1e-6 if clock == "default" else 1e-3)
        if isinstance(small, PyAvDecoder):
            small._recent = Forgetful()
        order = np.random.default_rng(0).permutation(len(numbers))
        try:
            assert [read_number(image) for image in video.frames(range(len(numbers)))] == numbers
            assert [read_number(small.frames([k])[0]) for k in order] == [numbers[k] for k in order]
            assert [read_number(image) for image in small.frames(order)] == [numbers[k] for k in order]
        except DataError:
            assert (decoder, kind) in READ_IN_PART
        else:
            assert (decoder, kind) not in READ_IN_PART


@pytest.mark.parametrize("kind", ["AV1", "narrow", "no duration", "HEVC", "MPEG-4 with B frames in AVI"])
def test_bytes_that_decord_refuses_are_read_all_the_same(kind: str, make: Callable[[str], Path]) -> None:
    data = make(kind).read_bytes()
    with pytest.raises(DataError):
        open_video(data, "decord")
    with open_video(data) as video:
        assert [read_number(image) for image in video.frames(range(NUM_FRAMES))] == list(range(NUM_FRAMES))


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_file(kind: str, make: Callable[[str], Path]) -> None:
    name, options = KINDS[kind]
    facts = inspect(make(kind))
    times = np.array(options.get("times_ms") or [100 * k for k in range(NUM_FRAMES)])
    first = HIDDEN.get(kind, 0)
    assert (facts.width, facts.height) == options.get("size", (96, 64))
    assert facts.rotation == options.get("rotation", 0)
    assert facts.pixel_aspect == pytest.approx(float(options.get("pixel_aspect", 1)))  # type: ignore[arg-type]
    codec = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libsvtav1": "av1"}
    written = str(options.get("codec", "libx264"))
    assert facts.codec == codec.get(written, written)
    assert (
        facts.container
        == {"mp4": "mov", "mkv": "matroska", "webm": "matroska", "avi": "avi", "ts": "mpegts"}[
            name.split(".")[-1]
        ]
    )
    assert facts.duration_s == pytest.approx((times[-1] - times[first]) / 1000, abs=0.11)
    assert facts.num_frames in (0, NUM_FRAMES)
    assert facts.is_vfr in (None, "variable" in kind)
    if "variable" not in kind:
        assert facts.average_fps == pytest.approx(10, rel=0.01)
    assert not facts.has_audio


def test_sound_beside_the_video_is_told(tmp_path: Path) -> None:
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for image in numbered_frames(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))  # type: ignore[attr-defined]
        for stream in (video, sound):
            container.mux(stream.encode(None))  # type: ignore[attr-defined]
    facts = inspect(path)
    assert (facts.has_audio, facts.num_frames) == (True, 10)
    with open_video(path) as opened:
        assert [read_number(image) for image in opened.frames(range(10))] == list(range(10))


def test_torchcodec_that_is_not_there_says_what_to_do(
    make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DataError, match=r"torchcodec is not installed.*use decoder pyav"):
        open_video(make("narrow"), "torchcodec")


def test_a_decoder_is_imported_only_when_it_is_asked_for() -> None:
    import subprocess
    import sys

    script = (
        "import sys, data_pipeline.decode, data_pipeline.stages\n"
        "sys.exit(str({'torch', 'torchcodec', 'decord', 'av'} & set(sys.modules) or ''))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.strip() == ""


def test_frames_read_in_time_order_are_decoded_once(tmp_path: Path) -> None:
    """Clip after clip, each beginning behind the last frame of the one before."""
    path = write_video(tmp_path / "long.mp4", numbered_frames(200), bf="3", g="50")
    with open_video(path, "pyav", size=(48, 32)) as video:
        before = video.num_decoded  # type: ignore[attr-defined]
        for start in range(0, 200, 20):
            assert [read_number(image) for image in video.frames(range(start, start + 20))] == list(
                range(start, start + 20)
            )
        assert video.num_decoded - before <= 200  # type: ignore[attr-defined]
    with open_video(path, "pyav", size=(48, 32)) as video:
        before = video.num_decoded  # type: ignore[attr-defined]
        for start in range(0, 180, 10):  # half of each clip is the next one's too
            assert [read_number(image) for image in video.frames(range(start, start + 20))] == list(
                range(start, start + 20)
            )
        assert video.num_decoded - before <= 200 + 30  # type: ignore[attr-defined]  # the first step back
    with open_video(path, "pyav") as video:
        before = video.num_decoded  # type: ignore[attr-defined]
        assert (
            read_number(video.frames([199])[0]) == 199
        )  # from the keyframe at 150, without what is not leant on
        assert video.num_decoded - before < 50  # type: ignore[attr-defined]


def test_a_picture_that_changes_its_size_keeps_the_size_of_the_first(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.ts", [draw_number(k, 96, 64) for k in range(5)], bf="0")
    large = write_video(
        tmp_path / "large.ts",
        [draw_number(k, 192, 128) for k in range(5, 10)],
        bf="0",
        times_ms=[100 * k for k in range(5, 10)],
        mux={"mpegts_copyts": "1"},
    )
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    for size in (None, (48, 32)):
        with open_video(path, "pyav", size=size) as video:
            found = video.frames(range(len(video.timestamps_s)))
            assert found.shape[1:3] == ((64, 96) if size is None else (32, 48))
            numbers = [read_number(image) for image in found]
            assert numbers == sorted(numbers)
            assert {0, 9} <= set(numbers)
