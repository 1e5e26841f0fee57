"""`foreframe smoke` on a CPU: every check runs, and the steps, the save and the resume are real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_smoke_passes_on_a_cpu() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from launch.cli import main; main()", "smoke", "--device", "cpu"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for check in ("SDPA on a packed row", "20 DeepSpeed steps", "sharded moving average", "save and resume"):
        line = next(line for line in ended.stdout.splitlines() if line.strip().startswith(check))
        assert " pass " in line
    assert "every check passed" in ended.stdout
