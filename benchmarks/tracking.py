"""What tracking costs of a training step: `python -m benchmarks.tracking DATASET`.

One run of the tiny recipe on one process, one thread. In it, blocks of steps with the tracker that is
measured and blocks with none take turns, so that both see the same machine. Beside what that says, which
holds the work of the sender's thread too, stands what the calls themselves take of the step.
A server is a real one in a process of its own, on the same cores; `away`: it is killed at the start.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Quiet, Row, publish, row, short, tell
from launch.config import read_config
from pretrain.build import build_engine
from pretrain.config import RunConfig, TrackerConfig, plan
from pretrain.data.stream import Batches
from pretrain.schedule import knobs_at
from pretrain.strategy.base import World
from pretrain.tracking.base import RunFacts, Several, Tracker, Value, make_tracker

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "tiny-cpu.yaml"
BLOCK, PAIRS = 20, 5  # steps a block; pairs of blocks, with and without
KEYS = 60  # values of a logged step: as many as a run with health and probes has


class Timed(Several):
    """A tracker that adds up the seconds that the loop spends in it."""

    def __init__(self, inner: Tracker) -> None:
        super().__init__([inner])
        self.spent_s = 0.0
        self.calls: list[float] = []

    def log_metrics(self, step: int, values: dict[str, Value]) -> None:
        began_s = time.perf_counter()
        super().log_metrics(step, values)
        self.calls.append(time.perf_counter() - began_s)
        self.spent_s += self.calls[-1]


def values_of(step: int, loss: float) -> dict[str, Value]:
    """A line as a run logs it."""
    return {"loss": loss, **{f"health/value_{k}": loss + k / (1 + step) for k in range(KEYS - 1)}}


def config_of(dataset: str, log_every: int) -> RunConfig:
    settings = [f"data.shards={dataset}", "strategy.kind=single", "train.threads=1", "data.workers=0"]
    return read_config(str(RECIPE), [*settings, f"train.log_every={log_every}"], RunConfig)


class Training:
    """The loop's step, with nothing around it."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(1)
        world = World(0, 1, torch.device("cpu"))
        self._plan = plan(config, 1)
        self._engine = build_engine(self._plan, world)
        self._batches = Batches(self._plan, 0, world.device)
        self._step = 0

    def block(self, tracker: Tracker) -> float:
        """Seconds of BLOCK steps."""
        began_s = time.perf_counter()
        for _ in range(BLOCK):
            knobs, total = knobs_at(self._step, self._plan.config), 0.0
            for batch in self._batches.take(self._plan.micro_batches):
                output = self._engine.loss(batch, self._engine.targets(batch))
                self._engine.backward(output)
                total += float(output.loss.detach())
            self._engine.step(knobs)
            self._engine.update_target(knobs.momentum)
            self._step += 1
            if self._plan.logs_at(self._step):
                tracker.log_metrics(self._step, values_of(self._step, total))
        return time.perf_counter() - began_s

    def close(self) -> None:
        self._batches.close()


@contextmanager
def trackers(case: str, folder: Path) -> Iterator[Tracker]:
    """The tracker of a case, begun."""
    run = folder / case.replace(" ", "-")
    run.mkdir()
    facts = RunFacts("benchmark", params={"seed": "0"}, description="What it is.")
    if case == "metrics.jsonl":
        tracker = make_tracker(TrackerConfig(kind="jsonl"), run)
        tracker.start(facts)
        yield tracker
        tracker.close("done")
        return
    if case == "MLflow, sqlite in the run":
        tracker = make_tracker(TrackerConfig(), run, say=tell)
        tracker.start(facts)
        yield tracker
        tracker.close("done")
        return
    from tests.servers.mlflow import started

    with started(folder / "server") as server:
        tracker = make_tracker(TrackerConfig(uri=server.endpoint), run, say=tell)
        tracker.start(facts)
        if case == "MLflow, server away":
            server.kill()
        yield tracker
        if case == "MLflow, server away":
            server.start()
        tracker.close("done")


CASES = ("metrics.jsonl", "MLflow, sqlite in the run", "MLflow, a server", "MLflow, server away")


def measure(case: str, training: Training, folder: Path, quiet: Quiet) -> list[Row]:
    silent = Several()
    plain: list[float] = []
    tracked: list[float] = []
    with trackers(case, folder) as tracker:
        timed = Timed(tracker)
        training.block(silent)
        training.block(timed)  # what is done once is not counted
        timed.calls.clear()
        timed.spent_s = 0.0
        for number in range(PAIRS):
            quiet.wait()
            order = [(silent, plain), (timed, tracked)]
            for which, times in order if number % 2 else order[::-1]:
                times.append(training.block(which))
    share = [(b - a) / a for a, b in zip(plain, tracked, strict=True)]
    in_calls = timed.spent_s / sum(tracked)
    step_ms = 1000 * statistics.median(plain) / BLOCK
    tell(f"{case}: {statistics.median(share):+.2%} of {step_ms:.1f} ms a step, in calls {in_calls:.3%}")
    rows = [
        row(
            case,
            "steps a second",
            "1/s",
            [BLOCK / b for b in tracked],
            [BLOCK / a for a in plain],
            "no tracker",
        ),
        row(case, "time of a call", "ms", [1000 * call for call in timed.calls]),
    ]
    extra: Row = {
        "case": case,
        "metric": "share of the step's time in calls",
        "unit": "1",
        "ours": short(in_calls),
        "reference": None,
        "reference_name": None,
        "ratio": None,
        "min": short(in_calls),
        "max": short(in_calls),
        "n": 1,
    }
    return [*rows, extra]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="shards of the demo's videos")
    parser.add_argument("--case", choices=CASES, help="only this one; printed, not written")
    parser.add_argument("--log-every", type=int, default=1, help="steps between lines; a run has 10 to 20")
    parser.add_argument("--wait-s", type=float, default=600.0, help="for a quiet machine, in all")
    given = parser.parse_args()
    config = config_of(given.dataset, given.log_every)
    training, quiet = Training(config), Quiet(given.wait_s)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="foreframe-tracking-") as folder:
        for case in [given.case] if given.case else CASES:
            rows += measure(case, training, Path(folder), quiet)
    training.close()
    about: dict[str, Any] = {
        "file": "configs/train/tiny-cpu.yaml",
        "steps_a_block": BLOCK,
        "pairs": PAIRS,
        "log_every": given.log_every,
        "values_a_line": KEYS,
        "loads": quiet.loads,
    }
    publish("tracking", about, rows, is_whole=given.case is None)


if __name__ == "__main__":
    main()
