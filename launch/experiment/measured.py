"""What is measured of an experiment's runs: numbers of each, and curves over steps."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.storage import write_whole
from launch.experiment.config import Measure
from launch.provenance import PROVENANCE_FILE
from pretrain.config import RunConfig
from pretrain.maps import Maps

EVALUATED = "evaluated.json"
TRAINING_TFLOPS = "training TFLOPs"
"""Key of what a run's training asked for, counted from its config: where arms cost different work a step."""
NOT_COMMITTED = " with changes"
Series = list[tuple[int, float]]


def training_tflops(config: RunConfig) -> float:
    """Model FLOPs of all the steps of a run, in units of 10^12; probes and health are not counted."""
    from pretrain.flops import flops_a_clip

    strategy = config.strategy.model_copy(update={"activation_checkpointing": False})  # of no model FLOP
    counted = config.model_copy(update={"strategy": strategy})
    return flops_a_clip(counted).model * config.train.steps * config.train.global_batch / 1e12


def series_of(metrics: Iterable[Mapping[str, Any]], key: str) -> Series:
    """(step, value) of a key of metrics.jsonl where it is a finite number."""
    found = []
    for line in metrics:
        value = line.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            found.append((int(line["step"]), float(value)))
    return found


def ends_finite(metrics: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a key's last value is a finite number, and of the run's end: metrics.jsonl says null of others.

    It is of the end where no other was due since, by the distance of the last two: a probe may have failed.
    """
    told = [line for line in metrics if key in line]
    if not told or not isinstance(told[-1][key], int | float) or not math.isfinite(told[-1][key]):
        return False
    if len(told) == 1:
        return True
    every = told[-1]["step"] - told[-2]["step"]
    return every <= 0 or metrics[-1]["step"] - told[-1]["step"] < every


def value_of(series: Series, at: str) -> float | None:
    """One number of a series; None of an empty one, and of a share of nothing."""
    values = [value for _, value in series]
    if not values:
        return None
    if at == "share":
        return values[-1] / values[0] if values[0] else None
    return {"last": values[-1], "first": values[0], "lowest": min(values)}[at]


def measured(
    measures: Sequence[Measure], metrics: Sequence[Mapping[str, Any]], evaluated: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """What a run gave, by the measures' names; and the same of its encoder before training."""
    own, untrained = {}, {}

    def at_its_end(key: str, at: str) -> float | None:
        if key in evaluated:
            return evaluated[key]
        if at in ("last", "share") and not ends_finite(metrics, key):
            return None  # it diverged, and what it last was before says nothing of its end
        return value_of(series_of(metrics, key), at)

    for each in measures:
        value = at_its_end(each.key, each.at)
        if value is not None and each.minus is not None:
            other = at_its_end(each.minus, each.at)
            value = None if other is None else value - other
        if value is not None and each.share_of is not None:
            other = at_its_end(each.share_of, each.at)
            value = value / other if other else None
        if value is not None:
            own[each.name] = value
        if each.untrained is None:
            continue
        if each.untrained in evaluated:
            untrained[each.name] = evaluated[each.untrained]
        elif (before := value_of(series_of(metrics, each.untrained), "first")) is not None:
            untrained[each.name] = before
    return own, untrained


def seconds_of(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Training time of a run, as it logged it: `time_s` counts from where it was begun or last resumed."""
    times = [value for _, value in series_of(metrics, "time_s")]
    ends = [now for now, later in itertools.pairwise([*times, 0.0]) if later < now]
    return sum(ends)


def commits_of(runs: Iterable[Path]) -> list[str]:
    """What code made these runs: the commits, each once; those with changes that were not committed say so.

    A run that tells none, as of a folder without git, adds nothing.
    """
    found = set()
    for run in runs:
        try:
            facts = json.loads((run / PROVENANCE_FILE).read_bytes())
            if facts["commit"] is not None:
                found.add(f"{facts['commit']}{NOT_COMMITTED if facts['patch'] else ''}")
        except (OSError, ValueError, KeyError, TypeError):  # none, or half of one
            continue
    return sorted(found)


class Evaluated(NamedTuple):
    """What a run gave when it was asked. maps: a figure of maps in plain numbers, if any."""

    numbers: dict[str, float]
    maps: dict[str, Any] | None = None


def kept_evaluation(run: Path, digest: str) -> Evaluated | None:
    """What was found before of a run under the same settings of the evaluation; None: to be found."""
    try:
        found = json.loads((run / EVALUATED).read_bytes())
        numbers = {str(name): float(value) for name, value in found["values"].items()}
        maps = None if found.get("maps") is None else Maps.of(found["maps"]).plain()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or half of one
        return None
    return Evaluated(numbers, maps) if found["digest"] == digest else None


def is_tracked(run: Path) -> bool:
    """Whether MLflow has what was found."""
    try:
        return bool(json.loads((run / EVALUATED).read_bytes()).get("tracked"))
    except (OSError, ValueError, AttributeError):
        return False


def keep_evaluation(run: Path, digest: str, found: Evaluated, *, is_tracked: bool = False) -> None:
    plain = {"digest": digest, "values": found.numbers, "maps": found.maps, "tracked": is_tracked}
    write_whole(run / EVALUATED, (json.dumps(plain) + "\n").encode())
