"""A store that stumbles, for the tests of what reads from it; and one thread for small products."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.storage import Storage
from tests.servers.s3 import forget_s3


@pytest.fixture
def faulty(faulty_bucket: str) -> Storage:
    """An empty root behind the `faults` proxy."""
    return Storage(f"{faulty_bucket}/set")


@pytest.fixture
def steadfast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that hangs is found out in a second, and asked again for half a minute."""
    from data_pipeline.s3 import requests

    for name, value in {"READ_TIMEOUT_S": 1, "RETRY_FOR_S": 30.0, "LONGEST_PAUSE_S": 0.1}.items():
        monkeypatch.setattr(requests, name, value)
    forget_s3()
    yield
    forget_s3()


@pytest.fixture
def impatient(steadfast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that stays broken is told of within seconds; one answer may be late on a loaded machine."""
    monkeypatch.setattr("data_pipeline.s3.requests.RETRY_FOR_S", 3.0)


@pytest.fixture
def run(tmp_path: Path, empty_store: Path) -> Path:
    """A run's folder with an MLflow store in it: to make one anew takes seconds."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Products this small take longer over two threads, far longer where others work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
