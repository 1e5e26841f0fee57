"""Nothing stays in the temporary folder: not of ranks, not of commands that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.test_hangs import config_of, start
from tests.distributed.test_ranks import everything_of, wait_for_checkpoint

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "foreframe" in path.name]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="ranks die with their starter on Linux only")
def test_what_killed_ranks_and_their_starter_leave_goes_with_the_next_start(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    config = config_of(small_dataset, tmp_path, train={"steps": 40})
    process = start(config)
    wait_for_checkpoint(tmp_path / "tiny", process)
    (shared,) = left(tmp_path / "tmp")
    for each in everything_of(process):
        each.kill()
    process.communicate(timeout=60)
    assert left(tmp_path / "tmp") == [shared], "of one command, for all that it started"
    process = start(config)
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    assert left(tmp_path / "tmp") == []


def test_a_process_without_a_starter_takes_its_extensions_along(tmp_path: Path) -> None:
    code = (
        "import torch; from pretrain.strategy.deepspeed import _import_deepspeed as i; i(torch.device('cpu'))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCH_EXTENSIONS_DIR"}
    subprocess.run(
        [sys.executable, "-c", f"{code}; import os; print(os.listdir(os.environ['TORCH_EXTENSIONS_DIR']))"],
        cwd=ROOT,
        env={**environment, "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert left(tmp_path) == []
