"""Sharding submitted over ssh to two hosts: stopped, submitted again, and equal to one machine's."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.format import read_info
from data_pipeline.storage import Storage
from launch.config import dump_config
from tests.distributed.many_clips import many_clips, write_films
from tests.servers.hosts import Host, Ssh
from tests.servers.submitted import nothing_is_left, submit, type_on

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
NUM_VIDEOS = 40
LATE_S = 400.0  # machines may be busy


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"), NUM_VIDEOS)


def test_a_data_set_made_on_two_hosts_and_stopped_between_is_that_of_one_machine(
    films: Path, tmp_path: Path, hosts: tuple[Host, Host], ssh: Ssh, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = many_clips(films, tmp_path_factory.mktemp("alone") / "out")
    given = Path(alone.out).parent / "data.yaml"
    given.write_text(dump_config(alone))
    subprocess.run([sys.executable, "-m", "launch", "shard", given], cwd=ROOT, check=True, timeout=LATE_S)

    config, place = many_clips(films, tmp_path / "out"), ["env.RAY_AUTH_MODE=disabled"]
    job = submit(config, hosts, ssh, "--detach", place=place, folder=tmp_path)
    assert job.end() == 0, job.text
    folder = tmp_path / "jobs" / config.name
    log = folder / "submissions" / "001" / "logs" / "node-0.log"
    deadline_s = time.monotonic() + LATE_S
    while len(list(Path(config.out).glob("parts/*.tar"))) < 3:
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)
    stopped = type_on(hosts[0], ["stop", str(folder), "--wait"], tmp_path)
    assert stopped.end() == 0, stopped.text
    codes = [(log.parent / f"node-{node}.exit").read_text() for node in (0, 1)]
    assert codes == ["75\n", "75\n"], log.read_text()
    assert nothing_is_left(hosts)

    again = submit(config, hosts, ssh, place=place, folder=tmp_path)
    assert again.end(LATE_S) == 0, again.text
    assert read_info(Storage(config.out)).fingerprint == read_info(Storage(alone.out)).fingerprint
    assert nothing_is_left(hosts)
