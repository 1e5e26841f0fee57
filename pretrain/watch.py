"""What is seen of a run while it trains: metrics, health, bad samples; and what ends it early.

Numbers are brought to the host only at logged steps; features are measured only at looks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.errors import CollapsedError, DivergedError
from pretrain.config import Plan
from pretrain.data.bad import SKIPPED_FILE, BadSamples
from pretrain.data.order import digest_of
from pretrain.data.stream import Batches
from pretrain.health import Verdict, fixed_positions, judge, moments, rankme, sample_std, verdict_of
from pretrain.objective.base import Batch, Output
from pretrain.probe.online import OnlineProbe
from pretrain.progress import Progress
from pretrain.schedule import Knobs
from pretrain.skipped import FILE, SkippedSteps
from pretrain.strategy.base import Engine, Update
from pretrain.tracking.base import Tracker, Value

RECENT_LINES = 10


@dataclass(frozen=True)
class Line:
    """What the terminal shows of a step."""

    step: int
    steps: int
    loss: float | None  # mean of the last lines, as one jumps; of those that are finite, None of none
    clips_per_s: float
    wait_share: float
    verdict: Verdict


Show = Callable[[Line], None]
Say = Callable[[str], None]


class Watch:
    """Follows one run on every rank; rank 0 writes. Calls that reduce over ranks are made by all.

    save_metrics: what the checkpoints say of their saves, logged with the rest.
    """

    def __init__(
        self,
        run: Path,
        plan: Plan,
        engine: Engine,
        batches: Batches,
        tracker: Tracker,
        progress: Progress,
        show: Show,
        say: Say,
        save_metrics: Callable[[], Mapping[str, float]] = dict,
        probe: OnlineProbe | None = None,
    ) -> None:
        self._plan, self._engine, self._batches = plan, engine, batches
        self._tracker, self._show, self._say = tracker, show, say
        self._save_metrics, self._probe = save_metrics, probe
        of_frames = plan.config.objective.kind == "action_latent"  # whose tokens are of frames, not tubelets
        moments = plan.config.data.frames if of_frames else plan.config.grid[0]
        self._fixed = fixed_positions(moments * math.prod(plan.config.grid[1:]))
        self._losses: list[Tensor] = []
        self._last: Output | None = None
        self._recent: deque[float] = deque(maxlen=RECENT_LINES)
        self._bad = BadSamples(run, engine.world, plan.config.data, progress.step)
        self._skipped = SkippedSteps(run, engine.world, progress.step)
        self._digest = 0
        self._begin_s = self._mark_s = time.perf_counter()
        self._mark_step: int | None = None
        self._said = ""
        self._next_told = max(1, 2 * len(progress.bad_ids))
        self.verdict = verdict_of(progress.history, plan.config.health)
        self.line: Line | None = None

    @property
    def stops(self) -> bool:
        """Whether the verdict ends the run; the same on every rank, as its sums are."""
        return self.verdict.word == "collapsed" and self._plan.config.health.on_collapse == "stop"

    def after_batch(self, batch: Batch, output: Output) -> None:
        self._losses.append(torch.stack([output.loss.detach(), *output.parts.values()]))
        self._last = output
        self._bad.note(batch.step + 1, batch.bad)
        self._skipped.note(batch, output.loss)
        self._digest += digest_of(zip(batch.positions, batch.keys, strict=True))

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
        if self._probe is not None and self._probe.is_due(step):
            values["perf/probe_ms"] = self._probe.take(step)
        self._log_probes()
        is_logged = bool(self._plan.logs_at(step) or values or is_last)
        if is_logged or self._plan.saves_at(step):  # a checkpoint knows of all bad samples before it
            self._bad.gather(progress)
            self._tell_bad(progress)
        if is_logged:
            self._log(progress, knobs, update, values)
        self._losses.clear()
        self._last, self._digest = None, 0
        self._skipped.after_step(step, update)
        if not update.applied:
            row = f"{progress.skipped_in_row} in a row"
            self._say(f"step {step} skipped: a gradient was not finite ({row}); {FILE} says which samples")
        if progress.skipped_in_row > train.max_skipped_steps:
            raise DivergedError(
                f"{progress.skipped_in_row} steps in a row had gradients that are not finite, up to step "
                f"{step}, by samples that {FILE} names; lower optim.lr or set optim.clip_norm, and go on "
                f"from the last checkpoint"
            )

    def _log_probes(self) -> None:
        """What online probes have found by now, each at the step that it is of."""
        for step, scores in self._probe.results() if self._probe is not None else ():
            self._tracker.log_metrics(step, scores)

    def _tell_bad(self, progress: Progress) -> None:
        """Once there are any, and whenever they have doubled."""
        count = len(progress.bad_ids)
        if count >= self._next_told:
            self._next_told = 2 * count
            self._say(f"step {progress.step}: {count} samples could not be read so far; see {SKIPPED_FILE}")

    def finish(self) -> None:
        """Log what is left to log. Raises CollapsedError when that is why the run ended."""
        self._log_probes()
        if self.stops:
            raise CollapsedError(
                f"the features have collapsed: {self.verdict.reason}; the last checkpoint shows it. "
                f"Lower optim.lr or raise target.momentum; health.on_collapse=warn goes on regardless"
            )

    def _look(self, progress: Progress) -> dict[str, Value]:
        assert self._last is not None
        seen = {
            name: moments(found.features_MD, found.token_M, self._fixed)
            for name, found in self._last.seen.items()
        }
        self._engine.world.sum([tensor for sums in seen.values() for tensor in sums.sums])
        values: dict[str, Value] = {f"health/{name}_std": sample_std(sums) for name, sums in seen.items()}
        values |= {f"health/{name}_rankme": rankme(sums.gram) for name, sums in seen.items()}
        is_first_look = progress.history.untrained_std is None
        config = self._plan.config.health
        is_moving = self._plan.config.target.kind != "frozen"  # and pixels are targets that cannot collapse
        order = ("target", "context", "prediction") if is_moving else ("context", "prediction")
        judged = next(name for name in order if name in seen)
        spread = float(values[f"health/{judged}_std"])
        self.verdict = judge(progress.history, progress.step, spread, config)
        if is_first_look:
            values |= {
                f"{key}_untrained": values[key] for key in (f"health/{judged}_std", f"health/{judged}_rankme")
            }
        if (
            self.verdict.word != "healthy"
            and config.on_collapse != "note"
            and self._said != self.verdict.reason
        ):
            self._say(f"step {progress.step}: {self.verdict.word}: {self.verdict.reason}")
            self._said = self.verdict.reason
        return values

    def _mean_losses(self) -> dict[str, float]:
        """The loss and its parts, means over the step's micro-batches of all ranks that have them."""
        assert self._last is not None
        each = torch.stack(self._losses).float()
        is_there = ~each[:, 1:].isnan()  # a part is nan where no clip of the batch has such a mask
        sums = torch.cat([each[:, 0].sum()[None], each[:, 1:].where(is_there, 0.0).sum(0)])
        counts = torch.cat([torch.full_like(sums[:1], len(each)), is_there.float().sum(0)])
        self._engine.world.sum([sums, counts])
        means = zip(("loss", *self._last.parts), (sums / counts).tolist(), counts.tolist(), strict=True)
        return {name: mean for name, mean, count in means if count}

    def _log(self, progress: Progress, knobs: Knobs, update: Update, values: dict[str, Value]) -> None:
        world, batches, config = self._engine.world, self._batches, self._plan.config
        now_s = time.perf_counter()
        elapsed_s, steps = now_s - self._mark_s, progress.step - (self._mark_step or 0)
        stages = batches.take_stage_ms()
        losses = self._mean_losses()
        mean = world.mean([*stages.values(), batches.take_wait_s() / elapsed_s])
        stage_ms = {f"data/{stage}_ms": ms for stage, ms in zip(stages, mean, strict=False)}
        wait_share, loss = mean[-1], losses.pop("loss")
        clips_per_s = steps * config.train.global_batch / elapsed_s
        self._mark_s, self._mark_step = now_s, progress.step
        values |= {
            "loss": loss,
            **{f"loss/{name}": value for name, value in losses.items()},
            "optim/lr": knobs.lr,
            "optim/weight_decay": knobs.weight_decay,
            "optim/momentum": knobs.momentum,
            "optim/grad_norm": update.grad_norm,
            "optim/skipped_steps": progress.skipped,
            "perf/clips_per_s": clips_per_s,
            "perf/step_ms": 1000 * elapsed_s / steps,
            "data/wait_share": wait_share,
            **self._save_metrics(),
            **stage_ms,
            **{f"data/epoch{name}": value for name, value in batches.epochs(progress.samples).items()},
            "data/bad_samples": progress.bad_samples,
            "batch_digest": world.digest(self._digest),
            "time_s": now_s - self._begin_s,
        }
        self._tracker.log_metrics(progress.step, values)
        if math.isfinite(loss):  # a skipped step's would be all that is seen for as many lines
            self._recent.append(loss)
        mean_loss = sum(self._recent) / len(self._recent) if self._recent else None
        self.line = Line(progress.step, self._plan.steps, mean_loss, clips_per_s, wait_share, self.verdict)
        self._show(self.line)
