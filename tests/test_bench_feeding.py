"""The way from shards to a GPU as benchmarks/feeding.py measures it: clips, batches, arithmetic."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks import feeding
from benchmarks.contenders import Shape
from benchmarks.feeding import Crops, Fed, Held, augmentation_rows, copy_rows, crops_of, fed_rows, run_of
from benchmarks.loader import open_batches
from benchmarks.measuring import Quiet
from benchmarks.rendered import FPS, NUM_SHARDS, write_rendered
from data_pipeline.synthetic import generator, render_frames, render_texture, simulate
from pretrain.config import plan
from pretrain.data.copies import Copies
from pretrain.data.reader import ClipReader
from pretrain.data.stream import Batches
from tests.counts.steps import without_streams

CPU, CLIPS, FRAMES, SIZE = torch.device("cpu"), 9, 8, 32
SHAPE = Shape("vit_tiny", 4, SIZE, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rendered")
    return {each: write_rendered(folder / each, CLIPS, FRAMES, SIZE, each) for each in ("mp4", "jpeg")}


@pytest.mark.parametrize("encoding", ["mp4", "jpeg"])
def test_clips_from_shards_are_those_that_were_rendered(shards: dict[str, str], encoding: str) -> None:
    reader = ClipReader(shards[encoding], "train")
    assert (len(reader), len(reader.shards)) == (CLIPS, NUM_SHARDS)
    reader.check_files()
    clips = [reader.read(place, FRAMES, FPS) for place in range(CLIPS)]
    assert {clip.key for clip in clips} == {f"{number:020x}" for number in range(CLIPS)}
    wanted = [rendered(number) for number in range(CLIPS)]
    for clip in clips:
        off = [np.abs(clip.frames_THWC.astype(float) - each).mean() for each in wanted]
        own = off.pop(int(clip.key, 16))
        assert own < 10  # of 255: what halved colour and compression lose of so small pictures
        assert 2 * own < min(off)


def rendered(number: int) -> np.ndarray:
    rng = generator(0, number)
    states, _ = simulate(rng, FRAMES, FPS)
    return render_frames(states, render_texture(rng, 2 * SIZE), SIZE)


def held_on(shards: dict[str, str], device: torch.device = CPU) -> Held:
    return Held(plan(run_of(SHAPE, shards["jpeg"], 0), 1), device)


def test_held_batches_are_the_first_of_the_run_again_and_again(shards: dict[str, str]) -> None:
    run = Batches(plan(run_of(SHAPE, shards["jpeg"], 0), 1), 0, CPU)
    first = [(batch.keys, batch.clips.clone()) for batch in run.take(2)]
    held = held_on(shards)
    for keys, clips in [*first, *first]:
        (batch,) = held.take(1)
        assert batch.keys == keys
        assert torch.equal(batch.clips, clips)
    assert held.take_wait_s() > 0  # of the two that were loaded
    list(held.take(5))
    assert held.take_wait_s() == 0


def test_rates_of_copies_are_bytes_over_seconds(shards: dict[str, str]) -> None:
    seconds = {"on_their_way": 0.002, "sent": 0.004, "copy_": 0.001}
    called: list[str] = []

    def timed(work: Any, clock: object) -> float:
        work()
        name = next(each for each in seconds if each in work.__code__.co_names)
        called.append(name)
        return seconds[name]

    held = held_on(shards)
    held._layout = open_batches(run_of(SHAPE, shards["jpeg"], 0), on_gpu=True)._layout
    held._slots = open_batches(run_of(SHAPE, shards["jpeg"], 0), on_gpu=True)._slots
    with (
        without_streams(),
        mock.patch.object(feeding, "timed", timed),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
    ):
        held._copies = Copies(CPU)
        rows = copy_rows("case", held, 2, Quiet(0.0), CPU)
    assert called == [*seconds] * 2
    num_bytes = sum(3 * 4 * crop.height * crop.width for crop in held._held[-1].crops)
    assert [row["bytes"] for row in rows if "bytes" in row] == [num_bytes]
    assert [row["ours"] for row in rows] == pytest.approx([num_bytes / 2e6, num_bytes / 4e6], rel=1e-3)
    assert [row["ratio"] for row in rows] == pytest.approx([0.5, 0.25])


def test_the_floor_of_augmentation_is_the_bytes_that_it_must_read_and_write() -> None:
    views = [torch.zeros((4, height, 20, 3), dtype=torch.uint8) for height in (10, 30)]
    crops = Crops(views, [True, False], 16)
    moved = 4 * 20 * (10 + 30) * 3 + 4 * 2 * 3 * 4 * 16 * 16
    told = [0.5, 2.0]  # seconds of an augmentation, then of a copy of LARGE_BYTES
    with (
        mock.patch.object(feeding, "timed", side_effect=told),
        mock.patch.object(feeding, "LARGE_BYTES", 4096),
    ):
        rate, time = augmentation_rows("case", crops, 1, Quiet(0.0), CPU)
    floor_s = moved / (2 * 4096 / 2.0)
    assert rate["ours"] == pytest.approx(2.0)
    assert rate["reference"] == pytest.approx(1 / floor_s, rel=1e-3)
    assert time["ours"] == pytest.approx(500.0)
    assert time["floor_ms"] == pytest.approx(1000 * floor_s, rel=1e-3)


@pytest.mark.parametrize(
    ("slots_s", "hidden"),
    [(1.0, 100.0), (1.25, 0.0), (1.05, 80.0)],  # a step of 1 s, and 0.25 s of copies and augmentation
)
def test_what_is_hidden_is_what_a_step_does_not_take_longer(slots_s: float, hidden: float) -> None:
    fed = Fed(shards=[4.0], slots=[8 / slots_s], device=[8.0], waiting=[0.5], worker_ms=[20.0])
    rows = {row["metric"]: row for row in fed_rows("case", fed, 8, [0.25], 4)}
    assert rows["of copies and augmentation, hidden behind the step"]["ours"] == pytest.approx(hidden)
    assert rows["steps on clips from shards"]["ratio"] == pytest.approx(slots_s / 2, rel=1e-3)
    assert rows["of the time, waiting for clips"]["ours"] == 0.5
    assert rows["of a clip, in its worker"]["workers"] == 4
    on_cpu = {row["metric"] for row in fed_rows("case", fed, 8, [], 4)}
    assert "of copies and augmentation, hidden behind the step" not in on_cpu


def test_crops_are_bytes_of_different_sizes(shards: dict[str, str]) -> None:
    crops = crops_of(open_batches(run_of(SHAPE, shards["jpeg"], 0), on_gpu=True))
    assert (len(crops.views_THWC), crops.size) == (2, SIZE)
    assert all(view.dtype == torch.uint8 and view.shape[0] == 4 for view in crops.views_THWC)
    assert crops.num_bytes == sum(view.numel() for view in crops.views_THWC)


@pytest.mark.slow
def test_the_whole_of_it_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--device cpu --quick --turns 1 --steps 1 --encoding jpeg --workers 1"
    monkeypatch.setattr("sys.argv", ["feeding", *words.split()])
    feeding.main()
    printed = capsys.readouterr().out
    assert '"steps on clips from shards"' in printed
    assert '"to the GPU: not measured, as there is none"' in printed
