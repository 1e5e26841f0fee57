import io
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import InspectConfig
from data_pipeline.format import ClipMeta
from data_pipeline.sources import list_sources
from data_pipeline.stages import encode_safely, inspect_safely
from data_pipeline.synthetic import Look
from tests.data_pipeline.tasks import task_of

LIMITS = InspectConfig(timeout_s=20.0)


def test_bad_files_become_records_with_true_reasons(bad_files: Path) -> None:
    found = {f.name: inspect_safely(f, LIMITS) for f in list_sources((str(bad_files),), None).files}
    assert found.pop("good.mp4").status == "usable"
    assert {video.status for video in found.values()} == {"failed"}
    reasons = {name: video.reason for name, video in found.items()}
    assert "empty" in reasons["zero.mp4"]
    assert "HTML" in reasons["page.mp4"]
    assert "only audio" in reasons["sound.mp4"]
    assert "moov" in reasons["moov-last.mp4"]
    assert len({video.video_id for video in found.values()}) == len(found)


def test_a_video_keeps_its_id_when_it_moves(videos: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(videos, moved)
    ids = [
        [inspect_safely(f, LIMITS).video_id for f in list_sources((str(p),), None).files]
        for p in (videos, moved)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


def test_a_clip_carries_state_and_actions_on_its_own_clock(videos: Path, make_config) -> None:
    config = make_config(videos)
    file = list_sources(config.sources, config.root).files[0]
    task, clips = task_of(file, config, LIMITS)
    results = list(encode_safely(task, clips, LIMITS))
    assert len(results) == len(clips) == 5
    known = np.load(Path(file.address).with_suffix(".npz"))
    for number, (clip, members) in enumerate(results):
        assert clip.status == "kept"
        assert clip.phash
        meta = ClipMeta.from_json(members["json"])
        assert meta.name == "video-000000.mp4"
        assert (meta.num_frames, meta.fps, meta.width, meta.height) == (4, 8.0, 32, 32)
        state = np.load(io.BytesIO(members["state.npy"]))
        actions = np.load(io.BytesIO(members["actions.npy"]))
        rows = np.arange(number * 8, number * 8 + 8, 2)
        np.testing.assert_array_equal(state, known["state"][rows])
        pairs = known["actions"][number * 8 : number * 8 + 8].reshape(4, 2, 2)
        np.testing.assert_allclose(actions, pairs.mean(axis=1), rtol=1e-5)


def test_a_video_cut_short_keeps_its_whole_clips(
    look: Look, tmp_path: Path, videos: Path, make_config
) -> None:
    """moov first, the media cut off: the header promises all, the file holds some."""
    import av

    whole = tmp_path / "whole.mp4"
    with (
        av.open(str(videos / "video-000000.mp4")) as source,
        av.open(str(whole), "w", options={"movflags": "+faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) * 6 // 10])
    config = make_config(whole)
    file = list_sources(config.sources, config.root).files[0]
    video = inspect_safely(file, LIMITS)
    assert (video.status, video.duration_s) == ("usable", look.duration_s)
    task, clips = task_of(file, config, LIMITS)
    results = [clip for clip, _ in encode_safely(task, clips, LIMITS)]
    assert [clip.status for clip in results] == sorted([clip.status for clip in results], reverse=True)
    assert {clip.status for clip in results} == {"kept", "failed"}
    reasons = [clip.reason for clip in results if clip.status == "failed"]
    assert all(
        "ends at" in reason or "damaged" in reason or "does not decode" in reason for reason in reasons
    )


def test_a_hang_costs_its_clip_and_a_file_that_hangs_again_is_given_up(
    videos: Path, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipeline.isolate import TimedOutError
    from data_pipeline.stages import part

    config = make_config(videos)
    task, clips = task_of(list_sources(config.sources, None).files[0], config, LIMITS)
    calls = []

    class Hanging:
        """Hangs on the second clip, twice; then on the fourth and the fifth."""

        def stream(self, name, task, left, timeout_s):
            calls.append(len(left))
            for clip in left:
                if clip in (clips[1], clips[3], clips[4]):
                    raise TimedOutError("the decoder hung")
                yield clip, {}

    monkeypatch.setattr(part, "shared_child", lambda memory_bytes: Hanging())
    results = [clip for clip, _ in encode_safely(task, (*clips, *clips[:1]), LIMITS)]
    assert calls == [6, 5, 4, 3, 2, 2]
    assert [clip.status for clip in results] == ["kept", "failed", "kept", "failed", "failed", "failed"]
    assert {(r.error_class, r.attempts) for r in results if r.status == "failed"} == {("TimedOutError", 2)}
