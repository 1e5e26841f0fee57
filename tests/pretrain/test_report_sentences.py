"""What a report says of figures in sentences, whatever stands in them."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from pretrain import report
from pretrain.recent import recent_loss
from pretrain.report import one, story
from pretrain.report.learned import probings_of, say_learned, say_tables
from pretrain.report.sections import beside, verdict_strip
from pretrain.report.verdicts import Stretch, beside_trivial
from pretrain.report.write import figures_of_run
from tests.report_runs import probe, write_lines, write_run, write_troubles


def _line(step: int, std: float = 0.9, loss: float | None = 0.5) -> dict[str, Any]:
    """A line as runs wrote it before verdicts were written down."""
    line = {"step": step, "loss": loss, "health/target_std": std, "health/target_rankme": 40.0}
    return line | ({"health/target_std_untrained": std} if step == 1 else {})


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([], "not looked at"),
        ([_line(1), _line(40)], "healthy"),
        ([_line(1), _line(40, std=0.05)], "collapsed"),
        ([_line(1), _line(20, std=4.0), _line(40, std=1.0)], "warning"),
        ([_line(1), _line(40, loss=None)], "diverged"),
        ([_line(1), _line(40) | {"verdict": "collapsing", "verdict_reason": "rank"}], "collapsing"),
        ([_line(1) | {"verdict": "warning"}, _line(40, loss=None)], "diverged"),
    ],
)
def test_health_in_a_word(lines: list[dict[str, Any]], word: str) -> None:
    assert report.judge_health(lines, 0.1).word == word


def test_the_verdict_that_a_run_wrote_down_is_the_one_that_is_told() -> None:
    lines = [_line(1), _line(20) | {"verdict": "warning", "verdict_reason": "rank falls"}, _line(40)]
    found = report.judge_health(lines, 0.1)
    assert (found.word, found.reason) == ("warning", "rank falls")


def test_what_was_learned_names_gains_and_leaves_out_what_is_at_chance() -> None:
    rows = [
        {"encoder": "trained", "scores": {"position": 0.75, "velocity": -0.001, "shape": 0.4}},
        {"encoder": "untrained", "scores": {"position": 0.62, "velocity": None, "shape": 0.44}},
        {"encoder": "mean of the train clips", "scores": {"position": 0.0, "velocity": 0.0, "shape": 0.43}},
    ]
    said = say_learned({"kind": "states", "rows": rows, "num_eval_clips": 100})
    assert "position 0.75 (untrained 0.62)" in said
    assert "shape" not in said


def test_a_probe_without_gain_says_so() -> None:
    rows: list[dict[str, Any]] = [
        {"encoder": e, "scores": {"top-1": v}}
        for e, v in (("trained", 0.5), ("untrained", 0.7), ("chance", 0.1))
    ]
    found: dict[str, Any] = {"kind": "retrieval", "rows": rows, "num_train_clips": 80, "num_eval_clips": 20}
    assert say_learned(found).startswith("Nothing is read better")
    rows[0]["scores"] = {"top-1": 0.78}
    assert "no difference" in say_learned(found)
    assert "top-1 0.78" in say_learned(found | {"num_train_clips": 800})
    assert "not been probed" in say_learned(None)
    assert "no scores" in say_learned({"rows": "none"})


def test_other_readouts_are_told_by_their_name() -> None:
    said = say_tables(probe(200))
    assert len(said) == 2
    assert "top-1 by attentive 0.62 (untrained 0.50)" in said[1]


def test_probings_of_one_kind_are_drawn_together_and_those_of_the_training_first() -> None:
    def line(step: int, kind: str | None, value: float) -> dict[str, Any]:
        return {"step": step, "scores": {"background drift": value}} | ({"kind": kind} if kind else {})

    offline = [line(40, None, 0.1), line(80, "offline", 0.2), line(80, "offline", 0.3)]
    assert [(p.step, p.scores["background drift"]) for p in probings_of(offline, [])] == [
        (40, 0.1),
        (80, 0.3),
    ]
    both = [line(20, "online", 0.5), *offline, line(40, "online", 0.6)]
    assert [p.step for p in probings_of(both, [])] == [20, 40]
    logged = [{"step": 60, "probe/trained/background_drift": 0.7, "probe/untrained/background_drift": 0.2}]
    found = probings_of(both, logged)
    assert [(p.step, p.scores["background drift"]) for p in found] == [(20, 0.5), (40, 0.6), (60, 0.7)]
    assert found[-1].untrained == {"background drift": 0.2}


ODD: tuple[Any, ...] = (None, "x", "", [], {}, math.nan, math.inf, 1e308, True, -1, 0, [1], {"a": 1}, 10**30)


def _odd(plain: Any, rng: random.Random) -> Any:
    """The same with one value, anywhere in it, that nobody would expect there."""
    if isinstance(plain, dict) and plain and rng.random() < 0.9:
        key = rng.choice(list(plain))
        return plain | {key: _odd(plain[key], rng)}
    if isinstance(plain, list) and plain and rng.random() < 0.9:
        place = rng.randrange(len(plain))
        return [*plain[:place], _odd(plain[place], rng), *plain[place + 1 :]]
    return rng.choice(ODD)


def test_no_value_of_any_file_ends_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    write_troubles(run)
    names = [path.name for path in sorted(run.glob("*.json*")) if path.name != "config.yaml"]
    assert len(names) == 9
    before = {name: (run / name).read_text() for name in names}
    for seed in range(6 * len(names)):
        rng, name = random.Random(seed), names[seed % len(names)]
        if name.endswith(".json"):
            (run / name).write_text(json.dumps(_odd(json.loads(before[name]), rng)))
        else:
            lines = [json.loads(line) for line in before[name].splitlines()]
            write_lines(run / name, [_odd(line, rng) for line in lines])
        found = story.tell(run, with_pictures=False)
        assert "How it went" in one.page(found), (name, seed)
        assert all(figure.alt for figure in figures_of_run(found)), (name, seed)
        (run / name).write_text(before[name])


def test_the_strip_of_verdicts_covers_all_steps_and_shows_the_last_look() -> None:
    stretches = [Stretch("healthy", 1, 50), Stretch("warning", 60, 90), Stretch("collapsing", 100, 100)]
    found = re.findall(
        r'<rect x="([\d.]+)".*?var\(--(\w+)\)" width="([\d.]+)"', verdict_strip(stretches, 100)
    )
    assert found == [("0.0", "good", "300.0"), ("300.0", "fair", "240.0"), ("540.0", "bad", "60.0")]
    assert verdict_strip([], 100) == ""


def test_the_recent_loss_of_a_short_run_is_not_that_of_its_begin() -> None:
    lines = [{"step": step, "loss": float(step)} for step in range(1, 201)]
    assert recent_loss(lines[:5]) == 5
    assert recent_loss(lines[:40]) == pytest.approx(38.5)
    assert recent_loss(lines) == pytest.approx(195.5)
    assert recent_loss(lines, until=20) == pytest.approx(19.5)
    assert recent_loss([{"step": 1, "loss": None}]) is None
    seldom = [{"step": step, "loss": float(step)} for step in (1, 50, 100, 150, 200, 250, 300, 312)]
    assert recent_loss(seldom) == pytest.approx(306.0), "of the last tenth of the steps, not of all lines"
    lost = [*seldom, {"step": 312, "probe/shape": 0.5}, {"step": 313, "loss": math.nan}, {"step": 10**400}]
    assert recent_loss(lost) == pytest.approx(306.0), "a line without a finite loss does not count"


@pytest.mark.parametrize(("loss", "is_beaten"), [(0.99, True), (1.0, False), (1.32, False)])
def test_predictions_no_better_than_a_trivial_answer_are_a_warning_beside_the_verdict(
    loss: float, is_beaten: bool
) -> None:
    line = _line(10) | {
        "health/loss_prediction": loss,
        "health/loss_mean_token": 1.0,
        "health/loss_copy": 1.5,
    }
    found = beside_trivial([line])
    assert found is not None and found.is_beaten == is_beaten
    said = beside(found)
    assert ('<b class="fair">Predictions have learned nothing yet.</b>' in said) is not is_beaten
    assert f"is {loss:.0%} of that of the better trivial answer (the mean token: 1.000)" in said
