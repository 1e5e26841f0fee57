import platform
import subprocess
import sys

import pytest

from data_pipeline.config import RayConfig
from data_pipeline.errors import DataError
from data_pipeline.execute import _guarded, count_workers, stream
from data_pipeline.progress import Rates
from tests.data_pipeline.tasks import count_to, fill_the_disk


def test_a_worker_ends_itself_when_its_job_was_killed() -> None:
    driver = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    things = _guarded(count_to, (platform.node(), driver.pid), 3)
    assert next(things) == 0
    driver.kill()
    driver.wait()
    with pytest.raises(SystemExit):
        next(things)
    assert list(_guarded(count_to, ("another-host", driver.pid), 3)) == [0, 1, 2]  # not for us to know


def test_a_full_disk_on_a_worker_is_a_sentence(ray_session: None) -> None:
    with pytest.raises(DataError, match=r"/shards/7\.tar on a worker: No space left on device: make room"):
        list(stream(fill_the_disk, [7], (), RayConfig(workers=2)))


def test_things_of_an_item_keep_their_order(ray_session: None) -> None:
    found: dict[int, list[int]] = {}
    for number, thing in stream(count_to, [3, 0, 5, 1], (), RayConfig(workers=2)):
        found.setdefault(number, []).append(thing)
    assert found == {0: [0, 1, 2], 2: [0, 1, 2, 3, 4], 3: [0]}


def test_workers_are_the_cores_unless_told(ray_session: None) -> None:
    assert count_workers(RayConfig(workers=7)) == 7
    assert count_workers(RayConfig()) >= 1
    assert count_workers(RayConfig(address="auto")) == 2  # those of the cluster that is up


def test_a_line_of_progress_tells_rate_verdicts_and_what_is_left() -> None:
    now = 0.0
    said: list[tuple[int, int, str]] = []
    rates = Rates(
        "encode", 400, "clips", lambda _, done, total, note: said.append((done, total, note)), lambda: now
    )
    now = 10.0
    rates.add(1, 2_000_000, filtered=1, failed=0)
    assert said[-1] == (1, 400, "0.1 clips/s · 0.2 MB/s · 1 filtered · 1:06:30 left")
    now = 20.0
    rates.add(99, 0, failed=1)
    assert said[-1] == (100, 400, "5.0 clips/s · 0.1 MB/s · 1 filtered · 1 failed · 1:00 left")
    now = 400_000.0
    rates.add(1)
    assert said[-1][2].endswith("13 d 16 h left")
