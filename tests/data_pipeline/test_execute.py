import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.config import RayConfig
from data_pipeline.errors import DataError, UsageError
from data_pipeline.execute import _guarded, check_nodes, count_workers, stream
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


HOLDER = """
import ray, sys
ray.init(num_cpus=1, include_dashboard=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
ASKER = """
import sys
from data_pipeline.config import RayConfig
from data_pipeline.execute import cluster, stream
from tests.data_pipeline.tasks import whose_code
config = RayConfig(workers=1, address=sys.argv[1] or None)
with cluster(config):
    print(*next(stream(whose_code, [0], (), config))[1])
"""


@pytest.mark.parametrize("where", ["of its own", pytest.param("that runs", marks=pytest.mark.slow)])
def test_workers_run_the_code_of_their_job_and_not_of_the_folder_one_works_in(
    tmp_path: Path, where: str
) -> None:
    edited, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (edited, elsewhere):
        (folder / "data_pipeline").mkdir(parents=True)
        (folder / "data_pipeline" / "__init__.py").write_text("raise RuntimeError('the edited code ran')")
    code = Path(__file__).parents[2]
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONSAFEPATH": "1"}
    asks = {**variables, "PYTHONPATH": str(code)}

    def told(address: str) -> list[str]:
        command = [sys.executable, "-c", ASKER, address]
        done = subprocess.run(command, cwd=edited, env=asks, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split()

    if where == "of its own":
        found = told("")
    else:
        variables.pop("PYTHONSAFEPATH")  # whoever started it knew of no job
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER], cwd=elsewhere, env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as holder:  # fmt: skip
            assert holder.stdout is not None and holder.stdin is not None
            try:
                found = told(holder.stdout.readline().strip())
            finally:
                holder.stdin.close()
    assert found == [str(code / "data_pipeline" / "__init__.py")] * 2


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


def test_nodes_with_other_libraries_are_named(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipeline import execute

    check_nodes()
    there = execute.encoder_versions()
    me = os.getpid()
    monkeypatch.setattr(
        execute, "encoder_versions", lambda: there | ({"av": "1.2.3"} if os.getpid() == me else {})
    )
    with pytest.raises(UsageError, match=rf"has av {there['av']} \(here 1\.2\.3\)"):
        check_nodes()


HEARD = """
import os, signal
from data_pipeline.config import RayConfig
from data_pipeline.execute import cluster
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
with cluster(RayConfig(workers=1)):
    pass
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_sigterm_is_heard_after_ray_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", HEARD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr[-2000:]
