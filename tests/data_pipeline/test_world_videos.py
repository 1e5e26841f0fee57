import csv
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.encode import encode_frames
from data_pipeline.sources.lists import match_lists
from data_pipeline.synthetic import SHAPES
from data_pipeline.worlds import LIST_FILE, World, begin, render, render_world, state_names, state_row, step
from data_pipeline.worlds.write import partner_of

SMALL = World(size=32, duration_s=1.0, walls=0.2)
NUM = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("world")
    render_world(where, SMALL, NUM, seed=1, workers=1)
    return where


def sidecar(folder: Path, index: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"video-{index:06d}.npz") as found:
        return dict(found)


def test_steps_under_the_recorded_actions_give_the_frames_of_the_video(folder: Path) -> None:
    for index in (0, 4):
        known, (state, scene) = sidecar(folder, index), begin(SMALL, 1, index)
        assert tuple(known["state_names"]) == state_names(SMALL)
        frames = []
        for row, action in zip(known["state"], known["actions"], strict=True):
            assert np.array_equal(state_row(state, scene), row)
            frames.append(render(state, scene))
            state = step(SMALL, state, action)
        again = encode_frames([np.stack(frames)], 32, 32, SMALL.fps, gop=48, crf=15, preset="veryfast")
        assert again == (folder / f"video-{index:06d}.mp4").read_bytes()


def test_equal_seeds_give_equal_bytes_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    render_world(tmp_path, SMALL, NUM, seed=1, workers=2)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 * NUM + 1
    for name in names:
        if name.endswith(".npz"):  # zip keeps the hour of writing
            one, two = np.load(folder / name), np.load(tmp_path / name)
            assert all(np.array_equal(one[key], two[key]) for key in one.files)
        else:
            assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("actions", ["shuffled", "zero"])
def test_false_actions_change_no_frame_and_no_state(actions: str, folder: Path, tmp_path: Path) -> None:
    world = SMALL.model_copy(update={"actions": actions})
    render_world(tmp_path, world, NUM, seed=1, workers=1)
    true = [sidecar(folder, index) for index in range(NUM)]
    taken = []
    for index in range(NUM):
        name = f"video-{index:06d}.mp4"
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
        found = sidecar(tmp_path, index)
        assert np.array_equal(found["state"], true[index]["state"])
        if actions == "zero":
            assert not found["actions"].any()
        else:
            taken += [k for k in range(NUM) if np.array_equal(found["actions"], true[k]["actions"])]
            assert taken[-1] != index
    if actions == "shuffled":
        assert sorted(taken) == list(range(NUM))


@pytest.mark.parametrize("num_videos", [2, 3, 40])
def test_everyone_is_another_ones_partner(num_videos: int) -> None:
    for seed in range(5):
        partners = [partner_of(index, num_videos, seed) for index in range(num_videos)]
        assert sorted(partners) == list(range(num_videos))
        assert all(partner != index for index, partner in enumerate(partners))
    assert partner_of(0, 40, 0) != partner_of(0, 40, 1) or partner_of(1, 40, 0) != partner_of(1, 40, 1)


def test_one_video_alone_has_no_partner(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two at least"):
        render_world(tmp_path, SMALL.model_copy(update={"actions": "shuffled"}), 1)


def test_the_list_gives_shapes_as_labels_and_finds_the_sidecars(folder: Path) -> None:
    with open(folder / LIST_FILE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 4 + ["eval"] * 2
    files, ignored = match_lists([str(folder / LIST_FILE)], None)
    assert not ignored
    assert len(files) == NUM
    column = state_names(SMALL).index("shape")
    for row, found in zip(rows, sorted(files, key=lambda file: file.name), strict=True):
        (span,) = found.spans
        assert span.sidecar is not None
        shape = sidecar(folder, int(found.name[6:12]))["state"][0, column]
        assert span.label == row["label"] == SHAPES[int(shape)]
        assert span.split == row["split"]
