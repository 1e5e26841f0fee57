"""The verdict on a run, from hand-made readings: when it warns, when it decides, what it remembers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pretrain.config import HealthConfig
from pretrain.sentinel import History, Reading, Verdict, judge, verdict_of

CONFIG = HealthConfig(std_floor=0.1, rank_floor=0.1, patience=2)
START = Reading(1, spread=1.0, rank=80.0, loss=0.9, guess=0.9, mean_token=0.7, copied=0.95, largest_step=0.01)
nan = math.nan


def verdicts(readings: Sequence[Reading], config: HealthConfig = CONFIG) -> list[Verdict]:
    history = History()
    return [judge(history, replace(r, step=n + 1), config) for n, r in enumerate([START, *readings])][1:]


def words(readings: Sequence[Reading]) -> list[str]:
    return [verdict.word for verdict in verdicts(readings)]


def spreads(values: Sequence[float]) -> list[Reading]:
    return [replace(START, spread=value, guess=0.6) for value in values]


def test_a_spread_that_is_gone_warns_and_then_decides() -> None:
    assert words(spreads([0.5, 0.05, 0.04, 0.03])) == ["healthy", "warning", "collapsing", "collapsing"]
    assert words(spreads([0.05, 0.5, 0.05, 0.6])) == ["warning", "healthy", "warning", "healthy"], "in a row"


def test_a_fast_fall_is_a_warning_and_never_more() -> None:
    found = verdicts(spreads([1.2, 0.4, 0.3, 0.3, 0.3]))
    assert [verdict.word for verdict in found] == ["healthy", *["warning"] * 4]
    assert "25% of the 1.2 at step 2" in found[-1].reason
    slow = [0.98**n for n in range(60)]
    assert words(spreads(slow)) == ["healthy"] * 60, "and a slow one is not held against a far past"


def test_few_dimensions_decide_though_the_spread_is_whole() -> None:
    found = verdicts([replace(START, rank=rank) for rank in (40.0, 7.0, 6.0)])
    assert [verdict.word for verdict in found] == ["healthy", "warning", "collapsing"]
    assert "6.0 dimensions (RankMe), 8% of the 80" in found[-1].reason and "2 looks" in found[-1].reason


def test_little_spread_in_few_dimensions_decides_though_neither_is_gone() -> None:
    found = verdicts(
        [replace(START, spread=s, rank=r) for s, r in [(1.0, 16.0), (0.4, 60.0), *[(0.2, 10.0)] * 2]]
    )
    assert [verdict.word for verdict in found] == ["healthy", "healthy", "warning", "collapsing"]
    assert "20% of what they did at the start, in 12% of the dimensions" in found[-1].reason


def test_what_is_not_finite_or_runs_away_has_diverged() -> None:
    assert words([replace(START, loss=nan)] * 3) == ["warning", "diverged", "diverged"]
    assert words([replace(START, skipped=1)] * 2) == ["warning", "diverged"]
    assert words([replace(START, loss=1.7), replace(START, loss=1.9), replace(START, loss=2.0)]) == [
        "healthy",
        "warning",
        "diverged",
    ]
    assert words([replace(START, spread=nan)] * 4) == ["warning"] * 4


def test_a_loss_no_better_than_the_mean_token_is_said() -> None:
    learned = replace(START, guess=0.5)
    lost = replace(START, guess=0.7)
    assert words([learned, lost]) == ["healthy", "warning"], "it had been better"
    early = [replace(START, guess=0.8)] * 30
    found = verdicts(early)
    assert [verdict.word for verdict in found] == ["healthy"] * 18 + ["warning"] * 12
    assert "the mean token would be guessed as well" in found[0].reason
    assert "a copy of the nearest seen token" in verdicts([replace(learned, copied=0.4)])[0].reason


def test_a_step_that_moves_the_weights_far_is_a_warning() -> None:
    found = verdicts([replace(START, largest_step=0.3)] * 3)
    assert [verdict.word for verdict in found] == ["warning"] * 3 and "30%" in found[0].reason


def test_the_worst_rule_speaks() -> None:
    both = verdicts([replace(START, largest_step=0.3, spread=0.01)] * 2)[-1]
    assert both.word == "collapsing" and "vary" in both.reason and "moved" not in both.reason


def test_one_clip_a_forward_cannot_be_compared() -> None:
    history = History()
    verdict = judge(history, replace(START, spread=nan), CONFIG)
    assert verdict.word == "warning" and "fewer than two clips" in verdict.reason
    assert judge(history, START, CONFIG).word == "healthy", "the first that can be is the start"


def test_the_last_healthy_look_is_remembered() -> None:
    history = History()
    for step, spread in enumerate([1.0, 0.9, 0.3, 0.05], start=1):
        judge(history, replace(START, step=10 * step, spread=spread), CONFIG)
    assert history.sound_step == 20 and history.streaks == {"spread": 1}


def test_a_lasting_warning_is_no_reason_to_go_far_back() -> None:
    history = History()
    for step in range(1, 200):
        judge(history, replace(START, step=step), CONFIG)
    assert history.streaks["blind"] > 100 and history.sound_step == 199
    judge(history, replace(START, step=200, loss=nan), CONFIG)
    assert history.sound_step == 199


@pytest.mark.parametrize("loss", [0.5, nan, math.inf])
def test_what_is_remembered_survives_a_checkpoint(loss: float) -> None:
    history = History()
    for reading in (START, replace(START, step=2, loss=loss, spread=0.01, guess=nan)):
        judge(history, reading, CONFIG)
    stored = json.loads(json.dumps(history.state(), allow_nan=False))
    back = History.from_state(stored)
    assert verdict_of(back, CONFIG).word == verdict_of(history, CONFIG).word
    assert back.state() == history.state()
    assert verdict_of(History(), CONFIG) == Verdict("healthy", "not looked at yet")
