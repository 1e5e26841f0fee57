"""Pictures over steps: they show what the encoder does, change with it alone, and leave training as it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch.train import run_train
from pretrain import watch
from pretrain.attention_maps import LastAttention
from pretrain.checkpoint import newest_whole
from pretrain.config import RunConfig, plan
from pretrain.data.reader import ClipReader
from pretrain.model.attention import attend
from pretrain.model.vit import Encoder
from pretrain.sheets import save_small, sheet_of
from pretrain.step_drawings import StableColours, directions, draw_neighbours, liveliest, nearest_to
from pretrain.step_pictures import MAX_BYTES, StepPictures, pool_indices, read_held_out
from pretrain.strategy.base import Engine, World
from pretrain.tracking.base import Several
from pretrain.tracking.jsonl import read_metrics
from pretrain.tracking.pictures import folder_of_step, step_pictures, take_back_pictures
from tests.small_dataset import tiny_config

NAMES = {"clip-masks", "clip-features", "clip-attention", "clip-neighbours"}


@pytest.mark.parametrize("rope", ["none", "vjepa2", "interleaved"])
def test_the_maps_are_the_softmax_that_the_fast_path_used(tmp_path: Path, rope: str) -> None:
    """Weights over tokens times their values must give what attention itself gave."""
    model = {"encoder": {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8, "rope": rope}}
    config = tiny_config(tmp_path, tmp_path, model=model)
    encoder = Encoder(config.model.encoder, config.grid)
    encoder.initialise(torch.Generator().manual_seed(0), 0.5)
    x = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    before = encoder(x)
    block: Any = encoder.blocks[-1]
    given: list[torch.Tensor] = []
    handle = block.proj.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with LastAttention(encoder) as attention:
        seen = encoder(x)
    handle.remove()
    assert torch.equal(before, seen)
    assert not block._forward_pre_hooks and not block.qkv._forward_hooks
    values_NHd = attention._qkv.unflatten(-1, (3, 2, -1))[:, 2]  # type: ignore[union-attr]
    q, k = attention.queries_and_keys()
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(24)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values_NHd).flatten(-2)
    torch.testing.assert_close(mixed, given[0], atol=1e-5, rtol=1e-4)
    by_all, by_one = attention.maps(5)
    assert float(by_all.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(by_all, scores.softmax(-1).mean((0, 1)))
    torch.testing.assert_close(by_one, scores.softmax(-1).mean(0)[5])
    assert attend is not None and float(by_one.std()) > 0


def test_blocks_that_are_compiled_are_listened_to_all_the_same(tmp_path: Path) -> None:
    """As on a GPU: a graph that was compiled before does not know of a listener that comes later."""
    config = tiny_config(tmp_path, tmp_path)
    encoder = Encoder(config.model.encoder, config.grid)
    encoder.initialise(torch.Generator().manual_seed(0), 0.5)
    x = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))

    def looked() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            before = encoder(x)
            with LastAttention(encoder) as attention:
                encoder(x)
            assert torch.equal(encoder(x), before)
        return attention.maps(5)

    as_written = looked()
    encoder.compile_blocks("eager")
    for found, wanted in zip(looked(), as_written, strict=True):
        torch.testing.assert_close(found, wanted)
    block: Any = encoder.blocks[-1]
    assert block.compiler == "eager"


def test_colours_stay_where_they_were_however_the_features_turn() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(200, 3)) @ np.diag([3.0, 2.9, 1.0]) @ rng.normal(size=(3, 16))
    tokens += 0.01 * rng.normal(size=tokens.shape)
    colours = StableColours()
    first, share = colours.of(tokens)
    assert share > 0.99
    turned, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    again, _ = colours.of(tokens @ turned + 5.0)
    np.testing.assert_allclose(again, first, atol=1e-6)
    # the two strongest directions change places: drawn as they come, colours would jump
    moved = tokens.copy()
    _, singular, rows = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    stretch = rows[1]
    moved += (1.05 * singular[0] / singular[1] - 1) * np.outer((tokens - tokens.mean(0)) @ stretch, stretch)
    jumped, _ = StableColours().of(moved)
    assert np.abs(jumped - first).mean() > 0.1
    followed, _ = colours.of(moved)
    assert np.abs(followed - first).mean() < 0.02


def test_features_that_do_not_vary_are_grey() -> None:
    colours, _ = StableColours().of(np.ones((50, 8)))
    np.testing.assert_array_equal(colours, 0.5)
    scores, share = directions(np.random.default_rng(0).normal(size=(4000, 2)))
    assert share == pytest.approx(1)
    np.testing.assert_allclose(scores.std(0), [1, 1, 0], atol=1e-9)


def test_a_sheet_is_as_small_as_is_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [[rng.integers(0, 255, (112, 112, 3), np.uint8) for _ in range(6)] for _ in range(4)]
    sheet = sheet_of(["noise"] * 4, noise)
    assert save_small(tmp_path / "noise.png", sheet, MAX_BYTES) <= MAX_BYTES
    assert (tmp_path / "noise.png").stat().st_size <= MAX_BYTES
    with Image.open(tmp_path / "noise.png") as found:
        assert found.size[0] <= sheet.size[0]
        assert found.convert("RGBA").getpixel((0, 0))[3] == 0, "a clear background"


def test_neighbours_are_the_nearest_by_cosine_of_centred_means() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(9, 5)) + 10
    centred = x - x.mean(0)
    for query, found in zip((2, 7), nearest_to(x, (2, 7), 4), strict=True):
        cosine = [
            float(a @ centred[query] / np.linalg.norm(a) / np.linalg.norm(centred[query])) for a in centred
        ]
        wanted = sorted((n for n in range(9) if n != query), key=lambda n: -cosine[n])[:4]
        assert found == wanted
    thumbs = [np.full((112, 112, 3), n, np.uint8) for n in range(9)]
    sheet = draw_neighbours(x, thumbs, [f"v{n // 2}" for n in range(9)], (2, 7), 4)
    assert sheet.size[1] == 2 * 112 + 6


def test_the_token_that_is_asked_is_where_something_moved_to(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    clip = np.random.default_rng(0).integers(100, 140, (8, 32, 32, 3), np.uint8)
    clip[4:6, 8:16, 24:32] = (255, 0, 0)
    assert np.unravel_index(liveliest(clip, config), config.grid) == (2, 1, 3)


def test_ranks_share_the_clips_out_and_put_them_together_again(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path)
    whole = read_held_out(config, 0, 1)
    assert whole.size == len(set(pool_indices(ClipReader(str(small_dataset), "eval")))) == 5
    parts = [read_held_out(config, rank, 3) for rank in range(3)]
    assert {len(part.pool) for part in parts} == {2}, "equally many on every rank"
    together = [clip for row in zip(*(part.pool for part in parts), strict=True) for clip in row][:5]
    for mine, wanted in zip(together, whole.pool, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    for part in parts:
        for mine, wanted in zip(part.shown, whole.shown, strict=True):
            np.testing.assert_array_equal(mine, wanted)


class Recording(Several):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, int]] = []

    def log_picture(self, path: Path, step: int) -> None:
        assert path.is_file()
        self.pictures.append((path.stem, step))


def trained(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tracker: Recording | None, say: Callable[[str], None]
) -> Path:
    """A run that takes pictures at each step, where there is a tracker for them."""
    real_init, real_step, real_end = watch.Watch.__init__, watch.Watch.after_step, watch.Watch.finish
    pictures: list[StepPictures] = []

    def begin(self: Any, run: Path, plan: Any, engine: Engine, *rest: Any) -> None:
        real_init(self, run, plan, engine, *rest)
        if tracker is not None:
            pictures.append(StepPictures(run, plan, engine, tracker, say))

    def after(self: Any, progress: Any, *rest: Any, **given: Any) -> None:
        real_step(self, progress, *rest, **given)
        for each in pictures:
            each.take(progress.step)

    def end(self: Any) -> None:
        for each in pictures:
            each.close()
        real_end(self)

    with monkeypatch.context() as patch:
        patch.setattr(watch.Watch, "__init__", begin)
        patch.setattr(watch.Watch, "after_step", after)
        patch.setattr(watch.Watch, "finish", end)
        return run_train(config, quiet=True).run


@pytest.mark.parametrize("target", ["ema", pytest.param("online", marks=pytest.mark.slow)])
def test_training_is_bit_for_bit_the_same_with_and_without(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    settings = {
        "train": {"steps": 4},
        "target": {"kind": target},
    }
    tracker = Recording()
    plain = trained(tiny_config(small_dataset, tmp_path / "a", **settings), monkeypatch, None, lambda _: None)
    drawn = trained(tiny_config(small_dataset, tmp_path / "b", **settings), monkeypatch, tracker, pytest.fail)
    assert [line["loss"] for line in read_metrics(drawn)] == [line["loss"] for line in read_metrics(plain)]
    hashes = [[file["sha256"] for file in newest_whole(run)[1]["files"].values()] for run in (plain, drawn)]
    assert hashes[0] == hashes[1]
    assert {name for name, _ in tracker.pictures} == NAMES - {"clip-neighbours"}, "five clips are too few"
    assert [step for name, step in tracker.pictures if name == "clip-features"] == [1, 2, 3, 4]
    assert all(path.stat().st_size <= MAX_BYTES for _, path in step_pictures(drawn))


def test_clips_that_cannot_be_read_cost_the_pictures_alone(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"steps": 2}, probe={"data": str(tmp_path / "no")})
    said: list[str] = []
    tracker = Recording()
    run = trained(config, monkeypatch, tracker, said.append)
    assert len(read_metrics(run)) == 2
    assert tracker.pictures == []
    assert len(said) == 1 and "no pictures over steps" in said[0]


def test_a_picture_that_cannot_be_drawn_is_said(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.step_pictures.draw_features", broken)
    said: list[str] = []
    config = tiny_config(small_dataset, tmp_path, train={"steps": 2})
    run = trained(config, monkeypatch, Recording(), said.append)
    assert len(read_metrics(run)) == 2
    assert ["could not be drawn" in words for words in said] == [True, True]


def test_colours_go_on_from_those_of_an_earlier_process(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.build import build_engine

    config = tiny_config(small_dataset, tmp_path)
    laid_out = plan(config, 1)
    engine = build_engine(laid_out, World(0, 1, torch.device("cpu")))
    before = StepPictures(tmp_path, laid_out, engine, Recording(), pytest.fail)
    before.take(5)
    before.close()
    with np.load(tmp_path / "pictures" / "steps" / "00000005" / "colours.npz") as kept:
        scores = kept["scores"].astype(float)
    np.savez(tmp_path / "pictures" / "steps" / "00000005" / "colours.npz", scores=-scores)
    resumed = StepPictures(tmp_path, laid_out, engine, Recording(), pytest.fail)
    resumed.take(6)
    resumed.close()
    with np.load(tmp_path / "pictures" / "steps" / "00000006" / "colours.npz") as kept:
        np.testing.assert_allclose(kept["scores"].astype(float), -scores, atol=5e-3)
    assert json.dumps(sorted({step for step, _ in step_pictures(tmp_path)})) == "[5, 6]"


def test_pictures_of_steps_that_come_again_are_taken_back(tmp_path: Path) -> None:
    for step in (2, 5, 12):
        folder_of_step(tmp_path, step).mkdir(parents=True)
        (folder_of_step(tmp_path, step) / "clip-masks.png").touch()
    take_back_pictures(tmp_path, after=5)
    assert [step for step, _ in step_pictures(tmp_path)] == [2, 5]
    assert not folder_of_step(tmp_path, 12).exists()
    take_back_pictures(tmp_path / "nothing", after=0)


def test_a_rollback_waits_for_what_is_drawn_and_takes_it_back(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.build import build_engine

    there: list[list[int]] = []

    class Flushed(Recording):
        def flush(self) -> None:
            there.append(sorted({step for step, _ in step_pictures(tmp_path)}))

    config, tracker = tiny_config(small_dataset, tmp_path), Flushed()
    laid_out = plan(config, 1)
    engine = build_engine(laid_out, World(0, 1, torch.device("cpu")))
    pictures = StepPictures(tmp_path, laid_out, engine, tracker, pytest.fail)
    for step in (2, 4, 6):
        pictures.take(step)
    pictures.go_back(3)
    assert there == [[2, 4, 6]], "all are drawn, and sent while they are there"
    assert {step for _, step in tracker.pictures} == {2, 4, 6}
    assert {step for step, _ in step_pictures(tmp_path)} == {2}
    with np.load(folder_of_step(tmp_path, 2) / "colours.npz") as kept:
        scores = kept["scores"].astype(float)
    np.savez(folder_of_step(tmp_path, 2) / "colours.npz", scores=-scores)
    pictures.take(4)
    pictures.close()
    with np.load(folder_of_step(tmp_path, 4) / "colours.npz") as kept:
        np.testing.assert_allclose(kept["scores"].astype(float), -scores, atol=5e-3)


def test_a_run_that_is_resumed_has_no_pictures_of_later_steps(small_dataset: Path, tmp_path: Path) -> None:
    run = run_train(tiny_config(small_dataset, tmp_path, train={"steps": 2}), quiet=True).run
    for step in (2, 3):
        folder_of_step(run, step).mkdir(parents=True)
        (folder_of_step(run, step) / "clip-masks.png").touch()
    again = tiny_config(small_dataset, tmp_path, train={"steps": 3})
    run_train(again, quiet=True, allow_change=["train.steps"])
    assert [step for step, _ in step_pictures(run)] == [2]
