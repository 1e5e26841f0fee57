"""Rollouts against the objective that trained them, and their errors against what a few lines come to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_pipeline.errors import CheckpointError, DataError, UsageError
from launch.train import run_train
from pretrain.data.reader import ClipReader
from pretrain.features import Encoder
from pretrain.objective.action import ActionLatent
from pretrain.objective.make import first_encoder
from pretrain.probe.states import places
from pretrain.rollout import Model, fit_decoder, load_model, measure_rollout
from pretrain.rollout.measure import CEILING, COPY, MEAN, SHUFFLED, TRUE, ZERO
from pretrain.rollout.position import at_places
from tests.pretrain.small_objective import config_of, make, small_batch
from tests.small_dataset import tiny_config, write_dataset

ACTION = {
    "objective": {"kind": "action_latent", "action_size": 2, "state_size": 0},
    "target": {"kind": "frozen"},
    "augment": {"hflip": False},
    "train": {"steps": 2, "checkpoint_every": 2},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 train and 9 eval clips of 8 frames."""
    return write_dataset(tmp_path_factory.mktemp("rollout") / "data", {"train": [12, 8], "eval": [9]})


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(dataset, tmp_path_factory.mktemp("runs"), **ACTION)
    return run_train(config, quiet=True).run


def model_of(steps: int) -> tuple[Model, ActionLatent, torch.Tensor, torch.Tensor, object]:
    """A model with woken weights, the objective it is made of, and a batch as the objective sees it."""
    config = config_of("action", objective={"rollout_steps": steps, "state_size": 0})
    objective = make(config)
    assert isinstance(objective, ActionLatent)
    batch = small_batch(config)
    encoder = first_encoder(objective, config)
    targets = objective.targets(encoder, batch)
    assert batch.actions is not None and targets is not None
    return Model(encoder, objective.predictor, 3, 3, 0), objective, targets, batch.actions, batch


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_rollout_from_the_first_frame_is_that_of_the_loss(steps: int) -> None:
    model, objective, targets, actions, batch = model_of(steps)
    said = model.roll(targets[:, :1], actions[:, :steps])
    loss = objective(batch, targets).parts["rollout"]
    assert said.shape[1] == steps
    torch.testing.assert_close((said - targets[:, 1 : 1 + steps]).abs().mean(), loss)


def test_a_step_from_every_past_is_that_of_teacher_forcing() -> None:
    model, objective, targets, actions, batch = model_of(2)
    errors = [
        (model.roll(targets[:, :t], actions[:, :t])[:, 0] - targets[:, t]).abs().mean() for t in (1, 2, 3)
    ]
    torch.testing.assert_close(torch.stack(errors).mean(), objective(batch, targets).parts["teacher_forcing"])


def test_a_run_that_says_changes_is_read_as_it_was_trained(dataset: Path, tmp_path: Path) -> None:
    predictor = {"depth": 1, "width": 24, "heads": 2, "told": "added", "says": "change", "action_scale": 3.0}
    encoder = {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8}
    still = {"steps": 2, "checkpoint_every": 2}
    config = tiny_config(
        dataset,
        tmp_path,
        **ACTION | {"model": {"encoder": encoder, "predictor": predictor}, "train": still},
        optim={"lr": 1e-12, "warmup_steps": 0, "weight_decay": 0.0},
    )
    model, _ = load_model(run_train(config, quiet=True).run)
    past = torch.randn(1, 2, 16, 48)
    past = torch.nn.functional.layer_norm(past, (48,))
    said = model.roll(past, torch.full((1, 3, 2), 50.0))
    copied = past[:, -1:].expand_as(said)  # nothing was learned
    torch.testing.assert_close(said, copied, atol=1e-4, rtol=0)


def test_of_more_moments_than_in_training_the_last_are_seen() -> None:
    model, _, targets, actions, _ = model_of(2)
    longer = torch.cat([targets, targets.flip(1)], 1)
    told = torch.cat([actions, actions.flip(1)], 1)
    said = model.roll(longer[:, :5], told[:, :7])
    step = longer[:, 2:5]
    for moment in range(3):
        foreseen = F.layer_norm(model.predictor(step, told[:, 2 + moment : 5 + moment])[:, -1:], (48,))
        torch.testing.assert_close(said[:, moment : moment + 1], foreseen)
        step = torch.cat([step[:, 1:], foreseen], 1)


def test_an_action_changes_what_follows_it_and_nothing_before() -> None:
    model, _, targets, actions, _ = model_of(2)
    changed = actions[:, :3].clone()
    changed[:, 1] += 1.0  # from the second moment to the third
    one, two = model.roll(targets[:, :1], actions[:, :3]), model.roll(targets[:, :1], changed)
    torch.testing.assert_close(one[:, 0], two[:, 0])
    assert ((one - two).abs().amax((0, 2, 3))[1:] > 1e-4).all()


def test_the_features_are_those_that_users_get(run: Path, dataset: Path) -> None:
    model, config = load_model(run)
    frames = torch.from_numpy(ClipReader(str(dataset), "eval").read(0, 8, config.data.fps).frames_THWC)
    encoder = Encoder.from_pretrained(run)
    single = torch.stack([encoder(frames[t : t + 1][None])[0] for t in range(8)])
    torch.testing.assert_close(model.read(frames[None])[0], F.layer_norm(single, single.shape[-1:]))
    assert model.window == config.data.frames - 1
    assert model.step == 2


def test_errors_of_trivial_answers_are_those_of_a_few_lines(run: Path, dataset: Path) -> None:
    found = measure_rollout(run, told=3, steps=4, clips=9, train_clips=20, batch=4)
    encoder = Encoder.from_pretrained(run)
    features: dict[str, np.ndarray] = {}
    where: dict[str, np.ndarray] = {}
    for split, count in (("train", 20), ("eval", 9)):
        clips = [ClipReader(str(dataset), split).read(k, 7, 8.0) for k in range(count)]
        tokens = [[encoder(clip.frames_THWC[t][None, None])[0].numpy() for t in range(7)] for clip in clips]
        x = np.array(tokens, np.float64)
        features[split] = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        where[split] = np.stack([clip.state[:, :2] for clip in clips])  # type: ignore[index]
    future = features["eval"][:, 3:]
    row, column = (np.floor(4 * where["eval"][:, 3:, k]).astype(int) for k in (1, 0))  # of 4 × 4 places
    off_PD = np.abs(features["eval"][:, 2:3] - future).mean(-1)
    there = [[off_PD[c, t, 4 * row[c, t] + column[c, t]] for c in range(9)] for t in range(4)]
    np.testing.assert_allclose(found.at_object[COPY], np.mean(there, 1), rtol=1e-4)
    copied = np.abs(features["eval"][:, 2:3] - future).mean((0, 2, 3))
    np.testing.assert_allclose(found.latent[COPY], copied, rtol=1e-4)
    some = np.linspace(0, 6, 5).round().astype(int)
    mean = features["train"][:, some].mean((0, 1))
    np.testing.assert_allclose(found.latent[MEAN], np.abs(mean - future).mean((0, 2, 3)), rtol=1e-4)
    off = where["train"][:, some].mean((0, 1)) - where["eval"][:, 3:]
    np.testing.assert_allclose(found.position[MEAN], np.sqrt((off**2).sum(-1).mean(0)), rtol=1e-5)
    assert found.clips == 9
    assert set(found.latent) == set(found.at_object) == {TRUE, SHUFFLED, ZERO, COPY, MEAN}
    assert set(found.position) == {TRUE, SHUFFLED, ZERO, COPY, MEAN, CEILING}


def test_equal_arguments_give_equal_numbers_and_batches_do_not_matter(run: Path) -> None:
    one = measure_rollout(run, told=3, steps=4, batch=4)
    assert one.measures() == measure_rollout(run, told=3, steps=4, batch=4).measures()
    two = measure_rollout(run, told=3, steps=4, batch=9)
    for name in (TRUE, ZERO, COPY, MEAN):
        np.testing.assert_allclose(one.latent[name], two.latent[name], rtol=1e-4)
    names = list(one.measures((1, 4, 8)))
    assert names[:2] == ["rollout latent 1: true actions", "rollout latent 4: true actions"]
    assert "rollout at object 1: zero actions" in names
    assert not any(" 8:" in name for name in names), "8 was not foreseen"


def test_what_came_later_is_not_seen(run: Path) -> None:
    """Foreseen for 2 steps or for 4: the first two are the same."""
    short, long = (measure_rollout(run, told=3, steps=n, batch=9) for n in (2, 4))
    np.testing.assert_allclose(short.latent[COPY], long.latent[COPY][:2], rtol=1e-5)
    np.testing.assert_allclose(short.latent[TRUE], long.latent[TRUE][:2], rtol=1e-5)


def test_the_decoder_finds_a_feature_that_moves() -> None:
    """Noise everywhere, and one direction that is strong near the object: found in clips it has not seen."""
    rng = np.random.default_rng(0)
    grid, direction = (4, 4), rng.normal(size=12)
    at = places(*grid)

    def clips(count: int) -> tuple[torch.Tensor, np.ndarray]:
        xy = rng.uniform(0.2, 0.8, (count, 5, 2))
        near = np.exp(-((xy[:, :, None] - at) ** 2).sum(-1) / (2 * 0.15**2))
        x = near[..., None] * 3 * direction + 0.1 * rng.normal(size=(count, 5, 16, 12))
        return torch.from_numpy(x).float(), xy

    (train, known), (test, truth) = clips(60), clips(20)
    decoder = fit_decoder(
        [at_places(train[:30], grid), at_places(train[30:], grid)], [known[:30], known[30:]], grid
    )
    error = np.sqrt(((decoder(test) - truth) ** 2).sum(-1).mean())
    spread = np.sqrt(((truth - known.mean((0, 1))) ** 2).sum(-1).mean())
    assert error < 0.3 * spread


def test_positions_that_nobody_tells_leave_the_latent_errors(run: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "blind", {"train": [9], "eval": [9]}, has_states=False)
    found = measure_rollout(run, str(root), told=3, steps=4)
    assert not found.position
    assert not found.at_object
    assert all(name.startswith("rollout latent") for name in found.measures())


def test_other_runs_are_refused_by_name(dataset: Path, tmp_path: Path) -> None:
    plain = run_train(tiny_config(dataset, tmp_path, train={"steps": 1}), quiet=True).run
    with pytest.raises(UsageError, match=r"kind masked_latent: rollouts and plans need action_latent"):
        load_model(plain)
    with pytest.raises(UsageError, match="nowhere is no run's folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="it has no checkpoints"):
        load_model(tmp_path)


def test_too_few_clips_are_told(run: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "few", {"train": [9], "eval": [3]})
    with pytest.raises(DataError, match=r"3 eval clips that can be read: need 8$"):
        measure_rollout(run, str(root), told=3, steps=4)


def test_clips_too_short_for_what_is_foreseen_are_told(run: Path) -> None:
    with pytest.raises(
        DataError, match=r"0 train clips that can be read: need 8; the first of 20 others: .*"
    ):
        measure_rollout(run, told=4, steps=8)
