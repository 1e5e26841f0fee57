"""What every test may count on: no telemetry, no model hub, no GPU unless the test asks for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = [f"tests.servers.{name}" for name in ("s3", "faults", "swift", "hosts", "mlflow", "slurm")]

# Read by libraries when they are imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
for inherited in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
    os.environ.pop(inherited, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu, with the reason, where torch sees no CUDA device."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 train and 5 eval clips of 8 frames of 32² in uneven shards; read only."""
    from tests.small_dataset import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data") / "small", {"train": [7, 5, 8, 3], "eval": [5]})


@pytest.fixture(autouse=True)
def is_scheduled_as_before() -> Iterator[None]:
    """No test leaves this process real-time: what later ones start would, and could starve the machine."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0)
    yield
    if os.sched_getscheduler(0) != before:
        os.sched_setscheduler(0, before, os.sched_param(0))
        pytest.fail("left this process real-time, as SVT-AV1 does: see same_scheduling in numbered.py")
