"""What is found out after a run: its pictures and report reach the tracker at the step they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError
from launch.results import last_step, report_run
from launch.train import run_train
from tests.small_dataset import tiny_config


def test_the_report_brings_the_runs_pictures_at_the_step_they_are_of(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"time_limit_s": 1e-3, "steps": 6})
    run = run_train(config, quiet=True).run
    (run / "pictures").mkdir(exist_ok=True)
    (run / "pictures" / ".half.png.part").touch()
    (run / "pictures" / "steps" / "00000001").mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    monkeypatch.setattr("pretrain.tracking.base.add_results", lambda *_, **given: told.update(given))
    path = report_run(run)
    assert told["files"] == [path]
    assert told["step"] == 1
    assert told["pictures"]
    assert {picture.parent for picture in told["pictures"]} == {run / "pictures"}
    assert not any(picture.name.startswith(".") for picture in told["pictures"])


def test_a_probe_tells_the_step_too(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
    assert last_step(tmp_path) == 10
    (tmp_path / "probe.json").write_text('{"step": 12}')
    assert last_step(tmp_path) == 12


@pytest.mark.parametrize("name", ["probe.json", "provenance.json"])
def test_a_file_that_was_cut_short_is_named_with_what_to_do(
    small_dataset: Path, tmp_path: Path, name: str
) -> None:
    run = run_train(tiny_config(small_dataset, tmp_path, train={"steps": 2}), quiet=True).run
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": [1], "data/wait_share": "x"}\n{"step": 4, "lo')
    assert report_run(run).is_file()
    (run / name).write_text('{"step": 1')
    with pytest.raises(DataError, match=rf"{name} cannot be read .*: (remove it|`foreframe probe)"):
        report_run(run)
