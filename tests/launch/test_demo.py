"""What `foreframe demo` refuses, and what it goes on with, before its first stage."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError, UsageError
from launch import demo
from launch.demo import Progress, check_disk, check_videos, data_config, open_folder, run_demo, train_config
from launch.run_folder import TrainResult

ASKED = Progress(videos=None, num_videos=16, steps=6)


def asked(**changes: object) -> Progress:
    return Progress(**({"videos": None, "num_videos": 16, "steps": 6} | changes))  # type: ignore[arg-type]


def test_an_interrupted_demo_goes_on_with_what_is_done(tmp_path: Path) -> None:
    asked(seconds={"render": 2.0}).write(tmp_path)
    assert open_folder(tmp_path, asked(), force=False).seconds == {"render": 2.0}


def test_an_interrupted_demo_of_other_settings_is_refused(tmp_path: Path) -> None:
    asked().write(tmp_path)
    with pytest.raises(UsageError, match="num_videos 16"):
        open_folder(tmp_path, asked(num_videos=32), force=False)


def test_a_finished_demo_is_refused_and_left_alone(tmp_path: Path) -> None:
    asked(finished=True).write(tmp_path)
    with pytest.raises(UsageError, match="--force"):
        open_folder(tmp_path, asked(), force=False)
    assert (tmp_path / "demo.json").exists()


def test_force_removes_what_a_demo_wrote_and_nothing_else(tmp_path: Path) -> None:
    asked(finished=True).write(tmp_path)
    for name in ("videos", "data", "run", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert open_folder(tmp_path, asked(), force=True) == asked()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, force: bool) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="no demo wrote"):
        open_folder(tmp_path, asked(), force=force)
    assert (tmp_path / "data").exists()


def test_an_empty_folder_of_videos_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(UsageError, match="is empty"):
        check_videos(tmp_path)
    (tmp_path / "deep" / "a.mp4").touch()
    check_videos(tmp_path)


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 5 * 10**7))
    with pytest.raises(UsageError, match=r"0\.05 GB free"):
        check_disk(tmp_path / "not" / "yet" / "there")


def test_the_shipped_configs_are_pointed_at_the_demo_s_folders(tmp_path: Path) -> None:
    out = tmp_path / "it's: a #1 [demo]"
    data = data_config(out, None, 16)
    assert data.out == str(out / "data")
    assert data.sources == (str(out / "videos"),)
    assert data.split.eval_fraction == 0.25
    config = train_config(out, 6)
    assert config.data.shards == data.out
    assert (config.train.steps, config.optim.warmup_steps) == (6, 0)
    assert Path(config.out) / config.name == out / "run"


def test_a_folder_without_a_video_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no video is in .*files passed over: 1.*put videos there"):
        check_videos(tmp_path)


@pytest.mark.parametrize("damage", ['{"videos": nu', "[]", '{"videos": null}', "3"])
def test_a_damaged_record_is_a_sentence_and_force_starts_over(tmp_path: Path, damage: str) -> None:
    (tmp_path / "demo.json").write_text(damage)
    with pytest.raises(UsageError, match=r"demo\.json cannot be read: start over with --force"):
        open_folder(tmp_path, asked(), force=False)
    assert open_folder(tmp_path, asked(), force=True) == asked()


@pytest.mark.parametrize("probed_at", [3, 4])
def test_a_demo_that_was_trained_trains_no_more_and_keeps_no_older_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed_at: int
) -> None:
    """Its time limit ended the run at step 4 of 6; then the demo was interrupted."""
    done: dict[str, Any] = {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # given back after the test
    monkeypatch.setattr(demo, "_shard", lambda *_: None)
    monkeypatch.setattr(demo, "_train", lambda *_: pytest.fail("trained on"))
    monkeypatch.setattr(demo, "_probe", lambda *_: {"step": 4, "is_new": True})
    monkeypatch.setattr(demo, "_report", lambda *_: tmp_path / "report.html")
    monkeypatch.setattr(demo, "_print_end", lambda *given: done.update(result=given[1], probe=given[2]))
    asked(seconds={"render": 1.0, "shard": 1.0, "train": 1.0, "probe": 1.0}).write(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    TrainResult(run, 4, 1.0, 2.0, 3.0, "train.time_limit_s is over").write()
    (run / "probe.json").write_text(json.dumps({"step": probed_at}))
    run_demo(tmp_path, steps=6, num_videos=16)
    assert done["result"].step == 4
    assert done["probe"].get("is_new", False) == (probed_at != 4)
    assert json.loads((tmp_path / "demo.json").read_text())["finished"]


def test_a_folder_that_is_mostly_unreadable_does_not_end_the_demo(tmp_path: Path) -> None:
    assert data_config(tmp_path, tmp_path / "mine", 16).max_failed_fraction == 1
