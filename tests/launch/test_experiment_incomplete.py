"""Experiments of which not all runs finish: what goes on, what is told, what is kept as a result."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.experiments import keep, read_result
from data_pipeline.errors import CheckpointError, UsageError
from launch.config import read_config
from launch.console import Stages, make_console
from launch.experiment import command, data
from launch.experiment.command import Asked, read_experiment, run_experiment
from launch.experiment.config import DataSpec, ExperimentConfig, Measure
from launch.experiment.data import folder_of, make_data
from launch.experiment.evaluate import Evaluation
from launch.experiment.measured import Evaluated, measured
from launch.experiment.result import unmeasured_cells
from launch.experiment.runs import Cell, Run
from launch.experiment.summary import markdown, spreads_of
from launch.sweep import local
from launch.sweep.local import EXIT_INTERRUPTED
from tests.launch.sweeps import training  # noqa: F401  a fixture
from tests.launch.test_experiment import ARMS
from tests.small_dataset import write_dataset

FAILS = 2.0  # a learning rate above 1: the stand-in fails


@pytest.fixture
def tried(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, list[str]]]:
    """The exit code and what is said of the experiment, changed; without data, which nothing here reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "make_data", lambda *_: None)
    monkeypatch.setattr(command, "check_elements", lambda sweep: None)

    def run(change: Callable[[dict[str, Any]], None]) -> tuple[int, list[str]]:
        plain = yaml.safe_load(ARMS)
        del plain["levels"], plain["axis"], plain["quick"]
        change(plain)
        Path("e.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
        said: list[str] = []
        return run_experiment(Asked("e.yaml", seeds=2, parallel=2, out=Path("out")), said.append), said

    return run


def test_stages_go_on_from_what_has_finished(tried: Callable[..., tuple[int, list[str]]]) -> None:
    def change(plain: dict[str, Any]) -> None:
        plain["stages"]["first"]["arms"]["fast"]["settings"]["optim.lr"] = FAILS
        plain["stages"]["second"]["arms"] = {"of fast": {}, "of slow": {"weights_of": ["first", "slow"]}}

    code, said = tried(change)
    assert code == 5, "that of the runs that failed"
    assert "2 of the 4 runs of first did not finish; the same command goes on" in said
    assert "2 of the 4 runs of second left out: what they start from did not finish" in said
    result = json.loads(Path("out/try/result.json").read_text())
    assert {row["arm"] for row in result["rows"]} == {"of slow"}
    assert result["missing"] == ["of fast: seed 0, 1"]
    assert "Not finished, and not in the table: of fast: seed 0, 1." in Path("out/try/table.md").read_text()


def test_a_stage_that_nothing_can_begin_is_an_error_that_names_the_logs(
    tried: Callable[..., tuple[int, list[str]]],
) -> None:
    def change(plain: dict[str, Any]) -> None:
        plain["stages"]["first"]["arms"]["fast"]["settings"]["optim.lr"] = FAILS

    with pytest.raises(UsageError, match=r"no run of second can begin.*out/try/\*/logs"):
        tried(change)


def test_no_finished_run_leaves_an_earlier_result_as_it_was(
    tried: Callable[..., tuple[int, list[str]]],
) -> None:
    def fail(plain: dict[str, Any]) -> None:
        del plain["stages"]["second"]
        plain["stages"]["first"]["settings"]["optim.lr"] = FAILS
        plain["stages"]["first"]["arms"]["fast"]["settings"]["optim.lr"] = 2 * FAILS

    Path("out/try").mkdir(parents=True)
    Path("out/try/result.json").write_text("earlier")
    code, said = tried(fail)
    assert code == 5 and "none of the runs of first has finished: there is no table" in said
    assert Path("out/try/result.json").read_text() == "earlier"


def test_a_measure_that_no_run_tells_is_named(tried: Callable[..., tuple[int, list[str]]]) -> None:
    def change(plain: dict[str, Any]) -> None:
        del plain["stages"]["second"]
        plain["measures"].append({"name": "lozz", "key": "train/lozz"})

    code, said = tried(change)
    assert code == 0 and "\n'lozz' is in no row: no run told train/lozz" in said


def test_one_that_is_asked_to_stop_says_so_and_not_that_runs_failed(
    tried: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = local._Run._begin

    def asked_then_begun(self: Any, *which: Any) -> None:
        begin(self, *which)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setenv("FF_SLEEP", "1")
    monkeypatch.setattr(local._Run, "_begin", asked_then_begun)
    code, said = tried(lambda plain: None)
    assert code == EXIT_INTERRUPTED
    assert said[-1] == "stopped by SIGINT; the same command goes on"


def test_a_run_that_cannot_be_asked_is_left_out_and_stops_no_other(
    tried: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(experiment: object, run: Run, shards: object, on_part: object) -> Evaluated:
        if run.cell.seed == 0:
            raise CheckpointError("no whole checkpoint")
        return Evaluated({"asked": 7.0})

    def change(plain: dict[str, Any]) -> None:
        del plain["stages"]["second"]
        plain["evaluate"] = "rollout"
        plain["measures"].append({"name": "asked", "key": "asked"})

    monkeypatch.setitem(command.EVALUATIONS, "rollout", Evaluation(ask, lambda _: ""))
    monkeypatch.setattr(command, "check_evaluation", lambda *_: None)
    code, said = tried(change)
    assert code == CheckpointError.exit_code
    assert sum("no whole checkpoint; remove out/try/first/00" in line for line in said) == 2
    result = json.loads(Path("out/try/result.json").read_text())
    assert result["missing"] == []
    assert result["not_asked"] == ["slow: seed 0", "fast: seed 0"]
    table = Path("out/try/table.md").read_text()
    assert "Could not be asked, and not in the table: slow: seed 0; fast: seed 0." in table
    assert "Not finished" not in table
    assert {row["n"] for row in result["rows"]} == {1}


def test_shards_that_are_lost_or_cut_short_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(videos=4)
    own = folder_of(tmp_path, "one", spec)
    write_dataset(own / "shards", {"train": [3, 2], "eval": [2]})
    (own / "made.json").write_text("{}")
    again: list[list[str]] = []

    def reshard(*_: object, **__: object) -> None:
        again.append(sorted(path.name for path in (own / "shards/shards").glob("*.tar")))

    monkeypatch.setattr(data, "_render", lambda *_: None)
    monkeypatch.setattr("launch.data.run_shard", reshard)
    stages = Stages(make_console())
    make_data(tmp_path, "one", spec, stages)
    assert again == [], "it is whole"
    (own / "shards/shards/eval-000000.tar").unlink()
    make_data(tmp_path, "one", spec, stages)
    with (own / "shards/shards/train-000001.tar").open("r+b") as file:
        file.truncate(1000)
    make_data(tmp_path, "one", spec, stages)
    (own / "shards/dataset.json").write_text("{")
    make_data(tmp_path, "one", spec, stages)
    assert again == [["train-000000.tar", "train-000001.tar"], ["train-000000.tar"], ["train-000000.tar"]]


def test_what_cannot_be_written_is_told_before_any_work(tried: Callable[..., tuple[int, list[str]]]) -> None:
    Path("out/try/result.json").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"out/try/result\.json cannot be written.*Is a directory"):
        tried(lambda plain: None)
    assert not Path("out/try/first").exists()


def test_a_table_says_where_measures_have_fewer_seeds_than_others() -> None:
    values = {Cell("a", None, seed): {"x": 1.0, **({"y": 1.0} if seed else {})} for seed in range(3)}
    table = markdown(spreads_of(values, {}, ["a"], ["x", "y"], None), {"x": 0, "y": 0}, None)
    assert table.splitlines()[-1] == "| a | 1 ± 0 | 1 ± 0 | 2–3 |"


def test_a_run_that_diverged_is_not_told_by_what_it_was_before(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 0.9, "std": 0.5}, {"step": 2, "loss": None}, {"step": 3, "std": 0.4}]
    measures = [Measure(name="loss", key="loss"), Measure(name="std", key="std")]
    own = measured(measures, lines, {})[0]
    assert own == {"std": 0.4}
    (tmp_path / "e.yaml").write_text(ARMS)
    experiment = read_config(tmp_path / "e.yaml", [], ExperimentConfig)
    experiment = experiment.model_copy(update={"measures": tuple(measures)})
    fast, slow = Cell("fast", 0.8, 1), Cell("slow", 0.8, 1)
    found = unmeasured_cells(experiment, {fast: own, slow: {}}, {fast: lines, slow: [{"step": 1}]})
    assert found == {"loss": ["fast, noise 0.8: seed 1"]}, "a run that never has a loss did not diverge"


def test_a_number_that_was_due_once_more_and_did_not_come_is_none_of_the_end() -> None:
    def told(*steps: int, end: int) -> bool:
        lines = [{"step": step, "probe": 0.5} for step in steps]
        return "x" in measured([Measure(name="x", key="probe")], [*lines, {"step": end}], {})[0]

    assert told(200, 400, 600, end=600)
    assert not told(200, 400, end=600), "the probe of the last step failed"
    assert told(600, 1000, end=1000)
    assert told(1300, 1350, end=1362), "the next was not due"
    assert told(600, 600, end=600), "a run that went on logs a step twice"


def test_only_a_whole_result_is_kept_as_a_claim(tmp_path: Path) -> None:
    def told(text: str) -> str:
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
            read_result(tmp_path)
        return str(caught.value)

    with pytest.raises(ValueError, match="cannot be read"):
        read_result(tmp_path)
    shipped = read_experiment(Asked("collapse")).model_dump(mode="json")
    whole: dict[str, Any] = {"config": shipped | {"changes": []}, "rows": [], "missing": []}
    (tmp_path / "result.json").write_text(json.dumps(whole))
    assert read_result(tmp_path) == whole
    assert "is damaged" in told(json.dumps(whole)[:-9])
    assert "no result of an experiment" in told("[]")
    assert "no result of an experiment" in told(json.dumps({"config": whole["config"]}))
    assert "no result of an experiment" in told(json.dumps(whole | {"config": whole["config"] | {"odd": 1}}))
    assert "b: seed 3" in told(json.dumps(whole | {"missing": ["b: seed 3"]}))
    whole["config"]["seeds"] = 2
    assert "of collapse seed 0, 1; a claim needs 5" in keep(whole, tmp_path)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["experiment_collapse-0-1.json"]
    assert not (tmp_path / "experiment_collapse.json").exists()
