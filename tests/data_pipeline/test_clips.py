import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.clips import assign_splits, clip_id, cut_video, plan_parts, video_id, windows
from data_pipeline.config import CutConfig, DataConfig
from data_pipeline.manifest import Video
from data_pipeline.sources import Span

WHOLE = (Span(),)


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
    (clip,) = cut_video(video(0, duration_s=1.5), WHOLE, config())
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


def test_the_parts_depend_on_neither_order_nor_place() -> None:
    videos = [video(k, duration_s=30.0) for k in range(30)]
    settings = config()
    by_id = {v.video_id: v for v in videos}
    clips = [clip for v in videos for clip in cut_video(v, WHOLE, settings)]
    plans = plan_parts(clips, by_id, settings, {"av": "1"})
    other = settings.model_copy(update={"out": "elsewhere"})
    assert plans == plan_parts(clips[::-1], dict(reversed(by_id.items())), other, {"av": "1"})
    assert sorted(c.clip_id for p in plans for c in p.clips) == sorted(c.clip_id for c in clips)
    assert len(plans) > 2
    homes: dict[str, set[str]] = {}
    for plan in plans:
        for clip in plan.clips:
            homes.setdefault(clip.video_id, set()).add(plan.stem)
    assert all(len(stems) == 1 for stems in homes.values())  # none of these is long
    newer = plan_parts(clips, by_id, settings, {"av": "2"})
    assert not {plan.stem for plan in plans} & {plan.stem for plan in newer}


def test_a_long_video_is_cut_into_parts() -> None:
    long = video(0, duration_s=4 * 3600.0)
    clips = cut_video(long, WHOLE, config())
    plans = plan_parts(clips, {long.video_id: long}, config(), {})
    far = dataclasses.replace(video(0, duration_s=600.0), uri="s3://b/v0.mp4")
    near = dataclasses.replace(far, uri="v0.mp4")
    counts = [
        len(plan_parts(cut_video(v, WHOLE, config()), {v.video_id: v}, config(), {})) for v in (far, near)
    ]
    assert counts == [2, 10]
    assert 12 <= len(plans) <= 16 + 16  # overlapping windows count each
    assert [clip for plan in plans for clip in plan.clips] == clips


def test_no_window_runs_through_a_cut_of_the_film() -> None:
    film = dataclasses.replace(video(0, duration_s=12.0), cuts_s=(1.5, 5.75, 9.0))
    settings = config(cut={"kind": "scenes", "length_s": 2.0, "stride_s": 2.0})
    spans = [(c.start_s, c.end_s) for c in cut_video(film, WHOLE, settings)]
    assert spans == [(1.5, 3.5), (3.5, 5.5), (5.75, 7.75), (9.0, 11.0)]
    hasty = dataclasses.replace(film, cuts_s=tuple(k * 1.5 for k in range(1, 8)))
    (clip,) = cut_video(hasty, WHOLE, settings)
    assert clip.status == "filtered"
    assert clip.reason == "too short: its longest scene has 1.50 s, a clip is 2 s"


def test_a_lists_spans_are_cut_each_on_its_own() -> None:
    spans = (Span(0.5, 3.0, label="a"), Span(3.0, 6.0, label="b", origin="x.csv line 3"))
    clips = cut_video(video(0), spans, config())
    assert [(c.start_s, c.end_s, c.label) for c in clips] == [(0.5, 2.5, "a"), (3.0, 5.0, "b")]
    whole = cut_video(video(0), spans, config(cut={"kind": "spans", "length_s": 2.75}))
    assert [(c.start_s, c.end_s, c.status) for c in whole] == [(0.5, 3.0, "filtered"), (3.0, 6.0, "kept")]
    assert whole[1].num_frames == 24
    assert [c.span for c in whole] == [0, 1]


def test_a_span_behind_the_end_is_a_failure_that_names_its_line() -> None:
    spans = (Span(4.0, 9.0, origin="x.csv line 3"),)
    (clip,) = cut_video(video(0), spans, config(cut={"kind": "spans", "length_s": 1.0}))
    assert (clip.status, clip.reason) == (
        "failed",
        "x.csv line 3 asks for 4 s to 9 s; the video ends at 6.00 s",
    )
    (late,) = cut_video(video(0), (Span(7.0, 9.0, origin="x.csv line 4"),), config())
    assert (late.status, late.error_class) == ("failed", "DataError")


def test_a_lists_split_is_kept_and_bridles_the_rest() -> None:
    videos = {video(k).video_id: 3 for k in range(40)}
    known = {video(0).video_id: "train", video(1).video_id: "eval"}
    splits = assign_splits(videos, 0.1, known)
    assert {name: splits[name] for name in known} == known
    assert sum(split == "eval" for split in splits.values()) <= 6
