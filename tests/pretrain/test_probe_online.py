"""Probes while training: the run is the same with and without, scores are those of the offline probe."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import DataError
from launch.checkpoints import list_checkpoints
from launch.train import run_train
from pretrain.build import build_engine
from pretrain.checkpoint import newest_whole
from pretrain.checkpoint.retention import read_scores
from pretrain.config import RunConfig, plan
from pretrain.data.reader import ClipReader
from pretrain.probe import Asked, held, online, run_probe
from pretrain.probe.clips import place_features
from pretrain.probe.online import OnlineProbe
from pretrain.probe.subject import of_run
from pretrain.strategy.base import World
from tests.small_dataset import tiny_config, write_dataset

CPU = World(0, 1, torch.device("cpu"))
TIMES = ("time_s", "perf/", "data/", "system/")


@pytest.fixture(scope="module")
def probed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 train and 12 eval clips with states and a label: left or right."""
    return write_dataset(
        tmp_path_factory.mktemp("data") / "probed",
        {"train": [24], "eval": [12]},
        label=lambda states: "left" if states[0, 0] < 0.5 else "right",
    )


def config_of(dataset: Path, out: Path, **changes: Any) -> RunConfig:
    train = {"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1} | changes.pop("train", {})
    probe = {"every": 2, "batch": 5} | changes.pop("probe", {})
    return tiny_config(dataset, out, train=train, probe=probe, **changes)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def learned(run: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What was logged, but for times and probes; and all that the last checkpoint holds."""
    lines = [
        {key: value for key, value in line.items() if not key.startswith((*TIMES, "probe/"))}
        for line in lines_of(run / "metrics.jsonl")
        if "loss" in line
    ]
    folder, manifest, _ = newest_whole(run)
    return lines, {k: t for name in manifest["files"] for k, t in load_file(folder / name).items()}


@pytest.mark.parametrize("kind", ["ema", "online"])
def test_a_run_is_bit_for_bit_the_same_with_and_without_probes(
    probed_set: Path, tmp_path: Path, kind: str
) -> None:
    found = []
    for every in (1, None):
        config = config_of(probed_set, tmp_path / str(every), probe={"every": every}, target={"kind": kind})
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        run = run_train(config, quiet=True).run
        drawn = random.random(), np.random.random(), float(torch.rand(()))
        found.append((*learned(run), drawn))
    (lines, tensors, drawn), (lines_without, tensors_without, drawn_without) = found
    assert lines == lines_without
    assert tensors.keys() == tensors_without.keys()
    assert all(torch.equal(tensors[name], tensors_without[name]) for name in tensors)
    assert drawn == drawn_without
    probed = lines_of(tmp_path / "1" / "tiny" / "probes.jsonl")
    assert [line["step"] for line in probed] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "None" / "tiny" / "probes.jsonl").exists()


@pytest.mark.parametrize("places", [None, 1])
def test_the_scores_are_those_of_the_offline_probe_of_the_same_step(
    places: int | None, probed_set: Path, tmp_path: Path
) -> None:
    config = config_of(probed_set, tmp_path, train={"keep_checkpoints": 9}, probe={"places": places})
    run = run_train(config, quiet=True).run
    probed = lines_of(run / "probes.jsonl")
    assert [(line["step"], line["kind"]) for line in probed] == [(2, "online"), (4, "online"), (6, "online")]
    kinds = ("linear", "knn", "states")
    for line in probed[1:]:
        rows = run_probe(of_run(run, line["step"]), tmp_path, Asked(kinds=kinds))["rows"]
        for encoder, scores in (("trained", line["scores"]), ("untrained", line["untrained"])):
            offline = next(row["scores"] for row in rows if row["encoder"] == encoder)
            assert offline.keys() == scores.keys()
            assert offline == pytest.approx(scores, abs=0.02, nan_ok=True), "kept as float16 there"
    logged = [line for line in lines_of(run / "metrics.jsonl") if "loss" not in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    assert logged[0]["probe/trained/linear_top-1"] == probed[0]["scores"]["linear top-1"]
    assert logged[0]["probe/untrained/position"] == probed[0]["untrained"]["position"]
    stalls = [line for line in lines_of(run / "metrics.jsonl") if "perf/probe_ms" in line]
    assert [line["step"] for line in stalls] == [2, 4, 6]


@pytest.mark.parametrize("encoder", ["auto", "context"])
def test_what_is_probed_is_the_average_or_what_gradients_move(
    encoder: str, probed_set: Path, tmp_path: Path
) -> None:
    target = {"momentum": {"start": 1.0, "end": 1.0}}  # an average that stays where it began
    config = config_of(probed_set, tmp_path, target=target, probe={"encoder": encoder})
    last = lines_of(run_train(config, quiet=True).run / "probes.jsonl")[-1]
    assert (last["scores"] == pytest.approx(last["untrained"], nan_ok=True)) == (encoder == "auto")


def test_one_place_is_the_mean_token_of_a_tubelet() -> None:
    tokens_BND = torch.randn(2, 24, 5, generator=torch.Generator().manual_seed(0))
    found = place_features(tokens_BND, (2, 3, 4), 1)
    assert found.shape == (2, 2, 1, 5)
    torch.testing.assert_close(
        found[:, :, 0].float(), tokens_BND.unflatten(1, (2, 12)).mean(2), atol=1e-3, rtol=1e-3
    )


def test_the_best_by_online_scores_is_kept_and_offline_ones_do_not_mix(
    probed_set: Path, tmp_path: Path
) -> None:
    train = {"keep_best": "velocity", "time_limit_s": 1e-3}
    config = config_of(probed_set, tmp_path, train=train)
    run = run_train(config, quiet=True).run  # one step
    line = {"step": 1, "kind": "online", "scores": {"velocity": 0.99}}
    (run / "probes.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 2, "sco')
    run_train(config_of(probed_set, tmp_path, train={"keep_best": "velocity"}), quiet=True)
    rows = list_checkpoints(str(run))
    assert {row.step: row.kept for row in rows}[1] == "best velocity"
    with (run / "probes.jsonl").open("a") as file:
        offline = {"step": 6, "kind": "offline", "scores": {"velocity": 5.0, "attentive top-1": 0.5}}
        file.write(json.dumps(offline) + "\n")
    scores = read_scores(run)
    assert scores[6]["velocity"] < 1
    assert scores[6]["attentive top-1"] == 0.5


def test_a_resumed_run_reads_the_baseline_and_takes_its_steps_again(probed_set: Path, tmp_path: Path) -> None:
    run = run_train(config_of(probed_set, tmp_path, train={"steps": 4}), quiet=True).run
    baseline = json.loads((run / "probe_baseline.json").read_text())
    baseline["scores"]["position"] = 0.123
    (run / "probe_baseline.json").write_text(json.dumps(baseline))
    late = {"step": 5, "kind": "online", "scores": {}}
    with (run / "probes.jsonl").open("a") as file:
        file.write(json.dumps(late) + "\n")
    again = config_of(probed_set, tmp_path, train={"steps": 6})
    run_train(again, quiet=True)
    probed = lines_of(run / "probes.jsonl")
    assert [line["step"] for line in probed] == [2, 4, 6]
    assert probed[-1]["untrained"]["position"] == 0.123
    other = config_of(probed_set, tmp_path, train={"steps": 8}, probe={"online_clips": 20})
    run_train(other, quiet=True)
    assert lines_of(run / "probes.jsonl")[-1]["untrained"]["position"] != 0.123, "of other clips: made anew"


@pytest.mark.parametrize(
    ("sizes", "said"), [({"train": [9], "eval": [2]}, "8 of each"), ({"train": [9]}, "0 eval")]
)
def test_too_few_clips_are_said_once_and_training_goes_on(
    tmp_path: Path, sizes: dict[str, list[int]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "few", sizes)
    run = run_train(config_of(dataset, tmp_path)).run
    told = capsys.readouterr().out
    assert told.count("no probes while training") == 1
    assert said in told
    assert len(lines_of(run / "metrics.jsonl")) == 6
    assert not (run / "probes.jsonl").exists()


def test_videos_without_labels_and_states_are_retrieved(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "plain", {"train": [12]}, has_states=False)
    run = run_train(config_of(dataset, tmp_path, train={"steps": 2}), quiet=True).run
    assert lines_of(run / "probes.jsonl")[0]["scores"].keys() == {"top-1", "mean average precision"}


class Heard(OnlineProbe):
    """One that can be asked without a run."""

    def __init__(self, config: RunConfig, run: Path) -> None:
        self.said: list[str] = []
        run.mkdir(parents=True, exist_ok=True)
        laid_out = plan(config, 1)
        super().__init__(run, laid_out, build_engine(laid_out, CPU), self.said.append)

    def taken(self, *steps: int) -> list[tuple[int, dict[str, Any]]]:
        for step in steps:
            self.take(step)
        self.close()
        return self.results()


def test_clips_that_do_not_fit_are_read_again_and_give_the_same(
    probed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(probed_set, tmp_path)
    (whole,) = Heard(config, tmp_path / "a").taken(2)
    one_clip = 8 * 32 * 32 * 3
    monkeypatch.setattr(held.HeldClips.__init__, "__defaults__", (5 * one_clip,))
    (parts,) = Heard(config, tmp_path / "b").taken(2)
    assert parts == whole


def test_unreadable_clips_are_named_and_left_out_and_many_end_the_probing(
    probed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = ClipReader.decode
    broken: set[str] = set()

    def stumbling(self: ClipReader, sample: Any, *given: Any, **named: Any) -> Any:
        if sample.key in broken:
            raise DataError(f"{sample.key} is broken")
        return decode(self, sample, *given, **named)

    monkeypatch.setattr(ClipReader, "decode", stumbling)
    keys = [ClipReader(str(probed_set), "train").key(number) for number in range(24)]
    broken.update(keys[3:5])
    probe = Heard(config_of(probed_set, tmp_path), tmp_path / "two")
    ((step, values),) = probe.taken(2)
    assert step == 2
    assert math.isfinite(values["probe/trained/position"])
    assert [said for said in probe.said if "cannot be read" in said and keys[3] in said]
    broken.update(keys)
    probe = Heard(config_of(probed_set, tmp_path), tmp_path / "all")
    assert probe.taken(2, 4) == []
    assert len(probe.said) == 1
    assert "24 of 36 clips" in probe.said[0]


def test_a_fit_that_fails_ends_no_training(
    probed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise np.linalg.LinAlgError("no eigenvalues")

    monkeypatch.setattr(online, "score_pooled", fails)
    probe = Heard(config_of(probed_set, tmp_path), tmp_path / "run")
    assert probe.taken(2) == []
    assert "training goes on: LinAlgError: no eigenvalues" in probe.said[-1]


def test_going_back_forgets_what_came_later(probed_set: Path, tmp_path: Path) -> None:
    probe = Heard(config_of(probed_set, tmp_path), tmp_path / "run")
    probe.take(2)
    probe.take(4)
    probe.go_back(3)
    assert [step for step, _ in probe.results()] == [2]
    probe.go_back(1)
    assert lines_of(tmp_path / "run" / "probes.jsonl") == []
    probe.take(4)
    probe.close()
    assert [step for step, _ in probe.results()] == [4]


def test_the_encoder_stays_in_the_mode_it_was_in(probed_set: Path, tmp_path: Path) -> None:
    probe = Heard(config_of(probed_set, tmp_path, target={"kind": "online"}), tmp_path / "run")
    encoder = probe._encoder()
    for is_training in (True, False):
        encoder.train(is_training)
        probe.take(2)
        assert encoder.training == is_training
    probe.close()
