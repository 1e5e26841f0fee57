"""The command line: help without heavy imports, errors as sentences with their exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import shipped_config

ROOT = Path(__file__).parents[2]
TINY = str(shipped_config("train/tiny-cpu.yaml"))
HEAVY = ("torch", "ray", "deepspeed", "mlflow", "matplotlib", "pyarrow", "numpy", "av")
COMMANDS = (
    "demo", "smoke", "index", "shard", "verify", "train", "probe", "report", "import", "export", "ui",
    "config", "status", "submit", "doctor", "rollout", "plan",
)  # fmt: skip


def run(
    *arguments: str, code: str = "from launch.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as from a plain terminal."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_failing(raised: str, imports: str = "") -> subprocess.CompletedProcess[str]:
    """A command that raises this, with these imports."""
    script = (
        f"import launch.ui; {imports}\n"
        "from launch.cli import main\n"
        f"def fail(*_): raise {raised}\n"
        "launch.ui.run_ui = fail; main()"
    )
    return run("ui", "x", code=script)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from launch.cli import main\n"
        "try: main()\n"
        f"finally: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ended = run("--help", code=code)
    assert ended.returncode == 0, ended.stderr
    assert "HEAVY []" in ended.stdout
    assert all(f" {command} " in ended.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "command",
    [*([name] for name in COMMANDS), ["config", "show"], ["config", "diff"], ["config", "schema"]],
    ids=" ".join,
)
def test_each_help_has_a_sentence_and_an_example(command: list[str]) -> None:
    ended = run(*command, "--help")
    assert ended.returncode == 0, ended.stderr
    if command != ["config"]:
        assert f"Example: foreframe {' '.join(command)}" in ended.stdout


def test_a_config_error_lists_every_problem_and_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: x\ndata: {shards: d, frames: many}\noptim: {learning_rate: 1}\n"
        "train: {global_batch: 10, micro_batch: 4}\n"
    )
    ended = run("train", str(path), f"out={tmp_path}/runs", "--nproc", "2")
    assert ended.returncode == 2
    assert "3 settings must be mended; nothing was started" in ended.stderr
    for line, said in ((2, "data.frames is 'many'"), (3, "try optim.lr"), (4, "2 ranks = 8; try 8 or 16")):
        assert any(f"{path}:{line}" in row and said in row for row in ended.stderr.splitlines())
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "no/such.yaml"], "no/such.yaml does not exist"),
        (["nonsense"], "No such command"),
        (["train", TINY, "--nproc", "0"], "--nproc"),
        (["smoke", "--device", "tpu"], "need cuda, cpu or auto"),
        (["config", "schema", "--kind", "x"], "need train or data"),
        (["config", "diff", TINY, str(shipped_config("data/demo.yaml"))], "share no keys"),
        (["ui", "no/such/run"], "does not exist"),
        (["probe", "no/such/run"], "no run's folder"),
        (["report", "a" * 300], "File name too long"),
        (["report", "no/such/run"], "no run's folder"),
        (["demo", "--videos", "no/such/folder"], "does not exist"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_a_sentence_with_exit_code_2(arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("UsageError('odd')", 2),
        ("DataError('cut short')", 3),
        ("CheckpointError('torn')", 4),
        ("DivergedError('not finite')", 5),
        ("CollapsedError('flat')", 5),
        ("LostPeerError('gone')", 6),
        ("PreemptedError('saved')", 75),
    ],
)
def test_each_named_error_ends_with_its_exit_code(raised: str, code: int) -> None:
    name, said = raised.split("'")[0].strip("("), raised.split("'")[1]
    module = "launch.ranks" if name == "PreemptedError" else "data_pipeline.errors"
    ended = run_failing(raised, f"from {module} import {name}")
    assert ended.returncode == code
    label = "stopped" if name == "PreemptedError" else "error"
    assert ended.stderr == f"{label}: {said}\n"


def test_ctrl_c_is_a_sentence_and_130() -> None:
    ended = run_failing("KeyboardInterrupt")
    assert ended.returncode == 130
    assert "interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_mistake_of_ours_shows_its_traceback() -> None:
    ended = run_failing("ZeroDivisionError")
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_config_show_prints_what_follows_and_can_itself_be_run(tmp_path: Path) -> None:
    shown = run("config", "show", TINY, "optim.lr=2e-3", "--nproc", "2")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"# batch +\d+ clips a step = 2 ranks × \d+ forwards? × \d+ clips\n", shown.stdout)
    (tmp_path / "again.yaml").write_text(shown.stdout)
    differing = run("config", "diff", TINY, str(tmp_path / "again.yaml"))
    assert differing.stdout == "optim.lr  0.001 → 0.002\n"


def test_a_full_disk_is_a_sentence_and_3() -> None:
    ended = run_failing("OSError(errno.ENOSPC, 'No space left on device', '/full/file')", "import errno")
    assert ended.returncode == 3
    assert "/full/file could not be written: No space left on device: make room there" in ended.stderr
    assert "Traceback" not in ended.stderr
