"""The whole pipeline on files and texts that are made to harm: they cost themselves, and nothing else."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.sources.base import printable
from data_pipeline.verify import verify
from tests.data_pipeline.films import noise, quiet, write_video
from tests.data_pipeline.hostile import write_hostile
from tests.data_pipeline.tasks import UNFILTERED

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")


def test_one_lying_header_does_not_end_the_job(own_videos: Path, make_config: MakeConfig) -> None:
    """Matroska's duration is a float that anybody can write: a video of 2.5 s claims an hour."""
    import av

    path = own_videos / "liar.mkv"
    with av.open(str(own_videos / "video-000000.mp4")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", 3_600_000.0)
    path.write_bytes(data)
    outcome = shard(make_config(own_videos, max_failed_fraction=0.1, filters={"max_distance": None}), quiet)
    liar = [clip for clip in outcome.clips if clip.uri.endswith("liar.mkv")]
    assert [clip.status for clip in liar[:5]] == ["kept"] * 5
    assert {(clip.status, clip.error_class) for clip in liar[5:]} == {("failed", "EndedError")}


def test_hostile_text_in_lists_and_sidecars_is_written_as_text(
    own_videos: Path, make_config: MakeConfig
) -> None:
    (own_videos / "list.jsonl").write_text(
        '{"uri": "video-000000.mp4", "label": "\\ud800\\u001b[2J"}\n'
        '{"uri": "\\ud800.mp4"}\n'
        '{"uri": "s3://KEY:SECRET@bucket/x.mp4"}\n'
        '{"uri": "https://host/x.mp4?X-Amz-Signature=SECRET"}\n'
        '{"uri": "video-000001.mp4"}\n'
    )
    with np.load(own_videos / "video-000001.npz") as found:
        arrays = dict(found)
    arrays["action_names"] = np.array(["a\ud800", "b"])
    np.savez(own_videos / "video-000001.npz", **arrays)
    config = make_config(own_videos / "list.jsonl", max_failed_fraction=0.9)
    outcome = shard(config, quiet)
    assert len(outcome.dead_letters) == 3
    assert sum(outcome.info.num_clips.values()) == 10
    for path in Path(config.out).rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


def test_a_heap_of_hostile_files_comes_to_an_end(tmp_path: Path, make_config: MakeConfig) -> None:
    corpus = write_hostile(tmp_path / "files")
    config = make_config(
        tmp_path / "files",
        max_failed_fraction=1.0,
        filters=UNFILTERED,
        inspect={"timeout_s": 20.0, "memory_bytes": 512 << 20},
    )
    outcome = shard(config, quiet)
    videos = {Path(video.uri).name: video for video in outcome.videos}
    for name, hostile in corpus.items():
        video = videos.get(printable(hostile.path.name))
        if not hostile.is_listed or hostile.fate == "any":
            continue
        assert video is not None, name
        if hostile.fate in ("whole", "refused"):
            assert video.status == {"whole": "usable", "refused": "failed"}[hostile.fate], (
                name,
                video.reason,
            )
    assert verify(config.out, deep=True).problems == ()
    assert {letter.error_class for letter in outcome.dead_letters} <= {
        "DataError",
        "EndedError",
        "OutOfMemoryError",
    }


def test_a_video_takes_no_more_memory_than_its_clip(tmp_path: Path, make_config: MakeConfig) -> None:
    """A span that needs too much fails alone: the next ones get a child of their own."""
    folder = tmp_path / "set"
    write_video(folder / "long.mp4", noise(640, seed=4, size=(128, 192)), fps=16.0)
    (folder / "list.csv").write_text("uri,start_s,end_s\nlong.mp4,0,40\nlong.mp4,0,1\nlong.mp4,1,2\n")
    config = make_config(
        folder / "list.csv",
        cut={"kind": "spans", "length_s": 0.5},
        encode={"short_side": 512, "fps": 16.0, "preset": "ultrafast"},
        inspect={"timeout_s": 60.0, "memory_bytes": 400 << 20},
        max_failed_fraction=0.9,
        filters=UNFILTERED,
    )
    clips = shard(config, quiet).clips
    assert [(c.end_s, c.status, c.error_class) for c in sorted(clips, key=lambda c: c.end_s)] == [
        (1.0, "kept", ""),
        (2.0, "kept", ""),
        (40.0, "failed", "OutOfMemoryError"),
    ]
