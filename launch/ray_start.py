"""Ray's own processes on one machine: started at an address of it, in a folder that goes with them."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from data_pipeline.errors import UsageError, why
from data_pipeline.execute import OBJECT_STORE_BYTES, ray_environment
from data_pipeline.scratch import scratch_folder

# Below its folder Ray makes sockets such as session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store
SOCKET_CHARACTERS, LONGEST_SOCKET = 70, 107
NOWHERE = ("192.0.2.1", 9)  # an address of documentation, RFC 5737: nothing is sent to it
LOG_FILE, LOG_LINES = "ray.log", 12
ENDS_S = 10.0
TOKEN_S = 30.0


@contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for Ray of this job alone, gone in the end, short enough for the sockets in it."""
    is_short = len(tempfile.gettempdir()) + len("/foreframe-scratch-12345678") <= (
        LONGEST_SOCKET - SOCKET_CHARACTERS
    )
    with scratch_folder(None if is_short else Path("/tmp")) as folder:
        yield folder


def start_ray(folder: Path, arguments: Sequence[str], *, name: str, cpus: int) -> subprocess.Popen[bytes]:
    """Ray's processes, which end when this one does, however that happens.

    folder: for what they write. arguments: of `ray start`. name: of the node. cpus: tasks at a time.
    """
    words = [
        *("start", "--block", *arguments, f"--node-name={name}", f"--temp-dir={folder}"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        *("--min-worker-port=0", "--max-worker-port=0"),  # any that are free: others may run Ray here
        *(
            "--disable-usage-stats",
            "--include-log-monitor=false",
            *(["--no-monitor"] * ("--head" in arguments)),
        ),
    ]
    if find_spec("grpc"):  # Ray then serves `ray://` too, which nobody needs here, on port 10001 of every job
        words.append(f"--ray-client-server-port={free_port()}")
    command = [sys.executable, "-m", "launch.ray_start", str(os.getpid()), *words]
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **ray_environment(), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def use_token(*, is_first: bool) -> None:
    """Let in only who has the user's token: whoever reaches a Ray without one runs code as that user.

    Ray keeps it in ~/.ray/auth_token, or finds it as RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN say. The first
    node makes one where there is none. RAY_AUTH_MODE=disabled does without.
    Raises: UsageError when this node has none.
    """
    if os.environ.setdefault("RAY_AUTH_MODE", "token").lower() != "token":
        return
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.exceptions import AuthenticationError

    logging.getLogger("ray._private.authentication").setLevel(logging.WARNING)
    deadline_s = time.monotonic() + TOKEN_S
    while True:
        before = os.umask(0o077)  # Ray would let every user of the machine read it
        try:
            ensure_token_if_auth_enabled(create_token_if_missing=is_first)
            return
        except (AuthenticationError, RuntimeError) as error:
            if time.monotonic() > deadline_s:  # in a shared home it is there once the first made it
                raise UsageError(
                    "this node has no token of the Ray that the first node started: every node needs the "
                    "same ~/.ray/auth_token, or RAY_AUTH_TOKEN_PATH with the path of a copy. Where nobody "
                    "else reaches the network between the nodes, RAY_AUTH_MODE=disabled on all does without"
                ) from error
            time.sleep(1.0)
        finally:
            os.umask(before)


def last_words(folder: Path) -> str:
    """The end of what Ray's start printed, for a sentence that says it failed."""
    try:
        lines = [line.rstrip() for line in (folder / LOG_FILE).read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in [line for line in lines if line][-LOG_LINES:])


def cores_here() -> int:
    """Cores that this process may use: as it is pinned, and as a container's quota has it."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def own_address(host: str) -> str:
    """The address by which this machine is `host` for others.

    A name that only this machine takes for a loopback address (Debian's /etc/hosts has such a line) means
    the address it has on its network.
    Raises: UsageError when it is another machine's, or nobody's.
    """
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise UsageError(f"--rendezvous: there is no host {host}: {error.strerror}") from error
    found = sorted({str(row[4][0]) for row in rows}, key=lambda each: ":" in each)  # IPv4 first
    beyond = [address for address in found if not ip_address(address).is_loopback]
    if not beyond:
        is_meant = host in (*found, "localhost")
        return found[0] if is_meant else address_on_network(host)
    for address in beyond:
        if _is_ours(address):
            return address
    raise UsageError(
        f"--rendezvous: {host} is {beyond[0]}, which is no address of this machine: need one of the machine "
        f"that is started with --node-rank 0"
    )


def _is_ours(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as tried:
        try:
            tried.bind((address, 0))
        except OSError:
            return False
    return True


def address_on_network(host: str) -> str:
    """The address with which this machine goes out. Raises: UsageError when it has none but loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(NOWHERE)
            address = str(way.getsockname()[0])
            if not ip_address(address).is_loopback:
                return address
        except OSError:  # no way out: a network of its own
            pass
    import ray  # noqa: F401  brings psutil along
    import psutil  # isort: skip

    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            if entry.family == socket.AF_INET and not ip_address(entry.address).is_loopback:
                return str(entry.address)
    raise UsageError(
        f"--rendezvous: {host} is a loopback address here, and this machine has no other: others cannot "
        f"reach it; give an address that they can"
    )


def check_free(address: str, port: int) -> None:
    """Raises: UsageError when something listens there already."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
            tried.listen(1)
        except OSError as error:
            raise UsageError(
                f"--rendezvous: port {port} cannot be had on this machine: {why(error)}; give another"
            ) from error


def end_ray(process: subprocess.Popen[bytes]) -> None:
    """Ask Ray's processes here to end; what is left is for `processes.end_descendants`."""
    process.terminate()
    deadline_s = time.monotonic() + ENDS_S
    while process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)


def clear(folder: Path) -> None:
    """Remove what a Ray that ended left, before another is started there."""
    for session in folder.glob("session_*"):
        if session.is_symlink():
            session.unlink()
        else:
            shutil.rmtree(session, ignore_errors=True)


def _main() -> None:
    from launch.processes import die_with_parent

    die_with_parent(int(sys.argv[1]))
    from ray.scripts.scripts import main

    sys.argv = ["ray", *sys.argv[2:]]
    main()


if __name__ == "__main__":
    _main()
