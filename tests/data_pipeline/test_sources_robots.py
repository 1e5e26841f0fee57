import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError
from data_pipeline.sidecar import read_sidecar
from data_pipeline.sources import Listing, SourceFile, list_sources

FPS = 10
LENGTHS = (20, 30, 15)
CAMERAS = ("observation.images.top", "observation.images.wrist")
TASKS = ("push the cube", "lift the cube")
FEATURES = {
    **{key: {"dtype": "video", "shape": [48, 64, 3]} for key in CAMERAS},
    "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "y"]}},
    "action": {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
}


def rows_of(episode: int) -> dict[str, list[Any]]:
    count = LENGTHS[episode]
    state = np.stack([np.full(count, episode), np.arange(count)], axis=1).astype(np.float32)
    return {
        "observation.state": state.tolist(),
        "action": (-state).tolist(),
        "timestamp": (np.arange(count) / FPS).tolist(),
        "episode_index": [episode] * count,
        "task_index": [episode % 2] * count,
    }


def put(path: Path, data: bytes | str | dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, dict):
        pq.write_table(pa.table(data), path, row_group_size=25)
    else:
        path.write_bytes(data.encode() if isinstance(data, str) else data)


def write_v2(folder: Path, **changes: object) -> Path:
    info = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": FEATURES,
    }
    put(folder / "meta/info.json", json.dumps(info | changes))
    lines = [
        {"episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length}
        for episode, length in enumerate(LENGTHS)
    ]
    put(folder / "meta/episodes.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for episode in range(len(LENGTHS)):
        put(folder / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet", rows_of(episode))
        for camera in CAMERAS:
            put(folder / f"videos/chunk-{episode // 2:03d}/{camera}/episode_{episode:06d}.mp4", b"x")
    return folder


def write_v3(folder: Path, **changes: object) -> Path:
    """Two episodes in each camera's first file, the third in the next; all rows in one table."""
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": FEATURES,
    }
    put(folder / "meta/info.json", json.dumps(info | changes))
    episodes = []
    for episode, length in enumerate(LENGTHS):
        row: dict[str, Any] = {"episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": 0, "stats/action/mean": [0.0]}
        start_s = sum(LENGTHS[:episode]) / FPS if episode < 2 else 0.0
        for camera in CAMERAS:
            row[f"videos/{camera}/chunk_index"] = 0
            row[f"videos/{camera}/file_index"] = episode // 2
            row[f"videos/{camera}/from_timestamp"] = start_s
            row[f"videos/{camera}/to_timestamp"] = start_s + length / FPS
        episodes.append(row)
    for number, part in enumerate((episodes[:2], episodes[2:])):
        path = folder / f"meta/episodes/chunk-000/file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part), path)
    put(folder / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(TASKS)})
    every = [rows_of(episode) for episode in range(len(LENGTHS))]
    put(
        folder / "data/chunk-000/file-000.parquet",
        {key: [value for one in every for value in one[key]] for key in every[0]},
    )
    for camera in CAMERAS:
        for number in range(2):
            put(folder / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", b"x")
    return folder


def episodes_of(file: SourceFile) -> list[tuple[int, float]]:
    """(episode, second of the video at which it starts) of each span, as its sidecar's rows tell."""
    found = []
    for span in file.spans:
        assert span.sidecar is not None
        rows = read_sidecar(Path(span.sidecar.address), span.sidecar)
        episode = int(rows.state[0, 0])
        expected = rows_of(episode)
        np.testing.assert_array_equal(rows.state, np.float32(expected["observation.state"]))
        np.testing.assert_array_equal(rows.actions, np.float32(expected["action"]))
        np.testing.assert_allclose(rows.t, np.array(expected["timestamp"]) + span.start_s)
        assert (rows.state_names, rows.action_names) == (("x", "y"), ("dx", "dy"))
        assert span.label == TASKS[episode % 2]
        if span.end_s is not None:
            assert span.end_s == pytest.approx(span.start_s + LENGTHS[episode] / FPS)
        found.append((episode, span.start_s))
    return found


def problems(listing: Listing) -> list[str]:
    return [entry.reason for entry in listing.ignored if entry.is_wanted]


def test_version_2_has_a_file_for_each_episode_and_camera(tmp_path: Path) -> None:
    listing = list_sources((str(write_v2(tmp_path)),))
    assert [file.name for file in listing.files] == [
        f"videos/chunk-{episode // 2:03d}/{camera}/episode_{episode:06d}.mp4"
        for episode, camera in sorted(
            ((e, c) for e in range(3) for c in CAMERAS), key=lambda pair: (pair[0] // 2, pair[1], pair[0])
        )
    ]
    for file in listing.files:
        assert episodes_of(file) == [(int(file.name[-10:-4]), 0.0)]
    assert listing.ignored == ()


def test_version_3_has_several_episodes_in_a_file(tmp_path: Path) -> None:
    listing = list_sources((str(write_v3(tmp_path)),))
    assert {file.name: episodes_of(file) for file in listing.files} == {
        f"videos/{camera}/chunk-000/file-{number:03d}.mp4": episodes
        for camera in CAMERAS
        for number, episodes in enumerate(([(0, 0.0), (1, 2.0)], [(2, 0.0)]))
    }
    assert listing.ignored == ()


def test_data_sets_below_a_folder_are_found_and_others_stay_what_they_are(tmp_path: Path) -> None:
    write_v2(tmp_path / "lab/one")
    write_v3(tmp_path / "two")
    put(tmp_path / "plain/a.mp4", b"x")
    put(tmp_path / "plain/meta/info.json", "{}")
    put(tmp_path / "two/videos/stray.mp4", b"x")
    listing = list_sources((str(tmp_path),))
    assert len(listing.files) == 6 + 4 + 1
    spans = [span for file in listing.files for span in file.spans]
    assert sum(span.sidecar is not None for span in spans) == 6 + 6
    assert [(Path(entry.uri).name, entry.reason) for entry in listing.ignored] == [
        ("info.json", "its ending .json is no video's"),
        ("stray.mp4", "no episode of its LeRobot data set names it"),
    ]


def test_tasks_by_number_are_looked_up(tmp_path: Path) -> None:
    write_v2(tmp_path)
    lines = [{"episode_index": 0, "tasks": [1, 0, 1]}, {"episode_index": 1}]
    put(tmp_path / "meta/episodes.jsonl", "\n".join(map(json.dumps, lines)))
    tasks = [{"task_index": n, "task": text} for n, text in enumerate(TASKS)]
    put(tmp_path / "meta/tasks.jsonl", "\n".join(map(json.dumps, tasks)))
    labels = {file.name[-10:-4]: file.spans[0].label for file in list_sources((str(tmp_path),)).files}
    assert labels == {"000000": "lift the cube; push the cube", "000001": None}


def test_missing_files_of_an_episode_are_failures(tmp_path: Path) -> None:
    write_v3(tmp_path)
    (tmp_path / f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4").unlink()
    listing = list_sources((str(tmp_path),))
    assert len(listing.files) == 3
    lost = f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4"
    assert problems(listing) == [f"episode 2 needs {lost}, which does not exist"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"video_path": "../{video_key}/{episode_index}.mp4"}, "leads out of the data set"),
        ({"video_path": "/etc/{video_key}/passwd"}, "leads out of the data set"),
        ({"data_path": "s3://other/{episode_index}.parquet"}, "leads out of the data set"),
        ({"video_path": "{video_key.__class__}/x.mp4"}, "fields look like"),
        ({"video_path": "{video_key[0]}/x.mp4"}, "fields look like"),
        ({"video_path": "{episode_index:999999999d}.mp4"}, "fields look like"),
        ({"video_path": "{secret}.mp4"}, "has a field 'secret'; known are"),
        ({"video_path": 7}, "need a path"),
        ({"chunks_size": 0}, "need a whole number above 0"),
        ({"codebase_version": "v1.6"}, "of version v1.6; versions 2 and 3 are read"),
        ({"features": None}, "no `features`"),
        ({"features": {"../../../x": {"dtype": "video"}}}, "leads out of the data set"),
    ],
)
def test_what_info_json_says_is_not_trusted(tmp_path: Path, changes: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        list_sources((str(write_v2(tmp_path, **changes)),))


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    write_v2(tmp_path)
    good = (tmp_path / "meta/info.json").read_text()
    put(tmp_path / "meta/info.json", good[:50])
    with pytest.raises(DataError, match=r"meta/info.json is cut short"):
        list_sources((str(tmp_path),))
    put(tmp_path / "meta/info.json", good)
    put(tmp_path / "meta/episodes.jsonl", '{"episode_index": 0}\n{"episode_')
    with pytest.raises(DataError, match=r"meta/episodes.jsonl line 2 is no JSON"):
        list_sources((str(tmp_path),))
    write_v3(tmp_path / "three")
    for path in (tmp_path / "three/meta/episodes/chunk-000").iterdir():
        put(path, {"episode_index": [0]})
    with pytest.raises(
        DataError, match=r"file-000.parquet has no column data/chunk_index; it has episode_index"
    ):
        list_sources((str(tmp_path / "three"),))


def test_a_data_set_of_images_says_so(tmp_path: Path) -> None:
    features = {"observation.images.top": {"dtype": "image"}}
    write_v2(tmp_path, features=features, video_path=None)
    with pytest.raises(DataError, match="images within tables are not read"):
        list_sources((str(tmp_path),))
