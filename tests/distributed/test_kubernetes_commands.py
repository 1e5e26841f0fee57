"""The commands of rendered manifests, run here as a cluster's nodes would: they meet, and train the same run.

The runtime's and the controller's variables are set as these set them; names and folders of pods are put back
to this machine's. No container, no cluster.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubeflow_trainer_api", reason="needs the extra `kubernetes`")

from launch.submit.base import Job
from tests.launch.kubernetes_jobs import place, rendered
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
NODES = 2
RANKS: dict[str, Any] = {"strategy": {"kind": "deepspeed", "zero_stage": 1}, "train": {"steps": 6}}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("form", "launcher"), [("trainjob", "torchrun"), ("jobset", "supervise")])
def test_the_nodes_of_a_manifest_train_as_two_ranks_of_one_machine(
    form: str, launcher: str, small_dataset: Path, tmp_path: Path
) -> None:
    here = tmp_path / "runs"
    config = tiny_config(small_dataset, here, name="pods", **RANKS)
    job = Job("train", "pods", config, here / "pods" / "submissions" / "001", tmp_path)
    volumes = [
        {"claim": "runs", "mount": "/runs", "here": str(here)},
        {"claim": "data", "mount": "/data", "here": str(small_dataset)},
    ]
    config_map, found = rendered(job, place(form=form, launcher=launcher, nodes=NODES, volumes=volumes))
    mounted = tmp_path / "etc"
    mounted.mkdir()
    text = config_map["data"]["config.yaml"].replace("/runs", str(here)).replace("/data", str(small_dataset))
    (mounted / "config.yaml").write_text(text)
    port = free_port()

    def start(node: int) -> subprocess.Popen[bytes]:
        pet = {
            "PET_NNODES": str(NODES), "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port),
        }  # fmt: skip
        given = pet if form == "trainjob" else {"JOB_COMPLETION_INDEX": str(node)}
        words = [_here(word, given, mounted, port) for word in _command(found, form)]
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        words[0] = (
            shutil.which(words[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or words[0]
        )
        env = {**os.environ, **given, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        return subprocess.Popen(words, env=env, cwd=tmp_path)

    nodes = [start(number) for number in range(NODES)]
    try:
        assert [node.wait(400) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    alone = tiny_config(small_dataset, here, name="alone", **RANKS)
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone.model_dump(mode="json")))
    command = [sys.executable, "-m", "launch", "train", "alone.yaml", "--nproc", str(NODES), "--quiet"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run(command, check=True, cwd=tmp_path, timeout=400, env=env)
    assert losses(here / "pods") == pytest.approx(losses(here / "alone"), rel=1e-6)


def _command(job: dict[str, Any], form: str) -> list[str]:
    if form == "trainjob":
        return list(job["spec"]["trainer"]["command"])
    template = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    return list(template["spec"]["containers"][0]["command"])


def _here(word: str, env: dict[str, str], mounted: Path, port: int) -> str:
    """Variables put in as the kubelet does; the pods' folder and names as this machine has them."""
    word = re.sub(r"\$\((\w+)\)", lambda found: env.get(found[1], found[0]), word)
    word = re.sub(r"^pods-001-node-0-0\.pods-001:\d+$", f"127.0.0.1:{port}", word)
    return word.replace("/etc/foreframe", str(mounted))
