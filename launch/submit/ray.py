"""A Ray cluster that runs: the job is sent to its job server, with the frozen code and config."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator

from data_pipeline.config import DataConfig
from data_pipeline.errors import UsageError
from launch.config import dump_config
from launch.submit.base import CODE_FOLDER, Job, Place, Started
from launch.submit.ray_cluster import RayCluster, cluster_text
from launch.submit.shell import command

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

REQUEST, CONFIG, CLUSTER = "job.yaml", "submitted.yaml", "cluster.yaml"
ANSWERS_S = 10.0
STOP_S = 700  # a job that is stopped has so long for its last save; Ray would give it 3
ADDRESS = re.compile(r"https?://[^/@\s]+(:\d+)?/?")


class RayPlace(Place):
    """A Ray cluster with a job server, which `ray start --head` has where `ray[default]` is installed.

    Nothing of the machine that submits need be seen there but what the config names: code and config travel
    with the job.
    """

    shares_files: ClassVar[bool] = False

    kind: Literal["ray"] = "ray"
    address: str = Field(
        "http://127.0.0.1:8265",
        description="The job server; the default also of `ray dashboard`, an ssh tunnel.",
    )
    python: str | None = Field(
        None, min_length=1, description="Python interpreter on its nodes; null: the `python` on their PATH."
    )
    cpus_per_node: int = Field(
        1, ge=1, le=1024, description="Cores to ask for on each node, to train; ranks take what they find."
    )
    cluster: RayCluster | None = Field(
        None, description="To write cluster.yaml for `ray up` too; null: a cluster that is there."
    )

    @field_validator("address")
    @classmethod
    def _is_a_job_server(cls, value: str) -> str:
        if not ADDRESS.fullmatch(value):
            raise ValueError(
                "must be http://HOST:PORT of a job server, without a user name: the Ray address HOST:6379 is "
                "another port of the same machine, its job server is at 8265"
            )
        return value.rstrip("/")

    def files(self, job: Job) -> dict[str, str]:
        if job.elements:
            raise UsageError(
                "a sweep is not sent to a Ray cluster: need --on slurm, or `foreframe sweep` on one machine"
            )
        files = {REQUEST: self._request(job), f"{CODE_FOLDER}/{CONFIG}": config_text(job)}
        if self.cluster is not None:
            files[CLUSTER] = cluster_text(self.cluster, "foreframe")
        return files

    def _request(self, job: Job) -> str:
        """What the job server is sent, and how to send the same by hand."""
        python = self.python or "python"
        if isinstance(job.config, DataConfig):
            words = [python, "-m", "launch", "shard", CONFIG, "--ray-address", "auto"]
        else:
            node = job.arguments(self, node_rank="NODE", rendezvous="HOST:PORT", config=CONFIG)
            options = ["--nodes", str(self.nodes), "--gpus", str(self.gpus_per_node)]
            options += ["--cpus", str(self.cpus_per_node), "--workdir", str(job.workdir)]
            options += ["--logs", str(job.logs)] * bool(self.gpus_per_node)
            words = [python, "-m", "launch.ray_train", *options, "--", *node]
        request = {
            "entrypoint": f"exec {shlex.join(words)}",  # so that a stop reaches it, and no shell before it
            "submission_id": job_id(job),
            "runtime_env": {
                "working_dir": str(job.code),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **self.env},
            },
            "metadata": {"name": job.name, "kind": job.kind, "submission": str(job.folder)},
        }
        env = json.dumps({"env_vars": request["runtime_env"]["env_vars"]})  # type: ignore[index]
        by_hand = [
            *("ray", "job", "submit", "--no-wait", "--address", self.address),
            *("--submission-id", job_id(job), "--working-dir", str(job.code)),
            *("--runtime-env-json", env, "--", *shlex.split(str(request["entrypoint"]))),
        ]
        typed = command(by_hand, indent="  ").replace("\n", "\n#   ")
        what = "trains on" if job.kind == "train" else "shards with"
        return (
            f"# {job.name}: {what} the Ray cluster whose job server is {self.address}.\n"
            f"# What that is sent. By hand:\n#   {typed}\n"
            f"{yaml.safe_dump(request, sort_keys=False, width=110)}"
        )

    def check(self, job: Job) -> None:
        """Raises: UsageError when the cluster is not there, is of another Ray, or is too small."""
        with _asking(self) as client:
            theirs, ours = str(client._server_ray_version), version("ray")
            if theirs != ours:
                raise UsageError(
                    f"the cluster at {self.address} runs Ray {theirs}, here is {ours}: need the same, "
                    f"`pip install ray=={theirs}` here or the same release of foreframe there"
                )
            nodes = _nodes(self.address)
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        workers = job.config.ray.workers if isinstance(job.config, DataConfig) else None
        if workers is not None and workers > cpus:
            raise UsageError(
                f"ray.workers is {workers}: the cluster at {self.address} has {cpus} cores; need at most "
                f"that, or null for all of them"
            )
        wanted = {"CPU": 1} if job.kind == "shard" else {"CPU": self.cpus_per_node, "GPU": self.gpus_per_node}
        fitting = [node for node in nodes if all(node.get(what, 0) >= num for what, num in wanted.items())]
        if len(fitting) < self.nodes:
            each = " and ".join(f"{num} {what}" for what, num in wanted.items() if num)
            raise UsageError(
                f"nodes is {self.nodes}: the cluster at {self.address} has {len(nodes)} nodes, of which "
                f"{len(fitting)} have {each}"
            )

    def start(self, job: Job, *, detach: bool) -> Started:
        request = yaml.safe_load((job.folder / REQUEST).read_text())
        with _asking(self) as client:
            name = client.submit_job(**request)
        where = f"--address {self.address}"
        return Started(
            name,
            (
                ("watch", f"ray job status {where} {name}"),
                ("log", f"ray job logs {where} --follow {name}"),
                ("stop", f"ray job stop --no-wait {where} {name}"),
            ),
        )


def job_id(job: Job) -> str:
    """Of this submission alone, so that the same one cannot run twice: its name, number, and which folder."""
    folder = sha256(str(job.folder).encode()).hexdigest()[:6]
    return f"{job.name}-{job.folder.name}-{folder}"


def config_text(job: Job) -> str:
    """The config as nodes read it: of a data set with absolute addresses, as they stand in other folders."""
    if not isinstance(job.config, DataConfig):
        return dump_config(job.config)
    config = job.config
    changes: dict[str, Any] = {
        "out": _absolute(config.out, job.workdir),
        "sources": tuple(_absolute(source, job.workdir) for source in config.sources),
        "root": None if config.root is None else _absolute(config.root, job.workdir),
    }
    return dump_config(config.model_copy(update=changes))


def _absolute(address: str, workdir: Path) -> str:
    return address if "://" in address else os.path.normpath(workdir / Path(address).expanduser())


def _nodes(address: str) -> list[dict[str, float]]:
    """The resources of each node that is there."""
    from ray.util.state import list_nodes

    found = list_nodes(address=address, limit=10_000, raise_on_missing_output=False)
    return [dict(node.resources_total or {}) for node in found if node.state == "ALIVE"]


@contextmanager
def _asking(place: RayPlace) -> Iterator[JobSubmissionClient]:
    """The cluster's job server; what goes wrong there is a UsageError."""
    import logging

    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from ray.util.state.exception import RayStateApiException

    address = place.address
    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        # Ray's client waits for ever. What the answer is, a refusal too, it finds out itself.
        requests.get(f"{address}/api/version", timeout=ANSWERS_S)
        yield JobSubmissionClient(address)
    except requests.Timeout as error:
        raise UsageError(
            f"nothing answers at {address} within {ANSWERS_S:.0f} s: the tunnel there may be dead (`ray "
            f"dashboard` or `ssh -L` once more), or a firewall is between; `curl {address}/api/version` "
            f"shows an answer when it is mended"
        ) from error
    except AuthenticationError as error:
        raise UsageError(
            f"the Ray cluster at {address} asks for its token: need RAY_AUTH_MODE=token, and its "
            f"~/.ray/auth_token here or RAY_AUTH_TOKEN_PATH with the path of a copy"
        ) from error
    except (ConnectionError, requests.ConnectionError, RayStateApiException) as error:
        raise UsageError(_nobody(place)) from error
    except (RuntimeError, ValueError) as error:  # what the job server answers: the last line says it
        words = str(error).strip().splitlines()
        raise UsageError(
            f"the Ray cluster at {address} refused the job: {words[-1] if words else ''}"
        ) from error


def _nobody(place: RayPlace) -> str:
    starts = (
        f"; `ray up {CLUSTER}` starts it (--dry-run writes that file), and `ray dashboard {CLUSTER}` "
        f"leads to it"
        if place.cluster
        else ""
    )
    return (
        f"no job server of a Ray cluster answers at {place.address}: need the machine where `ray start "
        f"--head` runs with `ray[default]` installed, and its port (8265 unless --dashboard-port says "
        f"another){starts}"
    )
