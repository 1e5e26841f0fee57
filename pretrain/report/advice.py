"""What to try next: rules over a run's own figures, each with the figure that leads to it.

A rule is silent where nothing is wrong, and where its change would not be a valid config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from data_pipeline.errors import ConfigError
from pretrain.config import RunConfig, plan
from pretrain.figures import Metrics, judged_features
from pretrain.report.learned import Probing, best_checkpoint, probe_margin, probe_tables
from pretrain.report.records import Record, last_number, numbers
from pretrain.report.spent import WAITING, Spent, median, where_time_went
from pretrain.report.verdicts import Health, beside_trivial, spread_share

WAITS, SAVES, LOOKS, PROBES = 0.10, 0.05, 0.02, 0.05  # shares of the time from which one is worth a change
SKIPPED = 0.01  # share of steps
NO_BETTER = 0.98  # of a trivial answer's loss
CLIPPED = 0.9  # share of the logged steps
LOW_MFU, ROOMY = 0.3, 0.6
STILL_BETTER = 0.01  # of a score, from the probing before to the last
FEW = 20  # logged steps, below which a run says little


@dataclass(frozen=True)
class Suggestion:
    """figure: what the run shows. why: what that means. overrides: settings for another run."""

    figure: str
    why: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What the rules look at."""

    config: RunConfig
    metrics: Metrics
    health: Health
    spent: Spent
    probings: Sequence[Probing]
    probe: Record | None
    ranks: int

    @property
    def step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def is_finished(self) -> bool:
        return self.step >= self.config.train.steps

    @property
    def is_failing(self) -> bool:
        """Features are collapsed or nearly, or the loss is not finite: nothing else matters then."""
        share = spread_share(self.metrics, is_frozen=self.config.target.kind == "frozen")
        is_worried = self.health.word == "warning" and share is not None and share < 0.5
        return self.health.word in ("collapsing", "collapsed", "diverged") or is_worried


Rule = Callable[[Seen], Suggestion | None]


def suggestions(seen: Seen) -> list[Suggestion]:
    """What every rule finds, the most urgent first; of a run that fails, only what may mend that."""
    first = [rule(seen) for rule in (_diverged, _collapsing, _skipped)]
    rest = [] if seen.is_failing else [rule(seen) for rule in RULES]
    found = [s for s in (*first, *rest) if s is not None]
    return [s for s in found if is_valid(seen.config, s.overrides, seen.ranks)]


def is_valid(config: RunConfig, overrides: Sequence[str], ranks: int) -> bool:
    """Whether a run's config with these settings is one that could be started on as many ranks."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    for override in overrides:
        key, _, value = override.partition("=")
        *path, last = key.split(".")
        section = plain
        for name in path:
            section = section[name]
        if last not in section:
            return False
        section[last] = yaml.safe_load(value)
    try:
        plan(RunConfig.model_validate(plain), ranks)
    except (ValidationError, ConfigError):
        return False
    return True


def _diverged(seen: Seen) -> Suggestion | None:
    if seen.health.word != "diverged":
        return None
    lower = [f"optim.lr={_number(seen.config.optim.lr / 3)}"]
    if seen.config.optim.clip_norm is None:
        lower.append("optim.clip_norm=1.0")
    return Suggestion(seen.health.reason, "Smaller steps may stay finite.", tuple(lower))


def _collapsing(seen: Seen) -> Suggestion | None:
    if seen.health.word == "diverged":
        return None
    share, config = spread_share(seen.metrics, is_frozen=seen.config.target.kind == "frozen"), seen.config
    if share is None or not (seen.is_failing or _is_falling(seen)):
        return None
    figure = f"the features' spread is {share:.0%} of what it was before training"
    if not config.target.stop_gradient:
        change: tuple[str, ...] = ("target.kind=ema", "target.stop_gradient=true")
        return Suggestion(figure, "Without a stop-gradient, targets move to what is easily guessed.", change)
    if config.target.kind == "ema" and config.target.momentum.start < 0.9:
        change = (
            "target.momentum.start=0.99",
            f"target.momentum.end={max(0.996, config.target.momentum.end)}",
        )
        why = f"With target.momentum.start={config.target.momentum.start:g} the target follows at once."
        return Suggestion(figure, why, change)
    lower = (f"optim.lr={_number(config.optim.lr / 3)}",)
    return Suggestion(figure, "Too large a learning rate is the most frequent reason.", lower)


def _is_falling(seen: Seen) -> bool:
    """Three looks in a row below the one before, down to less than half of the most there was."""
    key = f"health/{judged_features(seen.metrics, is_frozen=seen.config.target.kind == 'frozen')}_std"
    looks = numbers(seen.metrics, key)
    last = looks[-4:]
    return len(last) == 4 and last == sorted(last, reverse=True) and last[-1] < 0.5 * max(looks)


def _skipped(seen: Seen) -> Suggestion | None:
    count = last_number(seen.metrics, "optim/skipped_steps") or 0
    if not seen.step or count / seen.step < SKIPPED or seen.health.word == "diverged":
        return None
    change = [f"optim.lr={_number(seen.config.optim.lr / 2)}"]
    if seen.config.optim.clip_norm is None:
        change.append("optim.clip_norm=1.0")
    figure = f"{count:.0f} of {seen.step:,} steps had a gradient that was not finite"
    return Suggestion(figure, "Each was skipped; so many say that steps are too large.", tuple(change))


def _no_better_than_trivial(seen: Seen) -> Suggestion | None:
    found, warm_up = beside_trivial(seen.metrics), seen.config.optim.warmup_steps
    if found is None or found.share < NO_BETTER or seen.step < 2 * warm_up or len(seen.metrics) < FEW:
        return None
    figure = f"the loss, {found.loss:.3f}, is {found.share:.0%} of that of {found.name}, {found.answer:.3f}"
    why = "The prediction is worth no more than a trivial answer: the model has not begun to learn."
    return Suggestion(figure, why, (f"optim.lr={_number(3 * seen.config.optim.lr)}",))


def _always_clipped(seen: Seen) -> Suggestion | None:
    optim = seen.config.optim
    norms = [
        float(line["optim/grad_norm"])
        for line in seen.metrics
        if line["step"] > optim.warmup_steps and numbers([line], "optim/grad_norm")
    ]
    if optim.clip_norm is None or optim.clip_per != "all" or len(norms) < FEW:
        return None
    share = sum(norm > optim.clip_norm for norm in norms) / len(norms)
    if share < CLIPPED:
        return None
    middle = median(norms)
    figure = (
        f"the gradient's norm is above optim.clip_norm={optim.clip_norm:g} at {share:.0%} of the logged steps"
    )
    why = f"Its median is {middle:.3g}: the limit, not the gradient, sets the length of every step."
    return Suggestion(figure, why, (f"optim.clip_norm={_number(2 * middle)}",))


def _waits(seen: Seen) -> Suggestion | None:
    share = where_time_went(seen.metrics[1:]).share(WAITING)  # the first step waits for the workers to start
    if share < WAITS or len(seen.metrics) < FEW:
        return None
    workers = seen.config.data.workers
    figure = f"{share:.0%} of the training time after the first step was spent waiting for data"
    why = f"Each rank decodes in {workers} worker{'s' if workers != 1 else ''}, while cores allow more."
    return Suggestion(figure, why, (f"data.workers={max(2, 2 * workers)}",))


def _saves(seen: Seen) -> Suggestion | None:
    share = seen.spent.share("saves")
    if share < SAVES:
        return None
    figure = f"{share:.0%} of the training time went into saves"
    if not seen.config.train.save_in_background:
        return Suggestion(
            figure, "They can be written beside the training.", ("train.save_in_background=true",)
        )
    change = f"train.checkpoint_every={2 * seen.config.train.checkpoint_every}"
    return Suggestion(figure, "Half as many cost half.", (change,))


def _looks(seen: Seen) -> Suggestion | None:
    share = seen.spent.share("looks at features")
    if share < LOOKS:
        return None
    figure = f"{share:.1%} of the training time went into looks at the features"
    change = f"health.every={2 * seen.config.health.every}"
    return Suggestion(figure, "Half as many cost half.", (change,))


def _probes(seen: Seen) -> Suggestion | None:
    share = seen.spent.share("probes") + seen.spent.share("pictures over steps")  # at the same steps
    every = getattr(seen.config.probe, "every", None)
    if share < PROBES or not isinstance(every, int):
        return None
    figure = f"{share:.0%} of the training time went into online probes and pictures over steps"
    return Suggestion(figure, "Half as many cost half.", (f"probe.every={2 * every}",))


def _idle_device(seen: Seen) -> Suggestion | None:
    used, held = numbers(seen.metrics, "perf/mfu"), numbers(seen.metrics, "system/gpu_memory_share")
    if not used or not held or median(used) >= LOW_MFU or max(held) >= ROOMY:
        return None
    micro = seen.config.train.micro_batch
    figure = f"MFU is {median(used):.0%}, and {max(held):.0%} of the device's memory is in use"
    return Suggestion(figure, "Larger forwards keep the device busier.", (f"train.micro_batch={2 * micro}",))


def _best_is_lost(seen: Seen) -> Suggestion | None:
    best = best_checkpoint(seen.probings, seen.metrics, seen.config.train.keep_best)
    margin = probe_margin(seen.probe) if seen.probe else 2 * STILL_BETTER
    if best is None or seen.config.train.keep_best is not None or best.score - best.last_score < margin:
        return None
    names = [name for name in seen.probings[-1].scores if all(name in p.scores for p in seen.probings)]
    gains = {n: max(p.scores[n] for p in seen.probings) - seen.probings[-1].scores[n] for n in names}
    name = max(gains, key=lambda n: gains[n])
    figure = (
        f"{best.by} was {best.score:.3f} at step {best.step:,}, and {best.last_score:.3f} at the last probing"
    )
    why = "The checkpoint that probes best can be kept, whatever its loss."
    return Suggestion(figure, why, (f"train.keep_best={_quoted(name)}",))


def _still_better(seen: Seen) -> Suggestion | None:
    best = best_checkpoint(seen.probings, seen.metrics, seen.config.train.keep_best)
    if best is None or not seen.is_finished or best.step != best.last_step or len(seen.probings) < 3:
        return None
    before = best_checkpoint(seen.probings[:-1], seen.metrics, seen.config.train.keep_best)
    if before is None or best.score - before.score < STILL_BETTER:
        return None
    figure = f"the last probing is the best ({best.by}): {best.score:.3f}, {before.score:.3f} before"
    why = "The run ended while its features still became better."
    return Suggestion(figure, why, (f"train.steps={2 * seen.config.train.steps}",))


def _nothing_learned(seen: Seen) -> Suggestion | None:
    if seen.probe is None or not seen.is_finished or _no_better_than_trivial(seen) is not None:
        return None
    margin, gains = probe_margin(seen.probe), []
    for table in probe_tables(seen.probe):
        for row in table.rows:
            other = table.beside(row)
            if row.encoder == "trained" and other is not None:
                gains += [row.scores[n] - other.scores[n] for n in row.scores if n in other.scores]
    if not gains or max(gains) > margin:
        return None
    figure = f"no score of the probe is more than {margin:.2f} above the encoder before training"
    change = f"train.steps={4 * seen.config.train.steps}"
    return Suggestion(figure, f"{seen.config.train.steps:,} steps may be too few.", (change,))


RULES: tuple[Rule, ...] = (
    _no_better_than_trivial,
    _nothing_learned,
    _still_better,
    _best_is_lost,
    _waits,
    _idle_device,
    _always_clipped,
    _saves,
    _looks,
    _probes,
)


def _number(value: float) -> str:
    return f"{value:.2g}"


def _quoted(name: str) -> str:
    """A name as it has to stand in an override: YAML and the shell leave a plain word alone."""
    return name if name.isidentifier() else f"'{name}'"
