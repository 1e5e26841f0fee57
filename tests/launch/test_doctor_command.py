"""`foreframe doctor` as it is typed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.config import dump_config
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.distributed


def run(*words: str, files: int | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """files: the limit of open files that it has."""

    def lower() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run(
        [sys.executable, "-m", "launch", "doctor", *words],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lower,
        check=False,
    )


def states(plain: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for group in plain["groups"] for check in group["checks"]}


def test_it_ends_with_2_and_names_what_fails(small_dataset: Path, tmp_path: Path) -> None:
    """A lock that a killed build left, a low limit of open files, a data set that is not there."""
    config = tiny_config(tmp_path / "away", tmp_path / "runs")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "extensions" / "op").mkdir(parents=True)
    lock = tmp_path / "extensions" / "op" / "lock"
    lock.touch()
    os.utime(lock, (1000.0, 1000.0))
    ended = run(
        str(tmp_path / "config.yaml"),
        "--quick",
        "--json",
        files=512,
        TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"),
    )
    assert ended.returncode == 2, ended.stderr
    found = json.loads(ended.stdout)
    assert found["passed"] is False
    told = states(found)
    assert {name for name, state in told.items() if state == "fail"} == {
        "data.shards", "open files", "extension locks",
    }  # fmt: skip
    assert {told[name] for name in ("python", "packages", "disk room", "gloo here", "swap")} == {"pass"}
    assert found["facts"]["torch"]
    assert not (tmp_path / "runs").exists()
    assert lock.exists()  # it says what to do, and does nothing


@pytest.mark.slow
def test_printed_lines_have_their_remedy_below_them_and_the_failed_are_summed_up(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = tiny_config(small_dataset, tmp_path / "runs")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    ended = run(
        str(tmp_path / "config.yaml"), "tracker.kind=mlflow", "tracker.uri=http://127.0.0.1:9", "--quick"
    )
    assert ended.returncode == 2, ended.stderr
    lines = ended.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  fail    MLflow"))
    assert "http://127.0.0.1:9 does not answer" in lines[at]
    assert lines[at + 1].strip().startswith("→ start it or correct tracker.uri")
    assert lines[-1].endswith("1 fail: MLflow")
    assert "\x1b[" not in ended.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "does not exist"),
        (["--hosts", "some/hostfile"], "does not exist"),
        (["configs/train/tiny-cpu.yaml", "optim.nosuch=1"], "optim.nosuch"),
        (["configs/train/tiny-cpu.yaml", "--nproc", "7"], "train.global_batch"),
        (["--hosts", "node1", "--ssh-config", "away"], "away, the settings of ssh, does not exist"),
    ],
)
def test_what_it_cannot_be_asked_is_a_sentence(words: list[str], said: str) -> None:
    ended = run(*words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
