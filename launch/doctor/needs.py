"""What a config asks of a machine: memory shared by loaders, room for checkpoints, addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.errors import ForeframeError
from launch.doctor.check import Check
from launch.doctor.stores import check_bucket, check_local_data, check_mlflow, check_source
from launch.doctor.versions import installed
from pretrain.config import Plan, RunConfig, plan


@dataclass(frozen=True)
class Needs:
    """What is checked for a config; without one, what any job would want.

    out: a local folder that is written to, None when it is on S3. processes: ranks and loader workers here.
    shared_bytes: of /dev/shm, all ranks here. checkpoint_bytes: of one, over all ranks. kept: checkpoints.
    """

    kind: str | None = None
    out: str | None = "."
    processes: int | None = None
    shared_bytes: int | None = None
    checkpoint_bytes: int | None = None
    kept: int = 0


def needs_of(config: RunConfig | DataConfig | None, nproc: int | None) -> Needs:
    """nproc: ranks on this machine, None for one."""
    if config is None:
        return Needs()
    if isinstance(config, DataConfig):
        out = None if "://" in config.out else config.out
        return Needs("data", out, processes=config.ray.workers)
    ranks = nproc or 1
    laid_out = _plan(config, ranks)
    return Needs(
        "train",
        config.out,
        processes=ranks * (1 + config.data.workers),
        shared_bytes=None if laid_out is None else _loaders_bytes(laid_out, ranks),
        checkpoint_bytes=_checkpoint_bytes(config),
        kept=config.train.keep_checkpoints,
    )


def _plan(config: RunConfig, ranks: int) -> Plan | None:
    try:
        return plan(config, ranks)
    except ForeframeError:
        return None  # the batch cannot be split over the ranks of one machine alone; over all it may


def _loaders_bytes(laid_out: Plan, ranks: int) -> int | None:
    """Bytes of shared memory that the slots of all ranks' loaders take; None without torch."""
    if laid_out.config.data.workers == 0:
        return 0
    try:
        import torch

        from pretrain.data.slots import Layout
        from pretrain.data.stream import num_outstanding
    except ImportError:
        return None
    config = laid_out.config
    micro_batch = config.train.micro_batch
    layout = Layout(micro_batch, config.data.frames, config.data.size, 0, torch.cuda.is_available())
    return ranks * (num_outstanding(laid_out) + 2) * micro_batch * layout.clip_bytes


def _checkpoint_bytes(config: RunConfig) -> int | None:
    """Weights in float32 with AdamW's two averages, and the target; None without torch."""
    try:
        from launch.outline import num_parameters

        sizes = num_parameters(config)
    except ImportError:
        return None
    is_frozen = config.objective.kind == "action_latent"
    trained = sizes["predictor"] + (0 if is_frozen else sizes["encoder"])
    return 12 * trained + (0 if config.target.kind == "online" else 4 * sizes["encoder"])


Looks = list[tuple[str, Callable[[], list[Check]]]]


def addresses_of(config: RunConfig | DataConfig, *, is_quick: bool) -> Looks:
    """(name, check) of every address that a config names."""

    def bucket(name: str, address: str, *, is_written: bool = False) -> tuple[str, Callable[[], list[Check]]]:
        return name, lambda: check_bucket(name, address, is_written=is_written, is_quick=is_quick)

    found: Looks = []
    if isinstance(config, DataConfig):
        for number, source in enumerate(config.sources):
            name = "sources" if len(config.sources) == 1 else f"sources[{number}]"
            found.append(
                bucket(name, source)
                if source.startswith("s3://")
                else (name, lambda name=name, source=source: [check_source(name, source)])
            )
        if config.out.startswith("s3://"):
            found.append(bucket("out", config.out, is_written=True))
        return found
    for number, data in enumerate(config.data.sources):
        name = "data.shards" if len(config.data.sources) == 1 else f"data.shards[{number}]"
        found.append(
            bucket(name, data.shards)
            if data.shards.startswith("s3://")
            else (name, lambda name=name, data=data: [check_local_data(name, data.shards)])
        )
    if config.train.checkpoint_store is not None:
        found.append(bucket("checkpoint store", config.train.checkpoint_store, is_written=True))
    if config.tracker.kind == "mlflow":
        ours = installed(["mlflow"]).get("mlflow")
        found.append(("MLflow", lambda: check_mlflow(config.tracker.uri, ours)))
    return found


