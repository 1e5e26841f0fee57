"""`foreframe ui`: the MLflow pages of one run, served from the sqlite store in its folder."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from data_pipeline.errors import UsageError
from launch.config import CONFIG_FILE
from launch.console import make_console
from pretrain.tracking.mlflow import ARTIFACTS_FOLDER, DATABASE_FILE, RUN_FILE

START_LIMIT_S = 90.0
STOP_LIMIT_S = 10.0


def is_free(host: str, port: int) -> bool:
    """True when a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def check_port(host: str, port: int) -> None:
    """Refuse a port that is in use.

    Raises: UsageError that names the next free one.
    """
    if is_free(host, port):
        return
    free = next((other for other in range(port + 1, min(port + 100, 65536)) if is_free(host, other)), None)
    hint = f"--port {free} is free" if free else "choose another with --port"
    raise UsageError(f"port {port} on {host} is in use by another program, or not yours to open: {hint}")


def find_database(run: Path) -> Path:
    """The store in a run's folder.

    Raises: UsageError when the folder is missing, or the run was tracked elsewhere or not by MLflow.
    """
    if not run.is_dir():
        raise UsageError(f"{run} does not exist: name a run's folder, such as runs/demo/run")
    if (run / DATABASE_FILE).is_file():
        return run / DATABASE_FILE
    if (shared := _shared_database(run)) is not None:
        return shared
    below = sorted(found.parent for found in run.glob(f"*/{DATABASE_FILE}"))
    if below:
        raise UsageError(f"{run} holds no {DATABASE_FILE}; did you mean {below[0]}?")
    if not (run / CONFIG_FILE).is_file():
        raise UsageError(f"{run} is no run's folder: it has no {CONFIG_FILE}; `foreframe train` makes one")
    raise UsageError(
        f"{run} holds no {DATABASE_FILE}: a run with tracker.uri set is on the server it names, and one "
        f"with tracker.kind jsonl has metrics.jsonl only"
    )


def _shared_database(run: Path) -> Path | None:
    """The sqlite store that a run was tracked in beside others (tracker.uri); None where it was a server."""
    try:
        address = str(json.loads((run / RUN_FILE).read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = Path(address.removeprefix("sqlite:///"))
    return path if address.startswith("sqlite:///") and path.is_file() else None


def page_of(run: Path) -> str:
    """The page of a run's curves, below the server's address; the root where mlflow_run.json names none."""
    try:
        found = json.loads((run / RUN_FILE).read_bytes())
        place = f"experiments/{found['experiment_id']}/runs/{found['run_id']}"
    except (OSError, ValueError, KeyError):
        return "/"
    return f"/#/{place}/model-metrics?workflowType=machine_learning"


def server_command(database: Path, host: str, port: int) -> list[str]:
    """The command that serves a store and the artifacts beside it with one worker."""
    artifacts = database.parent / ARTIFACTS_FOLDER
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{database.resolve()}"),
        *("--artifacts-destination", artifacts.resolve().as_uri()),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def _wait_until_up(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return once the server answers.

    Raises: UsageError with the end of its log when it stops, or does not answer in 90 s.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UsageError(f"MLflow stopped at once with status {server.returncode}:\n{end_of(log)}")
        try:
            with direct.open(f"{address}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    raise UsageError(f"MLflow did not answer within {START_LIMIT_S:g} s:\n{end_of(log)}")


def end_of(log: Path) -> str:
    """The error that a server's log ends with, where it names one; else its last lines."""
    lines = log.read_text(errors="replace").splitlines()
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return named[-1] if named else "\n".join(lines[-15:])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run_ui(run: Path, port: int = 5000, host: str = "127.0.0.1") -> None:
    """Serve a run's MLflow pages until Ctrl-C or SIGTERM.

    Raises: UsageError for a run without a store, a port in use, or a server that does not start.
    """
    database = find_database(run)
    check_port(host, port)
    # Off: background jobs more than double the server's memory, and telemetry calls home.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    console = make_console()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    console.print(f"starting MLflow for {run} …")
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="foreframe-ui-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as sink:
            # Its own session: Ctrl-C reaches this process alone, which then ends the server and its worker.
            server = subprocess.Popen(
                server_command(database, host, port),
                env=os.environ | quiet,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_up(server, address, log)
            console.print(f"open [bold]{address}{page_of(run)}[/bold]\n(Ctrl-C stops it)", soft_wrap=True)
            status = server.wait()
            raise UsageError(f"MLflow ended with status {status}:\n{end_of(log)}")
        except KeyboardInterrupt:
            console.print("stopped")
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which share its process group: ask, then insist."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()
