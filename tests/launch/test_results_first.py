"""What cannot be written is found out before the work, and nothing is left half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import UsageError
from launch.cli import app
from launch.results import compare_runs, probe_any, report_run
from pretrain.curves import draw
from pretrain.figures import figures_of
from pretrain.probe import Asked
from tests.report_runs import write_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, where the long work fails the test."""

    def late(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    monkeypatch.setattr("pretrain.probe.subject.of_run", lambda *_: None)
    monkeypatch.setattr("pretrain.probe.offline.run_probe", late)
    monkeypatch.setattr("pretrain.report.write.tell", late)
    monkeypatch.setattr("pretrain.report.write.tell_all", late)
    (tmp_path / "a file").touch()
    return write_run(tmp_path / "run", steps=20)


def test_a_probe_that_cannot_be_written_does_not_begin(run: Path) -> None:
    (run.parent / "taken" / "probe.json").mkdir(parents=True)
    for out in (run.parent / "a file", run.parent / "a file" / "below", run.parent / "taken"):
        with pytest.raises(UsageError, match="choose another --out"):
            probe_any(run, Asked(), out=out)


def test_a_report_that_cannot_be_written_does_not_begin(run: Path) -> None:
    file, folder = run.parent / "a file", run.parent
    for out in (file / "report.html", folder):
        with pytest.raises(UsageError, match="choose another --out"):
            report_run(run, out)
        with pytest.raises(UsageError, match="choose another --out"):
            compare_runs([run, run], out)
    with pytest.raises(UsageError, match="choose another --figures"):
        report_run(run, figures=file)
    ended = CliRunner().invoke(app, ["report", str(run), "--out", str(file / "report.html")])
    assert isinstance(ended.exception, UsageError)
    assert sorted(path.name for path in folder.iterdir()) == ["a file", "data", "run"]


def test_on_a_full_disk_a_figure_is_the_old_one_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (figure,) = figures_of([{"step": step, "loss": 1.0 / step} for step in range(1, 5)])
    path = tmp_path / "loss.pdf"
    draw(figure, path)
    whole = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)  # what was written is only now refused
    for target in (path, tmp_path / "new.pdf"):
        with pytest.raises(OSError, match="No space left"):
            draw(figure, target)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
