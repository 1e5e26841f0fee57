"""failure.json: why a run ended before its time."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from torch import Tensor

from data_pipeline.errors import DataError, DivergedError
from launch.failure import FAILURE_FILE, telling_failure
from launch.ranks import RankError
from launch.status import read_status
from launch.train import run_train
from pretrain.objective.base import Batch, Output
from pretrain.objective.masked import MaskedLatent
from tests.small_dataset import tiny_config


@pytest.mark.parametrize(
    ("error", "record"),
    [
        (DataError("a store is away"), (3, "DataError", "a store is away")),
        (RankError("rank 1 hung", 6, "HangError"), (6, "HangError", "rank 1 hung")),
        (ValueError("a slip\nof many lines"), (1, "ValueError", "ValueError: a slip")),
        (KeyboardInterrupt(), (130, "KeyboardInterrupt", "interrupted a second time, without a save")),
    ],
)
def test_what_ends_a_run_is_written_and_goes_on(
    error: BaseException, record: tuple[int, str, str], tmp_path: Path
) -> None:
    with pytest.raises(type(error)), telling_failure(tmp_path):
        raise error
    plain = json.loads((tmp_path / FAILURE_FILE).read_text())
    assert (plain["exit_code"], plain["kind"], plain["sentence"]) == record
    assert datetime.fromisoformat(plain["time"]).tzinfo is not None


def test_what_failed_before_counts_no_more(tmp_path: Path) -> None:
    (tmp_path / FAILURE_FILE).write_text("{}")
    with telling_failure(tmp_path):
        assert not (tmp_path / FAILURE_FILE).exists()
    assert not (tmp_path / FAILURE_FILE).exists()


def test_a_stop_with_a_save_has_its_result_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError), telling_failure(tmp_path):
        raise DataError("x")
    assert not (tmp_path / FAILURE_FILE).exists()


def test_a_run_that_diverged_says_so_until_it_goes_on(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MaskedLatent.forward

    def poisoned(self: MaskedLatent, batch: Batch, targets: Tensor | None) -> Output:
        output = forward(self, batch, targets)
        return output._replace(loss=output.loss * float("nan"))

    config = tiny_config(small_dataset, tmp_path, train={"steps": 4, "max_skipped_steps": 1})
    with monkeypatch.context() as patched:
        patched.setattr(MaskedLatent, "forward", poisoned)
        with pytest.raises(DivergedError):
            run_train(config, quiet=True)
    state = read_status(tmp_path / "tiny").state
    assert (state.word, state.known_by) == ("failed", FAILURE_FILE)
    assert "not finite" in state.reason
    run_train(config, quiet=True)
    assert read_status(tmp_path / "tiny").state.word == "finished"
