"""Probes: the closed forms against plain references, and the whole against encoders whose answer is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import CheckpointError, DataError
from data_pipeline.format import ClipMeta
from data_pipeline.worlds import World, state_names
from pretrain.config import RunConfig
from pretrain.data.reader import Clip
from pretrain.probe import Asked, clips, neighbours, ridge, states, subject
from pretrain.probe.offline import run_probe as run_on
from pretrain.probe.subject import of_run

CONFIG = RunConfig.model_validate(
    {
        "name": "probe-test",
        "data": {"shards": "nowhere", "frames": 8, "fps": 8.0, "size": 32},
        "model": {"encoder": {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 3, "patch": 8}},
        "probe": {"train_clips": 60, "eval_clips": 30},
    }
)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ridge


def test_ridge_without_penalty_is_least_squares() -> None:
    rng = _rng()
    x, y = rng.normal(3, 2, (60, 5)), rng.normal(size=(60, 2))
    weights, bias = ridge.fit_ridge(x, y, [0.0])[0]
    with_ones = np.column_stack([x, np.ones(60)])
    expected = np.linalg.lstsq(with_ones, y, rcond=None)[0]
    np.testing.assert_allclose(np.vstack([weights, bias]), expected, rtol=1e-8)


def test_ridge_solves_the_penalised_normal_equations() -> None:
    rng = _rng(1)
    x, y, alpha = rng.normal(size=(40, 6)) * [1, 10, 0.1, 5, 1, 1], rng.normal(size=(40, 3)), 0.3
    weights, bias = ridge.fit_ridge(x, y, [alpha])[0]
    z = (x - x.mean(0)) / x.std(0)
    expected = np.linalg.solve(z.T @ z + alpha * 40 * np.eye(6), z.T @ (y - y.mean(0)))
    np.testing.assert_allclose(x @ weights + bias, z @ expected + y.mean(0), rtol=1e-8)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 10.0])
def test_with_fewer_rows_than_features_it_solves_the_same_equations(alpha: float) -> None:
    rng = _rng(4)
    x, y = rng.normal(size=(40, 90)) * rng.uniform(0.1, 9, 90), rng.normal(size=(40, 3))
    x[:, 7] = 2.0
    weights, bias = ridge.fit_ridge(x, y, [alpha])[0]
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), np.inf)
    expected = np.linalg.solve(z.T @ z + alpha * 40 * np.eye(90), z.T @ (y - y.mean(0)))
    new = rng.normal(size=(20, 90))
    z_new = (new - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), np.inf)
    np.testing.assert_allclose(new @ weights + bias, z_new @ expected + y.mean(0), rtol=1e-6, atol=1e-8)
    (by_sums,) = ridge.Moments().add(x, y).ridge([alpha])
    np.testing.assert_allclose(weights, by_sums[0], rtol=1e-5, atol=1e-7)


def test_a_constant_feature_and_more_features_than_rows_do_no_harm() -> None:
    rng = _rng(2)
    x, y = rng.normal(size=(10, 30)), rng.normal(size=(10, 1))
    x[:, 4] = 7.0
    weights, bias = ridge.fit_ridge(x, y, [1e-3])[0]
    assert np.isfinite(weights).all()
    assert weights[4] == 0
    assert np.isfinite(bias).all()


def test_r2_is_one_when_exact_zero_for_the_mean_and_negative_when_worse() -> None:
    truth = _rng(3).normal(size=(50, 1))
    assert ridge.r2(truth, truth)[0] == 1
    assert ridge.r2(truth, np.full_like(truth, truth.mean()))[0] == pytest.approx(0)
    assert ridge.r2(truth, -truth)[0] < -2
    assert np.isnan(ridge.r2(np.ones((5, 1)), np.zeros((5, 1)))[0])


def test_the_penalty_is_chosen_per_target() -> None:
    """A target that is there needs little penalty; for one that is not, the best guess is near its mean."""
    rng = _rng(4)
    x = rng.normal(size=(300, 40))
    y = np.column_stack([x @ rng.normal(size=40), rng.normal(size=300)])
    other = rng.normal(size=(100, 40))
    guess = ridge.ridge_predictions(x, y, np.repeat(np.arange(100), 3), other)
    assert guess[:, 0].std() > 3
    assert guess[:, 1].std() < 0.3


# groups and classes


def test_states_of_a_simulated_world_are_grouped_too() -> None:
    names = state_names(World(walls=0.2))
    rows = _rng().normal(size=(8, 2, len(names)))
    targets = states.make_targets(names, rows[:6], rows[6:])
    sizes = {target.name: target.train.shape[-1] for target in targets}
    assert sizes == {"position": 2, "velocity": 2, "radius": 1, "shape": 1, "colour": 1} | {
        "background drift": 2, "background waves": 4, "walls": 2
    }  # fmt: skip


def test_states_are_grouped_by_name_and_whole_numbers_are_classes() -> None:
    rng = _rng(5)
    rows = np.concatenate([rng.normal(size=(9, 4, 4)), np.tile(rng.integers(0, 3, (9, 1, 1)), (1, 4, 1))], -1)
    targets = states.make_targets(["x", "vy", "y", "radius", "shape"], rows[:6], rows[6:])
    assert [(t.name, t.is_class, t.train.shape[-1]) for t in targets] == [
        ("position", False, 2),
        ("velocity", False, 1),
        ("radius", False, 1),
        ("shape", True, len(np.unique(rows[:6, :, 4]))),
    ]
    assert targets[3].score(targets[3].evaluation.reshape(12, -1)) == 1


# retrieval


def _brute(features: np.ndarray, videos: list[str]) -> tuple[float, float]:
    x = features - features.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    top, precisions = [], []
    for query in range(len(x)):
        others = [k for k in range(len(x)) if k != query]
        if not any(videos[k] == videos[query] for k in others):
            continue
        others.sort(key=lambda k: -float(x[query] @ x[k]))
        right = [videos[k] == videos[query] for k in others]
        top.append(right[0])
        found = [sum(right[: k + 1]) / (k + 1) for k in range(len(right)) if right[k]]
        precisions.append(sum(found) / len(found))
    return float(np.mean(top)), float(np.mean(precisions))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=6, max_size=15), st.integers(0, 1000))
def test_retrieval_equals_brute_force(videos: list[str], seed: int) -> None:
    assume(max(map(videos.count, videos)) > 1)
    features = _rng(seed).normal(size=(len(videos), 5))
    scores = neighbours.retrieval(features.copy(), videos)
    assert (scores["top-1"], scores["mean average precision"]) == pytest.approx(_brute(features, videos))


def test_chance_is_what_random_features_score_on_average() -> None:
    videos = list("aaaabbbcde")
    scores = [neighbours.retrieval(_rng(k).normal(size=(10, 30)), videos) for k in range(400)]
    for name, expected in neighbours.retrieval_chance(videos).items():
        assert np.mean([s[name] for s in scores]) == pytest.approx(expected, abs=0.03)


def test_perfect_features_find_every_clip() -> None:
    videos = list("aabbcc")
    features = np.repeat(np.eye(3), 2, 0) + 1e-3 * _rng().normal(size=(6, 3))
    assert neighbours.retrieval(features, videos) == {"top-1": 1.0, "mean average precision": 1.0}


# the whole, with clips that are made up and encoders that know more or less


@dataclass
class FakeInfo:
    state_names: tuple[str, ...]
    num_clips: dict[str, int]
    name: str = "fake"
    fingerprint: str = "f00d"


class FakeReader:
    """Clips of one brightness each; the state is the brightness, the videos come in threes."""

    sizes: ClassVar[dict[str, int]] = {"train": 60, "eval": 30}
    state_names: tuple[str, ...] = ("x", "bx")
    broken: tuple[int, ...] = ()

    def __init__(self, root: str, split: str) -> None:
        self.split, self.info = split, FakeInfo(self.state_names, self.sizes)

    def __len__(self) -> int:
        return self.sizes[self.split]

    def fetch(self, numbers: list[int]) -> list[int | DataError]:
        return [DataError(f"clip {n} is broken") if n in self.broken else n for n in numbers]

    def meta(self, number: int) -> ClipMeta:
        return self.decode(number, 1, 1.0).meta

    def decode(
        self, number: int, frames: int, fps: float, start: object = None, *, holds: bool = False
    ) -> Clip:
        level = float(_rng(number // 3 + 100 * (self.split == "eval")).uniform(20, 230))
        pictures = np.full((frames, 40, 48, 3), level, np.uint8)
        pictures += _rng(number).integers(0, 5, pictures.shape, np.uint8)
        times = np.arange(frames) / fps
        state = np.column_stack([np.full(frames, level), 0.5 * times]).astype(np.float32)
        video = f"{self.split}-{number // 3}"
        meta = ClipMeta("k", video, "u", 0, 1, fps, frames, 48, 40)
        return Clip("k", pictures, times, state if self.state_names else None, None, meta)


class Brightness(torch.nn.Module):
    """Tokens whose first feature is the clip's brightness, or nothing but noise."""

    def __init__(self, is_blind: bool) -> None:
        super().__init__()
        self.is_blind = is_blind
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.width, self.head_width = 6, 3

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        tokens = torch.randn(len(x_BCTHW), 4 * 16, 6, generator=torch.Generator().manual_seed(0))
        if not self.is_blind:
            tokens[..., 0] += 100 * x_BCTHW.mean((1, 2, 3, 4))[:, None]
        return tokens


def run_probe(run: Path, asked: Asked | None = None, **given: Any) -> dict[str, Any]:
    return run_on(of_run(run, None), run, asked or Asked(), **given)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeReader]:
    class Reader(FakeReader):
        pass

    monkeypatch.setattr(clips, "ClipReader", Reader)
    monkeypatch.setattr(clips, "read_info", lambda storage: FakeInfo(Reader.state_names, Reader.sizes))
    monkeypatch.setattr(subject, "load_encoder", lambda run, step: (Brightness(False), CONFIG, step or 40))
    monkeypatch.setattr(subject, "untrained_encoder", lambda config: Brightness(True))
    return Reader


def _scores(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["encoder"]: row["scores"] for row in result["rows"]}


@pytest.mark.usefixtures("fake")
def test_states_are_read_from_an_encoder_that_knows_them_and_not_from_a_blind_one(tmp_path: Path) -> None:
    seen: list[int] = []
    result = run_probe(tmp_path, progress=lambda stage, done, total, note: seen.append(done))
    scores = _scores(result)
    assert list(scores) == ["trained", "untrained", "raw pixels", "mean of the train clips"]
    assert scores["trained"]["position"] > 0.99
    assert scores["raw pixels"]["position"] > 0.99
    assert scores["untrained"]["position"] < 0.3
    assert scores["mean of the train clips"]["position"] <= 0
    assert seen[-1] == 90
    assert result["step"] == 40
    assert (result["num_train_clips"], result["num_eval_clips"]) == (60, 30)
    assert json.loads((tmp_path / "probe.json").read_text()) == result


@pytest.mark.usefixtures("fake")
def test_the_same_probe_twice_says_the_same(tmp_path: Path) -> None:
    first, second = (run_probe(tmp_path) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_background_offset_is_scored_as_its_speed(fake: type[FakeReader]) -> None:
    clip = fake("", "train").decode(0, 8, 8.0)
    rows = clips.tubelet_states(clip, ("x", "bx"), 4)
    np.testing.assert_allclose(rows[:, 1], 0.5, rtol=1e-5)
    assert clip.state is not None
    np.testing.assert_allclose(rows[:, 0], clip.state[0, 0])


def test_clips_without_states_are_retrieved_by_video(fake: type[FakeReader], tmp_path: Path) -> None:
    fake.state_names = ()
    result = run_probe(tmp_path)
    scores = _scores(result)
    assert result["kind"] == "retrieval"
    assert scores["trained"]["top-1"] > 2 * scores["untrained"]["top-1"]
    assert 0 < scores["chance"]["top-1"] < 0.1
    query = result["examples"][0]["query"]
    assert query == {"split": "train", "index": 0, "video": "train-0"}


def test_real_videos_with_a_single_split_are_probed_too(fake: type[FakeReader], tmp_path: Path) -> None:
    fake.state_names, fake.sizes = (), {"train": 9, "eval": 0}
    assert run_probe(tmp_path)["num_eval_clips"] == 0


def test_few_unreadable_clips_are_named_and_many_end_the_probe(
    fake: type[FakeReader], tmp_path: Path
) -> None:
    fake.broken = (3, 5)
    result = run_probe(tmp_path)
    assert result["num_train_clips"] == 58
    assert result["unreadable"][0] == "clip 3 is broken"
    fake.broken = tuple(range(20))
    with pytest.raises(DataError, match="unreadable"):
        run_probe(tmp_path)


@pytest.mark.parametrize("state_names", [("x",), ()])
def test_too_few_clips_are_a_sentence(
    fake: type[FakeReader], tmp_path: Path, state_names: tuple[str, ...]
) -> None:
    fake.state_names, fake.sizes = state_names, {"train": 3, "eval": 1}
    with pytest.raises(DataError, match="need at"):
        run_probe(tmp_path)
    assert not (tmp_path / "probe.json").exists()


def test_a_run_without_a_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        run_probe(tmp_path)


def test_clips_are_chosen_from_the_seed_alone(fake: type[FakeReader]) -> None:
    reader: Any = fake("", "train")
    first, again, other = (clips.choose(reader, 10, seed, "train") for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 10
    assert clips.choose(reader, 99, 0, "train") == list(range(60))


def test_places_are_the_tokens_of_a_small_grid_in_their_order() -> None:
    class Ramp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.arange(18.0)[None, :, None].expand(len(x), 18, 1)

    ramp: Any = Ramp()
    features = clips.place_features(ramp(torch.zeros(2, 1)), (3, 2, 3)).numpy()
    assert features.shape == (2, 3, 6, 1)
    np.testing.assert_array_equal(features[1, 1, :, 0], np.arange(6, 12))
    np.testing.assert_allclose(states.places(2, 3)[4], [0.5, 0.75])


def test_votes_find_an_object_that_a_mean_over_space_cannot() -> None:
    """Noise everywhere, one direction lit where the object is: its position is read to a few percent."""
    rng = _rng(6)
    at = states.places(6, 6)
    where = rng.uniform(0.1, 0.9, (60, 2, 2))
    light = np.exp(-((at - where[:, :, None]) ** 2).sum(-1) / (2 * 0.1**2))
    tokens = 0.2 * rng.normal(size=(60, 2, 36, 10))
    tokens[..., 0] += light
    halves = tokens.astype(np.float16)
    target = states.Target("position", False, where[:40], where[40:])
    seen = states.score_states({"sees": (halves[:40], halves[40:])}, [target], {"sees": at})
    blind = np.roll(halves, 1, axis=0)
    not_seen = states.score_states({"blind": (blind[:40], blind[40:])}, [target], {"blind": at})
    assert seen[0]["scores"]["position"] > 0.9
    assert not_seen[0]["scores"]["position"] < 0.1


def test_raw_pixels_keep_their_place() -> None:
    views = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    views[0, 2:, 4:8, 8:12] = 255  # second tubelet, second row, third column of places
    features = clips.pixel_features(views, 2)
    assert features.shape == (1, 2, 64, 24)
    assert features[0, 0].max() == 0
    np.testing.assert_array_equal(np.flatnonzero(features[0, 1].sum(-1)), [8 + 2])
    np.testing.assert_array_equal(features[0, 1, 10], 1)


def test_waves_over_the_picture_are_read_from_all_places_and_not_from_their_mean() -> None:
    """Tokens that hold their patch of a wave: nothing of where it stands is in the mean over places."""
    rng, at = np.random.default_rng(0), states.places(4, 4)
    x, y = 2 * np.pi * at.T
    waves_4P = np.stack([np.cos(x), -np.sin(x), np.cos(y), -np.sin(y)])

    def seen(count: int) -> tuple[np.ndarray, np.ndarray]:
        b_Ct4 = rng.normal(size=(count, 2, 4))
        tokens = (b_Ct4 @ waves_4P)[..., None] * [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=(count, 2, 16, 3))
        return tokens.astype(np.float16), b_Ct4

    (train, known), (test, truth) = seen(60), seen(30)
    scores = {}
    for name in ("background waves", "another"):
        target = states.Target(name, False, known, truth)
        row = states.score_states({"x": (train, test)}, [target], {"x": at})[0]
        scores[name] = next(iter(row["scores"].values()))
    assert scores["background waves"] > 0.9
    assert scores["another"] < 0.1
