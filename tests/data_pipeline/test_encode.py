import io
from collections.abc import Callable

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.decode import open_video
from data_pipeline.encode import check_encoded, encode_frames, encoded_size, frame_indices
from data_pipeline.errors import DataError

Draw = Callable[..., np.ndarray]


def test_equal_frames_give_equal_bytes_however_they_are_chunked(moving_bar: Draw, clip_bytes: bytes) -> None:
    frames = moving_bar(16)
    chunked = encode_frames([frames[:5], frames[5:]], 64, 48, 8.0, gop=16, crf=18, preset="veryfast")
    assert chunked == clip_bytes


@pytest.mark.parametrize("side", [32, 64])
def test_equal_frames_give_equal_bytes_time_after_time(side: int) -> None:
    frames = np.random.default_rng(side).integers(0, 255, (20, side, side, 3), np.uint8)
    encoded = {encode_frames([frames], side, side, 8.0, gop=16, crf=18, preset="veryfast") for _ in range(70)}
    assert len(encoded) == 1


def test_frames_of_another_size_are_scaled(moving_bar: Draw) -> None:
    data = encode_frames([moving_bar(4, 128, 96)], 64, 48, 8.0, gop=16, crf=18, preset="veryfast")
    with open_video(data) as video:
        assert video.frames(range(4)).shape == (4, 48, 64, 3)


def test_a_frame_that_does_not_decode_is_noticed(moving_bar: Draw) -> None:
    """One whose length is spoiled, and a file that was cut."""
    data = encode_frames([moving_bar(16)], 64, 48, 8.0, gop=16, crf=18, preset="veryfast")
    with av.open(io.BytesIO(data), "r") as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][5]
    for spoiled in (data[:place] + b"\xff" * 4 + data[place + 4 :], data[: len(data) // 2], data[:100], b""):
        with pytest.raises(DataError, match="the encoded clip does not decode"):
            check_encoded(spoiled, 16)


def test_a_clip_decodes_to_what_went_in(moving_bar: Draw, clip_bytes: bytes) -> None:
    with open_video(clip_bytes) as video:
        found = video.frames(range(16)).astype(int)
        np.testing.assert_allclose(video.timestamps_s, np.arange(16) / 8)
    assert np.abs(found - moving_bar(16)).mean() < 6


def test_groups_are_closed_and_without_b_frames(moving_bar: Draw) -> None:
    data = encode_frames([moving_bar(40)], 64, 48, 8.0, gop=16, crf=18, preset="medium")
    with av.open(io.BytesIO(data), "r") as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert [n for n, p in enumerate(packets) if p.is_keyframe] == [0, 16, 32]
        assert all(p.pts == p.dts for p in packets)


def test_a_count_that_lies_is_noticed(clip_bytes: bytes) -> None:
    check_encoded(clip_bytes, 16)
    with pytest.raises(DataError, match="16 frames of 17"):
        check_encoded(clip_bytes, 17)


@given(st.integers(2, 4000), st.integers(2, 4000), st.floats(0.5, 2.0))
def test_sizes_are_even_and_keep_the_aspect(width: int, height: int, aspect: float) -> None:
    new_width, new_height = encoded_size(width, height, 64, aspect)
    assert new_width % 2 == new_height % 2 == 0
    assert min(new_width, new_height) == 64
    assert new_width / new_height == pytest.approx(width * aspect / height, rel=0.04)


def test_frames_are_the_nearest_at_or_before() -> None:
    times = np.array([0.0, 0.033, 0.067, 0.1, 0.5, 0.9])  # milliseconds, as Matroska rounds them
    assert frame_indices(times, 0.0, 30.0, 4).tolist() == [0, 1, 2, 3]
    assert frame_indices(times, 0.1, 10.0, 8).tolist() == [3, 3, 3, 3, 4, 4, 4, 4]


def test_sixteen_frames_at_eight_a_second_out_of_sixteen() -> None:
    times = np.arange(96) / 16
    for start in (0.0, 2.0, 4.0):
        assert frame_indices(times, start, 8.0, 16).tolist() == list(
            range(int(start * 16), int(start * 16) + 32, 2)
        )


def test_a_video_that_ends_early_is_an_error() -> None:
    with pytest.raises(DataError, match=r"ends at 1\.00 s"):
        frame_indices(np.arange(10) / 10, 0.0, 8.0, 16)
