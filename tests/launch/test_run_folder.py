"""A run's folder: what a command says of the run that ended there, and what it makes of damage."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, LostPeerError, UsageError
from launch.lock import lock_run
from launch.ranks import why_ranks_failed
from launch.run_folder import TrainResult, finished, open_run, scientific_changes
from launch.train import run_train
from pretrain.config import RunConfig
from tests.small_dataset import tiny_config


def test_a_finished_run_says_that_it_was_finished(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"steps": 2})
    first = run_train(config, quiet=True)
    assert first.is_new
    assert first.summary().startswith("step 2, loss ")
    again = run_train(config, quiet=True)
    assert not again.is_new
    assert again.summary().startswith("already finished, nothing to do: step 2, loss ")
    assert (again.loss, again.step) == (first.loss, first.step)


def test_a_run_with_no_step_left_says_so(small_dataset: Path, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the result, or its result cut short: it is written again."""
    config = tiny_config(small_dataset, tmp_path, train={"steps": 2})
    run = run_train(config, quiet=True).run
    for damage in ("", '{"step": 2', "[]", '{"step": 2}'):
        (run / "result.json").write_text(damage)
        assert finished(run, 2) is None
    assert "no step was left to take" in run_train(config, quiet=True).summary()
    assert "already finished" in run_train(config, quiet=True).summary()


@pytest.mark.parametrize("loss", [None, 0.5])
def test_a_stop_is_no_end(tmp_path: Path, loss: float | None) -> None:
    said = TrainResult(tmp_path, 3, loss, loss, 9.0, "train.time_limit_s is over").summary()
    figures = "step 3, 9 s" if loss is None else "step 3, loss 0.5000, 0.5 clips/s, 9 s"
    assert said == f"stopped, train.time_limit_s is over: {figures}"


def test_samples_that_could_not_be_read_are_told_at_the_end(tmp_path: Path) -> None:
    result = TrainResult(tmp_path, 3, 0.5, 0.5, 9.0, None, bad_samples=2)
    assert result.summary().splitlines()[1] == (
        f"bad    2 samples could not be read: {tmp_path / 'skipped.jsonl'} says which, and why"
    )


def test_a_run_that_was_moved_is_where_it_is_now(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    TrainResult(tmp_path / "a", 3, 0.5, 1.0, 9.0, None).write()
    (tmp_path / "a").rename(tmp_path / "b")
    assert TrainResult.read(tmp_path / "b").run == tmp_path / "b"


def test_a_second_train_changes_nothing_of_the_run_under_way(small_dataset: Path, tmp_path: Path) -> None:
    run = open_run(tiny_config(small_dataset, tmp_path))
    before = (run / "config.yaml").read_bytes()
    with lock_run(run), pytest.raises(UsageError, match="being trained by process"):
        run_train(tiny_config(small_dataset, tmp_path, train={"log_every": 7}), quiet=True)
    assert (run / "config.yaml").read_bytes() == before


def test_a_folder_that_holds_no_run_is_left_as_it_is(small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "diary.txt").touch()
    with pytest.raises(UsageError, match="exists and holds no run"):
        run_train(tiny_config(small_dataset, tmp_path), quiet=True)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("name", ["tiny", "tiny/.lock"])
def test_a_folder_that_cannot_be_made_or_locked_is_a_sentence(
    small_dataset: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    if name == "tiny":
        (tmp_path / "out" / name).touch()  # a file where the folder should be
    else:
        (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be written, choose another out="):
        run_train(tiny_config(small_dataset, tmp_path / "out"), quiet=True)


def test_a_result_that_goes_while_it_is_looked_at_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several machines, the first removes it while the others ask whether the run is done."""
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert finished(tmp_path, 2) is None


def test_numbers_that_json_has_none_for_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        TrainResult(tmp_path, 3, float("inf"), 1.0, 9.0, None).write()
    assert not (tmp_path / "result.json").exists()


def test_a_run_none_of_whose_steps_had_a_finite_loss_is_no_run_without_steps(tmp_path: Path) -> None:
    assert TrainResult(tmp_path, 3, None, 1.0, 9.0, None).summary() == "step 3, 1.0 clips/s, 9 s"


def test_a_clip_whose_bytes_are_damaged_is_a_sentence_before_anything_starts(
    small_dataset: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_dataset, data)
    for tar in (data / "shards").glob("*.tar"):
        tar.write_bytes(b"\xff" * tar.stat().st_size)
    with pytest.raises(DataError, match=r"train-\d+.tar: its .json is damaged.*`foreframe verify"):
        run_train(tiny_config(data, tmp_path), quiet=True)
    assert not (tmp_path / "tiny").exists()


def test_a_disk_that_fills_up_while_training_is_a_sentence(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pretrain.tracking.jsonl.JsonlTracker.log_metrics", full)
    with pytest.raises(DataError, match=r"tiny could not be written: No space left on device: make room"):
        run_train(tiny_config(small_dataset, tmp_path), quiet=True)
    monkeypatch.undo()
    monkeypatch.setattr("launch.run_folder.write_whole", full)
    with pytest.raises(UsageError, match=r"cannot be written, choose another out=.*make room"):
        run_train(tiny_config(small_dataset, tmp_path, name="other"), quiet=True)


def test_a_rank_that_lost_another_is_told_last(tmp_path: Path) -> None:
    """Rank 0 says that its disk is full, rank 1 that rank 0 went away: the first is the reason."""
    (tmp_path / "rank-00000.json").write_text('{"text": "a peer went away", "exit_code": 6}')
    assert isinstance(why_ranks_failed(tmp_path, tmp_path, {0: 6, 1: 1}), LostPeerError)
    killed = why_ranks_failed(tmp_path, tmp_path, {0: 6, 1: -9})
    assert "rank 1 was killed by SIGKILL" in str(killed)
    (tmp_path / "rank-00001.json").write_text('{"text": "the disk is full", "exit_code": 3}')
    told = why_ranks_failed(tmp_path, tmp_path, {0: 6, 1: 3})
    assert (str(told), told.exit_code) == ("the disk is full", 3)


@pytest.mark.parametrize(
    ("objective", "is_free"),
    [
        ({"kind": "masked_latent"}, True),
        ({"kind": "contrastive"}, False),
        ({"kind": "masked_latent", "regularisers": [{"kind": "vicreg"}]}, False),
        ({"kind": "future_latent", "regularisers": [{"kind": "sigreg"}]}, False),
        ({"kind": "masked_latent", "truncate": "raster"}, False),
    ],
)
def test_clips_a_forward_are_free_where_a_forward_does_not_compare_them(
    tmp_path: Path, objective: dict[str, object], is_free: bool
) -> None:
    config = tiny_config(tmp_path, tmp_path, objective=objective)
    other = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 4})})
    keys = [problem.key for problem in scientific_changes(config, other)]
    assert keys == ([] if is_free else ["train.micro_batch"])
    assert scientific_changes(config, other, ["train.micro_batch"]) == []


def test_weights_that_lie_elsewhere_now_are_those_that_it_began_with(tmp_path: Path) -> None:
    def began_with(weights: str | None) -> RunConfig:
        config = tiny_config(tmp_path, tmp_path)
        return config.model_copy(update={"init": config.init.model_copy(update={"weights": weights})})

    def changed(before: str | None, after: str | None) -> list[str]:
        return [each.key for each in scientific_changes(began_with(before), began_with(after))]

    assert changed("out/encoders/001-a", "/moved/encoders/001-a") == []
    assert changed("out/encoders/001-a", "out/encoders/002-b") == ["init.weights"]
    assert changed(None, "out/encoders/001-a") == changed("out/encoders/001-a", None) == ["init.weights"]
