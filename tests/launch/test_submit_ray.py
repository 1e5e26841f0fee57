"""A job for a Ray cluster: what is sent, what is asked first, and the cluster that `ray up` would make."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, UsageError
from launch.ray_train import NodeProcess
from launch.submit.places import read_place
from launch.submit.ray import RayPlace, config_text
from launch.submit.ray_cluster import RayCluster, check_document, cluster_document
from launch.submit.submission import Asked, make_job, submit
from tests.small_dataset import tiny_config

CONFIGS = Path(__file__).parents[2] / "configs" / "launch"


class JobServer:
    """Answers as Ray's does, to its own client. asked: (method, path, body) of each request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.version, self.status, self.refusal = version("ray"), 200, ""
        self.nodes: list[dict[str, float]] = [{"CPU": 2.0}, {"CPU": 2.0}]
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append((method, path, body))
        if path == "/api/version":
            found = {"version": "4", "ray_version": self.version, "ray_commit": "0", "session_name": "s"}
            return self.status, found
        if path.startswith("/api/v0/nodes"):
            rows = [
                {"node_id": f"{k}", "node_ip": "10.0.0.1", "is_head_node": k == 0, "state": "ALIVE",
                 "state_message": None, "node_name": "n", "resources_total": node, "labels": {},
                 "start_time_ms": 0, "end_time_ms": 0}
                for k, node in enumerate(self.nodes)
            ]  # fmt: skip
            told = {"total": len(rows), "num_after_truncation": len(rows), "num_filtered": len(rows)}
            return 200, {"result": True, "msg": "", "data": {"result": {"result": rows, **told}}}
        if path.startswith("/api/packages/"):
            return (200, {}) if method == "PUT" else (404, {})
        if self.refusal:
            return 500, self.refusal
        return 200, {"job_id": "raysubmit_1", "submission_id": json.loads(body)["submission_id"]}


@pytest.fixture
def server() -> Iterator[JobServer]:
    found = JobServer()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = found.answer(self.command, self.path, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = respond

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found.address = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        http.shutdown()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.chdir(tmp_path)
    plain = {"name": "films", "out": "data/films", "sources": ["clips", "s3://bucket/more", "/films/*.mp4"]}
    return DataConfig.model_validate(plain)


def test_what_a_dry_run_prints_is_what_the_cluster_is_sent(server: JobServer, config: DataConfig) -> None:
    place = RayPlace(address=server.address, python="/env/bin/python", env={"AWS_ENDPOINT_URL": "http://s3"})
    said: list[str] = []
    assert submit(make_job(config, place), place, Asked(is_dry=True), said.append) is None
    assert server.asked == []
    shown = yaml.safe_load(said[0])
    started = submit(make_job(config, place), place, Asked(), said.append)
    sent = json.loads(next(body for method, path, body in server.asked if path == "/api/jobs/"))
    assert sent["entrypoint"] == shown["entrypoint"]
    assert sent["entrypoint"] == ("exec /env/bin/python -m launch shard submitted.yaml --ray-address auto")
    assert sent["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL"] == "http://s3"
    assert sent["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")
    assert started is not None and started.id == sent["submission_id"] != shown["submission_id"]
    told = dict(started.told)
    assert told["stop"] == f"ray job stop --no-wait --address {server.address} {started.id}"


def test_the_code_and_the_config_travel_with_the_job(server: JobServer, config: DataConfig) -> None:
    import io
    import zipfile

    place = RayPlace(address=server.address)
    submit(make_job(config, place), place, Asked(), lambda _: None)
    package = next(body for method, path, body in server.asked if method == "PUT")
    files = zipfile.ZipFile(io.BytesIO(package))
    assert {"launch/ray_nodes.py", "data_pipeline/execute.py"} <= set(files.namelist())
    there = DataConfig.model_validate(yaml.safe_load(files.read("submitted.yaml")))
    assert there.out == str(Path.cwd() / "data/films")
    assert there.sources == (str(Path.cwd() / "clips"), "s3://bucket/more", "/films/*.mp4")
    assert there.fingerprint() == config.fingerprint()


def test_a_run_is_trained_by_the_command_of_every_other_place(small_dataset: Path, tmp_path: Path) -> None:
    place = RayPlace(nodes=2, gpus_per_node=8, cpus_per_node=32)
    job = make_job(tiny_config(small_dataset, tmp_path), place)
    entrypoint = yaml.safe_load(place.files(job)["job.yaml"])["entrypoint"]
    assert entrypoint == (
        f"exec python -m launch.ray_train --nodes 2 --gpus 8 --cpus 32 --workdir {Path.cwd()} "
        f"--logs {job.logs} -- "
        "supervise submitted.yaml --nproc 8 --nnodes 2 --node-rank NODE --rendezvous HOST:PORT"
    )
    assert config_text(job) == place.files(job)["code/submitted.yaml"]


@pytest.mark.parametrize("logs", ["logs", None])
def test_a_node_with_gpus_tells_what_nccl_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: str | None
) -> None:
    given: dict[str, str] = {}
    monkeypatch.setenv("NCCL_DEBUG", "INFO")  # as env of the place has it
    monkeypatch.setattr("subprocess.Popen", lambda *_, env, **__: given.update(env))
    (tmp_path / "logs").mkdir()
    folder = None if logs is None else str(tmp_path / logs)
    assert NodeProcess().start(["supervise"], str(tmp_path), folder) == ""
    assert given["NCCL_DEBUG"] == "INFO"
    assert given.get("TORCH_NCCL_DUMP_ON_TIMEOUT") == (logs and "1")
    assert given.get("TORCH_FR_DUMP_TEMP_FILE") == (logs and f"{folder}/collectives-rank-")


def refused(place: RayPlace, config: DataConfig) -> str:
    with pytest.raises(UsageError) as told:
        submit(make_job(config, place), place, Asked(), lambda _: None)
    assert not Path("runs").exists()  # nothing was frozen
    return str(told.value)


def test_what_the_cluster_cannot_do_is_said_before_anything_is_written(
    server: JobServer, config: DataConfig
) -> None:
    place = RayPlace(address=server.address)
    many = config.model_copy(update={"ray": config.ray.model_copy(update={"workers": 5})})
    assert "ray.workers is 5" in refused(place, many) and "has 4 cores" in refused(place, many)
    server.nodes = [{"CPU": 2.0}, {"memory": 1.0}]
    assert "has 2 nodes, of which 1 have 1 CPU" in refused(place.model_copy(update={"nodes": 2}), config)
    server.version = "2.1.0"
    assert f"runs Ray 2.1.0, here is {version('ray')}" in refused(place, config)
    server.status = 401
    assert "asks for its token: need RAY_AUTH_MODE=token" in refused(place, config)


def test_no_cluster_is_a_sentence(config: DataConfig) -> None:
    place = RayPlace(address="http://127.0.0.1:9")
    assert "no job server of a Ray cluster answers at http://127.0.0.1:9" in refused(place, config)
    cluster = RayCluster(head="10.0.0.1", workers=("10.0.0.2",))
    assert "`ray up cluster.yaml` starts it" in refused(place.model_copy(update={"cluster": cluster}), config)


def test_a_tunnel_that_is_dead_is_a_sentence(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.submit.ray.ANSWERS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are taken, and nothing is said
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        told: list[str] = []
        asked = threading.Thread(
            target=lambda: told.append(refused(RayPlace(address=address), config)), daemon=True
        )
        asked.start()
        asked.join(60.0)
    assert told and f"nothing answers at {address} within 0 s: the tunnel there may be dead" in told[0]


def test_a_job_that_the_server_refuses_is_a_sentence(server: JobServer, config: DataConfig) -> None:
    server.refusal = "Traceback ...\nValueError: Job with submission_id films-001 already exists."
    place = RayPlace(address=server.address)
    with pytest.raises(UsageError, match=r"refused the job: .*already exists"):
        submit(make_job(config, place), place, Asked(), lambda _: None)


@pytest.mark.parametrize(
    "address", ["10.0.0.1:6379", "ray://10.0.0.1:10001", "http://me:secret@10.0.0.1:8265"]
)
def test_only_a_job_servers_address_without_credentials_is_taken(address: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT of a job server") as told:
        read_place("ray", [f"address={address}"])
    assert "secret" not in str(told.value)


def test_the_example_is_what_it_says_it_is() -> None:
    text = (CONFIGS / "ray.yaml").read_text()
    assert read_place(str(CONFIGS / "ray.yaml")) == RayPlace()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    start = lines.index("cluster:")
    cluster = RayCluster.model_validate(yaml.safe_load("\n".join(lines[start:]))["cluster"])
    assert (cluster.head, cluster.workers) == ("10.0.0.1", ("10.0.0.2", "10.0.0.3"))


LOCAL = RayCluster(head="10.0.0.1", workers=("10.0.0.2", "10.0.0.3"), ssh_private_key="~/.ssh/id", setup=())
AWS = RayCluster(provider="aws", region="us-east-1", num_workers=40, image="ami-0123456789abcdef0")


@pytest.mark.parametrize("cluster", [LOCAL, AWS], ids=["local", "aws"])
def test_rays_own_check_takes_the_cluster(cluster: RayCluster, config: DataConfig) -> None:
    place = RayPlace(cluster=cluster)
    document = yaml.safe_load(place.files(make_job(config, place))["cluster.yaml"])
    assert document == cluster_document(cluster, "foreframe")
    assert document["max_workers"] == (2 if cluster is LOCAL else 40)
    assert document["provider"]["type"] == cluster.provider


@pytest.mark.parametrize(
    "damage",
    [
        {"max_worker": 2},
        {"max_workers": "two"},
        {"auth": {"ssh_user": "me", "ssh_pasword": "x"}},
        {"provider": {"region": "us-east-1"}},
        {"setup_commands": "pip install"},
        {"head_node_type": "none"},
    ],
    ids=["unknown field", "wrong type", "unknown field below", "missing", "no list", "no such type"],
)
def test_rays_own_check_finds_seeded_faults(damage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="what `ray up` takes"):
        check_document(cluster_document(AWS, "c") | damage)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"head": "10.0.0.1"}, "must name head and workers"),
        ({"provider": "aws"}, "must name a region"),
        ({"head": "a", "workers": ("a", "b")}, "every machine once"),
        ({"head": "a", "workers": ("b",), "ssh_usr": "x"}, "ssh_usr"),
    ],
)
def test_a_cluster_that_is_not_whole_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RayCluster(**settings)
