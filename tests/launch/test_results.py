"""What is found out after a run: its pictures and report reach the tracker at the step they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from launch.results import compare_runs, last_step, report_run
from launch.train import run_train
from tests.damage import DAMAGES
from tests.report_runs import write_run
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
def test_a_file_that_was_cut_short_is_named_on_the_page(
    small_dataset: Path, tmp_path: Path, name: str
) -> None:
    run = run_train(tiny_config(small_dataset, tmp_path, train={"steps": 2}), quiet=True).run
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": [1], "data/wait_share": "x"}\n{"step": 4, "lo')
    (run / name).write_text('{"step": 1')
    assert f"{name} cannot be read" in report_run(run).read_text()


def test_a_damaged_probe_tells_no_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
    (tmp_path / "probe.json").write_text('{"step"')
    assert last_step(tmp_path) == 10


def test_several_runs_are_compared_and_what_is_no_run_is_refused(tmp_path: Path) -> None:
    made = [write_run(tmp_path / name, name=name, steps=20) for name in ("a", "b")]
    assert compare_runs(made) == tmp_path / "compare.html"
    with pytest.raises(UsageError, match="is no run's folder"):
        compare_runs([*made, tmp_path])


@pytest.mark.parametrize("damage", ["NUL", "folder"])
def test_what_mlflow_cannot_be_told_is_said_and_the_page_stays(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pretrain.report.story.draw_figures", lambda *_: [])
    run = write_run(tmp_path / "run", steps=20, config={"tracker": {"kind": "mlflow"}})
    DAMAGES[damage](run / "mlflow_run.json")
    assert report_run(run).is_file()
    assert "MLflow has not got the report" in caplog.text
    assert "mlflow_run.json cannot be read" in caplog.text
