"""What must fit together in an experiment's file, each rule that fails with the key it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from data_pipeline.errors import ConfigError, Problem, UsageError
from launch.config import flatten, shipped_config
from launch.experiment.config import (
    IN_STEPS,
    PLACE,
    STEPS,
    Arm,
    ExperimentConfig,
    Level,
    Plot,
    Settings,
    Stage,
)
from launch.experiment.data import MADE_OF_DATA
from launch.experiment.summary import UNTRAINED
from launch.sweep.axes import as_typed

FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
FOLDER_NEED = "a folder's name: up to 40 lower letters, digits and `-`"
WORDS_NEED = "words in a line without `|`, as it stands in a table"
DATA_FOLDER = "data"  # beside the folders of stages
MADE_OF_RUNS = ("name", "out", "seed", "data.shards")
WEIGHTS = "init.weights"  # where weights_of says them


def check_rules(experiment: ExperimentConfig) -> None:
    """Raises: ConfigError with every rule that fails, in the order of the file."""
    found = [
        *_names(experiment),
        *_data(experiment),
        *_levels(experiment),
        *(found for name in experiment.stages for found in _stage(experiment, name)),
        *_tables(experiment),
        *_plots(experiment),
        *_quick(experiment),
    ]
    if found:
        raise ConfigError.of(found)


def _broken(key: str, got: object, need: str) -> Problem:
    return Problem(key, need, got)


def _names(experiment: ExperimentConfig) -> Iterator[Problem]:
    if not FOLDER_NAME.fullmatch(experiment.name):
        yield _broken("name", experiment.name, FOLDER_NEED)
    for what, names in (("data", experiment.data), ("stages", experiment.stages)):
        for each in names:
            if not FOLDER_NAME.fullmatch(each):
                yield _broken(f"{what}.{each}", None, FOLDER_NEED)
    if DATA_FOLDER in experiment.stages:
        yield _broken(
            f"stages.{DATA_FOLDER}", None, "another name: videos and shards lie in a folder of this one"
        )
    if not _is_in_a_table("x" if experiment.axis is None else experiment.axis):
        yield _broken("axis", experiment.axis, WORDS_NEED)


def _is_in_a_table(text: str) -> bool:
    return bool(text.strip()) and text.isprintable() and "|" not in text


def _known(key: str, got: str | None, known: Mapping[str, object], what: str) -> Iterator[Problem]:
    if got is not None and got not in known:
        yield _broken(key, got, f"one of the {what} {', '.join(known)}")


def _data(experiment: ExperimentConfig) -> Iterator[Problem]:
    for name, spec in experiment.data.items():
        yield from _settings(f"data.{name}.shard", spec.shard, MADE_OF_DATA)
        if spec.world is not None and spec.world.actions == "shuffled" and spec.videos < 2:
            yield _broken(f"data.{name}.videos", spec.videos, "at least 2: actions are shuffled among them")


def _levels(experiment: ExperimentConfig) -> Iterator[Problem]:
    if experiment.levels and experiment.axis is None:
        yield _broken("axis", None, "what the levels are levels of, in words")
    values = [each.value for each in experiment.levels]
    for number, level in enumerate(experiment.levels):
        key = f"levels.{number}"
        yield from _known(f"{key}.data", level.data, experiment.data, "data sets")
        yield from _settings(f"{key}.settings", level.settings, MADE_OF_RUNS)
        if level.value in values[:number]:
            yield _broken(f"{key}.value", level.value, "another value than the levels before")
        if (twin := _twin(level, experiment.levels[:number])) is not None:
            yield _broken(key, None, f"data or settings that differ from those of level {twin.value:g}")


def _twin(level: Level, before: Sequence[Level]) -> Level | None:
    return next((each for each in before if (each.data, each.settings) == (level.data, level.settings)), None)


def _stage(experiment: ExperimentConfig, name: str) -> Iterator[Problem]:
    stage, key = experiment.stages[name], f"stages.{name}"
    taken = MADE_OF_RUNS if stage.weights_of is None else (*MADE_OF_RUNS, WEIGHTS)
    yield from _train(f"{key}.train", stage.train)
    yield from _known(f"{key}.data", stage.data, experiment.data, "data sets")
    yield from _settings(f"{key}.settings", stage.settings, taken)
    yield from _weights(experiment, name, key, stage.weights_of)
    before: list[str] = []
    for called, arm in stage.arms.items():
        own = f"{key}.arms.{called}"
        if not _is_in_a_table(called):
            yield _broken(own, None, WORDS_NEED)
        if called == UNTRAINED:
            yield _broken(own, None, "another name: it is that of a row of the table")
        yield from _known(f"{own}.data", arm.data, experiment.data, "data sets")
        yield from _settings(f"{own}.settings", arm.settings, (*taken, WEIGHTS) if arm.weights_of else taken)
        yield from _weights(experiment, name, own, arm.weights_of)
        if twins := [each for each in before if _is_same(stage, stage.arms[each], arm)]:
            yield _broken(own, None, f"something that tells it from {twins[0]!r}: these are the same runs")
        before.append(called)


def _is_same(stage: Stage, one: Arm, two: Arm) -> bool:
    def what(arm: Arm) -> tuple[object, ...]:
        return {**stage.settings, **arm.settings}, arm.data, arm.weights_of or stage.weights_of

    return what(one) == what(two)


def _train(key: str, name: str) -> Iterator[Problem]:
    """A config that is shipped: the same experiment is the same everywhere."""
    folder = shipped_config("train/tiny-cpu.yaml").parent
    if name not in {f"train/{each.name}" for each in folder.glob("*.yaml")}:
        yield _broken(key, name, "a file of configs/train, such as train/tiny-cpu.yaml")


def _weights(
    experiment: ExperimentConfig, stage: str, key: str, weights_of: tuple[str, str] | None
) -> Iterator[Problem]:
    if weights_of is None:
        return
    names = list(experiment.stages)
    earlier = names[: names.index(stage)]
    if weights_of[0] not in earlier or weights_of[1] not in experiment.stages[weights_of[0]].arms:
        known = [[each, arm] for each in earlier for arm in experiment.stages[each].arms]
        need = f"[stage, arm] of an earlier stage, one of {known}" if known else "none in the first stage"
        yield _broken(f"{key}.weights_of", list(weights_of), need)


def _settings(key: str, settings: Mapping[str, Any], taken: Sequence[str]) -> Iterator[Problem]:
    """What can be typed as KEY=VALUE, and is not what the experiment itself says of its runs or data."""
    for name, value in settings.items():
        if found := taken_by(name, value, taken):
            yield _broken(f"{key}.{name}", None, f"it left out: the experiment sets {found} itself")
        try:
            as_typed(value)
        except ValueError:
            yield _broken(f"{key}.{name}", None, "finite numbers, text, lists and sections")


def taken_by(name: str, value: Any, taken: Sequence[str]) -> str | None:
    """Which of the keys that are taken a setting would change; None where it changes none."""
    for key in flatten(value, name):
        for each in taken:
            if key == each or key.startswith(f"{each}.") or each.startswith(f"{key}."):
                return each
    return None


def refuse_changes(experiment: ExperimentConfig, changes: Sequence[str]) -> None:
    """Raises: UsageError for KEY=VALUE of a command line that the experiment says itself, of all its runs or
    of an arm's or a level's: those would keep theirs, and no longer be compared on equal terms.
    """
    stages = experiment.stages.values()
    has_weights = any(
        stage.weights_of or any(arm.weights_of for arm in stage.arms.values()) for stage in stages
    )
    taken = (*MADE_OF_RUNS, WEIGHTS) if has_weights else MADE_OF_RUNS
    differing = {f"{experiment.axis} {level.value:g}": level.settings for level in experiment.levels}
    differing |= {arm: found.settings for stage in stages for arm, found in stage.arms.items()}
    for change in changes:
        key = change.partition("=")[0]
        if found := taken_by(key, None, taken):
            raise UsageError(f"{change}: an experiment sets {found} of its runs itself; leave it out")
        owners = [name for name, settings in differing.items() if taken_by(key, None, list(settings))]
        if owners:
            raise UsageError(
                f"{change}: {key} is set by the experiment for {', '.join(owners)}; change it in a copy of "
                f"the experiment's file"
            )


def _tables(experiment: ExperimentConfig) -> Iterator[Problem]:
    yield from _known("against", experiment.against, experiment.last.arms, "arms")
    names = [each.name for each in experiment.measures]
    for number, name in enumerate(names):
        if not _is_in_a_table(name):
            yield _broken(f"measures.{number}.name", name, WORDS_NEED)
        elif name in names[:number]:
            yield _broken(f"measures.{number}.name", name, "another name than the measures before")
    for number, each in enumerate(experiment.measures):
        if each.group and not _is_in_a_table(each.group):
            yield _broken(f"measures.{number}.group", each.group, WORDS_NEED)
        if each.untrained is not None and (each.minus is not None or each.share_of is not None):
            need = "null: a difference or a share is of the trained encoder alone"
            yield _broken(f"measures.{number}.untrained", each.untrained, need)
    if experiment.evaluate == "planning":
        of_arms = [each.data for each in experiment.last.arms.values()]
        named = [experiment.last.data, *of_arms, *(each.data for each in experiment.levels)]
        for name, spec in experiment.data.items():
            if spec.world is None and name in named:
                yield _broken(f"data.{name}.world", None, "a world: planning acts in it")


def _plots(experiment: ExperimentConfig) -> Iterator[Problem]:
    measures = {each.name: each for each in experiment.measures}
    for number, plot in enumerate(experiment.plots):
        key = f"plots.{number}"
        yield from _known(f"{key}.stage", plot.stage, experiment.stages, "stages")
        stage = experiment.last if plot.stage is None else experiment.stages.get(plot.stage)
        for arm in plot.arms:
            yield from _known(f"{key}.arms", arm, {} if stage is None else stage.arms, "arms")
        if len(set(plot.arms)) < len(plot.arms):
            yield _broken(f"{key}.arms", list(plot.arms), "each arm once")
        yield from _over_measures(key, plot, stage is experiment.last)
        if plot.log_across:
            yield from _log_across(f"{key}.log_across", plot, [each.value for each in experiment.levels])
        yield from _level_of(key, plot, [each.value for each in experiment.levels])
        if plot.over != "levels":
            continue
        if not experiment.levels:
            yield _broken(f"{key}.over", plot.over, "steps: this experiment has no levels")
        if stage is not experiment.last:
            yield _broken(f"{key}.stage", plot.stage, "the last one: measures over levels are of its runs")
        for place, panel in enumerate(plot.panels):
            yield from _known(f"{key}.panels.{place}.key", panel.key, measures, "measures")


def _level_of(key: str, plot: Plot, levels: Sequence[float]) -> Iterator[Problem]:
    """A curve is of one level's runs, or over levels."""
    if plot.over == "levels" or not levels:
        if plot.level is not None:
            yield _broken(f"{key}.level", plot.level, "it left out: the figure is of no single level")
    elif plot.level not in levels:
        yield _broken(f"{key}.level", plot.level, f"the level whose runs are drawn, one of {levels}")


def _log_across(key: str, plot: Plot, levels: Sequence[float]) -> Iterator[Problem]:
    numbers = levels if plot.over == "levels" else list(plot.at)
    if plot.over == "steps":
        yield _broken(key, True, "it left out: steps stand as they are")
    elif min(numbers, default=1.0) <= 0:
        yield _broken(key, True, f"it left out: not all of {numbers} are above zero")


def _over_measures(key: str, plot: Plot, is_last: bool) -> Iterator[Problem]:
    if plot.over != "measures":
        has_beside = any(panel.beside for panel in plot.panels)
        for name, is_there in (("across", plot.across), ("at", plot.at), ("beside", has_beside)):
            if is_there:
                yield _broken(f"{key}.{name}", None, "it left out: it is of plots with `over: measures`")
        return
    if not is_last:
        yield _broken(f"{key}.stage", plot.stage, "the last one: measures are of its runs")
    if not plot.across:
        yield _broken(f"{key}.across", plot.across, "what the numbers in `at` count, in words")
    if len(plot.at) < 2 or any(one >= two for one, two in pairwise(plot.at)):
        yield _broken(f"{key}.at", list(plot.at), "at least two numbers, ascending")
    for place, panel in enumerate(plot.panels):
        named = {"key": panel.key, **{f"beside.{name}": each for name, each in panel.beside.items()}}
        for name, pattern in named.items():
            if pattern.count(PLACE) != 1:
                yield _broken(f"{key}.panels.{place}.{name}", pattern, f"one {PLACE}, where a number stands")
        for name in panel.beside:
            if name in plot.arms or name == UNTRAINED:
                yield _broken(
                    f"{key}.panels.{place}.beside.{name}", None, "another name than the curves have"
                )


def _can_be_shorter(experiment: ExperimentConfig) -> Iterator[Problem]:
    """What counts in steps stands where it is found to be divided."""
    holders: dict[str, Settings] = {}
    for name, stage in experiment.stages.items():
        holders |= {f"stages.{name}.settings": stage.settings}
        holders |= {f"stages.{name}.arms.{arm}.settings": each.settings for arm, each in stage.arms.items()}
        if STEPS not in {**stage.settings, **experiment.quick.settings}:
            yield _broken(f"stages.{name}.settings.{STEPS}", None, "a number: quick.shorter divides it")
    holders |= {f"levels.{number}.settings": each.settings for number, each in enumerate(experiment.levels)}
    for key, settings in holders.items():
        hidden = [each for each in IN_STEPS if each not in settings and each in flatten(dict(settings))]
        for each in hidden:
            yield _broken(f"{key}.{each}", None, f"{each} in one line, not in a section, to be divided")


def _quick(experiment: ExperimentConfig) -> Iterator[Problem]:
    yield from _settings("quick.settings", experiment.quick.settings, MADE_OF_RUNS)
    if experiment.quick.shorter > 1:
        yield from _can_be_shorter(experiment)
    kept, known = experiment.quick.levels, [each.value for each in experiment.levels]
    if kept is not None and (not kept or any(each not in known for each in kept)):
        yield _broken("quick.levels", list(kept), f"some of the levels {known}")
