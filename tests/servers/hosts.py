"""Two hosts on one machine: network namespaces with an address each, a link between them, an sshd in each.

They need root, iproute2, and for sshd Debian's openssh-server; tests that ask for them skip without. Files
are shared, as by hosts that mount the same folders; the keys and settings of ssh lie in a test's own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import READY_WITHIN_S, die_with_parent

LINK = "ffnet"  # the interface's name on either host
ADDRESSES = ("10.99.0.10", "10.99.0.11")
ENDED_WITHIN_S = 30.0
CLONE_NEWNET = 0x40000000  # of linux/sched.h
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    """A network namespace. name: as `ip netns` knows it."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """What runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def unplug(self) -> None:
        """Cut its link: both hosts lose each other, and neither is told."""
        _ip("-n", self.name, "link", "set", LINK, "down")

    def plug_in(self) -> None:
        _ip("-n", self.name, "link", "set", LINK, "up")

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is on this host until the end of the block."""
        with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{self.name}") as there:
            _set_network(there.fileno())
            try:
                yield
            finally:
                _set_network(own.fileno())

    def hide(self, folder: Path) -> None:
        """What its sshd starts finds an empty folder of its own there."""
        self._mount("-t", "tmpfs", "none", str(folder))

    def replace(self, path: Path, by: Path) -> None:
        """What its sshd starts finds another file there."""
        self._mount("--bind", str(by), str(path))

    def _mount(self, *words: str) -> None:
        sshd = str(self.pids()[0])
        subprocess.run(["nsenter", "--mount", "--target", sshd, "mount", *words], check=True)

    def end_all(self) -> None:
        """SIGKILL to whatever runs on it, until nothing does."""
        deadline_s = time.monotonic() + ENDED_WITHIN_S
        while pids := self.pids():
            assert time.monotonic() < deadline_s, f"still on {self.name}: {pids}"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _set_network(namespace: int) -> None:
    if _LIBC.setns(namespace, CLONE_NEWNET) != 0:  # os.setns comes with Python 3.12
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def need(*commands: str) -> None:
    """Skip the test where it is not run by root, or a command is not there."""
    packages = {"ip": "iproute2", "tc": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client"}
    missing = [packages.get(name, name) for name in commands if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs two hosts: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make two hosts of network namespaces")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other, until the end of the block; what runs there is then ended.

    Skips the test where they cannot be made.
    """
    need("ip")
    first, second = (
        Host(f"ff{os.getpid()}{letter}", address) for letter, address in zip("ab", ADDRESSES, strict=True)
    )
    with ExitStack() as made:
        try:
            for host in (first, second):
                _ip("netns", "add", host.name)
                made.callback(_ip, "netns", "del", host.name)
                made.callback(host.end_all)
            ends = [("name", LINK, "netns", host.name) for host in (first, second)]
            _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for host in (first, second):
                _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", LINK)
                _ip("-n", host.name, "link", "set", "lo", "up")
                host.plug_in()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield first, second


@dataclass(frozen=True)
class Session:
    """A command that an sshd ran. address: at which it was reached."""

    address: str
    exit_code: int


@dataclass(frozen=True)
class Ssh:
    """How root of either host reaches both. config: for `ssh -F`, with keys and known hosts of its own."""

    config: Path

    def sessions(self, host: Host) -> list[Session]:
        """The commands that have ended there, in the order of their ends."""
        ended = self.config.with_name(f"{host.name}.sessions")
        rows = [line.split() for line in ended.read_text().splitlines()] if ended.exists() else []
        return [Session(address, int(code)) for address, code in rows]


@contextmanager
def sshd_on_each(hosts: tuple[Host, Host], folder: Path) -> Iterator[Ssh]:
    """An sshd on port 22 of each host until the end of the block; nothing under /etc or ~/.ssh is used.

    Each has process ids of its own too, as machines have: DeepSpeed's launcher ends jobs by `pkill`.
    """
    need("sshd", "ssh", "ssh-keygen", "unshare")
    ssh = Ssh(folder / "config")
    for name in ("user", *(host.name for host in hosts)):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    known = [f"{host.address} {(folder / host.name).with_suffix('.pub').read_text()}" for host in hosts]
    (folder / "known_hosts").write_text("".join(known))
    ssh.config.write_text(CLIENT.format(folder=folder))
    with ExitStack() as running:
        for host in hosts:
            settings = SERVER.format(folder=folder, name=host.name, address=host.address)
            (folder / f"{host.name}.conf").write_text(settings)
            session = folder / f"{host.name}.sh"
            session.write_text(SESSION.format(ended=folder / f"{host.name}.sessions"))
            session.chmod(0o755)
            running.enter_context(_sshd(host, folder))
        yield ssh


@contextmanager
def _sshd(host: Host, folder: Path) -> Iterator[None]:
    # /run is its own, for the empty folder that sshd needs there.
    start = f"mount -t tmpfs none /run && mkdir /run/sshd && exec {shutil.which('sshd')} -D -e -f $0"
    own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    log = folder / f"{host.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            host.command(*own, "sh", "-c", start, str(folder / f"{host.name}.conf")),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # and with its first process everything that sshd has started
        )
    try:
        deadline_s = time.monotonic() + READY_WITHIN_S
        while "Server listening" not in log.read_text():
            is_late = time.monotonic() > deadline_s
            assert process.poll() is None and not is_late, f"sshd did not start:\n{log.read_text()}"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


CLIENT = """\
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
StrictHostKeyChecking yes
BatchMode yes
"""
SERVER = """\
ListenAddress {address}
HostKey {folder}/{name}
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PermitUserRC no
PrintMotd no
PrintLastLog no
ForceCommand {folder}/{name}.sh
"""
SESSION = """\
#!/bin/sh
sh -c "$SSH_ORIGINAL_COMMAND"
code=$?
echo "$SSH_CONNECTION" $code | cut -d ' ' -f 3,5 >> {ended}
exit $code
"""


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other; for the test alone."""
    with two_hosts() as made:
        yield made


@pytest.fixture
def ssh(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    """An sshd on each of the test's hosts."""
    with sshd_on_each(hosts, tmp_path_factory.mktemp("ssh")) as made:
        yield made
