"""The doctor on what a config names elsewhere: S3, data sets, MLflow; each with its faults."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_pipeline.storage import Storage
from launch.doctor import stores
from launch.doctor.check import Check
from launch.doctor.needs import addresses_of
from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import forget_s3, use_s3
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.distributed


def look(address: str, *, is_written: bool = False, holds: str | None = None) -> list[Check]:
    return stores.check_bucket("data.shards", address, is_quick=True, is_written=is_written, holds=holds)


def only(checks: list[Check]) -> Check:
    (check,) = checks
    return check


def test_a_store_that_is_well_is_listed_read_and_left_as_it_was(s3_bucket: str) -> None:
    storage = Storage(f"{s3_bucket}/set")
    storage.publish("dataset.json", b"{}")
    storage.publish("shards/a.tar", bytes(5 << 20))
    reached, read = look(f"{s3_bucket}/set", is_written=True, holds="dataset.json")
    assert (reached.state, read.state) == ("pass", "pass")
    assert "2 objects below; takes and removes an object" in reached.found
    assert "5 MB of a.tar" in read.found
    assert sorted(entry.name for entry in storage.walk()) == ["dataset.json", "shards/a.tar"]


def test_a_data_set_that_is_not_finished_fails(s3_bucket: str) -> None:
    Storage(f"{s3_bucket}/set").publish("shards/a.tar", b"1")
    found = only(look(f"{s3_bucket}/set", holds="dataset.json"))
    assert found.state == "fail"
    assert "no finished data set" in found.found
    empty = only(look(f"{s3_bucket}/other"))
    assert (empty.state, "0 objects" in empty.found) == ("fail", True)


def test_no_such_bucket_refused_credentials_and_no_answer_are_different_sentences(
    s3_bucket: str, faults: FaultProxy, faulty_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [only(look("s3://no-such-bucket-of-ours/set"))]
    faults.inject("403", "GET", "list", times=None)
    found.append(only(look(faulty_bucket)))
    faults.heal()
    faults.inject("403", "PUT", times=None)
    found.append(only(look(faulty_bucket, is_written=True)))
    faults.heal()
    monkeypatch.setattr(stores, "ANSWER_S", 0.5)
    faults.inject("hang", "GET", "list", times=None)
    found.append(only(look(faulty_bucket)))
    faults.heal()
    use_s3(monkeypatch, "http://127.0.0.1:9")  # where nothing listens
    found.append(only(look(faulty_bucket)))
    forget_s3()
    assert [check.state for check in found] == ["fail"] * 5
    words = ["does not exist", "refused access", "refused access", "not answer within", "not answer as it"]
    for check, word in zip(found, words, strict=True):
        assert word in check.found
        assert check.remedy, check
        assert "\n" not in check.found


def test_a_request_that_fails_is_made_once(faults: FaultProxy, faulty_bucket: str) -> None:
    """A doctor asks how things are now; a job would be patient."""
    faults.inject("503", "GET", "list", times=None)
    look(faulty_bucket)
    assert faults.counts["GET", "list"] == 1


class Tracking:
    """A server that answers as MLflow's does. status: of what needs a login."""

    def __init__(self, version: str, status: int = 200) -> None:
        self.authorizations: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200 if self.path == "/version" else 404, version)

            def do_POST(self) -> None:
                outer.authorizations.append(self.headers["Authorization"])
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(status, json.dumps({"experiments": []}))

            def _answer(self, code: int, text: str) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("no_login")
@pytest.mark.parametrize(
    ("version", "status", "state", "word"),
    [
        ("3.17.0", 200, "pass", "version 3.17.0"),
        ("3.17.9", 200, "pass", "version 3.17.9"),
        ("2.9.1", 200, "warn", "the client is 3.17.0"),
        ("3.17.0", 401, "fail", "refuses access"),
        ("3.17.0", 500, "fail", "answers 500"),
    ],
)
def test_a_tracking_server_is_told_by_its_version_and_by_what_it_refuses(
    version: str, status: int, state: str, word: str
) -> None:
    server = Tracking(version, status)
    found = only(stores.check_mlflow(server.uri, "3.17.0"))
    server.close()
    assert (found.state, word in found.found) == (state, True), found
    away = only(stores.check_mlflow(server.uri, "3.17.0"))
    assert (away.state, "does not answer" in away.found) == ("fail", True), away


@pytest.mark.usefixtures("no_login")
def test_credentials_are_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "opensesame")
    server = Tracking("3.17.0", 403)
    found = only(stores.check_mlflow(server.uri, None))
    server.close()
    assert server.authorizations == ["Basic YW5uOm9wZW5zZXNhbWU="]
    assert "opensesame" not in f"{found.found}{found.remedy}"
    inside = only(stores.check_mlflow("http://ann:opensesame@127.0.0.1:9/", None))
    assert inside.state == "fail"
    assert "opensesame" not in f"{inside.found}{inside.remedy}"


@pytest.mark.slow
def test_mlflows_own_server_is_understood(mlflow_server: Server, no_login: None) -> None:
    from importlib.metadata import version

    found = only(stores.check_mlflow(mlflow_server.endpoint, version("mlflow")))
    assert (found.state, found.found.endswith(f"version {version('mlflow')}")) == ("pass", True), found


def test_a_store_of_mlflow_in_a_file_needs_its_folder(tmp_path: Path) -> None:
    assert only(stores.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db", None)).state == "pass"
    missing = only(stores.check_mlflow(f"sqlite:///{tmp_path}/away/mlflow.db", None))
    assert (missing.state, missing.remedy) == ("fail", f"`mkdir -p {tmp_path}/away`")
    assert only(stores.check_mlflow(None, None)).state == "pass"


def test_each_address_that_a_config_names_is_looked_at(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(
        small_dataset,
        tmp_path,
        data={"shards": [{"shards": str(small_dataset)}, {"shards": str(tmp_path / "away")}]},
        tracker={"kind": "mlflow", "uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    found = {name: only(check()) for name, check in addresses_of(config, is_quick=True)}
    assert {name: check.state for name, check in found.items()} == {
        "data.shards[0]": "pass",
        "data.shards[1]": "fail",
        "MLflow": "pass",
    }
    assert "does not exist" in found["data.shards[1]"].found
