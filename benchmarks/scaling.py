"""One rank and two, a core each, at every ZeRO stage: `python -m benchmarks.scaling`, under three minutes.

Weak scaling: a rank has as many clips alone as beside another. Strong: two share the clips of one. What the
model of `foreframe estimate` says of two ranks, computing and sending one after the other, stands beside it:
a step of one rank, and the same bytes sent while nothing else is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import Quiet, Row, publish, row, short, tell, torchrun

CLIPS = 4  # of a rank; in strong scaling one rank has twice as many
STAGES = ("ZeRO-0", "ZeRO-1", "ZeRO-1, overlapped", "ZeRO-2", "ZeRO-2, overlapped", "ZeRO-3")
LIMIT_S = 170
Found = dict[str, float]


def job(stage: str, clips: int, steps: int) -> dict[str, Any]:
    number = int(stage[5])
    overlaps = "overlapped" in stage or None
    return {"stage": number, "clips": clips, "overlaps": overlaps, "steps": steps}


def on_ranks(ranks: int, jobs: list[dict[str, Any]]) -> list[Found]:
    """What each job took, one after the other on the same ranks."""
    with tempfile.TemporaryDirectory(prefix="foreframe-scaling-") as folder:
        given, told = Path(folder) / "jobs.json", Path(folder) / "found.json"
        given.write_text(json.dumps(jobs))
        command = [*torchrun(ranks), "-m", "benchmarks.scaling_ranks", str(given), str(told)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            raise SystemExit(f"{ranks} ranks ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found: list[Found] = json.loads(told.read_text())
        return found


def rows_of(stage: str, alone: list[Found], twice: list[Found], both: list[Found]) -> list[Row]:
    """alone: a rank with CLIPS, turn by turn; twice: with 2 × CLIPS; both: two ranks with CLIPS each."""
    one, whole, two = ([each["step_s"] for each in found] for found in (alone, twice, both))
    sending = [each["alone_s"] for each in both]
    rates = [2 * CLIPS / step for step in two]
    cases = {
        "weak": ([CLIPS / step for step in one], "one rank, half the clips a step"),
        "strong": ([2 * CLIPS / step for step in whole], "one rank, the same clips a step"),
    }
    found = []
    for name, (reference, told) in cases.items():
        scaled = row(stage, f"{name} scaling, clips a second of two ranks", "clips/s", rates, reference, told)
        found.append(scaled | {"efficiency": short(scaled["ratio"] / 2)})
    sent = row(stage, "collectives alone, the bytes of a step", "ms", [1000 * each for each in sending])
    found.append(sent | {"bytes": both[0]["bytes"]})
    modelled = [a + b for a, b in zip(one, sending, strict=True)]
    steps = [[1 / step for step in each] for each in (two, modelled)]
    told = "the model: a rank's step, then the collectives alone"
    found.append(row(stage, "steps a second of two ranks", "steps/s", *steps, told))
    hidden = [100 * (a - b) / c for a, b, c in zip(modelled, two, sending, strict=True)]
    return [*found, row(stage, "of the collectives, hidden behind the step", "%", hidden)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", action="append", choices=STAGES, help="one or several; without it all")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="a turn")
    parser.add_argument("--wait-s", type=float, default=30.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    stages = given.stage or list(STAGES)
    quiet = Quiet(given.wait_s)
    alone: list[list[Found]] = []
    both: list[list[Found]] = []
    twice: list[list[Found]] = []
    for turn in range(given.turns):
        quiet.wait()
        jobs = [job(stage, clips, given.steps) for clips in (CLIPS, 2 * CLIPS) for stage in stages]
        found = on_ranks(1, jobs)
        alone.append(found[: len(stages)])
        twice.append(found[len(stages) :])
        both.append(on_ranks(2, jobs[: len(stages)]))
        tell(f"turn {turn + 1} of {given.turns}")
    rows: list[Row] = []
    for number, stage in enumerate(stages):
        rows += rows_of(stage, *([turn[number] for turn in each] for each in (alone, twice, both)))
    config = {
        "model": "ViT-tiny, 8 frames of 64², predictor of 4 blocks of 192, float32",
        "clips_a_rank": CLIPS,
        "threads_a_rank": 1,
        "turns": given.turns,
        "steps": given.steps,
        "busy_with_other_work": quiet.loads,
    }
    publish("scaling", config, rows, is_whole=given.stage is None)


if __name__ == "__main__":
    main()
