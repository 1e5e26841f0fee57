"""What is asked of runs when they have ended, beyond what they logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from launch.experiment.config import ExperimentConfig
from launch.experiment.runs import Run


class Evaluation(NamedTuple):
    """ask: numbers of a run by name. settings: of all that they depend on beside the run."""

    ask: Callable[[ExperimentConfig, Run, Mapping[str, Path]], dict[str, float]]
    settings: Callable[[ExperimentConfig], str]


EVALUATIONS: dict[str, Evaluation] = {}
