import numpy as np
import pytest

from data_pipeline.config import FilterConfig
from data_pipeline.decode import open_video
from data_pipeline.encode import encode_frames
from data_pipeline.scores import find_bars, score_frames
from data_pipeline.synthetic import generator, render_frames, render_texture, simulate

Frames = np.ndarray
Bars = tuple[int, int, int, int]


def world(index: int, num_frames: int = 32, fps: float = 8.0, size: int = 128) -> Frames:
    """A moving object before a drifting texture, (num_frames, size, size, 3)."""
    rng = generator(11, index)
    states, _ = simulate(rng, num_frames, fps)
    return render_frames(states, render_texture(rng, 2 * size), size)


def encoded(frames: Frames, crf: int = 28, width: int = 0, height: int = 0) -> Frames:
    data = encode_frames(
        [frames], width or frames.shape[2], height or frames.shape[1], 8.0, gop=16, crf=crf, preset="veryfast"
    )
    with open_video(data, "pyav") as video:
        return video.frames(range(len(frames)))


def flat(level: int, num_frames: int = 8, size: int = 128) -> Frames:
    return np.full((num_frames, size, size, 3), level, np.uint8)


def pan(fps: float, pixels_per_s: float, duration_s: float = 3.0) -> Frames:
    """A camera that moves over a texture, at 128 × 128."""
    texture = render_texture(generator(11, 0), 512)
    moved = (np.arange(round(duration_s * fps)) * 2 * pixels_per_s / fps).round().astype(int)
    taken = np.stack([texture[:256, x : x + 256] for x in moved])
    return taken.reshape(len(moved), 128, 2, 128, 2, 3).mean((2, 4)).astype(np.uint8)


def noisy(frames: Frames, sigma: float) -> Frames:
    noise = np.random.default_rng(0).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def blurred(frames: Frames) -> Frames:
    """Softened to an eighth of the sharpness: the texture is far rougher than what cameras see."""
    coarse = frames.reshape(len(frames), 32, 8, 32, 8, 3).mean((2, 4))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


def distance(one: str, two: str) -> int:
    return (int(one, 16) ^ int(two, 16)).bit_count()


def reference_hash(image: Frames) -> str:
    """The definition in words, one sum at a time, for 128 × 128."""
    luma = image @ np.array([77, 150, 29]) / 256
    small = luma.reshape(32, 4, 32, 4).mean((1, 3))
    n = np.arange(32)
    steps = np.empty((8, 8))
    for u in range(8):
        for v in range(8):
            waves = np.outer(np.cos(np.pi * (n + 0.5) * u / 32), np.cos(np.pi * (n + 0.5) * v / 32))
            norm = np.sqrt((1 if u == 0 else 2) * (1 if v == 0 else 2)) / 32
            steps[u, v] = round(float((small * waves).sum() * norm) / 8)
    median = np.median([steps[u, v] for u in range(8) for v in range(8) if u + v > 0])
    bits = "".join(str(int(steps[u, v] > median and u + v > 0)) for u in range(8) for v in range(8))
    return f"{int(bits, 2):016x}"


def test_brightness_is_mean_luma_by_bt601() -> None:
    assert score_frames(flat(0), 8.0).brightness == 0
    assert score_frames(flat(255), 8.0).brightness == 1
    frames = world(1)
    expected = (frames @ np.array([0.299, 0.587, 0.114])).mean() / 255
    assert score_frames(frames, 8.0).brightness == pytest.approx(expected, abs=2e-3)


def test_black_is_the_share_of_frames_almost_all_dark() -> None:
    frames = world(2, 16)
    frames[:4] = 20
    frames[4:8] = 20
    frames[4:8, :8, :8] = 200  # 0.4 % of the pixels
    frames[8:12] = 20
    frames[8:12, :16, :32] = 200  # 3.1 %
    assert score_frames(frames, 8.0).black == 0.5


def test_a_still_image_is_frozen_after_encoding_and_a_slow_pan_is_not() -> None:
    still = np.repeat(world(3, 1, size=256), 32, axis=0)
    assert score_frames(still, 8.0).frozen == 1
    limit = FilterConfig().max_frozen
    assert limit is not None
    assert score_frames(encoded(blurred(still), crf=20), 8.0).frozen > limit
    assert score_frames(encoded(pan(8.0, 4.0)), 8.0).frozen == 0
    held = np.repeat(world(3, 9), 4, axis=0)[:33]  # 4 times the same: 24 of 32 pairs
    assert score_frames(held, 8.0).frozen == 0.75


def test_motion_of_a_pan_is_that_of_its_pixels_at_any_rate() -> None:
    motions = {fps: score_frames(pan(fps, 8.0), fps).motion for fps in (8.0, 16.0, 24.0, 60.0)}
    reduced = (pan(8.0, 8.0) @ np.array([0.299, 0.587, 0.114])).reshape(24, 64, 2, 64, 2).mean((2, 4)) / 255
    expected = np.abs(np.diff(reduced, axis=0)).mean() * 8
    assert expected > 0.05
    assert motions[8.0] == pytest.approx(expected, rel=0.1)
    assert list(motions.values()) == pytest.approx([motions[8.0]] * 4, rel=0.15)
    # 0, 255, 0, 255 at 8 a second: 8 times from black to white a second
    blinking = np.concatenate([flat(0, 1), flat(255, 1)] * 4)
    assert score_frames(blinking, 8.0).motion == 8


def test_sensor_noise_is_no_motion() -> None:
    still = np.repeat(world(3, 1, size=256), 24, axis=0)
    assert score_frames(noisy(still, 5.0), 8.0).motion < 0.001
    assert score_frames(noisy(still, 5.0), 30.0).motion < 0.001
    moving = score_frames(pan(8.0, 8.0), 8.0).motion
    assert score_frames(noisy(pan(8.0, 8.0), 4.0), 8.0).motion == pytest.approx(moving, rel=0.15)


def test_a_single_frame_is_neither_frozen_nor_moving() -> None:
    scores = score_frames(world(4, 1), 8.0)
    assert (scores.frozen, scores.motion) == (0, 0)
    assert len(scores.phash) == 48


@pytest.mark.parametrize("shape", [(90, 160), (64, 64), (135, 241), (270, 480), (20, 31), (1090, 66)])
def test_any_size_is_scored(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    scores = score_frames(frames, 8.0)
    assert scores.brightness == pytest.approx(0.5, abs=0.02)
    assert len(scores.phash) == 48


def test_the_hash_is_the_three_of_its_definition() -> None:
    for index in range(5):
        frames = world(index, 24)
        expected = "".join(reference_hash(frames[k]) for k in (4, 12, 20))
        assert score_frames(frames, 8.0).phash == expected


def test_the_hash_of_flat_frames_has_no_bit_of_chance() -> None:
    for level in (0, 1, 100, 255):
        for size in (64, 97, 128, 200):
            assert score_frames(flat(level, 3, size), 8.0).phash == "0" * 48
    dim = noisy(flat(16, 3), 1.0)
    assert score_frames(dim, 8.0).phash == "0" * 48


def test_copies_of_a_clip_lie_near_and_other_clips_far() -> None:
    clips = [world(index, 24, size=192) for index in range(6)]
    hashes = [score_frames(frames, 8.0).phash for frames in clips]
    for frames, own in zip(clips, hashes, strict=True):
        for copy in (encoded(frames, 23), encoded(frames, 32, 128, 128), encoded(frames, 28, 160, 160)):
            assert distance(score_frames(copy, 8.0).phash, own) <= 20
    between = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(between) > 40


def barred(frames: Frames, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Frames:
    return np.pad(frames, ((0, 0), (top, bottom), (left, right), (0, 0)))


BARRED: dict[str, dict[str, int]] = {
    "letterbox": {"top": 24, "bottom": 24},
    "pillarbox": {"left": 40, "right": 40},
    "both": {"left": 30, "right": 34, "top": 16, "bottom": 20},
    "one side": {"bottom": 30},
}


@pytest.mark.parametrize("name", BARRED)
@pytest.mark.parametrize("crf", [18, 36])
def test_bars_are_found_after_encoding(name: str, crf: int) -> None:
    bars = {"left": 0, "top": 0} | BARRED[name]
    found = find_bars(encoded(barred(world(5), **bars), crf))
    assert found is not None
    left, top, width, height = found
    for ours, true in (
        (left, bars["left"]),
        (top, bars["top"]),
        (left + width, bars["left"] + 128),
        (top + height, bars["top"] + 128),
    ):
        assert abs(ours - true) <= 2
    assert left >= bars["left"]
    assert top >= bars["top"]
    assert left + width <= bars["left"] + 128
    assert top + height <= bars["top"] + 128


def test_a_row_that_is_half_bar_is_not_kept() -> None:
    """Scaled down by two, bars of an odd height end in a row of half picture, half bar."""
    frames = barred(world(5, 8), top=21, bottom=27)
    small = frames.reshape(8, 88, 2, 64, 2, 3).mean((2, 4)).astype(np.uint8)
    assert find_bars(small) == (0, 11, 64, 63)


def no_bars() -> dict[str, Frames]:
    frames = world(5)
    dark = frames // 12
    night = frames.copy()
    fade = np.clip((np.arange(128) - 40) / 60, 0, 1)[:, None, None]
    night = noisy((frames * fade).astype(np.uint8), 2.0)  # a black sky that ends slowly
    skyline = frames.copy()  # a black sky that ends at roofs of different heights
    for column in range(0, 128, 16):
        skyline[:, : 30 + 7 * (column // 16 * 5 % 8), column : column + 16] = 4
    grainy = noisy(barred(frames, top=40), 6.0)  # grain, which bars have none of
    thin = barred(frames, top=2, bottom=2)
    entering = barred(frames, top=24, bottom=24)
    entering[-1, :] = 120  # black in all frames but one
    return {
        "none": frames,
        "dark": dark,
        "black": flat(0),
        "night": night,
        "skyline": skyline,
        "grainy": grainy,
        "thin": thin,
        "entering": entering,
    }


@pytest.mark.parametrize("name", list(no_bars()))
def test_what_is_no_bar_is_not_cut_off(name: str) -> None:
    assert find_bars(no_bars()[name]) is None


@pytest.mark.parametrize("rows", [(140, 146), (134, 139), (130, 152)])
def test_subtitles_and_logos_in_a_bar_keep_that_side(rows: tuple[int, int]) -> None:
    frames = barred(world(5, size=128), top=0, bottom=28, left=0, right=0)
    frames = np.concatenate([np.zeros_like(frames[:, :28]), frames], axis=1)  # rows 28..156 are the picture
    first, last = rows[0] + 26, rows[1] + 26
    frames[10:20, first:last, 40:90:3] = 230
    assert find_bars(frames) == (0, 28, 128, 184 - 28)
    logo = barred(world(5), top=28, bottom=28)
    logo[:, 8:18, 100:112] = 200
    assert find_bars(logo) == (0, 0, 128, 156)


def test_an_upright_video_in_a_wide_frame_is_cut_out() -> None:
    upright = world(6)[:, :, 28:100]
    assert find_bars(barred(upright, left=78, right=78)) == (78, 0, 72, 128)
