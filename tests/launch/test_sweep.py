"""Sweeps: which elements are asked for, how each is called, which of them run, what is told at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import ConfigError, UsageError
from launch.cli import app
from launch.config import read_config
from launch.lock import lock_run
from launch.sweep.axes import Asked, as_typed, read_axes, read_list, split_values
from launch.sweep.elements import LOCK, element_name, make_sweep, short_keys
from launch.sweep.local import device_slots
from launch.sweep.record import SWEEP_FILE, read_sweep
from launch.sweep.table import Outcome, outcomes_of, over_seeds
from launch.yaml_file import parse_value
from pretrain.config import RunConfig
from tests.launch.sweeps import run, small_config, starts, swept, training  # noqa: F401  fixtures


def test_axes_make_a_grid_whose_first_axis_changes_slowest() -> None:
    asked = read_axes(["optim.lr=1e-3,2e-3", "train.steps=10", "seed=0,1"])
    assert asked.fixed == ("train.steps=10",)
    assert [dict(row) for row in asked.rows] == [
        {"optim.lr": lr, "seed": seed} for lr in ("1e-3", "2e-3") for seed in ("0", "1")
    ]
    assert read_axes([]) == Asked((), ((),))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("[0.3,1]", ["[0.3,1]"]),
        ("[0.3,1],[0.5,1]", ["[0.3,1]", "[0.5,1]"]),
        ("{kind: a, b: [1,2]},null", ["{kind: a, b: [1,2]}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("it's,b", ["it's", "b"]),
        ("", [""]),
    ],
)
def test_values_are_split_at_commas_of_their_own(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "# two\noptim.lr=1e-3 seed=1\n\noptim.decay=linear 'augment.crop_scale=[0.5, 1]'\n"),
        ("l.jsonl", '{"optim.lr": 1e-3, "seed": 1}\n{"optim.decay": "linear","augment.crop_scale": [0.5,1]}'),
        ("l.yaml", "- {optim.lr: 1e-3, seed: 1}\n- {optim.decay: linear, augment.crop_scale: [0.5, 1]}\n"),
    ],
)  # fmt: skip
def test_a_list_has_an_element_a_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    rows = [{key: parse_value(value) for key, value in row} for row in read_list(tmp_path / name)]
    assert rows == [
        {"optim.lr": 1e-3, "seed": 1},
        {"optim.decay": "linear", "augment.crop_scale": [0.5, 1]},
    ]
    crossed = read_axes(["train.steps=1,2"], tmp_path / name)
    assert [dict(row)["train.steps"] for row in crossed.rows] == ["1", "2", "1", "2"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.txt", "seed=1\nseed 2\n", r"l\.txt:2: .*KEY=VALUE"),
        ("l.txt", "seed='1\n", "KEY=VALUE KEY=VALUE .No closing quotation"),
        ("l.txt", "# nothing\n", "it is empty"),
        ("l.jsonl", '{"seed": 1}\n[1]\n', r"l\.jsonl:2: .*keys with values"),
        ("l.jsonl", "{seed: 1}\n", "a JSON object"),
        ("l.yaml", "seed: 1\n", "a list, an item an element"),
        ("l.yaml", "- [1\n", "valid YAML"),
        ("away.txt", None, "cannot be read"),
    ],
)
def test_what_is_no_list_is_a_sentence_with_its_line(
    name: str, text: str | None, said: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, UsageError), match=said):
        read_list(tmp_path / name)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["seed"], "KEY=VALUE,VALUE"),
        (["seed=0,,1"], "a value between any two commas"),
        (["name=a,b"], "name: need no axis: elements are named by what differs"),
        (["out=a,b"], "out: need no axis"),
        (["seed=0,1", "seed=2,3"], "to be set once"),
        (["seed=0,1", "seed=2"], "to be set once"),
    ],
)
def test_axes_that_make_no_grid_are_refused(axes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_axes(axes)


@pytest.mark.parametrize(
    "value", [1, 0.001, 1e-9, True, None, [1, 2.5], {"a": "b"}, "x", "1", "null", "a: b", ""]
)
def test_a_value_of_a_list_is_read_back_as_itself(value: object) -> None:
    assert parse_value(as_typed(value)) == value


def test_each_element_is_a_run_of_its_own_in_one_group(base: str, tmp_path: Path) -> None:
    found = swept(base, "optim.lr=1e-3,2e-3", "seed=0,1")
    names = [each.name for each in found.elements]
    assert names == ["000-lr-1e-3_seed-0", "001-lr-1e-3_seed-1", "002-lr-2e-3_seed-0", "003-lr-2e-3_seed-1"]
    for each in found.elements:
        assert each.run == Path("runs") / "grid" / each.name
        assert each.config.tracker.group == "grid"
        assert each.config.tracker.uri == f"sqlite:///{tmp_path}/runs/grid/mlflow.db"
    assert [(each.config.optim.lr, each.config.seed) for each in found.elements] == [
        (1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1),
    ]  # fmt: skip
    apart = make_sweep(base, read_axes(["seed=0,1"]), name=None, ranks=1, shares_store=False)
    assert (apart.name, apart.elements[0].config.tracker.uri) == ("tiny-sweep", None)
    server = swept(base, "seed=0,1", "tracker.uri=http://mlflow:5000", "tracker.group=ours")
    assert {(each.config.tracker.uri, each.config.tracker.group) for each in server.elements} == {
        ("http://mlflow:5000", "ours")
    }


@pytest.mark.parametrize(
    "row",
    [
        (("optim.lr", "1e-3"),),
        (("augment.crop_scale", "[0.3, 1]"), ("objective.kind", "masked latent")),
        (("data.shards", "../../etc/passwd"),),
        (("data.shards", "x" * 300),),
        (("a", "ü*?/\\\n"),),
        (),
    ],
)
def test_any_settings_make_a_name_that_a_run_may_have(row: tuple[tuple[str, str], ...]) -> None:
    name = element_name(7, row, short_keys([key for key, _ in row]))
    assert RunConfig.model_validate({"name": name, "data": {"shards": "s"}}).name == name
    assert len(name) <= 60
    assert name.startswith("007")
    assert Path(name).name == name


def test_keys_are_shortened_as_far_as_they_stay_apart() -> None:
    assert short_keys(["optim.lr", "model.encoder.depth", "model.predictor.depth", "seed"]) == {
        "optim.lr": "lr",
        "model.encoder.depth": "encoder.depth",
        "model.predictor.depth": "predictor.depth",
        "seed": "seed",
    }


def test_problems_of_all_elements_are_told_at_once_each_with_its_elements(base: str) -> None:
    with pytest.raises(ConfigError) as refused:
        swept(base, "optim.lr=1e-3,abc", "train.steps=5,0", "optim.warmup=3")
    told = {problem.key: str(problem) for problem in refused.value.problems}
    assert told.keys() == {"optim.lr", "train.steps", "optim.warmup"}
    assert "element 2 (optim.lr=abc train.steps=5) and 1 more" in told["optim.lr"]
    assert "element 1 (optim.lr=1e-3 train.steps=0) and 1 more" in told["train.steps"]
    assert "element" not in told["optim.warmup"], "what all elements have is told once"
    assert not Path("runs").exists()


def test_a_batch_that_does_not_fit_the_ranks_is_told(base: str) -> None:
    asked = read_axes(["train.micro_batch=1,2", "train.global_batch=4"])
    with pytest.raises(ConfigError, match="× 4 ranks = 8"):
        make_sweep(base, asked, name="grid", ranks=4, shares_store=True)


def test_two_elements_that_are_the_same_run_are_refused(base: str) -> None:
    with pytest.raises(UsageError, match=r"elements 0 and 1 are the same run \(optim\.lr=0\.001\)"):
        swept(base, "optim.lr=1e-3,0.001")


def test_a_sweep_that_grows_keeps_the_names_of_its_elements(base: str, stand_in: None) -> None:
    first = swept(base, "optim.lr=1e-3,2e-3")
    assert run(first)[0] == 0
    wider = swept(base, "optim.lr=5e-4,1e-3,2e-3")
    assert [each.name for each in wider.elements] == ["002-lr-5e-4", "000-lr-1e-3", "001-lr-2e-3"]
    assert run(wider)[0] == 0
    assert starts(wider) == [1, 1, 1]
    other = swept(base, "optim.lr=1e-3,2e-3", "train.steps=20")
    assert [each.name for each in other.elements] == ["003-lr-1e-3", "004-lr-2e-3"], "another run altogether"
    assert len(read_sweep(wider.folder)) == 3


def test_what_has_finished_is_not_run_again_and_a_failure_stops_nobody(base: str, stand_in: None) -> None:
    found = swept(base, "optim.lr=1e-3,10,2e-3")
    code, said = run(found)
    assert code == 5, "what the failed element ended with"
    assert starts(found) == [1, 1, 1]
    assert any("001-lr-10  failed" in line and "the loss is not finite" in line for line in said)
    code, said = run(found)
    assert code == 5
    assert starts(found) == [1, 2, 1]
    assert sum("finished before" in line for line in said) == 2


def test_some_elements_run_at_a_time_with_gpus_of_their_own(base: str, stand_in: None) -> None:
    found = swept(base, "seed=0,1,2,3")
    assert run(found, parallel=2, env={"CUDA_VISIBLE_DEVICES": "4,5,6"})[0] == 0
    assert {(each.run / "starts").read_text().strip() for each in found.elements} <= {"4", "5"}
    assert device_slots(2, 2, {"CUDA_VISIBLE_DEVICES": "a,b,c,d"}) == ["a,b", "c,d"]
    assert device_slots(8, 1, {}) == [None]
    assert device_slots(1, 2, {"CUDA_VISIBLE_DEVICES": ""}) == [None, None]
    with pytest.raises(UsageError, match="needs 4 GPUs: there are 3"):
        device_slots(2, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2"})


@pytest.fixture
def outlives_sigterm() -> Iterator[None]:
    """One that comes late, when the sweep has ended, ends no test but the one that sent it."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_stop_reaches_the_element_and_starts_no_other(
    base: str, stand_in: None, outlives_sigterm: None
) -> None:
    found = swept(base, "seed=0,1")

    def stop() -> None:
        deadline_s = time.monotonic() + 30
        while not (found.elements[0].run / "metrics.jsonl").exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if (found.elements[0].run / "metrics.jsonl").exists():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code, said = run(found, env={"FF_SLEEP": "1"})
    thread.join()
    assert code == 75
    assert starts(found) == [1, 0]
    assert said[-1] == "stopped by SIGTERM; the same command goes on"
    assert run(found)[0] == 0, "and it does"
    assert starts(found) == [2, 1]


def test_two_sweeps_in_one_folder_are_refused(base: str, stand_in: None) -> None:
    found = swept(base, "seed=0,1")
    found.folder.mkdir(parents=True)
    with lock_run(found.folder, LOCK, "swept"), pytest.raises(UsageError, match="being swept"):
        run(found)


def test_a_folder_that_holds_something_else_is_refused(base: str) -> None:
    Path("runs/grid").mkdir(parents=True)
    Path("runs/grid/config.yaml").write_text("name: grid\n")
    with pytest.raises(UsageError, match="holds no sweep"):
        swept(base, "seed=0,1")
    Path("runs/other").mkdir()
    (Path("runs/other") / SWEEP_FILE).write_text("{")
    with pytest.raises(UsageError, match="is damaged: choose another --name"):
        swept(base, "seed=0,1", name="other")
    with pytest.raises(UsageError, match="--name is 'a/b'"):
        swept(base, "seed=0,1", name="a/b")


def test_the_table_has_what_differs_and_the_spread_over_seeds(base: str, stand_in: None) -> None:
    found = swept(base, "optim.lr=0.5,0.25", "seed=0,1,2", "train.steps=10")
    run(found)
    outcomes = outcomes_of(found)
    assert [each.loss for each in outcomes] == [0.5, 1.5, 2.5, 0.25, 1.25, 2.25]
    assert {(each.word, each.verdict, each.step) for each in outcomes} == {("finished", "healthy", 10)}
    seeds = over_seeds(found, outcomes)
    assert [(shared, len(members)) for shared, members in seeds] == [
        ({"optim.lr": "0.5"}, 3),
        ({"optim.lr": "0.25"}, 3),
    ]
    assert (
        over_seeds(found, [Outcome("a", {"seed": "0"}, "finished"), Outcome("b", {"seed": "1"}, "failed")])
        == []
    )
    assert over_seeds(swept(base, "optim.lr=0.5,0.25", name="x"), outcomes) == []


def test_the_command_prints_the_table_and_what_to_type_next(base: str, stand_in: None) -> None:
    words = ["sweep", base, "optim.lr=0.5,0.25", "seed=0,1,2", "--name", "grid", "--no-data-check"]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0
    assert "nothing was started or written" in dry.output
    assert not Path("runs").exists()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert re.search(r"005\s+0\.25\s+2\s+finished\s+10\s+2\.2500", done.output)
    assert re.search(r"0\.25\s+3\s+1\.2500 ± 1\.0000", done.output)
    assert "report foreframe report runs/grid/[0-9]*" in done.output
    assert "status foreframe status runs/grid/[0-9]*" in done.output


def test_a_data_config_cannot_be_swept(base: str) -> None:
    Path("d.yaml").write_text("name: d\nout: o\nsources: [a]\n")
    with pytest.raises(UsageError, match=r"d\.yaml is a data config, and a sweep trains"):
        swept("d.yaml", "seed=0,1")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_a_real_sweep_is_one_group_in_mlflow_and_goes_on(small_dataset: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from launch.config import dump_config
    from tests.small_dataset import tiny_config

    config = tiny_config(small_dataset, tmp_path / "runs", train={"steps": 6}, tracker={"kind": "mlflow"})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    axes = ["init.weights=null,away", "seed=0,1", "--name", "g", "--no-data-check"]
    command = [sys.executable, "-m", "launch", "sweep", "c.yaml", *axes]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    first = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=800)
    assert first.returncode == 2, first.stdout + first.stderr
    folder = tmp_path / "runs" / "g"
    names = sorted(path.name for path in folder.glob("[0-9]*"))
    assert names == ["000-weights-null_seed-0", "001-weights-null_seed-1"]
    assert [(folder / name / "result.json").exists() for name in names] == [True, True]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    parents = {each.info.run_id for each in runs if each.info.run_name == "g"}
    assert len(parents) == 1
    below = [each.info.run_name for each in runs if each.data.tags.get("mlflow.parentRunId") in parents]
    assert {name.partition(",")[0] for name in below} == set(names), "a seed that is not 0 is said once more"
    told = json.loads((folder / SWEEP_FILE).read_text())
    assert [each["settings"] for each in told["elements"]][3] == {"init.weights": "away", "seed": "1"}
    again = read_config(folder / "configs" / f"{names[1]}.yaml", [], RunConfig)
    assert (again.seed, again.init.weights) == (1, None)
