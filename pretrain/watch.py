"""What is seen of a run while it trains: metrics, health, bad samples; and what ends it early.

Numbers are brought to the host only at logged steps; features are measured only at looks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pretrain.config import Plan
from pretrain.data.bad import SKIPPED_FILE, BadSamples
from pretrain.data.order import digest_of
from pretrain.data.stream import Batches
from pretrain.looks import Checkpoints, Looks
from pretrain.model.compiling import Recompiles
from pretrain.objective.base import Batch, Output
from pretrain.parts import WATCH, marked
from pretrain.probe.online import OnlineProbe
from pretrain.progress import Progress
from pretrain.recent import RECENT, recent_loss
from pretrain.schedule import Knobs
from pretrain.sentinel import Verdict
from pretrain.skipped import FILE, SkippedSteps
from pretrain.speed import Speed
from pretrain.step_pictures import StepPictures
from pretrain.strategy.base import Engine, Update
from pretrain.tracking.base import Tracker, Value


@dataclass(frozen=True)
class Line:
    """What the terminal shows of a step. loss: see `recent_loss`. values: what was logged of it."""

    step: int
    steps: int
    loss: float | None
    clips_per_s: float
    wait_share: float
    verdict: Verdict
    values: Mapping[str, Value] = field(default_factory=dict)


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
        pictures: StepPictures | None = None,
    ) -> None:
        self._plan, self._engine, self._batches = plan, engine, batches
        self._tracker, self._show, self._say = tracker, show, say
        self._save_metrics, self._probe, self._pictures = save_metrics, probe, pictures
        self._run = run
        self._looks = Looks(run, plan, engine, progress, say)
        self._losses: list[Tensor] = []
        self._parts: tuple[str, ...] = ()
        self._recent: deque[dict[str, float]] = deque(maxlen=RECENT)
        self._digest = 0
        self._recompiles = Recompiles() if engine.compiles else None
        self._begin_s = time.perf_counter()
        self.line: Line | None = None
        self._begin(progress)

    def _begin(self, progress: Progress) -> None:
        """Go on as after this step: what was written down of later ones goes."""
        world, data = self._engine.world, self._plan.config.data
        self._bad = BadSamples(self._run, world, data, progress.step)
        self._skipped = SkippedSteps(self._run, world, progress.step)
        self._speed = Speed(self._plan, world, self._run)
        self._mark_s = time.perf_counter()
        self._mark_step: int | None = None
        self._next_told = max(1, 2 * len(progress.bad_ids))

    @property
    def stops(self) -> bool:
        """Whether the verdict ends the run; the same on every rank."""
        return self._looks.stops

    @property
    def goes_back(self) -> bool:
        """Whether the run is to go on from before its trouble; the same on every rank."""
        return self._looks.goes_back

    def go_back(self, progress: Progress, checkpoints: Checkpoints) -> Progress | None:
        """Bring weights, stream and what was written down to before the trouble; None: there is no way."""
        trouble = self._looks.verdict
        found = self._looks.go_back(progress, checkpoints)
        if found is None:
            return None
        self._batches.seek(found.step, found.samples)
        if self._pictures is not None:  # before the tracker: what is still drawn is of the run left behind
            self._pictures.go_back(found.step)
        self._tracker.roll_back(found.step, f"step {progress.step}: {trouble.word}: {trouble.reason}")
        if self._probe is not None:
            self._probe.go_back(found.step)
        self._recent.clear()
        self._begin(found)
        return found

    @marked(WATCH)
    def after_batch(self, batch: Batch, output: Output) -> None:
        self._losses.append(torch.stack([output.loss.detach(), *output.parts.values()]))
        self._parts = tuple(output.parts)
        self._looks.after_batch(batch, output)
        self._bad.note(batch.step + 1, batch.bad)
        self._speed.note(batch)
        self._skipped.note(batch, output.loss)
        self._digest += digest_of(zip(batch.positions, batch.keys, strict=True))

    @marked(WATCH)
    def after_step(self, progress: Progress, knobs: Knobs, update: Update, *, is_last: bool) -> None:
        """Measure, log and judge the step that just ended.

        is_last: the run ends here, before its plan does; the step is logged whatever its number.
        Raises, on every rank: DataError past its limit.
        """
        step = progress.step
        if self._mark_step is None:
            self._mark_step = step - 1
        is_looked_at = self._plan.looks_at(step)
        values: dict[str, Value] = {}
        if self._plan.probes_at(step):
            if self._probe is not None:
                values["perf/probe_ms"] = self._probe.take(step)
            if self._pictures is not None:
                values["perf/pictures_ms"] = 1000 * self._pictures.take(step)
        self._log_probes()
        is_logged = bool(self._plan.logs_at(step) or is_looked_at or values or is_last)
        if is_logged or self._plan.saves_at(step):  # a checkpoint knows of all bad samples before it
            self._bad.gather(progress)
            self._tell_bad(progress)
        if is_logged:
            losses = self._mean_losses()
            values |= self._look(progress, losses["loss"]) if is_looked_at else {}
            self._log(progress, knobs, update, losses, values)
        self._losses.clear()
        self._digest = 0
        self._skipped.after_step(step, update)
        if self._recompiles is not None and (sentence := self._recompiles.after_step(step)) is not None:
            self._say(sentence)
        if not update.applied:
            row = f"{progress.skipped_in_row} in a row"
            self._say(f"step {step} skipped: a gradient was not finite ({row}); {FILE} says which samples")
        if progress.skipped_in_row > self._plan.config.train.max_skipped_steps:
            self._looks.too_many_skipped(progress)

    def _look(self, progress: Progress, loss: float) -> dict[str, Value]:
        """Looks take a share of the time, which is logged with them."""
        began_s = time.perf_counter()
        values = self._looks.look(progress, loss)
        seconds = time.perf_counter() - began_s + self._engine.measure_s
        return values | {"perf/health_ms": 1000 * seconds}

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

    def wait(self) -> None:
        """Until what is fitted and drawn beside the training is done; a rank may take longer than another."""
        if self._probe is not None:
            self._probe.close()
        if self._pictures is not None:
            self._pictures.close()

    def finish(self) -> None:
        """Log what is left. Raises: CollapsedError or DivergedError when that is why the run ended."""
        self._log_probes()
        self._looks.finish()

    def _mean_losses(self) -> dict[str, float]:
        """The loss and its parts, means over the step's micro-batches of all ranks that have them."""
        each = torch.stack(self._losses).float()
        is_there = ~each[:, 1:].isnan()  # a part is nan where no clip of the batch has such a mask
        sums = torch.cat([each[:, 0].sum()[None], each[:, 1:].where(is_there, 0.0).sum(0)])
        counts = torch.cat([torch.full_like(sums[:1], len(each)), is_there.float().sum(0)])
        self._engine.world.sum([sums, counts])
        means = zip(("loss", *self._parts), (sums / counts).tolist(), counts.tolist(), strict=True)
        return {name: mean for name, mean, count in means if count}

    def _log(
        self,
        progress: Progress,
        knobs: Knobs,
        update: Update,
        losses: dict[str, float],
        values: dict[str, Value],
    ) -> None:
        world, batches, config = self._engine.world, self._batches, self._plan.config
        now_s = time.perf_counter()
        elapsed_s, steps = now_s - self._mark_s, progress.step - (self._mark_step or 0)
        stages = batches.take_stage_ms()
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
            **self._speed.take(elapsed_s),
            **({} if self._recompiles is None else {"perf/recompiles": self._recompiles.take()}),
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
            self._recent.append({"step": progress.step, "loss": loss})
        verdict, steps = self._looks.verdict, self._plan.steps
        self.line = Line(
            progress.step, steps, recent_loss(self._recent), clips_per_s, wait_share, verdict, values
        )
        self._show(self.line)
