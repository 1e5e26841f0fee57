"""Runs of which some steps are recorded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UsageError
from launch.train import run_train
from pretrain import flops, parts, profile_table
from pretrain.config import RunConfig, plan
from pretrain.masks import sample_masks
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config

TIMES = ("time_s", "perf/", "data/", "system/")


def results(run: Path) -> list[dict[str, Any]]:
    """What was logged but for what took how long."""
    return [
        {key: value for key, value in line.items() if not key.startswith(TIMES)} for line in read_metrics(run)
    ]


def config_of(dataset: Path, folder: Path, **train: Any) -> RunConfig:
    return tiny_config(dataset, folder, train={"steps": 7, "checkpoint_every": 5, **train})


def test_recording_changes_no_loss_and_leaves_a_trace_and_a_table(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run_train(config_of(small_dataset, tmp_path / "plain"), quiet=True).run
    config = config_of(small_dataset, tmp_path / "recorded")
    run = run_train(config, profile=2).run
    assert results(run) == results(plain)
    assert len(results(run)) == 7
    text = (run / "profile" / "table.txt").read_text()
    assert "profile of steps 4 to 5, means" in text
    assert text.split("\n")[0] in capsys.readouterr().out
    facts = json.loads((run / "profile" / "table.json").read_text())
    (found,) = facts["ranks"]
    assert found["num_steps"] == 2
    spent = {part["name"]: part["host_ms"] for part in found["parts"]}
    assert sum(spent.values()) == pytest.approx(found["step_ms"])
    done = set(parts.PARTS) - {parts.COPY}
    assert all(spent[name] > 0 for name in done), spent
    events = json.loads(gzip.decompress((run / "profile" / found["trace"]).read_bytes()))["traceEvents"]
    named = {event["name"] for event in events}
    assert done <= named
    assert not list((run / "profile").glob(".*"))
    exact = sum(flops_of_step(config, step) for step in (3, 4)) / 2
    assert found["step_gflop"] == pytest.approx(exact / 1e9)


def flops_of_step(config: RunConfig, step: int) -> float:
    clips, micro = config.train.global_batch, config.train.micro_batch
    total = 0.0
    for first in range(clips * step, clips * (step + 1), micro):
        places = range(first, first + micro)
        masks = sample_masks(config.objective.masks, config.grid, config.seed, step, places)
        total += flops.flops_of(config, masks).model
    return total


def test_a_run_that_ends_within_says_what_was_recorded(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first start ends at step 3 of what were to be 7; of the next one 4 are left."""
    config = config_of(small_dataset, tmp_path, steps=3)
    run_train(config, quiet=True)
    longer = config_of(small_dataset, tmp_path, steps=7)
    run = run_train(longer, profile=2, allow_change=["train.steps"]).run
    printed = capsys.readouterr().out
    assert "4 are left" in printed
    assert "profile of step 7:" in printed
    assert json.loads((run / "profile" / "table.json").read_text())["ranks"][0]["num_steps"] == 1


def test_a_trace_cut_short_by_a_full_disk_is_told_and_training_goes_on(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profiler's own code writes what it can, and says nothing."""

    def cut_short(_: object, path: str) -> None:
        Path(path).write_bytes(gzip.compress(b'{"traceEvents": [{"ph": "X"')[: num_bytes or None])

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", cut_short)
    for num_bytes in (0, 20):  # the JSON, and the file that holds it
        run = run_train(config_of(small_dataset, tmp_path / str(num_bytes)), profile=2).run
        assert "the profile could not be written to" in capsys.readouterr().out
        assert len(results(run)) == 7
        assert not list((run / "profile").iterdir())


@pytest.mark.parametrize(
    ("num_steps", "told"),
    [
        (0, "1 or more"),
        (5000, "at most 100 micro-batches"),
        (6, "train.steps=9 or more"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_starts(
    small_dataset: Path, tmp_path: Path, num_steps: int, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        run_train(config_of(small_dataset, tmp_path), profile=num_steps)
    assert not list(tmp_path.iterdir())


def test_many_micro_batches_a_step_leave_room_for_fewer_steps(small_dataset: Path, tmp_path: Path) -> None:
    laid_out = plan(config_of(small_dataset, tmp_path, steps=500, global_batch=240, micro_batch=2), 1)
    with pytest.raises(UsageError, match=r"a step here has 120; give a smaller train\.global_batch"):
        parts.check_profile(1, laid_out)


def test_marks_put_nothing_around_a_call_unless_something_records() -> None:
    seen: list[str] = []

    @parts.marked("work")
    def work(number: int) -> int:
        return number + 1

    class Note:
        def __enter__(self) -> None:
            seen.append("begin")

        def __exit__(self, *_: object) -> None:
            seen.append("end")

    assert work(1) == 2
    assert seen == []
    parts.record_with(lambda name: (seen.append(name), Note())[1])
    try:
        assert work(2) == 3
    finally:
        parts.record_with(None)
    assert seen == ["work", "begin", "end"]


def test_operators_whose_names_are_long_are_told_apart_by_their_ends() -> None:
    name = "aten::_scaled_dot_product_flash_attention_for_a_device_of_a_long_name"
    short = [profile_table._short(each) for each in (name, f"{name}_backward", "aten::mm")]
    assert len(set(short)) == 3
    assert all(len(each) <= 60 for each in short)
    assert short[1].endswith("_backward")
