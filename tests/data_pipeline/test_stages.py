import io
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.clips import cut_video
from data_pipeline.config import InspectConfig
from data_pipeline.errors import DataError
from data_pipeline.format import ClipMeta, FailedClip
from data_pipeline.sources import list_sources
from data_pipeline.stages import (
    EncodedClip,
    Sidecar,
    encode_safely,
    inspect_safely,
    read_sidecar,
    resample_sidecar,
)
from data_pipeline.synthetic import Look

LIMITS = InspectConfig(timeout_s=20.0)


def test_bad_files_become_records_with_true_reasons(bad_files: Path) -> None:
    found = {f.name: inspect_safely(f, LIMITS) for f in list_sources((str(bad_files),)).files}
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
        [inspect_safely(f, LIMITS).video_id for f in list_sources((str(p),)).files] for p in (videos, moved)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


def test_a_clip_carries_state_and_actions_on_its_own_clock(videos: Path, make_config) -> None:
    config = make_config(videos)
    file = list_sources(config.sources).files[0]
    clips = tuple(cut_video(inspect_safely(file, LIMITS), config))
    results = list(encode_safely(file, clips, config.encode, LIMITS))
    assert len(results) == len(clips) == 5
    known = np.load(file.sidecar)
    for number, result in enumerate(results):
        assert isinstance(result, EncodedClip)
        meta = ClipMeta.from_json(result.members["json"])
        assert (meta.num_frames, meta.fps, meta.width, meta.height) == (4, 8.0, 32, 32)
        state = np.load(io.BytesIO(result.members["state.npy"]))
        actions = np.load(io.BytesIO(result.members["actions.npy"]))
        rows = np.arange(number * 8, number * 8 + 8, 2)
        np.testing.assert_array_equal(state, known["state"][rows])
        pairs = known["actions"][number * 8 : number * 8 + 8].reshape(4, 2, 2)
        np.testing.assert_allclose(actions, pairs.mean(axis=1), rtol=1e-5)


def test_the_last_action_of_a_video_is_not_lost() -> None:
    t = np.arange(8) / 16
    sidecar = Sidecar(t, np.zeros((8, 0), np.float32), np.arange(8, dtype=np.float32)[:, None], (), ("a",))
    _, actions = resample_sidecar(sidecar, np.array([0.25, 0.375, 0.5]))
    assert actions[:, 0].tolist() == [4.5, 6.5]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"state": np.zeros((3, 2))}, "needs `t`"),
        ({"t": [0, 2, 1]}, "ascending"),
        ({"t": [0, 1, 2], "state": np.zeros((2, 2))}, "shape"),
        ({"t": [0, 1], "state": np.zeros((2, 2)), "state_names": ["x"]}, "names 1 columns of 2"),
        ({"t": [0, 1], "state": np.array([{}, {}], dtype=object)}, "cannot be read"),
    ],
)
def test_a_bad_sidecar_says_what_is_wrong(tmp_path: Path, arrays: dict, reason: str) -> None:
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=reason):
        read_sidecar(str(tmp_path / "v.npz"))


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
    file = list_sources(config.sources).files[0]
    video = inspect_safely(file, LIMITS)
    assert (video.status, video.duration_s) == ("usable", look.duration_s)
    results = list(encode_safely(file, tuple(cut_video(video, config)), config.encode, LIMITS))
    kinds = [type(result) for result in results]
    assert kinds == sorted(kinds, key=lambda kind: kind is FailedClip)
    assert {EncodedClip, FailedClip} == set(kinds)
    reasons = [result.reason for result in results if isinstance(result, FailedClip)]
    assert all(
        "ends at" in reason or "damaged" in reason or "does not decode" in reason for reason in reasons
    )


def test_a_hang_in_mid_video_costs_the_rest_of_it_once(videos: Path, make_config, monkeypatch) -> None:
    from data_pipeline import stages
    from data_pipeline.isolate import TimedOutError

    config = make_config(videos)
    file = list_sources(config.sources).files[0]
    clips = tuple(cut_video(inspect_safely(file, LIMITS), config))
    calls = []

    class Hanging:
        def stream(self, task, path, sidecar, left, encode, timeout_s):
            calls.append(len(left))
            if len(calls) == 1:
                yield EncodedClip(left[0].clip_id, {})
            raise TimedOutError("the decoder hung")

    monkeypatch.setattr(stages, "shared_child", lambda memory_bytes: Hanging())
    results = list(encode_safely(file, clips, config.encode, LIMITS))
    assert calls == [5, 4]
    assert [type(result) for result in results] == [EncodedClip] + [FailedClip] * 4
    assert {(r.error_class, r.attempts) for r in results[1:]} == {("TimedOutError", 2)}
