"""The report of a run whose files are damaged: what cannot be read is said, and the rest is on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import CheckpointError
from pretrain.curves import draw
from pretrain.figures import figures_of
from pretrain.probe.result import read_probe
from pretrain.report import one, story
from pretrain.report.write import figures_of_run
from tests.damage import DAMAGES, FILES, KEYS, NUMBERS, in_time, with_value
from tests.report_runs import write_run, write_troubles

OBJECTS = ("probe.json", "provenance.json", "result.json", "mlflow_run.json")


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "draw_pictures", lambda *_: ([], []))
    monkeypatch.setattr(story, "draw_figures", lambda *_: [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_sentence_and_the_rest_is_shown(damage: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=60)
    for name in [name for name in FILES if name not in (".lock", "config.yaml")]:
        file = run / name
        before = file.read_bytes() if file.exists() else None
        DAMAGES[damage](file)
        with in_time():
            told = story.tell(run)
        assert one.page(told)
        assert name not in OBJECTS or any(name in said for said in told.missing)
        assert told.metrics or name == "metrics.jsonl"
        file.rmdir() if file.is_dir() else file.unlink()
        if before is not None:
            file.write_bytes(before)


@pytest.mark.parametrize("damage", ["NUL", "nested object", "long", "folder", "pipe"])
def test_without_its_config_it_is_an_error_that_names_it(damage: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=10)
    DAMAGES[damage](run / "config.yaml")
    with in_time(), pytest.raises(CheckpointError, match=r"config\.yaml"):
        story.tell(run)


def test_a_damaged_probe_is_named_by_those_who_need_it(tmp_path: Path) -> None:
    for number, damage in enumerate(DAMAGES.values()):
        run = write_run(tmp_path / str(number), steps=60)
        damage(run / "probe.json")
        with in_time(), pytest.raises(Exception, match=r"probe\.json cannot be read"):
            read_probe(run)


@pytest.mark.parametrize("value", NUMBERS[:3])
def test_numbers_that_cannot_be_are_left_out(value: str, tmp_path: Path) -> None:
    for place, key in enumerate(KEYS):
        run = write_run(tmp_path / str(place), steps=20)
        with_value(run / "metrics.jsonl", key, value)
        told = story.tell(run)
        assert one.page(told)
        drawn = {figure.name for figure in figures_of_run(told)}
        assert ("loss" in drawn) == (key not in ("loss", "step"))


def test_the_largest_numbers_that_are_taken_can_be_drawn(tmp_path: Path) -> None:
    metrics = [{"step": step, "loss": 9e99 * (-1) ** step, "optim/grad_norm": 9e99} for step in range(20)]
    for figure in figures_of(metrics):
        draw(figure, tmp_path / f"{figure.name}.svg")
        assert (tmp_path / f"{figure.name}.svg").stat().st_size


@pytest.mark.parametrize("value", NUMBERS)
def test_an_attempt_of_any_length_is_on_the_page(value: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=60)
    write_troubles(run)
    with_value(run / "restarts.jsonl", "seconds", value)
    assert "Attempts" in one.page(story.tell(run))
