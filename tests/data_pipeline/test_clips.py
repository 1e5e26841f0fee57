import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.clips import assign_splits, clip_id, cut_video, plan_shards, video_id, windows
from data_pipeline.config import CutConfig, DataConfig
from data_pipeline.manifest import Video


def config(**changes: object) -> DataConfig:
    plain: dict[str, object] = {"name": "t", "out": "o", "sources": ["s"]}
    return DataConfig.model_validate(plain | changes)


def video(number: int, duration_s: float = 6.0) -> Video:
    name = f"v{number}.mp4"
    return Video(
        video_id(name, "abc"),
        name,
        name,
        "usable",
        width=96,
        height=96,
        average_fps=16.0,
        duration_s=duration_s,
    )


def test_ids_do_not_change_from_release_to_release() -> None:
    assert video_id("a/b.mp4", "00ff") == "0e6ce4a5c46141496f09"
    assert clip_id("v", 0, 2000) == "341388efcd4419f48c50"
    assert clip_id("v", 0, 2001) != clip_id("v", 0, 2000) != clip_id("w", 0, 2000)


def test_windows_fill_the_video_and_never_pass_its_end() -> None:
    assert windows(6.0, CutConfig(length_s=2.0, stride_s=2.0)) == [(0, 2000), (2000, 4000), (4000, 6000)]
    assert windows(5.99, CutConfig(length_s=2.0, stride_s=2.0)) == [(0, 2000), (2000, 4000)]
    assert windows(1.0, CutConfig(length_s=2.0, stride_s=2.0)) == []


@given(st.floats(0, 100), st.floats(0.1, 10), st.floats(0.1, 10))
def test_windows_are_whole_and_strided(duration_s: float, length_s: float, stride_s: float) -> None:
    spans = windows(duration_s, CutConfig(length_s=length_s, stride_s=stride_s))
    for number, (start, end) in enumerate(spans):
        assert start == round(number * stride_s * 1000)
        assert end <= duration_s * 1000 + 2
    assert len(spans) * stride_s + length_s > duration_s


def test_a_short_video_is_one_filtered_clip_with_its_reason() -> None:
    (clip,) = cut_video(video(0, duration_s=1.5), config())
    assert clip.status == "filtered"
    assert clip.reason == "too short: 1.50 s, a clip is 2 s"


@given(st.integers(2, 60), st.floats(0.01, 0.9))
def test_no_split_is_empty_and_order_does_not_matter(count: int, fraction: float) -> None:
    videos = {video(k).video_id: 3 for k in range(count)}
    splits = assign_splits(videos, fraction)
    assert set(splits.values()) == {"train", "eval"}
    assert splits == assign_splits(dict(reversed(videos.items())), fraction)


def test_a_giant_among_few_videos_stays_in_train() -> None:
    for giant in range(12):
        videos = {video(k).video_id: (300 if k == giant else 3) for k in range(12)}
        assert assign_splits(videos, 0.1)[video(giant).video_id] == "train"


def test_in_a_large_set_a_new_video_moves_no_other() -> None:
    before = assign_splits({video(k).video_id: 3 for k in range(2000)}, 0.1)
    after = assign_splits({video(k).video_id: 3 for k in range(2100)}, 0.1)
    assert all(after[name] == split for name, split in before.items())
    assert sum(split == "eval" for split in after.values()) == pytest.approx(210, abs=45)


def test_the_plan_depends_on_neither_order_nor_place() -> None:
    videos = [video(k) for k in range(30)]
    settings = config(shards={"target_bytes": 1 << 20})
    clips = [clip for v in videos for clip in cut_video(v, settings)]
    splits = assign_splits({v.video_id: 3 for v in videos}, 0.2)
    import dataclasses

    clips = [dataclasses.replace(clip, split=splits[clip.video_id]) for clip in clips]
    plans = plan_shards(clips, videos, settings, {"av": "1"})
    other = settings.model_copy(update={"out": "elsewhere"})
    assert plans == plan_shards(clips[::-1], videos[::-1], other, {"av": "1"})
    assert sorted(c.clip_id for p in plans for c in p.clips) == sorted(c.clip_id for c in clips)
    assert len(plans) > 2
    newer = plan_shards(clips, videos, settings, {"av": "2"})
    assert all(a.fingerprint != b.fingerprint for a, b in zip(plans, newer, strict=True))
