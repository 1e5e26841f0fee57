"""The data sets of an experiment: rendered and sharded once, in folders named by what they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, DataError, why
from data_pipeline.format import index_name, read_info, tar_name
from data_pipeline.storage import Storage, write_whole
from data_pipeline.worlds import LIST_FILE
from launch.config import read_config, shipped_config
from launch.console import Stages
from launch.experiment.config import DataSpec
from launch.sweep.axes import as_typed
from launch.sweep.elements import not_default

DONE = "made.json"
VIDEOS, SHARDS = "videos", "shards"
DEMO = "data/demo.yaml"
MADE_OF_DATA = ("name", "out", "sources")  # what an experiment says itself


def folder_of(folder: Path, name: str, spec: DataSpec) -> Path:
    """Where a data set lies: other settings, its own or those below them, are another folder."""
    plain = json.dumps([spec.model_dump(mode="json"), laid_over()], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def shards_of(folder: Path, specs: Mapping[str, DataSpec]) -> dict[str, Path]:
    """Where the shards of each data set are, or will be."""
    return {name: folder_of(folder, name, spec) / SHARDS for name, spec in specs.items()}


def make_data(folder: Path, name: str, spec: DataSpec, stages: Stages) -> None:
    """Render and shard it; nothing where it is there whole. Shards that were lost or cut short are made anew.

    Raises: ConfigError for settings that do not fit; what sharding raises.
    """
    from launch.data import run_shard

    own = folder_of(folder, name, spec)
    if (own / DONE).is_file() and _is_whole(own / SHARDS):
        return
    videos = own / VIDEOS
    config = shard_config(name, own, spec)
    try:
        _render(videos, spec, stages)
    except OSError as error:
        raise DataError(f"{error.filename or videos} cannot be written: {why(error)}") from error
    run_shard(config, progress=stages)
    write_whole(own / DONE, (json.dumps(spec.model_dump(mode="json"), indent=1) + "\n").encode())


def _is_whole(shards: Path) -> bool:
    """Whether each shard has its bytes; files of another length are removed, so that they are made anew."""
    storage = Storage(str(shards))
    try:
        info = read_info(storage)
    except DataError:
        return False
    found = True
    for done in info.shards:
        for name, size in ((tar_name(done.stem), done.tar_bytes), (index_name(done.stem), None)):
            path = shards / name
            is_there = path.is_file()
            if is_there and size is not None and path.stat().st_size != size:
                path.unlink()
                is_there = False
            found = found and is_there
    return found


@cache
def laid_over() -> Any:
    """What configs/data/demo.yaml says of sharding, in plain values, but for names and places."""
    plain: dict[str, Any] = not_default(read_config(shipped_config(DEMO), [], DataConfig))
    return {key: value for key, value in plain.items() if key not in MADE_OF_DATA}


def shard_config(name: str, own: Path, spec: DataSpec) -> DataConfig:
    """configs/data/demo.yaml with what the experiment lays over it. Raises: ConfigError."""
    videos = (own / VIDEOS).absolute()
    fixed = [
        f"name={name}",
        f"out={as_typed(str(own / SHARDS))}",
        f"sources={as_typed([str(videos if spec.world is None else videos / LIST_FILE)])}",
    ]
    more = [f"{key}={as_typed(value)}" for key, value in spec.shard.items()]
    return read_config(shipped_config(DEMO), [*fixed, *more], DataConfig)


def check_shard(name: str, own: Path, spec: DataSpec) -> None:
    """Raises: ConfigError for settings of sharding that cannot be, before anything is rendered."""
    try:
        shard_config(name, own, spec)
    except ConfigError as error:
        raise ConfigError.of(
            replace(each, key=f"data.{name}.shard.{each.key}", file=None) for each in error.problems
        ) from error


def _render(videos: Path, spec: DataSpec, stages: Stages) -> None:
    from data_pipeline.synthetic import render_videos
    from data_pipeline.worlds import render_world

    with stages.showing() as report:
        if spec.world is None:
            render_videos(videos, spec.videos, seed=spec.seed, progress=report)
        else:
            render_world(videos, spec.world, spec.videos, seed=spec.seed, progress=report)
