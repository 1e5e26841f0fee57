"""Commands over the system's ssh: real sshd on two hosts, and what is said of hosts that do not answer."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from launch import remote
from launch.remote import run_on
from tests.servers.hosts import Host, Ssh


def problem_of(text: str | None) -> str:
    assert text is not None
    return text


@pytest.mark.cluster
def test_each_host_runs_its_command_and_every_failure_is_told_by_itself(
    hosts: tuple[Host, Host], ssh: Ssh
) -> None:
    first, second = (host.address for host in hosts)
    commands = {first: "cat; echo $((6 * 7)); echo oops >&2; exit 3", second: "sleep 30"}
    with hosts[0].entered():
        ran = run_on([first, second], commands, timeout_s=1.5, ssh_config=ssh.config, input='it\'s "fed"\n')
    assert list(ran) == [first, second]
    assert (ran[first].exit_code, ran[first].out, ran[first].err) == (3, 'it\'s "fed"\n42\n', "oops\n")
    assert ran[first].problem is None and ran[first].last_line == "oops"
    assert ran[second].exit_code is None
    assert ran[second].problem == f"{second}: not done within 1.5 s"
    deadline_s = time.monotonic() + 30
    while any(_is_running(pid, "sleep") for pid in hosts[1].pids()):  # it was ended there, too
        assert time.monotonic() < deadline_s
        time.sleep(0.05)

    known = ssh.config.with_name("known_hosts")
    lines = known.read_text().splitlines()
    own, other = (line.split(" ", 1)[1] for line in lines)
    known.write_text(f"{first} {other}\n")
    with hosts[0].entered():
        ran = run_on([first, second], "true", timeout_s=20, ssh_config=ssh.config)
    assert "its host key is another than the known one" in problem_of(ran[first].problem)
    assert f"ssh-keygen -R {first}" in problem_of(ran[first].problem)
    assert "its host key is not known here" in problem_of(ran[second].problem)
    known.write_text(f"{first} {own}\n{second} {other}\n")
    strangers_key = ssh.config.with_name(hosts[0].name)  # a key, and not the one that is let in
    ssh.config.write_text(ssh.config.read_text().replace("/user\n", f"/{strangers_key.name}\n"))
    with hosts[0].entered():
        ran = run_on([first, "no-such-host.invalid"], "true", timeout_s=20, ssh_config=ssh.config)
    assert f"{first}: it refuses the login" in problem_of(ran[first].problem)
    unknown = problem_of(ran["no-such-host.invalid"].problem)
    assert unknown.startswith("no-such-host.invalid: there is no host of that name")


def _is_running(pid: int, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


@pytest.mark.cluster
def test_a_host_that_is_cut_off_is_told_and_the_others_are_heard(
    hosts: tuple[Host, Host], ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CONNECT_S", 1)
    first, second = (host.address for host in hosts)
    hosts[1].unplug()
    with hosts[0].entered():
        ran = run_on([first, second], "echo here", timeout_s=20, ssh_config=ssh.config)
    assert ran[first].out == "here\n"
    assert problem_of(ran[second].problem).startswith(f"{second}: it cannot be reached")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_connection_that_is_lost_ends_the_wait(
    hosts: tuple[Host, Host], ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LOST_AFTER_S", 3)
    second = hosts[1].address
    cut = threading.Timer(1.5, hosts[1].unplug)
    cut.start()
    with hosts[0].entered():
        ran = run_on([second], "echo begun; sleep 60", timeout_s=50, ssh_config=ssh.config)
    cut.join()
    assert ran[second].out == "begun\n" and ran[second].exit_code is None
    assert problem_of(ran[second].problem) == f"{second}: the connection was lost"


@pytest.mark.cluster
def test_a_ctrl_c_leaves_no_ssh_behind(hosts: tuple[Host, Host], ssh: Ssh) -> None:
    first = hosts[0].address
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with hosts[0].entered(), pytest.raises(KeyboardInterrupt):
            run_on([first], "sleep 50", timeout_s=100, ssh_config=ssh.config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [pid for pid in hosts[0].pids() if _is_running(pid, "ssh")]


def test_a_port_where_nothing_listens_is_told_as_that(tmp_path: Path) -> None:
    need_ssh()
    config = tmp_path / "config"
    config.write_text("Host here\n  HostName 127.0.0.1\n  Port 1\n")
    ran = run_on(["here"], "true", timeout_s=20, ssh_config=config)
    assert ran["here"].exit_code is None
    assert problem_of(ran["here"].problem).startswith("here: it is there and nothing answers on ssh's port")


def need_ssh() -> None:
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh: apt-get install openssh-client")


@pytest.mark.parametrize("name", ["-oProxyCommand=touch /tmp/x", "", "a b"])
def test_what_cannot_be_a_host_is_refused(name: str) -> None:
    need_ssh()
    with pytest.raises(UsageError, match="cannot be the name of a host"):
        run_on([name], "true", timeout_s=1)
