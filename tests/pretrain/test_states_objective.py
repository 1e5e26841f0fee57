"""The supervised ceiling: what it is asked, what its loss is, what its config refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data_pipeline.errors import DataError
from pretrain.config import HealthConfig
from pretrain.objective.make import make_objective
from pretrain.objective.states import States, truth_of
from pretrain.sentinel import History, Reading, judge
from tests.pretrain.small_objective import STATES, config_of, make, passed, small_batch, small_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_is_the_squared_error_in_deviations_of_what_a_mean_token_tells() -> None:
    config = config_of("states")
    batch = small_batch(config)
    objective, target, output = passed(config, batch)
    assert objective.targets(target, batch) is None, "no target encoder is run"
    assert isinstance(objective, States) and batch.states is not None
    with torch.no_grad():
        tokens = objective.encoder(batch.clips).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in objective.predictor.parameters())
    states, errors = batch.states.double().numpy(), []
    for clip in range(3):
        for moment in range(2):
            feature = tokens[clip, moment * 16 : moment * 16 + 16].mean(0)
            told = weight @ feature + bias
            frames = states[clip, 2 * moment : 2 * moment + 2]
            vx, x, shape = (frames[:, STATES.index(name)] for name in ("vx", "x", "shape"))
            asked = [((vx - 0.1) / 2.0).mean(), ((x - 0.5) / 0.2).mean()]
            asked += [((shape == k).mean() - 1 / 3) / math.sqrt(2 / 9) for k in range(3)]
            errors.append((told - np.array(asked)) ** 2)
    assert float(output.loss.detach()) == pytest.approx(float(np.mean(errors)), rel=1e-4)
    by_name = np.mean(errors, axis=0)
    wanted = {"vx": by_name[0], "x": by_name[1], "shape": by_name[2:].mean()}
    assert {name: float(part) for name, part in output.parts.items()} == pytest.approx(wanted, rel=1e-4)


def test_standardised_classes_that_are_all_as_frequent_have_mean_0_and_deviation_1() -> None:
    config = config_of("states", objective={"targets": {}, "classes": {"shape": 3}})
    batch = small_batch(config, 6)
    truth = truth_of(config.objective, batch, 2)  # type: ignore[arg-type]
    assert truth.shape == (6, 2, 3)
    torch.testing.assert_close(truth.mean((0, 1)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(truth.square().mean((0, 1)), torch.ones(3))


def test_a_class_that_there_is_none_of_makes_the_loss_nan_rather_than_wrong() -> None:
    config = config_of("states", objective={"targets": {}, "classes": {"shape": 2}})  # of which there are 3
    truth = truth_of(config.objective, small_batch(config, 6), 2)  # type: ignore[arg-type]
    assert truth.isnan().any((1, 2)).tolist() == [False, True, False, False, False, True]


def test_the_whole_clip_is_read_and_nothing_but_it() -> None:
    """A change in any tubelet reaches what is told of every other; states do not reach what is told."""
    config = config_of("states")
    batch = small_batch(config)
    objective = make(config)
    before = objective(batch, None).seen["prediction"].features_MD
    later = batch.clips.clone()
    later[:, :, 2:] += 1.0
    after = objective(replace(batch, clips=later), None).seen["prediction"].features_MD
    first = torch.arange(len(before)) % 32 < 16
    assert not torch.allclose(before[first], after[first], atol=1e-4)
    assert batch.states is not None
    again = objective(replace(batch, states=batch.states + 1), None).seen["prediction"].features_MD
    assert torch.equal(before, again)


def test_health_knows_what_it_costs_to_answer_the_mean() -> None:
    config = config_of("states")
    output = passed(config, small_batch(config))[2]
    wanted = truth_of(config.objective, small_batch(config), 2).flatten(0, 1)  # type: ignore[arg-type]
    losses = output.guess.losses()
    assert float(losses["mean_token"]) == pytest.approx(float(wanted.var(0, unbiased=False).mean()), rel=1e-5)
    assert float(losses["copy"]) == pytest.approx(float(wanted.square().mean()), rel=1e-5)
    assert len(output.guess.prediction_PO) == 3 * 32, "at every token, as health looks at fixed ones"


def test_few_dimensions_are_no_collapse_where_few_numbers_are_asked_for() -> None:
    """Looks give no rank of a supervised run; its spread is judged as any other's."""
    config, history = HealthConfig(), History()
    judge(history, Reading(1, 1.0, math.nan, 1.0, 1.0, 1.1, 1.1), config)
    for step in range(2, 9):
        verdict = judge(history, Reading(step, 0.5, math.nan, 0.2, 0.2, 1.0, 1.0), config)
        assert verdict.word == "healthy", verdict.reason
    for step in range(9, 20):
        verdict = judge(history, Reading(step, 0.01, math.nan, 1.0, 1.0, 1.0, 1.0), config)
    assert verdict.word == "collapsing"
    assert History.from_state(history.state()).state() == history.state()


def test_what_it_is_told_it_learns() -> None:
    config = config_of("states")
    batch = small_batch(config, 6)
    objective = make_objective(config)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch, None).loss.backward()
        optimizer.step()
    losses = objective(batch, None).guess.losses()
    assert float(losses["prediction"]) < 0.1 * float(losses["mean_token"])


def test_data_without_such_states_are_refused_by_name() -> None:
    config = config_of("states")
    objective, batch = make(config), small_batch(config)
    with pytest.raises(DataError, match="vx"):
        objective(replace(batch, state_names=("a", "b", "c", "d", "e")), None)
    with pytest.raises(DataError, match="not every clip of this batch has states"):
        objective(replace(batch, states=None), None)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"targets": {}}, "need a state at least"),
        ({"targets": {"shape": [0, 1]}, "classes": {"shape": 3}}, "need each state once"),
        ({"targets": {"x": [0.5, 0.0]}}, "greater than 0"),
        ({"classes": {"shape": 1}}, "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_told_is_refused(objective: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        small_config({"kind": "states"} | objective, augment={"hflip": False})


def test_mirrored_clips_are_refused_since_their_states_are_not() -> None:
    keys = {key for key, *_ in small_config({"kind": "states"}).problems()}
    assert keys == {"augment.hflip"}
    assert not small_config({"kind": "states"}, augment={"hflip": False}).problems()
