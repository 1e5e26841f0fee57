"""Jobs that tests render for a cluster which is not there, and the manifests that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_pipeline.config import DataConfig
from launch.submit.base import Job
from launch.submit.kubernetes import KubernetesPlace
from pretrain.config import RunConfig

IMAGE = "registry.example.org/foreframe:0.1.0"
VOLUMES = (
    {"claim": "runs", "mount": "/runs", "here": "runs"},
    {"claim": "data", "mount": "/data", "here": "sets", "read_only": True},
)


def place(**settings: Any) -> KubernetesPlace:
    return KubernetesPlace.model_validate({"image": IMAGE, "volumes": VOLUMES, **settings})


def training(workdir: Path, *, name: str = "one", shards: str = "sets/mine", **changes: Any) -> Job:
    config = RunConfig.model_validate({"name": name, "out": "runs", "data": {"shards": shards}, **changes})
    return Job("train", name, config, workdir / "runs" / name / "submissions" / "001", workdir)


def sharding(workdir: Path) -> Job:
    config = DataConfig.model_validate({"name": "set", "out": "runs/set", "sources": ["sets/clips"]})
    return Job("shard", "set", config, workdir / "runs" / "set" / "submissions" / "001", workdir)


def sweep(workdir: Path, count: int) -> Job:
    jobs = [training(workdir, name=f"{number:03d}", seed=number) for number in range(count)]
    configs = tuple(job.config for job in jobs)
    folder = workdir / "runs" / "grid" / "submissions" / "001"
    return Job("train", "grid", configs[0], folder, workdir, elements=count, configs=configs)


def rendered(job: Job, on: KubernetesPlace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the job of a manifest, as a plain reader of YAML takes them."""
    (text,) = on.files(job).values()
    first, second = yaml.safe_load_all(text)
    return first, second
