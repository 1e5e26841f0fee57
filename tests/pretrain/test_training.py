"""Whole small runs on one process: the golden curve, learning, collapse, divergence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import CollapsedError, DataError, DivergedError
from launch.train import run_train
from pretrain.data.reader import Clip, ClipReader, Sample
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_20_steps.json"


def test_twenty_steps_follow_the_golden_curve(small_dataset: Path, tmp_path: Path) -> None:
    """Mend the code, or, when the change is meant, write the new curve with its reason:
    `python -m tests.golden.write losses` and commit both.
    """
    run = run_train(tiny_config(small_dataset, tmp_path), quiet=True).run
    golden = json.loads(GOLDEN.read_text())
    found = read_metrics(run)
    assert [line["batch_digest"] for line in found] == golden["batch_digest"]
    assert [line["loss"] for line in found] == pytest.approx(golden["loss"], rel=golden["rel"])


def test_features_that_stop_varying_end_the_run(small_dataset: Path, tmp_path: Path) -> None:
    """A floor above any healthy spread stands for a collapse: the run stops, saves and says why."""
    health = {"every": 1, "on_collapse": "stop", "std_floor": 1.0, "patience": 1}
    config = tiny_config(
        small_dataset, tmp_path, health=health, target={"momentum": {"start": 0.0, "end": 0.0}}
    )
    with pytest.raises(CollapsedError, match=r"of the .* at the start"):
        run_train(config, quiet=True)
    assert (tmp_path / "tiny" / "checkpoints" / "latest").is_file()
    with_notes = tiny_config(
        small_dataset, tmp_path, name="noted", health={**health, "on_collapse": "note"}, train={"steps": 4}
    )
    assert run_train(with_notes, quiet=True).step == 4


def test_gradients_that_are_not_finite_are_skipped_and_end_the_run(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.objective.masked import MaskedLatent

    forward = MaskedLatent.forward

    def poisoned(self: MaskedLatent, batch, targets):  # type: ignore[no-untyped-def]
        output = forward(self, batch, targets)
        return output._replace(loss=output.loss * float("nan")) if batch.step >= 3 else output

    monkeypatch.setattr(MaskedLatent, "forward", poisoned)
    config = tiny_config(small_dataset, tmp_path, train={"max_skipped_steps": 2})
    with pytest.raises(DivergedError, match=r"3 steps in a row .* up to step 6"):
        run_train(config, quiet=True)
    assert [line["optim/skipped_steps"] for line in read_metrics(tmp_path / "tiny")] == [0, 0, 0, 1, 2, 3]
    lines = (tmp_path / "tiny" / "skipped_steps.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    assert [line["step"] for line in skipped] == [4, 5, 6]
    assert all(set(line["suspects"]) == set(line["ids"]) and len(line["ids"]) == 4 for line in skipped)


def test_too_many_unreadable_samples_end_the_run_with_their_list(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = ClipReader.decode

    def fails(self: ClipReader, sample: Sample, *args: Any, **kwargs: Any) -> Clip:
        if int(sample.key, 16) % 2:
            raise DataError(f"planted in {sample.key}")
        return decode(self, sample, *args, **kwargs)

    monkeypatch.setattr(ClipReader, "decode", fails)
    with pytest.raises(DataError, match=r"more than data.max_bad_samples = 3.*planted"):
        run_train(tiny_config(small_dataset, tmp_path, data={"max_bad_samples": 3}), quiet=True)
    skipped = [json.loads(line) for line in (tmp_path / "tiny" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) > 3
    assert all("planted" in entry["reason"] for entry in skipped)


def test_a_run_stops_at_its_time_limit_and_goes_on(small_dataset: Path, tmp_path: Path) -> None:
    short = tiny_config(small_dataset, tmp_path, train={"time_limit_s": 1e-3, "steps": 6})
    stopped = run_train(short, quiet=True)
    assert stopped.stopped is not None
    assert stopped.step == 1
    assert run_train(tiny_config(small_dataset, tmp_path, train={"steps": 6}), quiet=True).step == 6
    assert [line["step"] for line in read_metrics(stopped.run)] == [1, 2, 3, 4, 5, 6]
