"""What an experiment is: data, arms that differ in few settings, levels, seeds, and what is measured of each.

A file of configs/experiments is read into `ExperimentConfig`; `--quick` lays its `quick` over it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from data_pipeline.worlds import World
from pretrain.config.base import PositiveInt, Section

MOST_SEEDS = 1000
Settings = dict[str, Any]
"""Values by dotted key, such as {optim.lr: 1e-3}."""

Name = Annotated[str, Field(min_length=1, max_length=60)]
Seeds = Annotated[int, Field(ge=1, le=MOST_SEEDS)]


class DataSpec(Section):
    """Videos that are rendered, and sharded as configs/data/demo.yaml says.

    Those of a world have their shape as label, and the last quarter is for evaluation (docs/worlds.md).
    """

    videos: PositiveInt = Field(240, description="rendered videos")
    seed: int = Field(0, ge=0, description="of the videos; equal seeds give equal videos")
    world: World | None = Field(None, description="the simulated world; null: the demo's videos")
    shard: Settings = Field({}, description="settings laid over configs/data/demo.yaml, by dotted key")


class Arm(Section):
    """One of the things that are compared. settings: what it has that others have not."""

    settings: Settings = Field({}, description="by dotted key")
    data: str | None = Field(None, description="data set of this arm; null: the level's, or the stage's")
    weights_of: tuple[str, str] | None = Field(
        None, description="[stage, arm] whose run gives the encoder's weights; null: the stage's"
    )
    note: str = Field("", description="what it is, in a sentence")


class Level(Section):
    """A point on the experiment's axis, such as how much of the picture is noise."""

    value: float
    data: str | None = Field(None, description="data set of this level; null: the stage's")
    settings: Settings = Field({}, description="by dotted key")


class Stage(Section):
    """Runs that are made together: every arm at every level with every seed."""

    train: str = Field("train/tiny-cpu.yaml", description="config under configs/ that settings are laid over")
    data: str = Field(description="which of the experiment's data sets; a level may name another")
    settings: Settings = Field({}, description="of all arms")
    arms: dict[Name, Arm] = Field(min_length=1)
    weights_of: tuple[str, str] | None = Field(
        None,
        description="[stage, arm] whose run of the same level and seed gives the encoder's weights",
    )


class Measure(Section):
    """A number of each run, in the table under `name`.

    key: of metrics.jsonl, or of what a stage's `evaluate` gives, or `training TFLOPs`: what all its steps
    asked for. at: which of its values.
    """

    group: str = Field("", description="measures of one group are a table of their own, under this name")

    name: Name
    key: str
    at: Literal["last", "first", "lowest", "share"] = Field(
        "last", description="share: the last as a share of the first"
    )
    minus: str | None = Field(None, description="key of a number of the same run that is taken off")
    share_of: str | None = Field(None, description="key of a number of the same run that this is a share of")
    untrained: str | None = Field(
        None, description="key of the same number of the encoder before training; a row of its own"
    )
    digits: int = Field(2, ge=0, le=6)


PLACE = "{}"  # in a key of a plot over measures: where each of its values stands


class Panel(Section):
    """A set of axes. key: of metrics.jsonl in a plot over steps, a measure's name in one over levels.

    In a plot over measures it is that of many measures, whether they are in the table or not, with {} where
    a number stands: `rollout position {}: true actions`.
    """

    unit: str
    key: str
    beside: dict[Name, str] = Field(
        {}, description="over measures: dashed curves by name, each a key with {}, of the first arm drawn"
    )
    log: bool = False
    percent: bool = False
    from_zero: bool = True
    at_least: float | None = Field(None, description="the axes end here; the caption tells of what is below")


class Plot(Section):
    """A figure: a curve an arm, the mean over seeds with a band from the lowest to the highest."""

    title: str
    caption: str
    over: Literal["steps", "levels", "measures"] = "steps"
    across: str | None = Field(None, description="over measures: what the numbers in `at` count, in words")
    at: tuple[float, ...] = Field((), description="over measures: the numbers that stand for {}, ascending")
    log_across: bool = Field(False, description="levels or numbers stand as far apart as their ratios")
    stage: str | None = Field(None, description="null: the last")
    level: float | None = Field(
        None, description="over steps or measures, where there are levels: whose runs are drawn"
    )
    arms: tuple[Name, ...] = Field((), description="those that are drawn; none named: all")
    panels: tuple[Panel, ...] = Field(min_length=1)


class Quick(Section):
    """What `--quick` changes, to be done in minutes; it claims nothing."""

    seeds: Seeds = 2
    videos: PositiveInt | None = None
    episodes: PositiveInt | None = None
    shorter: PositiveInt = Field(1, description="divides steps of training, of warm-up, between probings")
    settings: Settings = Field({}, description="of all arms, by dotted key")
    levels: tuple[float, ...] | None = Field(None, description="the levels that are kept; null: all")


STEPS = "train.steps"
IN_STEPS = (STEPS, "optim.warmup_steps", "probe.every")


def _shorter(settings: Settings, by: int) -> Settings:
    return {
        key: max(1, value // by) if key in IN_STEPS and isinstance(value, int) else value
        for key, value in settings.items()
    }


class ExperimentConfig(Section):
    """An experiment, from its question to its table."""

    name: str
    question: str
    seeds: Seeds = 5
    first_seed: int = Field(0, ge=0, description="others are run elsewhere: `--first-seed`")
    data: dict[str, DataSpec] = Field(min_length=1)
    axis: str | None = Field(None, description="what levels are levels of, in words; null without levels")
    levels: tuple[Level, ...] = ()
    stages: dict[str, Stage] = Field(min_length=1)
    evaluate: Literal["rollout", "planning", "causes"] | None = Field(
        None, description="what is asked of each run of the last stage when it has ended, on the stage's data"
    )
    episodes: PositiveInt = Field(24, description="goals of a planning, each tried in every way")
    against: str | None = Field(
        None, description="arm of the last stage that others are compared with, seed by seed"
    )
    measures: tuple[Measure, ...] = Field(min_length=1)
    plots: tuple[Plot, ...] = ()
    quick: Quick = Quick()

    @property
    def last(self) -> Stage:
        return list(self.stages.values())[-1]

    def made_quick(self) -> Self:
        """As `--quick` does it."""
        quick = self.quick
        data = {
            name: each if quick.videos is None else each.model_copy(update={"videos": quick.videos})
            for name, each in self.data.items()
        }
        stages = {
            name: each.model_copy(
                update={
                    "settings": {**_shorter(each.settings, quick.shorter), **quick.settings},
                    "arms": {
                        arm: found.model_copy(update={"settings": _shorter(found.settings, quick.shorter)})
                        for arm, found in each.arms.items()
                    },
                }
            )
            for name, each in self.stages.items()
        }
        levels = tuple(
            each.model_copy(update={"settings": _shorter(each.settings, quick.shorter)})
            for each in self.levels
            if quick.levels is None or each.value in quick.levels
        )
        kept = {None, *(each.value for each in levels)}
        update = {
            "name": f"{self.name}-quick",
            "seeds": quick.seeds,
            "episodes": quick.episodes or self.episodes,
            "data": data,
            "stages": stages,
            "levels": levels,
            "plots": tuple(each for each in self.plots if each.level in kept),
        }
        return self.model_copy(update=update)
