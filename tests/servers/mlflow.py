"""An MLflow server in a process of its own over a sqlite store, which a test may kill and start again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.process import Server


@pytest.fixture
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; started again after a kill it has the same port and store."""
    pytest.importorskip("mlflow")
    with started(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server


@contextmanager
def started(folder: Path) -> Iterator[Server]:
    """A running server with its store in a folder."""
    folder.mkdir(exist_ok=True)
    server = Server([sys.executable, "-m", "tests.servers.mlflow", str(folder)], folder / "log")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with its tables made, to copy: making them takes seconds."""
    pytest.importorskip("mlflow")
    from pretrain.tracking.mlflow import local_uri, make_client

    folder = tmp_path_factory.mktemp("store")
    make_client(local_uri(folder)).search_experiments(max_results=1)
    return folder / "mlflow.db"


@pytest.fixture
def shared_store(tmp_path: Path, empty_store: Path) -> str:
    """The address of a store of its own for a test, for tracker.uri."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{folder / 'mlflow.db'}"


def _serve(folder: Path) -> None:
    """In this one process, so that a SIGKILL leaves no worker behind that answers on."""
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    # What `mlflow server` hands to its workers.
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = (folder / "artifacts").as_uri()
    import uvicorn
    from mlflow.server.fastapi_app import app

    known = folder / "port"
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", int(known.read_text()) if known.exists() else 0))
    listening.listen(128)
    known.write_text(str(listening.getsockname()[1]))
    print(known.read_text(), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
