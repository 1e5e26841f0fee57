"""Seeds that were run apart are put together as if one command had run them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import experiments
from benchmarks.experiments import keep
from data_pipeline.errors import UsageError
from launch.cli import app
from launch.config import read_config
from launch.experiment.command import Asked, folder_name, read_experiment, seeds_told
from launch.experiment.config import ExperimentConfig
from launch.experiment.joined import joined, seeds_of
from launch.experiment.plots import plots_of
from launch.experiment.runs import Cell, cells_of, settings_below
from launch.experiment.summary import rows_of, spreads_of

TEXT = """
name: try
question: Does it?
data: {one: {videos: 4}}
axis: noise
levels: [{value: 0.1, data: one}, {value: 0.8, data: one, settings: {data.fps: 4.0}}]
stages: {runs: {data: one, arms: {a: {}, b: {settings: {optim.lr: 0.5}}}}}
against: a
measures: [{name: x, key: x}, {name: y, key: y, untrained: y0}]
plots:
  - {title: Steps, caption: Of steps., level: 0.1, panels: [{unit: l, key: loss, at_least: -1.0}]}
  - {title: Levels, caption: Of levels., over: levels, panels: [{unit: x, key: x}, {unit: y, key: y}]}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    path = tmp_path / "try.yaml"
    path.write_text(TEXT)
    return read_config(path, [], ExperimentConfig)


def result_of(experiment: ExperimentConfig, first: int, count: int) -> dict[str, Any]:
    """As a command makes it of these seeds, out of runs whose numbers are drawn by cell."""
    experiment = experiment.model_copy(update={"first_seed": first, "seeds": count})
    values, untrained, metrics = {}, {}, {}
    for cell, _ in cells_of(experiment, "runs"):
        rng = np.random.default_rng([cell.seed, ord(cell.arm), int(10 * (cell.level or 0))])
        values[cell] = {"x": float(rng.normal()), "y": float(rng.normal())}
        if cell == Cell("b", 0.8, 2):
            del values[cell]["y"]  # it diverged
        untrained[cell] = {"y": float(cell.seed)}
        steps = range(1, 1 if cell == Cell("a", 0.1, 3) else 4 if cell.seed == 1 else 6)  # none, cut short
        metrics[cell] = [{"step": step, "loss": float(rng.normal())} for step in steps]
    spreads = spreads_of(values, untrained, ["a", "b"], ["x", "y"], "a")
    unmeasured = {"y": ["b, noise 0.8: seed 2"]} if Cell("b", 0.8, 2) in values else {}
    found = {
        "date": f"2026-01-0{1 + first}", "commits": ["c" * 40, str(first)], "device": "CPU",
        "versions": {"torch": "2.13"},
        "config": experiment.model_dump(mode="json") | {"changes": []}, "seconds": 10.0 * count,
        "rows": rows_of(spreads, "noise", "a"), "missing": [], "unmeasured": unmeasured,
        "plots": plots_of(experiment, {"runs": metrics}, spreads, {}), "maps": [f"of seed {first}"],
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


@pytest.mark.parametrize("cuts", [(0, 2, 5), (0, 1, 3, 5), (0, 4, 5)])
def test_parts_come_to_what_all_seeds_at_once_come_to(
    experiment: ExperimentConfig, cuts: tuple[int, ...]
) -> None:
    whole = result_of(experiment, 0, 5)
    parts = [result_of(experiment, a, b - a) for a, b in itertools.pairwise(cuts)]
    found = joined(parts[::-1])
    assert seeds_of(found) == range(5)
    for key in ("rows", "missing", "unmeasured", "seconds", "device", "versions"):
        assert found[key] == whole[key], key
    assert found["maps"] == ["of seed 0"] and found["commits"] == sorted({"c" * 40, *map(str, cuts[:-1])})
    for ours, theirs in zip(found["plots"], whole["plots"], strict=True):
        assert ours["caption"] == theirs["caption"] and ours["title"] == theirs["title"]
        for own, other in zip(ours["panels"], theirs["panels"], strict=True):
            assert [each["name"] for each in own["curves"]] == [each["name"] for each in other["curves"]]
            for one, two in zip(own["curves"], other["curves"], strict=True):
                same = ("x", "low", "high", "runs")
                assert [one.get(key) for key in same] == [two.get(key) for key in same]
                np.testing.assert_allclose(one["mean"], two["mean"], rtol=2e-4, atol=2e-5)
    assert "is not drawn" in found["plots"][0]["caption"], "the lowest of all parts is told"


def test_seeds_that_are_there_twice_or_are_not_there_are_named(experiment: ExperimentConfig) -> None:
    one, two, far = (result_of(experiment, *of) for of in ((0, 2), (1, 2), (4, 1)))
    with pytest.raises(ValueError, match="seed 1 is in more than one of them"):
        joined([one, two])
    with pytest.raises(ValueError, match="seed 2, 3 is in none of them"):
        joined([far, one])
    assert joined([one]) is one
    other = result_of(experiment, 2, 3)
    other["config"]["plots"][0]["title"] = "Others"
    with pytest.raises(ValueError, match="other figures: run the same command on each again"):
        joined([one, other])
    other = result_of(experiment, 2, 3)
    other["device"], other["versions"] = "CPU: X", {"torch": "2.14", "av": "18"}
    found = joined([one, other])
    assert found["device"] == "CPU; CPU: X"
    assert found["versions"] == {"torch": "2.13, 2.14", "av": "none, 18"}


def test_parts_are_kept_until_a_claim_has_its_seeds(
    experiment: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "shipped_experiments", lambda: ["try"])
    monkeypatch.setattr(experiments, "read_experiment", lambda _: experiment)
    first, again, rest = (result_of(experiment, *of) for of in ((0, 1), (0, 2), (2, 3)))
    assert "experiment_try-0-0.json: of try seed 0; a claim needs 5" in keep(first, tmp_path)
    assert "of try seed 0, 1; a claim" in keep(again, tmp_path)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["experiment_try-0-1.json"]
    assert "of try seed 0, 1, 4, 5; a claim" in keep(result_of(experiment, 4, 2), tmp_path)
    with pytest.raises(ValueError, match="parts holds: seed 4 is in more than one of them"):
        keep(rest, tmp_path)
    (tmp_path / "parts/experiment_try-4-5.json").write_text("{")
    with pytest.raises(ValueError, match=r"experiment_try-4-5.json is damaged"):
        keep(rest, tmp_path)
    (tmp_path / "parts/experiment_try-4-5.json").unlink()
    other = json.loads((tmp_path / "parts/experiment_try-0-1.json").read_text())
    other["config"]["data"]["one"]["videos"] = 5
    (tmp_path / "parts/experiment_try-0-1.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"of try, seed 0 on: its data are not those"):
        keep(rest, tmp_path)
    keep(again, tmp_path)
    with pytest.raises(ValueError, match="seed 0 is in more than one"):
        keep(first, tmp_path)  # less than what is there
    old = json.loads(json.dumps(rest))
    for row in old["rows"]:
        del row["seeds"]
    with pytest.raises(ValueError, match="of try, seed 2 on: an earlier version wrote it"):
        keep(old, tmp_path)
    keep(result_of(experiment, 6, 1), tmp_path)  # beyond what a claim needs, with a gap before
    assert keep(rest, tmp_path) == f"wrote {tmp_path / 'experiment_try.json'}"
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["experiment_try-6-6.json"]
    assert json.loads((tmp_path / "experiment_try.json").read_text()) == joined([again, rest])

    whole = [again, rest, *(result_of(experiment, seed, 1) for seed in (5, 6))]
    keep(whole[2], tmp_path)
    assert not list((tmp_path / "parts").iterdir()), "a result grows by what follows it"
    assert json.loads((tmp_path / "experiment_try.json").read_text())["rows"] == joined(whole)["rows"]
    with pytest.raises(ValueError, match=r"experiment_try.json has these seeds and others"):
        keep(result_of(experiment, 0, 5), tmp_path)
    assert "of try seed 0, 1, 2, 3, 4, 5, 6, 8; a claim" in keep(result_of(experiment, 8, 1), tmp_path)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["experiment_try-8-8.json"]
    keep(result_of(experiment, 7, 1), tmp_path)
    assert not list((tmp_path / "parts").iterdir())
    assert seeds_of(json.loads((tmp_path / "experiment_try.json").read_text())) == range(9)


def test_what_a_result_was_laid_over_is_still_what_it_was(
    experiment: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "shipped_experiments", lambda: ["try"])
    monkeypatch.setattr(experiments, "read_experiment", lambda _: experiment)
    found = result_of(experiment, 0, 5) | {"laid_over": settings_below(experiment)}
    assert experiments.refusal(found) is None
    found["laid_over"]["train/tiny-cpu.yaml"]["of an earlier version"] = 1
    found["laid_over"]["train/tiny-cpu.yaml"]["objective"]["masks"][0]["of an earlier version"] = 1
    assert experiments.refusal(found) is None, "what only one version knows"
    found["laid_over"]["train/tiny-cpu.yaml"]["optim"]["lr"] *= 2
    assert "train/tiny-cpu.yaml optim lr is not what it was" in str(experiments.refusal(found))


def test_results_of_a_users_own_experiment_are_joined_by_the_command(
    experiment: ExperimentConfig, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, of in zip(folders, ((0, 2), (2, 1)), strict=True):
        folder.mkdir()
        own = result_of(experiment, *of) | {"not_asked": [], "asked": None}
        (folder / "result.json").write_text(json.dumps(own | {"maps": []}))
    words = ["experiment", str(tmp_path / "try.yaml"), "--out", str(tmp_path / "out")]
    both = [word for folder in folders for word in ("--join", str(folder))]

    def refused(*more: str) -> str:
        found = CliRunner().invoke(app, [*words, *both, *more])
        assert isinstance(found.exception, UsageError) and not (tmp_path / "out").exists()
        return str(found.exception)

    assert refused("--seeds", "3") == "--join runs nothing: leave --seeds out"
    assert "seed 0, 1 is in more than one of them" in refused("--join", str(folders[0]))
    assert f"{tmp_path / 'no/result.json'} cannot be read" in refused("--join", str(tmp_path / "no"))
    path = folders[1] / "result.json"
    whole = path.read_text()
    for old, new, told in (
        ('"missing": []', '"missing": ["a: seed 2"]', "two: did not finish: a: seed 2"),
        ('"not_asked": []', '"not_asked": ["a: seed 2"]', "two: did not finish: a: seed 2 (not asked)"),
        ('"changes": []', '"changes": ["optim.lr=1"]', f"two: {folders[0]} has other KEY=VALUE"),
        ('"videos": 4', '"videos": 5', "two: its data are not those of the experiment"),
    ):
        assert whole.count(old) == 1
        path.write_text(whole.replace(old, new))
        assert told in refused()
    path.write_text(whole)

    earlier = json.loads((folders[0] / "result.json").read_text())
    del earlier["not_asked"], earlier["asked"]
    (folders[0] / "result.json").write_text(json.dumps(earlier))
    found = CliRunner().invoke(app, [*words, *both[:2]])
    assert found.exit_code == 0, "of an earlier version, alone"
    found = CliRunner().invoke(app, [*words, *both])
    assert found.exit_code == 0, found.output
    fewer = CliRunner().invoke(app, [*words, *both[:2]])
    assert "try-joined holds a result of 3 seeds" in str(fewer.exception)
    told = json.loads((tmp_path / "out/try-joined/result.json").read_text())
    assert seeds_of(told) == range(3) and told["rows"] == result_of(experiment, 0, 3)["rows"]
    assert "| a |" in (tmp_path / "out/try-joined/table.md").read_text()
    assert (tmp_path / "out/try-joined/try-1.svg").exists()


def test_other_seeds_have_a_folder_of_their_own() -> None:
    found = read_experiment(Asked("noise", seeds=2, first_seed=3))
    assert list(dict.fromkeys(cell.seed for cell, _ in cells_of(found, "runs"))) == [3, 4]
    assert folder_name(found) == "noise-from-seed-3" and seeds_told(found) == "seeds 3 to 4"
    assert folder_name(read_experiment(Asked("noise"))) == "noise"
    assert seeds_told(read_experiment(Asked("noise", seeds=1, first_seed=1))) == "seed 1"
    assert seeds_told(read_experiment(Asked("noise"))) == "5 seeds"
    assert seeds_told(read_experiment(Asked("noise", seeds=1))) == "1 seed"
