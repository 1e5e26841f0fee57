"""Going back to before a trouble: the same weights, counters and data again, or with what was to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import CheckpointError, CollapsedError, DivergedError
from launch.train import run_train
from pretrain.checkpoint.whole import step_folders
from pretrain.config import RollbackConfig, RunConfig
from pretrain.events import last_void, read_events
from pretrain.progress import Changes
from pretrain.schedule import Knobs
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config


def config_of(dataset: Path, folder: Path, *, rollback: dict[str, Any], **changes: Any) -> RunConfig:
    """From the second look on the spread counts as gone: trouble at step 10, the last healthy look at 1."""
    health = {"every": 5, "std_floor": 1.0, "patience": 2, "on_collapse": "rollback", "rollback": rollback}
    train = {"steps": 12, "checkpoint_every": 1, "keep_checkpoints": 1, **changes.pop("train", {})}
    target = {"momentum": {"start": 0.0, "end": 0.0}}
    return tiny_config(dataset, folder, health=health, train=train, target=target, **changes)


def rolled_back(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rolled_back.jsonl").read_text().splitlines()]


def test_the_same_steps_come_again_bit_by_bit_and_then_the_run_stops(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = config_of(small_dataset, tmp_path, rollback={"times": 2, "lr_scale": 1.0})
    with pytest.raises(CollapsedError, match="times = 2 is used up"):
        run_train(config, quiet=True)
    run = tmp_path / "tiny"
    attempts = [[line for line in rolled_back(run) if line["rollback"] == number] for number in (1, 2)]
    last = [line for line in read_metrics(run) if line["step"] > 1]
    for attempt in (*attempts, last):
        assert [line["step"] for line in attempt] == list(range(2, 11))
        for key in ("loss", "batch_digest", "optim/lr", "health/target_std"):
            assert [line.get(key) for line in attempt] == [line.get(key) for line in last], key
    events = read_events(run)
    assert [(row["response"], row["to_step"]) for row in events if row["verdict"] == "collapsing"] == [
        ("rolled back", 1),
        ("rolled back", 1),
        ("stopped", None),
    ]
    assert [path.name for path in step_folders(run)] == ["step-00000010", "step-00000001"], (
        "before the trouble"
    )


def test_what_was_to_change_has_changed_and_stays_after_a_resume(small_dataset: Path, tmp_path: Path) -> None:
    rule = {"times": 1, "lr_scale": 0.5, "momentum": 0.75, "data": "skip"}
    config = config_of(small_dataset, tmp_path, rollback=rule)
    with pytest.raises(CollapsedError):
        run_train(config, quiet=True)
    run = tmp_path / "tiny"
    before, after = rolled_back(run), [line for line in read_metrics(run) if line["step"] > 1]
    assert [line["optim/lr"] for line in after] == [line["optim/lr"] / 2 for line in before]
    assert {line["optim/momentum"] for line in before} == {0.0}
    assert {line["optim/momentum"] for line in after} == {0.75}
    assert not {line["batch_digest"] for line in before} & {line["batch_digest"] for line in after}

    relaxed = config.model_copy(update={"health": config.health.model_copy(update={"on_collapse": "note"})})
    run_train(relaxed, quiet=True)
    assert [line["optim/momentum"] for line in read_metrics(run)][-2:] == [0.75, 0.75]
    assert read_metrics(run)[-1]["step"] == 12


def test_a_rollback_that_was_cut_short_is_finished_by_the_next_start(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after it was written down, before later checkpoints were removed."""
    from pretrain.checkpoint import Checkpoints

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    rule = {"times": 1, "lr_scale": 0.5, "data": "skip"}
    config = config_of(small_dataset, tmp_path, rollback=rule, train={"save_in_background": False})
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_go_on_from", killed)
        with pytest.raises(KeyboardInterrupt):
            run_train(config, quiet=True)
    run = tmp_path / "tiny"
    assert max(path.name for path in step_folders(run)) == "step-00000009", "the trouble's own is still there"
    void = last_void(run)
    assert void is not None and void.to_step == 1 and void.samples == 40

    relaxed = config.model_copy(update={"health": config.health.model_copy(update={"on_collapse": "note"})})
    run_train(relaxed, quiet=True)
    assert [line["step"] for line in rolled_back(run)] == list(range(2, 11)), "set aside, though late"
    lines = {line["step"]: line for line in read_metrics(run)}
    assert sorted(lines) == list(range(1, 13))
    assert lines[3]["optim/lr"] == pytest.approx(config.optim.lr / 2), "taken again, at half the rate"
    assert lines[2]["data/epoch"] == pytest.approx((40 + 4) / 23), "from where it had been"


def test_a_run_that_has_stopped_goes_back_when_it_is_told_to(small_dataset: Path, tmp_path: Path) -> None:
    train = {"checkpoint_every": 1, "keep_checkpoints": 20}
    config = config_of(small_dataset, tmp_path, rollback={"times": 1, "lr_scale": 0.5}, train=train)
    stopping = config.model_copy(update={"health": config.health.model_copy(update={"on_collapse": "stop"})})
    with pytest.raises(CollapsedError, match="on_collapse=rollback"):
        run_train(stopping, quiet=True)
    with pytest.raises(CollapsedError, match="times = 1 is used up"):
        run_train(config, quiet=True)
    responses = [(row["step"], row["response"], row["to_step"]) for row in read_events(tmp_path / "tiny")]
    assert (11, "rolled back", 1) in responses and responses[-1] == (10, "stopped", None)


def test_without_a_checkpoint_from_before_the_run_stops(small_dataset: Path, tmp_path: Path) -> None:
    config = config_of(small_dataset, tmp_path, rollback={}, train={"checkpoint_every": 4})
    with pytest.raises(CollapsedError, match="no checkpoint is earlier"):
        run_train(config, quiet=True)
    assert [row["response"] for row in read_events(tmp_path / "tiny")][-1] == "stopped"


def test_steps_that_are_not_finite_are_gone_back_from_too(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stretch of data that breaks every step is passed over, and the run ends well."""
    from pretrain.objective.masked import MaskedLatent

    forward = MaskedLatent.forward

    def poisoned(self: MaskedLatent, batch, targets):  # type: ignore[no-untyped-def]
        output = forward(self, batch, targets)
        bad = any(16 <= position < 28 for position in batch.positions)
        return output._replace(loss=output.loss * float("nan")) if bad else output

    monkeypatch.setattr(MaskedLatent, "forward", poisoned)
    health = {"every": 4, "on_collapse": "rollback", "rollback": {"lr_scale": 1.0, "data": "skip"}}
    train = {"steps": 12, "checkpoint_every": 2, "max_skipped_steps": 2}
    config = tiny_config(small_dataset, tmp_path, health=health, train=train)
    result = run_train(config, quiet=True)
    assert result.step == 12
    lines = read_metrics(result.run)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["loss"] is not None for line in lines)
    assert [line["step"] for line in rolled_back(result.run)] == [5, 6, 7]
    assert not (result.run / "skipped_steps.jsonl").read_text()

    stopping = tiny_config(
        small_dataset, tmp_path, name="stops", health={**health, "on_collapse": "stop"}, train=train
    )
    with pytest.raises(DivergedError, match="3 steps in a row"):
        run_train(stopping, quiet=True)


def test_a_damaged_line_of_a_rollback_is_a_sentence_and_others_are_passed_over(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = config_of(small_dataset, tmp_path, rollback={"times": 1})
    with pytest.raises(CollapsedError):
        run_train(config, quiet=True)
    run = tmp_path / "tiny"
    for name in ("health.jsonl", "metrics.jsonl", "rolled_back.jsonl"):
        with (run / name).open("a") as file:
            file.write(f'{"[" * 100_000}\n{{"step": {"9" * 5000}}}\n{{"step": "x", "rollback": "y"}}\n{{"st')
    with pytest.raises(CollapsedError):
        run_train(config, quiet=True)
    assert len([row for row in read_events(run) if row["response"] == "rolled back"]) == 1, (
        "no more than times"
    )
    text = (run / "health.jsonl").read_text()
    (run / "health.jsonl").write_text(text.replace('"rollbacks": 1', '"rollbackz": 1'))
    with pytest.raises(CheckpointError, match=r"health.jsonl: the line .* at step 10 is damaged"):
        run_train(config, quiet=True)


def test_changes_add_up() -> None:
    rule = RollbackConfig(lr_scale=0.5, momentum=0.99)
    twice = Changes().after_one_more(rule).after_one_more(rule)
    knobs = Knobs(lr=1.0, weight_decay=0.1, momentum=0.9)
    assert twice.of(knobs) == Knobs(lr=0.25, weight_decay=0.1, momentum=0.99)
    assert twice.of(Knobs(1.0, 0.1, 0.999)).momentum == 0.999, "at least"
    assert Changes().of(knobs) == knobs


def test_weights_whose_norm_overflows_are_a_diverged_run_and_no_crash(
    small_dataset: Path, tmp_path: Path
) -> None:
    optim = {"lr": 1e30, "warmup_steps": 0, "clip_norm": 1.0}
    train = {"steps": 8, "max_skipped_steps": 3}
    config = tiny_config(small_dataset, tmp_path, optim=optim, train=train, health={"every": 1})
    with pytest.raises(DivergedError):
        run_train(config, quiet=True)
