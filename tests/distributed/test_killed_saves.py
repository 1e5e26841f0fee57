"""A rank killed before every file operation of a save, in turn: the run is the same, what it has whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.attempts import read_attempts
from launch.config import dump_config
from launch.train import run_train
from pretrain.checkpoint import newest_whole
from pretrain.config import RunConfig
from tests.distributed.test_ranks import curve
from tests.small_dataset import tiny_config

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervises on Linux"),
]
ROOT = Path(__file__).parents[2]


def config_of(dataset: Path, out: Path) -> RunConfig:
    train = {"global_batch": 4, "micro_batch": 2, "steps": 9, "checkpoint_every": 3, "keep_checkpoints": 1}
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
    return tiny_config(dataset, out, train={**train, "precision": "fp32"}, strategy=strategy)


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_train(config_of(small_dataset, tmp_path_factory.mktemp("whole")), nproc=2, quiet=True).run


def supervised(config: RunConfig, folder: Path, rank: int, number: int) -> str:
    """Run under a supervisor, the rank killed at its number-th operation; what was printed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("from tests.distributed import kill_at\n\nkill_at.begin()\n")
    (folder / "given.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "launch", "supervise", str(folder / "given.yaml"), "--nproc", "2"]
    done = subprocess.run(
        [*command, "--backoff-s", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "KILL_AT": f"{rank}:{number}:{folder}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def check(run: Path, whole_run: Path, folder: Path) -> None:
    """One attempt was killed, the next ended well, with curve and last checkpoint of an unharmed run."""
    attempts = [(each.kind, each.exit_code) for each in read_attempts(run)]
    assert attempts[-1] == ("done", 0) and len(attempts) == 2, (attempts, folder)
    assert curve(run) == curve(whole_run), (folder / "killed").read_text()
    found, manifest, passed = newest_whole(run)
    assert (found.name, passed) == ("step-00000009", [])
    assert manifest["files"] == newest_whole(whole_run)[1]["files"], "to the last bit"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step-00000009"]


def operations(small_dataset: Path, folder: Path, rank: int) -> list[str]:
    supervised(config_of(small_dataset, folder), folder / "count", rank, 0)
    found: list[str] = json.loads((folder / "count" / f"operations-{rank}.json").read_text())
    return found


def test_a_rank_killed_between_its_file_and_the_manifest_leaves_the_earlier_checkpoint(
    small_dataset: Path, whole_run: Path, tmp_path: Path
) -> None:
    supervised(config_of(small_dataset, tmp_path), tmp_path / "kill", 0, 3)
    check(tmp_path / "tiny", whole_run, tmp_path / "kill")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_at_every_operation_of_a_save_in_turn(
    small_dataset: Path, whole_run: Path, tmp_path: Path, rank: int
) -> None:
    seen = operations(small_dataset, tmp_path, rank)
    words = {
        0: ("write step-00000006.part/rank-00000", "manifest.json", "rename step-00000006.part", "latest"),
        1: ("write step-00000006.part/rank-00001",),
    }
    for word in words[rank]:
        assert any(word in operation for operation in seen), seen
    for number in range(1, len(seen) + 1):
        folder = tmp_path / f"{number}"
        supervised(config_of(small_dataset, folder), folder / "kill", rank, number)
        check(folder / "tiny", whole_run, folder / "kill")
