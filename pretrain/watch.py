"""What is seen of a run while it trains: metrics, health, bad samples; and what ends it early.

Numbers are brought to the host only at logged steps; features are measured only at looks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.errors import CollapsedError, DataError, DivergedError
from pretrain.config import Plan
from pretrain.data.stream import Batches
from pretrain.health import History, Verdict, fixed_positions, judge, moments, rankme, sample_std, verdict_of
from pretrain.objective.base import Batch, Output
from pretrain.progress import Progress
from pretrain.schedule import Knobs
from pretrain.strategy.base import Engine, Update
from pretrain.tracking.base import Tracker, Value

SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True)
class Line:
    """What the terminal shows of a step."""

    step: int
    steps: int
    loss: float
    clips_per_s: float
    wait_share: float
    verdict: Verdict


Show = Callable[[Line], None]
Say = Callable[[str], None]


class Watch:
    """Follows one run on every rank; rank 0 writes. Calls that reduce over ranks are made by all."""

    def __init__(
        self,
        run: Path,
        plan: Plan,
        engine: Engine,
        batches: Batches,
        tracker: Tracker,
        history: History,
        show: Show,
        say: Say,
    ) -> None:
        self._run, self._plan, self._engine, self._batches = run, plan, engine, batches
        self._tracker, self._show, self._say = tracker, show, say
        self._fixed = fixed_positions(engine.target.num_tokens)
        self._losses: list[Tensor] = []
        self._last: tuple[Output, Tensor] | None = None
        self._bad: list[tuple[str, str]] = []
        self._begin_s = self._mark_s = time.perf_counter()
        self._mark_step: int | None = None
        self._said = ""
        self.verdict = verdict_of(history, plan.config.health)
        self.line: Line | None = None

    @property
    def stops(self) -> bool:
        """Whether the verdict ends the run; the same on every rank, as its sums are."""
        return self.verdict.word == "collapsed" and self._plan.config.health.on_collapse == "stop"

    def after_batch(self, batch: Batch, output: Output, targets: Tensor) -> None:
        self._losses.append(torch.cat([output.loss.detach()[None], output.kind_losses]))
        self._last = (output, targets)
        self._bad.extend(batch.bad)

    def after_step(self, progress: Progress, knobs: Knobs, update: Update, *, is_last: bool) -> None:
        """Measure, log and judge the step that just ended.

        is_last: the run ends here, before its plan does; the step is logged whatever its number.
        Raises, on every rank: DivergedError, DataError past their limits.
        """
        step, train = progress.step, self._plan.config.train
        if self._mark_step is None:
            self._mark_step = step - 1
        values: dict[str, Value] = {}
        if self._plan.looks_at(step):
            values |= self._look(progress)
        if self._plan.logs_at(step) or values or is_last:
            self._log(progress, knobs, update, values)
        self._losses.clear()
        self._last = None
        if not update.applied:
            self._say(f"step {step} skipped: a gradient was not finite ({progress.skipped_in_row} in a row)")
        if progress.skipped_in_row > train.max_skipped_steps:
            raise DivergedError(
                f"{progress.skipped_in_row} steps in a row had gradients that are not finite, up to step "
                f"{step}; lower optim.lr or set optim.clip_norm, and go on from the last checkpoint"
            )

    def finish(self) -> None:
        """Raises CollapsedError when that is why the run ended."""
        if self.stops:
            raise CollapsedError(
                f"the features have collapsed: {self.verdict.reason}; the last checkpoint shows it. "
                f"Lower optim.lr or raise target.momentum; health.on_collapse=warn goes on regardless"
            )

    def _look(self, progress: Progress) -> dict[str, Value]:
        assert self._last is not None
        output, targets = self._last
        batch, tokens, width = targets.shape
        everywhere = torch.arange(tokens, device=targets.device).repeat(batch)
        seen = {
            "target": moments(targets.reshape(-1, width), everywhere, self._fixed),
            "context": moments(output.context_MD, output.context_M, self._fixed),
            "prediction": moments(output.prediction_PD, output.hidden_P, self._fixed),
        }
        self._engine.world.sum([tensor for sums in seen.values() for tensor in sums.sums])
        values: dict[str, Value] = {f"health/{name}_std": sample_std(sums) for name, sums in seen.items()}
        values |= {f"health/{name}_rankme": rankme(sums.gram) for name, sums in seen.items()}
        is_first_look = progress.history.untrained_std is None
        config = self._plan.config.health
        self.verdict = judge(progress.history, progress.step, float(values["health/target_std"]), config)
        if is_first_look:
            values |= {
                f"{key}_untrained": values[key] for key in ("health/target_std", "health/target_rankme")
            }
        if (
            self.verdict.word != "healthy"
            and config.on_collapse != "note"
            and self._said != self.verdict.reason
        ):
            self._say(f"step {progress.step}: {self.verdict.word}: {self.verdict.reason}")
            self._said = self.verdict.reason
        return values

    def _log(self, progress: Progress, knobs: Knobs, update: Update, values: dict[str, Value]) -> None:
        world, batches, config = self._engine.world, self._batches, self._plan.config
        now_s = time.perf_counter()
        elapsed_s, steps = now_s - self._mark_s, progress.step - (self._mark_step or 0)
        local = [batches.take_wait_s() / elapsed_s, *torch.stack(self._losses).mean(0).tolist()]
        wait_share, loss, *kind_losses = world.mean(local)
        clips_per_s = steps * config.train.global_batch / elapsed_s
        self._mark_s, self._mark_step = now_s, progress.step
        consumed = progress.samples - config.train.global_batch
        self._gather_bad(progress)
        values |= {
            "loss": loss,
            **{f"loss/mask{kind}": value for kind, value in enumerate(kind_losses)},
            "optim/lr": knobs.lr,
            "optim/weight_decay": knobs.weight_decay,
            "optim/momentum": knobs.momentum,
            "optim/grad_norm": update.grad_norm,
            "optim/skipped_steps": progress.skipped,
            "perf/clips_per_s": clips_per_s,
            "perf/step_ms": 1000 * elapsed_s / steps,
            "data/wait_share": wait_share,
            "data/epoch": progress.samples / batches.num_samples,
            "data/bad_samples": progress.bad_samples,
            "batch_digest": batches.digest(consumed),
            "time_s": now_s - self._begin_s,
        }
        self._tracker.log_metrics(progress.step, values)
        self.line = Line(progress.step, self._plan.steps, loss, clips_per_s, wait_share, self.verdict)
        self._show(self.line)

    def _gather_bad(self, progress: Progress) -> None:
        """Write down replaced samples of all ranks; stop past the limit."""
        world, limit = self._engine.world, self._plan.config.data.max_bad_samples
        if not world.any(bool(self._bad)):
            return
        found = [bad for rank in world.gather_objects(self._bad) for bad in rank]
        self._bad.clear()
        progress.bad_samples += len(found)
        if world.is_first:
            with (self._run / SKIPPED_FILE).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"id": key, "reason": reason}) + "\n" for key, reason in found)
        if progress.bad_samples > limit:
            listed = "; ".join(f"{key}: {reason}" for key, reason in found[:3])
            raise DataError(
                f"{progress.bad_samples} samples could not be read, more than data.max_bad_samples = {limit}"
                f": {listed}; all are in {self._run / SKIPPED_FILE}; check the shards with `foreframe verify`"
            )
