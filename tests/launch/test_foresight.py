"""`foreframe rollout` and `foreframe plan` on a small run: what is shown, what is kept, what is refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_pipeline.errors import ConfigError, UsageError
from launch import foresight
from launch.cli import app
from launch.foresight import PlanAsked, RolloutAsked, plan_with, rollout_of, world_of
from launch.train import run_train
from pretrain.maps import Map, Maps, draw_maps
from pretrain.rollout import load_model, measure_rollout
from tests.pretrain.test_rollout import ACTION
from tests.small_dataset import tiny_config, write_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("foresight") / "data", {"train": [9], "eval": [8]})
    return run_train(tiny_config(root, tmp_path_factory.mktemp("runs"), **ACTION), quiet=True).run


def shown(*arguments: str) -> str:
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_a_rollout_is_shown_and_kept(run: Path) -> None:
    said = shown("rollout", str(run), "--told", "3", "--steps", "4", "--clips", "8", "--device", "cpu")
    found = measure_rollout(run, told=3, steps=4, clips=8, train_clips=8)
    row = next(line for line in said.splitlines() if "copy of the last frame" in line)  # of the first table
    assert row.split()[-2:] == [f"{found.latent['copy of the last frame'][h - 1]:.3f}" for h in (1, 4)]
    assert "8 ahead" not in said, "nobody looked so far"
    kept = json.loads((run / "rollout.json").read_text())
    np.testing.assert_allclose(kept["latent"]["true actions"], found.latent["true actions"], atol=1e-5)
    assert (kept["step"], kept["clips"], kept["told"]) == (2, 8, 3)


def test_planning_is_shown_drawn_and_kept(run: Path) -> None:
    said = shown(
        "plan", str(run), "leaves=0", "--episodes", "1", "--steps", "3", "--samples", "4", "--turns", "1",
        "--device", "cpu",
    )  # fmt: skip
    for way in ("model", "oracle", "random actions", "no action"):
        assert any(line.strip().startswith(way) for line in said.splitlines())
    kept = json.loads((run / "planning.json").read_text())
    assert kept["world"]["leaves"] == 0
    model = kept["ways"]["model"]
    assert len(model["distance"]) == 4
    assert list(model["success_by_distance"].values()) == [model["success"]], "one goal, of one distance"
    assert next(iter(model["success_by_distance"])) in ("0.3", "0.4", "0.5")
    energies = np.array(kept["landscape"]["energies"]["oracle"])
    assert energies.shape == (15, 15)
    assert len(kept["landscape"]["actions"]) == 15
    words = "".join(ET.parse(run / "landscape.svg").getroot().itertext())
    assert all(word in words for word in ("oracle", "least here", "truly nearest", "of features, L1"))
    assert "ax, widths/s²" in words


def test_a_world_has_the_runs_clock_and_size_unless_it_is_told_others(run: Path) -> None:
    config = load_model(run)[1]
    assert (world_of(config, ()).fps, world_of(config, ()).size) == (8.0, 32)
    assert world_of(config, ("walls=0.3", "fps=16")).fps == 16.0
    with pytest.raises(ConfigError, match="leavs"):
        world_of(config, ("leavs=0.3",))


def test_a_search_that_is_none_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="need cem or mppi"):
        plan_with(run, PlanAsked(search="gradient"), None, "cpu", lambda *_: None)


def test_what_cannot_be_written_or_done_is_told_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("checkpoints", "config.yaml"):
        (tmp_path / name).symlink_to(run / name)

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work for nothing")

    monkeypatch.setattr(foresight, "measure_rollout", worked)
    monkeypatch.setattr(foresight, "measure_planning", worked)
    for name in ("rollout.json", "landscape.svg"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=r"rollout\.json cannot be written: Is a directory"):
        rollout_of(tmp_path, RolloutAsked(), None, "cpu", lambda *_: None)
    with pytest.raises(UsageError, match=r"landscape\.svg cannot be written: Is a directory"):
        plan_with(tmp_path, PlanAsked(), None, "cpu", lambda *_: None)
    for option in ("--steps", "--samples"):  # hours, or more memory than there is
        ended = CliRunner().invoke(app, ["plan", str(run), option, "10000000000"])
        assert ended.exit_code == 2 and option in ended.output


def test_maps_are_the_same_bytes_each_time_and_say_where_they_are_least(tmp_path: Path) -> None:
    at = np.array([-1.0, 0.0, 2.0])
    values = np.arange(9.0).reshape(3, 3)[::-1]
    maps = Maps(
        "m", "Title", "", (Map("one", at, values, ((-1.0, 2.0),)), Map("two", at, values.T)), "x", "y"
    )
    assert maps.alt == "Title. one: from 0 at x -1, y 2 to 8; two: from 0 at x 2, y -1 to 8."
    drawn = []
    for name in ("a", "b"):
        path = tmp_path / name / "map.svg"
        path.parent.mkdir()
        draw_maps(maps, path)
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]
    words = "".join(ET.fromstring(drawn[0]).itertext())
    assert all(word in words for word in ("one", "two", "x", "y", "dark: low", "least"))
    assert Maps.of(json.loads(json.dumps(maps.plain()))).plain() == maps.plain()
