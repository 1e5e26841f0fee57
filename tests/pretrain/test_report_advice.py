"""What to try next: a rule speaks where a run's figures lead to it, and is silent where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import RunConfig
from pretrain.report import advice, story
from pretrain.report.advice import Seen, is_valid, suggestions
from pretrain.report.learned import Probing
from pretrain.report.spent import Spent, where_time_went
from pretrain.report.verdicts import Health
from tests.report_runs import lines_of, probe, write_run


def seen(
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    probings: list[Probing] | None = None,
    found: dict[str, Any] | None = None,
    word: str = "healthy",
    collapses: bool = False,
) -> Seen:
    """A run of 200 steps in which nothing is wrong, but for what is given."""
    plain: dict[str, Any] = {
        "name": "x",
        "data": {"shards": "nowhere", "workers": 4},
        "optim": {"lr": 1e-3, "warmup_steps": 10, "clip_norm": 1.0},
        "train": {"steps": 200, "global_batch": 48, "micro_batch": 24},
    }
    for section, values in (config or {}).items():
        plain[section] = {**plain.get(section, {}), **values}
    lines = [line | dict(metrics or {}) for line in lines_of(200, collapses=collapses)]
    made = RunConfig.model_validate(plain)
    return Seen(made, lines, Health(word, "said"), where_time_went(lines), probings or [], found, 1)


def overrides(given: Seen) -> list[str]:
    return [override for each in suggestions(given) for override in each.overrides]


def test_nothing_is_suggested_where_nothing_is_wrong() -> None:
    assert suggestions(seen(found=probe(200))) == []


@pytest.mark.parametrize(
    ("given", "expected", "figure"),
    [
        (lambda: seen({"data/wait_share": 0.3}), ["data.workers=8"], "30% of the training time"),
        (lambda: seen({"data/wait_share": 0.3}, {"data": {"workers": 0}}), ["data.workers=2"], "30%"),
        (lambda: seen({"optim/grad_norm": 4.2}), ["optim.clip_norm=8.4"], "at 100% of the logged steps"),
        (lambda: seen({"health/loss_mean_token": 0.3}), ["optim.lr=0.003"], "of the mean token, 0.300"),
        (
            lambda: seen({"optim/skipped_steps": 9}, {"optim": {"clip_norm": None}}),
            ["optim.lr=0.0005", "optim.clip_norm=1.0"],
            "9 of 200 steps",
        ),
        (
            lambda: seen({"perf/mfu": 0.12, "system/gpu_memory_share": 0.4}),
            ["train.micro_batch=48"],
            "MFU is 12%",
        ),
        (lambda: seen({"perf/save_stall_ms": 20.0}), ["train.checkpoint_every=2000"], "went into saves"),
        (
            lambda: seen({"perf/save_stall_ms": 20.0}, {"train": {"save_in_background": False}}),
            ["train.save_in_background=true"],
            "went into saves",
        ),
        (
            # neither alone would be enough
            lambda: seen({"perf/probe_ms": 7.0, "perf/pictures_ms": 7.0}, {"probe": {"every": 20}}),
            ["probe.every=40"],
            "went into online probes and pictures over steps",
        ),
        (lambda: seen({"perf/health_ms": 20.0}), ["health.every=100"], "looks at the features"),
        (lambda: seen(word="diverged"), ["optim.lr=0.00033"], "said"),
        (lambda: seen(word="collapsing", collapses=True), ["optim.lr=0.00033"], "spread is 1%"),
        (
            lambda: seen(
                config={"target": {"kind": "online", "stop_gradient": False}},
                word="collapsing",
                collapses=True,
            ),
            ["target.kind=ema", "target.stop_gradient=true"],
            "spread is 1%",
        ),
        (
            lambda: seen(
                config={"target": {"momentum": {"start": 0.0, "end": 0.5}}}, word="warning", collapses=True
            ),
            ["target.momentum.start=0.99", "target.momentum.end=0.996"],
            "spread is 1%",
        ),
    ],
)
def test_a_figure_leads_to_the_setting_that_may_mend_it(
    given: Callable[[], Seen], expected: list[str], figure: str
) -> None:
    run = given()
    assert overrides(run) == expected
    assert figure in suggestions(run)[0].figure
    assert is_valid(run.config, expected, 1)


@pytest.mark.parametrize(
    "given",
    [
        lambda: seen({"data/wait_share": 0.05}),
        lambda: seen({"optim/grad_norm": 4.2}, {"optim": {"clip_norm": None}}),
        lambda: seen({"perf/mfu": 0.5, "system/gpu_memory_share": 0.4}),
        lambda: seen({"perf/mfu": 0.1, "system/gpu_memory_share": 0.9}),
        lambda: seen({"optim/skipped_steps": 1}),
        lambda: seen({"perf/mfu": 0.1, "system/gpu_memory_share": 0.4}, {"train": {"micro_batch": 48}}),
    ],
    ids=[
        "little waiting",
        "no clipping",
        "a busy device",
        "full memory",
        "a step skipped",
        "no larger forward",
    ],
)
def test_a_rule_is_silent_where_its_figure_is_in_order_or_its_change_impossible(
    given: Callable[[], Seen],
) -> None:
    assert suggestions(given()) == []


def test_the_wait_for_the_workers_to_start_is_no_reason() -> None:
    run = seen()
    first = dict(run.metrics[0]) | {"data/wait_share": 0.9, "perf/step_ms": 60_000.0}
    lines = [first, *run.metrics[1:]]
    slow = Seen(run.config, lines, run.health, where_time_went(lines), [], None, 1)
    assert slow.spent.share("waiting for data") > 0.5
    assert suggestions(slow) == []


def test_a_run_that_fails_is_told_only_what_may_mend_that() -> None:
    run = seen({"data/wait_share": 0.5, "optim/grad_norm": 9.0}, word="collapsing", collapses=True)
    assert overrides(run) == ["optim.lr=0.00033"]


def _probings(*scores: float) -> list[Probing]:
    return [Probing(50 * (n + 1), {"mean shape": s}, {"mean shape": 0.3}) for n, s in enumerate(scores)]


def test_a_best_checkpoint_that_would_be_lost_is_kept_by_name() -> None:
    found = overrides(seen(probings=_probings(0.3, 0.6, 0.5, 0.4)))
    assert found == ["train.keep_best='mean shape'"]
    assert (
        overrides(seen(probings=_probings(0.3, 0.6, 0.5, 0.4), config={"train": {"keep_best": "mean shape"}}))
        == []
    )


def test_a_run_that_ends_while_it_still_becomes_better_may_be_longer() -> None:
    assert overrides(seen(probings=_probings(0.3, 0.4, 0.5, 0.6))) == ["train.steps=400"]
    assert overrides(seen(probings=_probings(0.3, 0.6, 0.6, 0.601))) == []


def test_a_run_that_learned_nothing_may_be_longer() -> None:
    flat = probe(200)
    for row in flat["rows"] + flat["labels"]["rows"]:
        row["scores"] = dict.fromkeys(row["scores"], 0.5)
    assert overrides(seen(found=flat)) == ["train.steps=800"]


def test_an_override_that_is_no_setting_or_no_value_is_never_shown() -> None:
    config = seen().config
    assert is_valid(config, ["optim.lr=0.01"], 1)
    assert not is_valid(config, ["optim.rate=0.01"], 1)
    assert not is_valid(config, ["optim.lr=-1"], 1)
    assert not is_valid(config, ["train.micro_batch=48"], 2), "48 clips are not 48 for each of two ranks"


def test_every_part_of_the_time_is_counted_once() -> None:
    lines = [
        {"step": 1, "perf/step_ms": 1000.0, "data/wait_share": 0.5},
        {"step": 3, "perf/step_ms": 500.0, "data/wait_share": 0.1, "perf/health_ms": 200.0},
        {"step": 5, "perf/step_ms": 500.0, "data/wait_share": 0.0, "perf/save_stall_ms": 300.0},
    ]
    spent = where_time_went(lines)
    assert spent.seconds == pytest.approx(3.0)
    assert spent.parts == pytest.approx(
        {"compute": 1.9, "waiting for data": 0.6, "saves": 0.3, "looks at features": 0.2}
    )
    assert list(spent.parts) == ["compute", "waiting for data", "saves", "looks at features"]
    assert where_time_went([{"step": 1}]) == Spent({})


def test_the_page_shows_the_figure_and_a_command_that_starts_another_run(tmp_path: Path) -> None:
    from pretrain.report import one

    run = write_run(tmp_path / "r", metrics={"data/wait_share": 0.3}, probes=False)
    told = story.tell(run, with_pictures=False)
    text = one.page(told)
    assert f"foreframe train {run}/config.yaml name=tiny-next1 data.workers=8" in text
    assert "30% of the training time" in text
    assert advice.WAITS < 0.3
