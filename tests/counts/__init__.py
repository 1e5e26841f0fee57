"""What a step asks of a GPU, counted where there is none: launches, waits of the host, bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "step_counts.json"
KEPT = ("launches", "copies", "bytes", "recompiles")


def count_steps() -> dict[str, Any]:
    """The counts of every case, by a process of its own: the device that it registers stays registered."""
    return _counted("tests.counts.steps")


def count_reads() -> dict[str, Any]:
    """What DeepSpeed reads back in a step, by stage and precision."""
    return _counted("tests.counts.ranks")


def golden_of(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the counts: which torch they are of, and the numbers that it decides."""
    cases = {name: {key: case[key] for key in KEPT} for name, case in found["cases"].items()}
    return {"torch": found["torch"], "cases": cases}


def grown(name: str, found: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """What differs between a case's counts and the golden ones, a clause each."""
    now, then = _flat(found), _flat(golden)
    return [
        f"{name}: {what} {'grew' if now.get(what, 0) > then.get(what, 0) else 'shrank'} from "
        f"{then.get(what, 0):,} to {now.get(what, 0):,}"
        for what in sorted({*now, *then})
        if now.get(what, 0) != then.get(what, 0)
    ]


def _flat(counts: dict[str, Any]) -> dict[str, int]:
    nested = {f"{key}, {phase}": n for key in ("launches", "copies") for phase, n in counts[key].items()}
    return nested | {"bytes allocated": counts["bytes"], "recompiles": counts["recompiles"]}


def _counted(module: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts.json"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, str(out)],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # the same with a GPU and without
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(out.read_text())
        return found
