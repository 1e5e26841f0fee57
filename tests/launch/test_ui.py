"""`foreframe ui`: a port in use and a run without a store are sentences; the server ends with the command."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from launch.ui import check_port, end_of, find_database, page_of, server_command


def test_a_port_in_use_is_a_sentence_that_names_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port \d+ is free"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_folder_above_the_run_names_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mlflow.db").touch()
    assert find_database(tmp_path / "run") == tmp_path / "run" / "mlflow.db"
    with pytest.raises(UsageError, match=r"did you mean .*/run\?"):
        find_database(tmp_path)


def test_a_run_that_mlflow_did_not_track_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run's folder"):
        find_database(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        find_database(tmp_path)


def test_the_server_listens_where_it_is_told(tmp_path: Path) -> None:
    command = server_command(tmp_path / "mlflow.db", "127.0.0.1", 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"


def test_the_address_leads_to_the_runs_curves(tmp_path: Path) -> None:
    assert page_of(tmp_path) == "/"
    (tmp_path / "mlflow_run.json").write_text('{"run_id": "abc", "experiment_id": "7"}')
    assert page_of(tmp_path) == "/#/experiments/7/runs/abc/model-metrics?workflowType=machine_learning"
    (tmp_path / "mlflow_run.json").write_text('{"run_id": "ab')
    assert page_of(tmp_path) == "/"


def test_of_a_servers_log_only_the_error_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "INFO starting\nTraceback (most recent call last):\n  x\nsqlite3.DatabaseError: malformed\n"
    )
    assert end_of(log) == "sqlite3.DatabaseError: malformed"
    log.write_text("INFO starting\nkilled\n")
    assert end_of(log) == "INFO starting\nkilled"
