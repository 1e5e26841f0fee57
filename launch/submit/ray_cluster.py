"""A Ray cluster as `ray up` starts it over ssh: a few typed settings, held against Ray's own schema."""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from data_pipeline.config import Section
from data_pipeline.errors import ConfigError

GCS_PORT, JOBS_PORT = 6379, 8265
LATEST_CONFIG = "~/ray_bootstrap_config.yaml"  # where `ray up` leaves it on the head


class RayCluster(Section):
    """Machines of one's own, or of AWS, that `ray up` makes a Ray cluster of."""

    provider: Literal["local", "aws"] = Field("local", description="Machines by address, or of AWS.")
    head: str | None = Field(None, min_length=1, description="Address of the first machine; of local.")
    workers: tuple[str, ...] = Field((), description="Addresses of the others; of local.")
    region: str | None = Field(None, min_length=1, description="Such as us-east-1; of aws.")
    head_type: str = Field("m7i.2xlarge", min_length=1, description="Type of the first machine; of aws.")
    worker_type: str = Field("c7i.16xlarge", min_length=1, description="Type of the others; of aws.")
    num_workers: int = Field(1, ge=0, le=10_000, description="The most of them at a time; of aws.")
    spot: bool = Field(True, description="Others as spot instances: a lost one's tasks run again; of aws.")
    image: str | None = Field(None, pattern=r"^ami-\w+$", description="Image of all; null: Ray's; of aws.")
    ssh_user: str = Field("ubuntu", pattern=r"^[\w.-]+$", description="User on all machines.")
    ssh_private_key: str | None = Field(
        None, min_length=1, description="Path of the key; null: as ssh has it, with AWS a new one."
    )
    setup: tuple[str, ...] = Field(
        ("pip install 'foreframe[data]' 'ray[default]==2.60.*'",),
        description="Commands run on every machine first; () where all is installed.",
    )
    activate: str | None = Field(
        None, min_length=1, description="Command before each start of Ray, such as . ~/env/bin/activate"
    )

    @model_validator(mode="after")
    def _fits_its_provider(self) -> RayCluster:
        if self.provider == "local" and (self.head is None or not self.workers):
            raise ValueError("must name head and workers, with provider local")
        if self.provider == "aws" and self.region is None:
            raise ValueError("must name a region, with provider aws")
        if self.provider == "local" and len({self.head, *self.workers}) != 1 + len(self.workers):
            raise ValueError("must name every machine once, among head and workers")
        return self


def cluster_document(cluster: RayCluster, name: str) -> dict[str, Any]:
    """What `ray up` reads. Raises: ConfigError when Ray's schema finds it wrong."""
    first = f"{cluster.activate} && " if cluster.activate else ""
    quiet = "RAY_USAGE_STATS_ENABLED=0"
    auth = {"ssh_user": cluster.ssh_user}
    if cluster.ssh_private_key:
        auth["ssh_private_key"] = cluster.ssh_private_key
    document: dict[str, Any] = {
        "cluster_name": name,
        "provider": _provider(cluster),
        "auth": auth,
        "max_workers": len(cluster.workers) if cluster.provider == "local" else cluster.num_workers,
        "idle_timeout_minutes": 10,
        "setup_commands": list(cluster.setup),
        "head_start_ray_commands": [
            f"{first}ray stop",
            f"{first}ulimit -n 65536; {quiet} ray start --head --port={GCS_PORT} "
            f"--dashboard-host=127.0.0.1 --dashboard-port={JOBS_PORT} --autoscaling-config={LATEST_CONFIG}",
        ],
        "worker_start_ray_commands": [
            f"{first}ray stop",
            f"{first}ulimit -n 65536; {quiet} ray start --address=$RAY_HEAD_IP:{GCS_PORT}",
        ],
    }
    if cluster.provider == "aws":
        document |= _node_types(cluster)
    check_document(document)
    return document


def _provider(cluster: RayCluster) -> dict[str, Any]:
    if cluster.provider == "local":
        return {"type": "local", "head_ip": cluster.head, "worker_ips": list(cluster.workers)}
    return {"type": "aws", "region": cluster.region, "cache_stopped_nodes": False}


def _node_types(cluster: RayCluster) -> dict[str, Any]:
    image = {"ImageId": cluster.image} if cluster.image else {}
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if cluster.spot else {}
    return {
        "head_node_type": "head",
        "available_node_types": {
            "head": {
                "resources": {},  # as Ray finds them
                "node_config": {"InstanceType": cluster.head_type, **image},
            },
            "worker": {
                "resources": {},
                "node_config": {"InstanceType": cluster.worker_type, **image, **spot},
                "min_workers": 0,
                "max_workers": cluster.num_workers,
            },
        },
    }


def check_document(document: dict[str, Any]) -> None:
    """Hold it against what `ray up` itself checks. Raises: ConfigError."""
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config({**document, "cluster_synced_files": []})
        validate_config(prepare_config(document))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.path) or "cluster"
        raise ConfigError(f"cluster: {where}", need=f"what `ray up` takes: {error.message[:200]}") from error
    except (RuntimeError, ValueError) as error:
        raise ConfigError("cluster", need=f"what `ray up` takes: {error}") from error


def cluster_text(cluster: RayCluster, name: str) -> str:
    told = (
        f"# Ray cluster {name}: {1 + len(cluster.workers)} machines.\n"
        if cluster.provider == "local"
        else f"# Ray cluster {name} on AWS, up to {cluster.num_workers} machines besides the first.\n"
    )
    return (
        f"{told}# ray up cluster.yaml            start it, or bring it to what stands here\n"
        f"# ray dashboard cluster.yaml     its job server as http://127.0.0.1:{JOBS_PORT} here, through ssh\n"
        f"# ray down cluster.yaml          end it\n"
        f"{yaml.safe_dump(cluster_document(cluster, name), sort_keys=False, width=110)}"
    )
