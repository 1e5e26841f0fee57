"""What a config asks of a machine: memory shared by loaders, room for checkpoints, addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data_pipeline.config import DataConfig
from data_pipeline.format import DATASET_FILE
from launch.doctor.check import Check
from launch.doctor.stores import check_bucket, check_local_data, check_mlflow, check_source
from launch.doctor.versions import installed
from pretrain.config import Plan, RunConfig


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
    return Needs(
        "train",
        config.out,
        processes=ranks * (1 + config.data.workers),
        shared_bytes=_loaders_bytes(config, ranks),
        checkpoint_bytes=_checkpoint_bytes(config),
        kept=config.train.keep_checkpoints,
    )


def _loaders_bytes(config: RunConfig, ranks: int) -> int | None:
    """Bytes of shared memory that the slots of all ranks' loaders here take; None without torch."""
    if config.data.workers == 0:
        return 0
    try:
        import torch

        from pretrain.data.slots import Layout
        from pretrain.data.stream import num_outstanding
    except ImportError:
        return None
    micro_batch = config.train.micro_batch
    layout = Layout(micro_batch, config.data.frames, config.data.size, 0, torch.cuda.is_available())
    slots = num_outstanding(Plan(config, ranks, micro_batches=1)) + 2  # as Batches takes them
    return ranks * slots * micro_batch * layout.clip_bytes


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


Look = Callable[[], list[Check]]


def addresses_of(config: RunConfig | DataConfig, *, is_quick: bool) -> list[tuple[str, Look]]:
    """(name, check) of every address that a config names."""
    holds: str | None
    if isinstance(config, DataConfig):
        sources, look, what, holds = config.sources, check_source, "sources", None
    else:
        sources = tuple(each.shards for each in config.data.sources)
        look, what, holds = check_local_data, "data.shards", DATASET_FILE
    reach = partial(check_bucket, is_quick=is_quick)
    found: list[tuple[str, Look]] = []
    for number, address in enumerate(sources):
        name = what if len(sources) == 1 else f"{what}[{number}]"
        if address.startswith("s3://"):
            found.append((name, partial(reach, name, address, holds=holds)))
        else:
            found.append((name, partial(_one, look, name, address)))
    stores = {"out": config.out}
    if isinstance(config, RunConfig):
        stores["checkpoint store"] = config.train.checkpoint_store or ""
    for name, address in stores.items():
        if address.startswith("s3://"):
            found.append((name, partial(reach, name, address, is_written=True)))
    if isinstance(config, RunConfig) and config.tracker.kind == "mlflow":
        ours = installed(["mlflow"]).get("mlflow")
        found.append(("MLflow", partial(check_mlflow, config.tracker.uri, ours)))
    return found


def _one(look: Callable[[str, str], Check], name: str, address: str) -> list[Check]:
    return [look(name, address)]
