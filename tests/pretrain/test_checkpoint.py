"""Checkpoints: whole or refused, and a resume that is one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import CheckpointError, ConfigError, UsageError
from data_pipeline.storage import Moved
from launch.config import dump_config
from launch.lock import lock_run
from launch.run_folder import open_run
from launch.train import run_train
from pretrain.checkpoint import (
    StoredFragments,
    load_encoder,
    newest_whole,
    step_folders,
    untrained_encoder,
    verify,
)
from pretrain.checkpoint.retention import Retention
from pretrain.checkpoint.write import HostCopy
from pretrain.ema import Fragment
from pretrain.loop import train
from pretrain.objective.base import Batch, Output
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config, write_dataset

SAVING = {"steps": 12, "checkpoint_every": 4, "keep_checkpoints": 5}


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps without a stop, with checkpoints at 4, 8 and 12; read only."""
    out = tmp_path_factory.mktemp("runs")
    return run_train(tiny_config(small_dataset, out, train=SAVING), quiet=True).run


def curve(run: Path) -> list[tuple[int, float, str]]:
    return [(line["step"], line["loss"], line["batch_digest"]) for line in read_metrics(run)]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folder, manifest, _ = newest_whole(run)
    return {key: t for name in manifest["files"] for key, t in load_file(folder / name).items()}


def copy_of(run: Path, out: Path) -> Path:
    copied: Path = shutil.copytree(run, out / run.name)
    return copied


def test_resume_after_a_stop_equals_no_stop(whole_run: Path, small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, train=SAVING)
    run = copy_of(whole_run, tmp_path)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    run_train(config, quiet=True)
    assert curve(run) == curve(whole_run), "every loss and every batch, to the last bit"
    wanted = tensors(whole_run)
    for key, tensor in tensors(run).items():
        assert torch.equal(tensor, wanted[key]), key


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "no manifest", "foreign manifest"])
def test_a_damaged_checkpoint_is_passed_over_by_name(whole_run: Path, tmp_path: Path, damage: str) -> None:
    run = copy_of(whole_run, tmp_path)
    newest = step_folders(run)[0]
    file = next(newest.glob("*.safetensors"))
    if damage == "flipped":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(CheckpointError, match="step-00000012"):
        verify(newest)
    folder, _, passed = newest_whole(run)
    assert folder.name == "step-00000008"
    assert len(passed) == 1


def test_what_was_passed_over_is_pruned_not_kept(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    run = copy_of(whole_run, tmp_path)
    next(step_folders(run)[0].glob("*.safetensors")).write_bytes(b"damaged")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    config = tiny_config(
        small_dataset, tmp_path, train={**SAVING, "keep_checkpoints": 1, "checkpoint_every": 2}
    )
    assert run_train(config, quiet=True).step == 12
    assert [folder.name for folder in step_folders(run)] == ["step-00000012"]
    verify(step_folders(run)[0])


def test_a_save_right_after_a_fallback_keeps_itself(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """keep_checkpoints 1, step 12 damaged, resumed from 8, stopped after 9: step 9 must stay."""
    run = copy_of(whole_run, tmp_path)
    next(step_folders(run)[0].glob("*.safetensors")).write_bytes(b"damaged")
    train = {**SAVING, "keep_checkpoints": 1, "time_limit_s": 1e-3}
    assert run_train(tiny_config(small_dataset, tmp_path, train=train), quiet=True).step == 9
    assert [folder.name for folder in step_folders(run)] == ["step-00000009"]


def test_a_damaged_checkpoint_does_not_count_as_kept(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """keep_checkpoints 2, step 8 damaged between 4 and 12 lost: 4 stays beside what is saved next."""
    run = copy_of(whole_run, tmp_path)
    newest, middle, _ = step_folders(run)
    shutil.rmtree(newest)
    next(middle.glob("*.safetensors")).write_bytes(b"damaged")
    train = {**SAVING, "keep_checkpoints": 2, "checkpoint_every": 12}
    assert run_train(tiny_config(small_dataset, tmp_path, train=train), quiet=True).step == 12
    assert [folder.name for folder in step_folders(run)] == ["step-00000012", "step-00000004"]


def test_a_run_does_not_go_on_with_another_data_set(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    copy_of(whole_run, tmp_path)
    other = write_dataset(tmp_path / "other", {"train": [6], "eval": [2]})
    shutil.rmtree(step_folders(tmp_path / "tiny")[0])
    with pytest.raises(CheckpointError, match="data with fingerprint"):
        run_train(tiny_config(other, tmp_path, train=SAVING), quiet=True)
    moved = Path(shutil.copytree(small_dataset, tmp_path / "moved"))
    assert run_train(tiny_config(moved, tmp_path, train=SAVING), quiet=True).step == 12


def test_two_processes_do_not_train_one_run(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path)
    with lock_run(open_run(config)), pytest.raises(UsageError, match="being trained by process"):
        run_train(config, quiet=True)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format_version": 1}', "not json"])
def test_a_manifest_that_is_none_is_a_checkpoint_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError):
        verify(tmp_path)


def test_a_run_without_a_whole_checkpoint_says_so(whole_run: Path, tmp_path: Path) -> None:
    run = copy_of(whole_run, tmp_path)
    for folder in step_folders(run):
        next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_encoder(run)


def failing_writes(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
    """Let the n-th write of a checkpoint's file, from 1, meet a full disk half way."""
    write, calls = HostCopy.write, []

    def fill(self: HostCopy, path: Path, moved: Moved) -> dict[str, Any]:
        calls.append(path)
        if fails(len(calls)):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, path, moved)

    monkeypatch.setattr(HostCopy, "write", fill)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_save_that_fails_is_counted_and_the_run_goes_on(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    failing_writes(monkeypatch, lambda number: number == 2)
    train = {**SAVING, "save_in_background": in_background}
    run = run_train(tiny_config(small_dataset, tmp_path, train=train), quiet=True).run
    assert [folder.name for folder in step_folders(run)] == ["step-00000012", "step-00000004"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "latest",
        "step-00000004",
        "step-00000012",
    ]
    assert [line.get("checkpoint/failed") for line in read_metrics(run)][-1] == 1


def test_a_last_save_that_fails_twice_is_an_error_and_the_earlier_ones_stay(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_writes(monkeypatch, lambda number: number >= 3)
    config = tiny_config(small_dataset, tmp_path, train=SAVING)
    with pytest.raises(CheckpointError, match="no checkpoint at step 12: No space left on device"):
        run_train(config, quiet=True)
    run = tmp_path / "tiny"
    assert [folder.name for folder in step_folders(run)] == ["step-00000008", "step-00000004"]
    monkeypatch.undo()
    failing_writes(monkeypatch, lambda number: number == 1)
    assert run_train(config, quiet=True).step == 12, "a second try may do"
    verify(step_folders(run)[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for three small checkpoints."""
    folder = tmp_path / "tiny" / "checkpoints"
    folder.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", "size=4500k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


def test_a_disk_that_is_really_full_leaves_whole_checkpoints_and_a_run_that_goes_on(
    small_dataset: Path, tmp_path: Path, small_disk: Path
) -> None:
    train = {**SAVING, "checkpoint_every": 2, "keep_checkpoints": 9}
    config = tiny_config(small_dataset, tmp_path, train=train)
    (tmp_path / "tiny" / "config.yaml").write_text(dump_config(config))
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 12: .*No space left on device"):
        run_train(config, quiet=True)
    run = tmp_path / "tiny"
    assert [folder.name for folder in step_folders(run)] == [
        "step-00000006",
        "step-00000004",
        "step-00000002",
    ]
    for folder in step_folders(run):
        verify(folder)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 13))
    assert read_metrics(run)[-1]["checkpoint/failed"] == 2
    assert (
        run_train(
            config.model_copy(update={"train": config.train.model_copy(update={"keep_checkpoints": 1})}),
            quiet=True,
        ).step
        == 12
    )


def test_training_goes_on_while_a_checkpoint_is_written(
    whole_run: Path, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 4 waits for step 7 to be under way; what it writes is step 4 all the same."""
    from pretrain.objective.masked import MaskedLatent

    write, forward, is_later = HostCopy.write, MaskedLatent.forward, threading.Event()

    def late(self: HostCopy, path: Path, moved: Moved) -> dict[str, Any]:
        assert is_later.wait(60), "the loop waits for the write"
        return write(self, path, moved)

    def seen(self: MaskedLatent, batch: Batch, targets: torch.Tensor | None) -> Output:
        if batch.step >= 6:
            is_later.set()
        return forward(self, batch, targets)

    monkeypatch.setattr(HostCopy, "write", late)
    monkeypatch.setattr(MaskedLatent, "forward", seen)
    run = run_train(tiny_config(small_dataset, tmp_path, train=SAVING), quiet=True).run
    for step in (4, 8, 12):
        pair = [folder / "checkpoints" / f"step-{step:08d}" for folder in (run, whole_run)]
        manifests = [verify(folder) for folder in pair]
        assert manifests[0]["files"] == manifests[1]["files"], "equal bytes"
        assert manifests[0]["progress"] == manifests[1]["progress"]
    stalls = [line["perf/save_stall_ms"] for line in read_metrics(run) if "perf/save_stall_ms" in line]
    assert stalls and all(stall > 0 for stall in stalls)


@given(
    steps=st.sets(st.integers(1, 60), min_size=1),
    newest=st.integers(1, 4),
    every=st.none() | st.integers(1, 20),
    scores=st.dictionaries(st.integers(1, 60), st.floats(0, 1)),
)
def test_retention_keeps_the_newest_the_round_and_the_best(
    steps: set[int], newest: int, every: int | None, scores: dict[int, float]
) -> None:
    rule = Retention(newest, every, "shape")
    kept = rule.kept(steps, {step: {"shape": score} for step, score in scores.items()})
    wanted = set(sorted(steps)[-newest:]) | {step for step in steps if every and step % every == 0}
    scored = [(scores[step], step) for step in steps if step in scores]
    if scored:
        wanted.add(max(scored)[1])
    assert set(kept) == wanted


def test_round_steps_and_the_best_probed_are_kept(small_dataset: Path, tmp_path: Path) -> None:
    train = {"steps": 12, "checkpoint_every": 2, "keep_checkpoints": 1, "keep_every": 6, "keep_best": "shape"}
    config = tiny_config(small_dataset, tmp_path, train={**train, "time_limit_s": 1e-3})
    run = run_train(config, quiet=True).run
    lines = [{"step": 4, "scores": {"shape": 0.9}}, {"step": 8, "scores": {"shape": 0.5}}]
    (run / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "sco')
    run_train(tiny_config(small_dataset, tmp_path, train=train), quiet=True)
    assert [folder.name[-2:] for folder in step_folders(run)] == ["12", "06", "04"]


def test_fragments_are_put_together_across_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"master/a.b@0": torch.arange(4.0), "master/c@0": torch.ones(2)}, tmp_path / "one")
    save_file({"master/a.b@4": torch.arange(4.0, 10.0)}, tmp_path / "two")
    stored = StoredFragments([tmp_path / "one", tmp_path / "two"])
    for start in range(10):
        for end in range(start + 1, 11):
            found = stored.read("master", Fragment("a.b", start, end - start))
            assert found.tolist() == list(map(float, range(start, end)))
    with pytest.raises(CheckpointError, match=r"no master of a.b from element 10"):
        stored.read("master", Fragment("a.b", 8, 4))


def test_the_loaded_encoder_is_the_moving_average(whole_run: Path) -> None:
    encoder, config, step = load_encoder(whole_run)
    assert step == 12
    stored = tensors(whole_run)
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter.view(-1), stored[f"target/{name}@0"])
        assert not torch.equal(parameter.view(-1), stored[f"master/encoder.{name}@0"])
    first = untrained_encoder(config)
    assert not torch.equal(first.embed.weight, encoder.embed.weight)
    assert load_encoder(whole_run, 4)[2] == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 5; it has: 12, 8, 4"):
        load_encoder(whole_run, 5)


def test_old_checkpoints_are_pruned(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, train={**SAVING, "keep_checkpoints": 2})
    run = run_train(config, quiet=True).run
    assert [folder.name for folder in step_folders(run)] == ["step-00000012", "step-00000008"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000012\n"


def test_another_science_in_the_same_folder_is_refused_with_a_list(
    whole_run: Path, small_dataset: Path
) -> None:
    out = whole_run.parent
    changed = tiny_config(small_dataset, out, train=SAVING, optim={"lr": 2e-3, "clip_norm": 0.5})
    with pytest.raises(ConfigError) as caught:
        open_run(changed)
    assert {problem.key for problem in caught.value.problems} == {"optim.lr", "optim.clip_norm"}
    operational = tiny_config(
        small_dataset, out, train={**SAVING, "log_every": 7, "micro_batch": 1}, data={"workers": 1}
    )
    before = (whole_run / "config.yaml").read_bytes()
    open_run(operational)
    (whole_run / "config.yaml").write_bytes(before)


def test_the_loop_is_short() -> None:
    import inspect

    assert len(inspect.getsource(train).splitlines()) <= 60
