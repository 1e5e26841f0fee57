"""A sweep handed to a cluster: one job of the elements that are left, frozen in the sweep's own folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Literal

import pytest
import yaml

pytest.importorskip("kubeflow_trainer_api", reason="needs the extra `kubernetes`")

from data_pipeline.errors import ConfigError, UsageError
from launch.config import dump_config
from launch.submit.base import Job, Place, Started
from launch.submit.local import LocalPlace
from launch.sweep.axes import read_axes
from launch.sweep.cluster import hand_over
from launch.sweep.elements import Sweep, make_sweep
from launch.sweep.record import SWEEP_FILE
from tests.launch.kubernetes_jobs import place


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("name: tiny\ndata: {shards: sets/s}\n")
    asked = read_axes(["optim.lr=1e-3,2e-3", "seed=0,1"])
    return make_sweep("c.yaml", asked, name="grid", ranks=1, shares_store=False)


def handed(sweep: Sweep, *, is_dry: bool = True, **settings: object) -> list[str]:
    said: list[str] = []
    parallel = settings.pop("parallel", None)
    assert parallel is None or isinstance(parallel, int)
    hand_over(sweep, place(**settings), parallel, said.append, is_dry=is_dry, checks_data=True)
    return said


def test_all_elements_are_one_job_whose_pods_write_where_this_machine_looks(grid: Sweep) -> None:
    said = handed(grid, parallel=3)
    folder = Path("runs/grid/submissions/001")
    config_map, job = yaml.safe_load_all((folder / "kubernetes.yaml").read_text())
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (4, 3)
    for number, element in enumerate(grid.elements):
        config = yaml.safe_load(config_map["data"][f"element-{number}.yaml"])
        assert (config["out"], config["name"]) == ("/runs/grid", element.name)
        assert (config["optim"]["lr"], config["seed"]) == (element.config.optim.lr, element.config.seed)
        assert config["tracker"]["group"] == "grid"
        frozen = yaml.safe_load((folder / "elements" / f"{number:03d}.yaml").read_text())
        assert frozen["name"] == element.name
    assert json.loads((folder / "submission.json").read_text())["elements"] == 4
    assert any("tracker.uri is null" in line for line in said)
    assert not Path("runs/grid", SWEEP_FILE).exists(), "a dry run notes no element"


def test_what_has_finished_is_not_submitted_again(grid: Sweep) -> None:
    for element in grid.elements[:3]:
        element.run.mkdir(parents=True)
        (element.run / "config.yaml").write_text(dump_config(element.config))
        result = {"run": str(element.run), "step": 9, "loss": 1.0, "seconds": 1.0, "stopped": None}
        (element.run / "result.json").write_text(json.dumps(result))
    said = handed(grid)
    config_map, job = yaml.safe_load_all(Path("runs/grid/submissions/001/kubernetes.yaml").read_text())
    assert job["spec"]["completions"] == 1
    assert yaml.safe_load(config_map["data"]["element-0.yaml"])["name"] == grid.elements[3].name
    assert sum("finished, left as it is" in line for line in said) == 3
    last = grid.elements[3].run
    last.mkdir()
    (last / "config.yaml").write_text(dump_config(grid.elements[3].config))
    (last / "result.json").write_text((grid.elements[0].run / "result.json").read_text())
    assert handed(grid)[-1] == "every element has finished or runs: nothing was submitted"


def test_a_sweep_that_a_place_cannot_take_is_refused_before_anything_is_written(grid: Sweep) -> None:
    with pytest.raises(ConfigError, match="an element is a pod"):
        handed(grid, nodes=2)
    with pytest.raises(UsageError, match="--parallel: a place of kind local has no such setting"):
        hand_over(grid, LocalPlace(), 2, print, is_dry=True, checks_data=False)
    assert not Path("runs").exists()


class Arrays(Place):
    """A place that calls the number of elements at a time by another name."""

    kind: Literal["arrays"] = "arrays"
    array_parallel: int | None = None

    def files(self, job: Job) -> dict[str, str]:
        return {"job.sh": f"#!/bin/sh\n# {job.elements} elements, {self.array_parallel} at a time\n"}


def test_any_place_that_takes_elements_may_be_given_how_many_at_a_time(grid: Sweep) -> None:
    said: list[str] = []
    hand_over(grid, Arrays(), 2, said.append, is_dry=True, checks_data=False)
    assert "# 4 elements, 2 at a time" in said[1]


def test_a_refusal_of_the_cluster_is_told(
    grid: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="kubectl is not on PATH"):
        handed(grid, is_dry=False)
    record = json.loads(Path("runs/grid/submissions/001/submission.json").read_text())
    assert record["state"].startswith("not started")
    again = make_sweep("c.yaml", read_axes(["optim.lr=2e-3"]), name="grid", ranks=1, shares_store=False)
    assert again.elements[0].name == "002-lr-2e-3_seed-0", "the same run as with the seed that is the default"


class Queue(Arrays):
    """A place that takes a job, which waits there."""

    def start(self, job: Job, *, detach: bool) -> Started:
        return Started("17", (("stop", "scancel 17"),))


def test_elements_that_wait_in_an_earlier_job_are_not_submitted_twice(grid: Sweep) -> None:
    def hand(sweep: Sweep, *, again: bool = False) -> list[str]:
        said: list[str] = []
        hand_over(sweep, Queue(), None, said.append, is_dry=False, checks_data=False, submits_again=again)
        return said

    hand(grid)
    with pytest.raises(
        UsageError, match=r"000-lr-1e-3_seed-0 and 3 more wait in .*001 \(\w+ 17\).*`scancel 17`"
    ):
        hand(grid)
    assert not Path("runs/grid/submissions/002").exists()
    new = make_sweep("c.yaml", read_axes(["optim.lr=8e-3,9e-3"]), name="grid", ranks=1, shares_store=False)
    assert "     1 005-lr-9e-3" in hand(new), "what does not wait is submitted"
    assert "     3 003-lr-2e-3_seed-1" in hand(grid, again=True)
    for element in grid.elements:  # they began, and were lost with their machine
        element.run.mkdir()
        (element.run / "config.yaml").write_text(dump_config(element.config))
        (element.run / ".lock").write_text("1 gone")
        later_s = time.time() + 1
        os.utime(element.run / ".lock", (later_s, later_s))
        (element.run / "failure.json").write_text(json.dumps({"sentence": "it failed", "exit_code": 1}))
    assert "     3 003-lr-2e-3_seed-1" in hand(grid)
