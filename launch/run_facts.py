"""What a run is called and described by in its tracker: name, parameters that matter, tags, a description.

Parameters are the settings by which runs are told apart: a fixed few, and besides them the scientific ones
that differ from the defaults. All settings are in config.yaml. What may change on resume is a tag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, StorageError
from data_pipeline.format import read_info
from data_pipeline.storage import Storage
from launch.outline import num_parameters
from launch.provenance import say_uncommitted
from launch.run_folder import OPERATIONAL
from pretrain.config import RunConfig
from pretrain.config.masks import BlockMaskConfig
from pretrain.events import read_events
from pretrain.tracking.base import DatasetFacts, RunFacts

# Shown of every run; of the others those that are not as by default. They are few, as MLflow writes all of
# them over each picture.
ALWAYS = (
    "seed",
    "objective.kind",
    "model.encoder.preset",
    "optim.lr",
    "train.steps",
    "train.global_batch",
)
USUAL_BLOCKS = BlockMaskConfig(blocks=1, spatial_scale=(0.15, 0.15)).model_dump(mode="json")
PLACES = ("name", "data.shards")  # these say where and under which name, not what


def run_facts(
    config: RunConfig, run: Path, datasets: Sequence[DatasetFacts], provenance: Mapping[str, Any]
) -> RunFacts:
    """provenance: as `launch.provenance.provenance` makes it."""
    training = [data for data in datasets if data.context == "training"]
    weights = num_parameters(config)
    return RunFacts(
        name=config.tracker.run_name
        or (config.name if not config.seed else f"{config.name}, seed {config.seed}"),
        experiment=config.tracker.experiment or default_experiment(config, training),
        params=params_of(config)
        | {"data": names(training), "model.parameters": _millions(sum(weights.values()))},
        tags=_tags(config, run, provenance),
        description=describe(config, run, training, weights, str(provenance["host"])),
        datasets=tuple(datasets),
        group=config.tracker.group,
        rollbacks=rollbacks_of(run),
    )


def rollbacks_of(run: Path) -> tuple[tuple[int, int, str], ...]:
    """How often a run went back, of which its tracker may not know all: from which step, to which, why."""
    rows = [row for row in read_events(run) if row.get("response") == "rolled back"]
    return tuple((row["step"], row["to_step"], f"{row['verdict']}: {row['reason']}") for row in rows)


def default_experiment(config: RunConfig, training: Sequence[DatasetFacts]) -> str:
    """Runs that guess the same from the same data can be compared: they share an experiment."""
    return f"{config.objective.kind} on {names(training)}"


def names(datasets: Sequence[DatasetFacts]) -> str:
    return " + ".join(data.name for data in datasets) or "nothing"


def params_of(config: RunConfig) -> dict[str, str]:
    """The settings by which runs are told apart, by dotted key; masks and the like in a line each."""
    plain = config.model_dump(mode="json")
    kinds = {"objective": {"kind": config.objective.kind}, "strategy": {"kind": config.strategy.kind}}
    default = RunConfig.model_validate({"name": "x", "data": {"shards": "x"}, **kinds})
    found, usual = _in_lines(plain), _in_lines(default.model_dump(mode="json"))
    free = (*OPERATIONAL, *PLACES)
    is_free = {key: any(key == name or key.startswith(f"{name}.") for name in free) for key in found}
    differ = [key for key, value in found.items() if not is_free[key] and usual.get(key) != value]
    chosen = [*(key for key in ALWAYS if key in found), *(key for key in differ if key not in ALWAYS)]
    return {key: found[key] for key in chosen}


def _in_lines(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values; a list of sections is one value."""
    lines: dict[str, str] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            lines |= _in_lines(value, f"{key}.")
        elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
            lines[key] = "; ".join(_section(inner) for inner in value)
        else:
            lines[key] = "null" if value is None else str(value)
    return lines


def _section(section: Mapping[str, Any]) -> str:
    """`blocks 8, spatial_scale 0.15`: what is null or as by default is left out, and of [x, x] one x."""
    usual = USUAL_BLOCKS if section.get("kind") == "blocks" else {}
    parts = []
    for key, value in section.items():
        is_needed = key in ("blocks", "spatial_scale") or usual.get(key) != value
        if value is not None and is_needed:
            is_pair = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
            parts.append(f"{key} {value[0] if is_pair else value}")
    return ", ".join(parts)


def _tags(config: RunConfig, run: Path, provenance: Mapping[str, Any]) -> dict[str, str]:
    strategy = config.strategy
    stage = f"DeepSpeed ZeRO-{strategy.zero_stage}" if strategy.kind == "deepspeed" else "one process"
    found = {
        "commit": str(provenance["commit"]),
        "patch": say_uncommitted(provenance),
        "host": str(provenance["host"]),
        "device": str(provenance["device"]),
        "world_size": str(provenance["world_size"]),
        "strategy": stage,
        "folder": str(run.absolute()),
    }
    versions = provenance["versions"]
    return found | {key: versions[key] for key in ("foreframe", "torch", "deepspeed") if key in versions}


def describe(
    config: RunConfig, run: Path, training: Sequence[DatasetFacts], weights: Mapping[str, int], host: str
) -> str:
    """Markdown: what the run is, how it goes on, where its report is."""
    width, depth, _, _ = config.model.encoder.shape
    data, train = config.data, config.train
    clips = " and ".join(f"**{each.name}** ({each.num_clips:,} clips)" for each in training)
    place = run.absolute()
    return (
        f"A video encoder of {_millions(weights['encoder'])} parameters ({config.model.encoder.preset}, "
        f"width {width}, {depth} blocks) with a predictor of {_millions(weights['predictor'])} learns "
        f"`{config.objective.kind}` from {clips}: {train.steps:,} steps of {train.global_batch:,} clips, "
        f"each {data.frames} frames of {data.size}² at {data.fps:g} a second. Seed {config.seed}.\n\n"
        f"- goes on, on `{host}`: `foreframe train {place} --nproc N`\n"
        f"- what was learned: `foreframe probe {place}`\n"
        f"- its report: `foreframe report {place}` writes `report.html` there\n\n"
        f"Parameters here are the settings by which runs are told apart. All settings are in `config.yaml`; "
        f"code, versions and hardware in `provenance.json` and `environment.txt`, among the artifacts."
    )


def _millions(number: int) -> str:
    return f"{number / 1e6:.3g} M"


def probe_dataset(config: RunConfig) -> tuple[DatasetFacts, ...]:
    """The data set that online and later probes are of, where it is not the one that is trained on.

    One that cannot be opened now is none: a probe, when it comes, says so itself.
    """
    if config.probe.data is None:
        return ()
    try:
        info = read_info(Storage(config.probe.data))
    except (DataError, StorageError):
        return ()
    count = sum(info.num_clips.values())
    return (DatasetFacts(info.name, config.probe.data, info.fingerprint, count, context="probe"),)
