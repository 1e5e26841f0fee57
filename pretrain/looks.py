"""Looks at a run while it trains: features, norms, a verdict; and what is done when that is trouble."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import CollapsedError, DivergedError
from pretrain.config import Plan
from pretrain.events import Events, Response
from pretrain.health import fixed_positions, look_at
from pretrain.objective.base import Batch, Output
from pretrain.progress import Progress
from pretrain.sentinel import Reading, Verdict, judge, verdict_of
from pretrain.skipped import FILE
from pretrain.strategy.base import Engine
from pretrain.tracking.base import Value

JUDGED = ("target", "context", "prediction")  # the first of them that an objective shows
RESPONSES: Mapping[str, Response] = {"note": "noted", "warn": "warned", "stop": "stopped"}


class Checkpoints(Protocol):
    """Where a run can go back to."""

    def go_back(self, engine: Engine, before: int, note: Callable[[Progress], None]) -> Progress | None: ...


def largest_step(norms: Mapping[str, float]) -> float:
    """The step's norm as a share of the weights', of the module where it is largest; nan when not known."""
    modules = [key.removeprefix("update_norm_") for key in norms if key.startswith("update_norm_")]
    known = [m for m in modules if f"param_norm_{m}" in norms]  # not of weights whose squares overflow
    shares = [norms[f"update_norm_{m}"] / max(norms[f"param_norm_{m}"], 1e-12) for m in known]
    return max(shares, default=math.nan)


class Looks:
    """Of one run, on every rank; rank 0 writes health.jsonl. Verdicts are the same on all, as their sums are.

    say: takes a sentence for the user.
    """

    def __init__(
        self, run: Path, plan: Plan, engine: Engine, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self._plan, self._engine, self._say = plan, engine, say
        self._config = plan.config.health
        of_frames = plan.config.objective.kind == "action_latent"  # whose tokens are of frames, not tubelets
        moments = plan.config.data.frames if of_frames else plan.config.grid[0]
        self._fixed = fixed_positions(moments * math.prod(plan.config.grid[1:]))
        self._is_supervised = plan.config.objective.kind == "states"
        self._last: Output | None = None
        self._forwards = 0  # of this step
        self._events = Events(run, progress.step) if engine.world.is_first else None
        # no checkpoint to go back to, or it went back as often as it may, in this start or before
        self._is_stuck = progress.changes.rollbacks >= self._config.rollback.times
        self._is_over = False  # whatever on_collapse says: no step is taken any more
        self.verdict = verdict_of(progress.history, self._config)

    @property
    def _response(self) -> Response:
        """What is done about the verdict as it is."""
        asked = self._config.on_collapse
        if self.verdict.word == "healthy":
            return "noted"
        if not self.verdict.is_trouble:
            return "noted" if asked == "note" else "warned"
        if asked == "rollback":
            return "stopped" if self._is_stuck else "rolled back"
        return "stopped" if self._is_over else RESPONSES[asked]

    @property
    def stops(self) -> bool:
        return self._response == "stopped"

    @property
    def goes_back(self) -> bool:
        return self._response == "rolled back"

    def after_batch(self, batch: Batch, output: Output) -> None:
        self._forwards = (self._forwards + 1) % self._plan.micro_batches
        if self._forwards == 0 and self._plan.looks_at(batch.step + 1):
            self._last = output  # the last one's alone: an earlier one would be held beside the next

    def look(self, progress: Progress, loss: float) -> dict[str, Value]:
        """Measure the last forward's features and the step that was taken, and judge; all ranks call it."""
        assert self._last is not None
        look, self._last = look_at(self._last, self._fixed), None
        self._engine.world.sum(look.sums)
        worked_out = look.values()
        health = dict(zip(worked_out, self._engine.world.as_first([*worked_out.values()]), strict=True))
        norms = self._engine.norms(applied=progress.skipped_in_row == 0)
        # Pixels are targets that cannot collapse, nor can those of an encoder that never moves.
        order = JUDGED[1:] if self._plan.config.target.kind == "frozen" else JUDGED
        judged = next(name for name in order if name in look.seen)
        reading = Reading(
            step=progress.step,
            spread=health[f"{judged}_std"],
            # An encoder that is asked for a few numbers needs few dimensions, which is no trouble there, and
            # of whole clips nothing is left to copy.
            rank=math.nan if self._is_supervised else health[f"{judged}_rankme"],
            loss=loss,
            guess=health["loss_prediction"],
            mean_token=health["loss_mean_token"],
            copied=math.nan if self._is_supervised else health["loss_copy"],
            largest_step=largest_step(norms),
            skipped=progress.skipped_in_row,
        )
        is_first = progress.history.start is None
        self._take(progress, judge(progress.history, reading, self._config))
        if "ema_distance" in norms:
            health["ema_distance"] = norms.pop("ema_distance")
        if is_first:
            health |= {f"{judged}_{what}_start": health[f"{judged}_{what}"] for what in ("std", "rankme")}
        values: dict[str, Value] = {f"health/{name}": value for name, value in health.items()}
        values |= {f"optim/{name}": norm for name, norm in norms.items()}
        return values | {"verdict": self.verdict.word, "verdict_reason": self.verdict.reason}

    def too_many_skipped(self, progress: Progress) -> None:
        """Steps in a row were not finite, more than train.max_skipped_steps: the run has diverged."""
        reason = (
            f"{progress.skipped_in_row} steps in a row had gradients that are not finite, up to step "
            f"{progress.step}, by samples that {FILE} names"
        )
        self._is_over = True
        self._take(progress, Verdict("diverged", reason))

    def _take(self, progress: Progress, verdict: Verdict) -> None:
        before, self.verdict = self.verdict, verdict
        self._is_stuck = self._is_stuck or progress.changes.rollbacks >= self._config.rollback.times
        response = self._response
        if response not in ("noted", "rolled back"):
            if verdict.word != before.word or verdict.is_trouble:
                self._say(f"step {progress.step}: {verdict.word}: {verdict.reason}")
        elif verdict.word == "healthy" != before.word and self._config.on_collapse != "note":
            self._say(f"step {progress.step}: healthy again: {verdict.reason}")
        if self._events is not None and verdict.word != before.word and response != "rolled back":
            self._events.add(progress.step, verdict, response)

    def go_back(self, progress: Progress, checkpoints: Checkpoints) -> Progress | None:
        """Weights and counters of the newest checkpoint from before the trouble, changed as configured.

        None, on every rank, when there is none: then the run stops.
        """
        rule, verdict = self._config.rollback, self.verdict
        changes = progress.changes.after_one_more(rule)
        samples = progress.samples if rule.data == "skip" else None

        def note(found: Progress) -> None:
            assert self._events is not None
            self._events.add(
                progress.step, verdict, "rolled back", to_step=found.step, samples=samples, changes=changes
            )

        found = checkpoints.go_back(self._engine, progress.history.sound_step, note)
        if found is None:
            self._is_stuck = True
            place = f"no checkpoint from step {progress.history.sound_step} or before to go back to"
            self._say(
                f"step {progress.step}: {verdict.word}: {verdict.reason}; there is {place}: the run stops"
            )
            if self._events is not None:
                self._events.add(progress.step, verdict, "stopped")
            return None
        self.verdict, self._is_over = verdict_of(found.history, self._config), False
        self._say(
            f"step {progress.step}: {verdict.word}: {verdict.reason}; gone back to step {found.step} "
            f"({changes.rollbacks} of {rule.times}), learning rate × {changes.lr_scale:g}"
            + (f", momentum at least {changes.momentum:g}" if changes.momentum else "")
            + (f", {samples - found.samples} samples left out" if samples is not None else "")
        )
        return replace(found, changes=changes, samples=found.samples if samples is None else samples)

    def finish(self) -> None:
        """Raises: CollapsedError or DivergedError when that is why the run ended."""
        if not self.stops:
            return
        what = "the run has diverged" if self.verdict.word == "diverged" else "the features have collapsed"
        again = (
            f"health.rollback.times = {self._config.rollback.times} is used up, or no checkpoint is earlier"
            if self._config.on_collapse == "rollback"
            else "health.on_collapse=rollback goes back by itself, warn goes on regardless"
        )
        error = DivergedError if self.verdict.word == "diverged" else CollapsedError
        raise error(
            f"{what}: {self.verdict.reason}; the last checkpoint shows it, and `foreframe checkpoint list` "
            f"those from before. Lower optim.lr, set optim.clip_norm, or raise target.momentum; {again}"
        )
