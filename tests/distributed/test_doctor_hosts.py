"""`foreframe doctor --hosts` on two hosts with an sshd each: what differs, what is cut, what is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers.hosts import ADDRESSES, LINK, Host, Ssh, need

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
ENDED_WITHIN_S = 60.0


@contextmanager
def doctor(
    hosts: Sequence[Host], ssh: Ssh, *words: str, root: Path = ROOT
) -> Iterator[subprocess.Popen[str]]:
    """The command at work on the first host."""
    command = [sys.executable, "-m", "launch", "doctor", "--quick", "--ssh-config", str(ssh.config), *words]
    process = subprocess.Popen(
        hosts[0].command(*command),
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(hosts: Sequence[Host], ssh: Ssh, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the JSON."""
    with doctor(hosts, ssh, *words, "--json") as process:
        out, err = process.communicate(timeout=280)
    assert out, err
    return process.returncode, json.loads(out)


def lines_of(found: dict[str, Any], group: str) -> dict[str, dict[str, str]]:
    """{name: line} of a group."""
    return {each["name"]: each for each in _group(found, group)}


def _group(found: dict[str, Any], name: str) -> list[dict[str, str]]:
    return next(group["checks"] for group in found["groups"] if group["name"] == name)


def names_of(hosts: Sequence[Host]) -> str:
    return ",".join(host.address for host in hosts)


def ours_on(host: Host) -> list[str]:
    """Command lines of foreframe's processes there, without sshd's and the asking doctor's."""
    found = []
    for pid in host.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has ended
        if any(word.startswith("launch") for word in words) and "--hosts" not in words and words[0] != "sh":
            found.append(" ".join(words))
    return found


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    deadline_s = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def test_two_hosts_that_are_well_pass_and_their_link_is_measured(
    hosts: tuple[Host, Host], ssh: Ssh, tmp_path: Path
) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    code, found = run(hosts, ssh, "--hosts", str(hostfile))
    assert (code, found["passed"]) == (0, True), found
    assert [line["state"] for line in _group(found, "hosts")] == ["pass", "pass"]
    between = lines_of(found, "between hosts")
    assert {name: between[name]["state"] for name in ("versions", "links", "clocks")} == {
        "versions": "pass",
        "links": "pass",
        "clocks": "pass",
    }
    assert "the link: all-reduce of two" in between["links"]["found"]
    assert set(found["hosts"]) == {host.address for host in hosts}
    # Each looked at itself: the interface to name is that of the hosts' link, not the machine's own.
    for report in found["hosts"].values():
        (name,) = [
            each for group in report["groups"] for each in group["checks"] if each["name"] == "hostname"
        ]
        assert "GLOO_SOCKET_IFNAME=ffnet" in name["remedy"]
    assert wait_until(lambda: not any(map(ours_on, hosts)), 10)


def test_a_link_is_as_fast_as_the_kernel_lets_it_be(hosts: tuple[Host, Host], ssh: Ssh) -> None:
    """200 Mbit/s, which tc's token buckets hold to exactly, less what headers take."""
    need("tc")
    for host in hosts:
        slow = [
            "qdisc",
            "add",
            "dev",
            LINK,
            "root",
            "tbf",
            "rate",
            "200mbit",
            "burst",
            "64kb",
            "latency",
            "50ms",
        ]
        made = subprocess.run(host.command("tc", *slow), capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"this kernel slows no link: {made.stderr.strip()}")
    _, found = run(hosts, ssh, "--hosts", names_of(hosts))
    (speed,) = re.findall(r"([\d.]+) Gbit/s", lines_of(found, "between hosts")["links"]["found"])
    assert 0.12 < float(speed) < 0.21


def test_other_code_on_one_host_and_a_host_that_is_none_are_told_and_the_others_still(
    hosts: tuple[Host, Host], ssh: Ssh, tmp_path: Path
) -> None:
    """The second host has its own root for the code: a copy in which one file differs."""
    other = tmp_path / "other"
    for name in ("data_pipeline", "pretrain", "launch", "configs"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "pretrain" / "rng.py").open("a").write("# another version\n")
    session = ssh.config.with_name(f"{hosts[1].name}.sh")
    mounted = f'unshare --mount sh -c "mount --bind {other} {ROOT} && $SSH_ORIGINAL_COMMAND"'
    session.write_text(f"#!/bin/sh\nexport SSH_ORIGINAL_COMMAND\nexec {mounted}\n")
    code, found = run(hosts, ssh, "--hosts", f"{names_of(hosts)},10.99.0.99")
    assert (code, found["passed"]) == (2, False)
    told = lines_of(found, "hosts")
    assert [told[host.address]["state"] for host in hosts] == ["pass", "pass"]
    assert told["10.99.0.99"]["state"] == "fail"
    assert "cannot be reached" in told["10.99.0.99"]["found"]
    between = lines_of(found, "between hosts")
    assert between["foreframe's code"]["state"] == "fail"
    assert all(host.address in between["foreframe's code"]["found"] for host in hosts)
    assert between["links"]["state"] == "pass"
    assert found["hosts"]["10.99.0.99"] is None


def test_a_link_that_is_cut_during_the_round_trip_is_named_and_nothing_is_left_running(
    hosts: tuple[Host, Host], ssh: Ssh
) -> None:
    with doctor(hosts, ssh, "--hosts", names_of(hosts), "--json") as process:

        def tries_the_link() -> bool:
            return any("launch.doctor.link" in each and ADDRESSES[0] in each for each in ours_on(hosts[1]))

        assert wait_until(tries_the_link, 200)
        hosts[1].unplug()
        out, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    between = lines_of(json.loads(out), "between hosts")
    broken = between[f"{hosts[0].address} – {hosts[1].address}"]
    assert broken["state"] == "fail", between
    assert hosts[1].address in between, between
    assert wait_until(lambda: not any(map(ours_on, hosts)), ENDED_WITHIN_S), list(map(ours_on, hosts))


def test_ctrl_c_leaves_nothing_on_any_host(hosts: tuple[Host, Host], ssh: Ssh) -> None:
    with doctor(hosts, ssh, "--hosts", names_of(hosts)) as process:
        assert wait_until(lambda: all(map(ours_on, hosts)), 100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert wait_until(lambda: not any(map(ours_on, hosts)), 15), list(map(ours_on, hosts))
