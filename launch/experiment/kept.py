"""Results as files: read back, and whether they are still of an experiment's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.experiment.config import ExperimentConfig
from launch.experiment.evaluate import asked_of
from launch.experiment.runs import settings_below

Found = dict[str, Any]
"""A result, as `conclude` writes it."""


def read_kept(path: Path) -> Found:
    """A result's file, whatever its settings. Raises: ValueError for what cannot be read or is none."""
    try:
        found: Found = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; run the experiment to its end") from error
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and run the same experiment again"
        ) from error
    try:
        config_of(found), changes_of(found), found["missing"]
        [(row["arm"], row["level"], row["metric"], row["values"]) for row in found["rows"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no result of an experiment: {error!r}") from error
    return found


def config_of(found: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment that a result is of. Raises: ValueError."""
    plain = {key: value for key, value in found["config"].items() if key != "changes"}
    return ExperimentConfig.model_validate(plain)


def changes_of(found: Mapping[str, Any]) -> list[str]:
    """KEY=VALUE that its runs were given, as far as numbers may depend on them; in one order."""
    return that_count(found["config"]["changes"])


def that_count(changes: Sequence[str]) -> list[str]:
    """Of KEY=VALUE those that a number may depend on, in one order: not where runs are tracked."""
    return sorted(each for each in changes if each.partition("=")[0].partition(".")[0] != "tracker")


def why_other(found: Mapping[str, Any], experiment: ExperimentConfig, told: str) -> str | None:
    """What a result has otherwise than an experiment as it is now; None where they go together.

    told: where the experiment is, such as its file.
    """
    now, own = what_decides(experiment), what_decides(config_of(found))
    if other := [key for key in now if own[key] != now[key]]:
        return f"its {' and '.join(other)} are not those of {told}: run it again"
    asked_now = asked_of(experiment)
    if found.get("asked", asked_now) != asked_now:
        return "what runs are asked has changed since: run it again, which trains nothing"
    below = settings_below(experiment)
    if changed := differing(found.get("laid_over", below), below):
        return f"{changed[0]} is not what it was when its runs were made: run it again"
    return None


def why_not_whole(found: Mapping[str, Any]) -> str | None:
    """Which runs a result lacks; None where it has all."""
    not_asked = [f"{each} (not asked)" for each in found.get("not_asked", [])]
    lacking = "; ".join([*found["missing"], *not_asked])
    return f"did not finish: {lacking}" if lacking else None


def what_decides(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings on which its numbers depend: not words, figures, which seeds, the quick form."""
    plain = experiment.model_dump(mode="json", exclude={"question", "plots", "quick", "seeds", "first_seed"})
    for measure in plain["measures"]:
        del measure["group"]
    for stage in plain["stages"].values():
        for arm in stage["arms"].values():
            del arm["note"]
    return plain


def differing(kept: Any, now: Any, key: str = "") -> list[str]:
    """Keys of which both have a value, and not the same; what only one version knows is passed over."""
    if isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        kept, now = dict(enumerate(kept)), dict(enumerate(now))
    if not isinstance(kept, dict) or not isinstance(now, dict):
        return [] if kept == now else [key]
    shared = [each for each in kept if each in now]
    return [found for each in shared for found in differing(kept[each], now[each], f"{key} {each}".strip())]
