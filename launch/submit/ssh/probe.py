"""What one host says of itself. Its text is sent there and run by that host's Python: nothing else is needed.

As a command on a node, `interface ADDRESS` prints the interface by which that address is reached.
Imports the standard library alone, and nothing of foreframe, which may be missing there.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import platform
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SIOCGIFCONF = 0x8912  # of linux/sockios.h: the addresses of all interfaces
IFREQ_BYTES, MOST_ADDRESSES = 40, 1024
PORTS = range(20_000, 32_000)  # below those that the system hands out by itself


def probe(asked: dict[str, Any]) -> dict[str, Any]:
    """asked: workdir, packages, paths; folders, each with a file in it, its content, seconds to wait for it.

    Of the folders: None where all is well, else "unseen", or why nothing can be written there.
    """
    server = os.environ.get("SSH_CONNECTION", "").split()
    return {
        "versions": versions(asked["packages"]),
        "has_workdir": os.path.isdir(asked["workdir"]),
        "folders": [written(folder) if sees(*token) else "unseen" for folder, *token in asked["folders"]],
        "missing": [path for path in asked["paths"] if not os.path.exists(path)],
        "gpus": gpus(),
        "address": server[2] if len(server) == 4 else None,
    }


def versions(packages: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def sees(path: str, content: str, within_s: float) -> bool:
    """Whether a file that another machine has just written is seen here, soon."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return Path(path).read_text() == content
        except OSError:
            if not os.path.isdir(os.path.dirname(path)) or time.monotonic() > deadline_s:
                return False
            time.sleep(0.2)


def written(folder: str) -> str | None:
    """Why nothing can be written in a folder, or None; nothing stays in it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"foreframe")
    except OSError as error:
        return error.strerror or str(error)
    return None


def gpus() -> int:
    """NVIDIA's, as its driver lists them."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
        return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    except (OSError, subprocess.SubprocessError):
        return sum(entry.name[6:].isdigit() for entry in Path("/dev").glob("nvidia[0-9]*"))


def meeting(asked: dict[str, Any]) -> dict[str, Any]:
    """How the first host is reached from here: the interface, or why there is none.

    Of the first host itself also a port that is free: the one that is asked for, or any.
    """
    found: dict[str, Any] = {"interface": None, "problem": None, "port": None}
    try:
        found["interface"] = interface_to(asked["address"])
    except OSError as error:
        found["problem"] = f"has no way to {asked['address']}: {error.strerror or error}"
    if asked["is_first"]:
        found["is_own"] = is_own(asked["address"])
        found["port"] = free_port(asked["port"])
    return found


def interface_to(address: str) -> str | None:
    """The interface by which an address is reached, of this machine's own the one that has it.

    None where the system does not say. Raises: OSError without a way to it.
    """
    family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect(target)  # sends nothing
        own = way.getsockname()[0].partition("%")[0]
    return interfaces().get(own)


def is_own(address: str) -> bool:
    """Whether an address is one of this machine's."""
    family, _, _, _, target = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as own:
        try:
            own.bind(target)
        except OSError:
            return False
    return True


def interfaces() -> dict[str, str]:
    """The interface of each of this machine's addresses; Linux only, elsewhere none."""
    if not sys.platform.startswith("linux"):
        return {}
    space = array.array("B", bytes(IFREQ_BYTES * MOST_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        request = struct.pack("iL", len(space), space.buffer_info()[0])
        length = struct.unpack("iL", fcntl.ioctl(any_.fileno(), SIOCGIFCONF, request))[0]
    found = {}
    for begin in range(0, length, IFREQ_BYTES):
        row = space[begin : begin + IFREQ_BYTES].tobytes()
        name = row[:16].rstrip(b"\0").decode().partition(":")[0]  # eth0:1 is a second address of eth0
        found[socket.inet_ntoa(row[20:24])] = name
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        digits, *_, name = line.split()
        found[socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))] = name
    return found


def free_port(wanted: int | None) -> int | None:
    """A port that nobody listens on; None when the one that is wanted is taken."""
    candidates = [wanted] if wanted is not None else random.sample(PORTS, 100)
    return next((port for port in candidates if _is_free(port)), None)


def _is_free(port: int) -> bool:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    what, given = sys.argv[1:3]
    if what == "interface":
        try:
            print(interface_to(given.strip("[]")) or "")
        except OSError as error:
            sys.exit(f"this host has no way to the first one at {given}: {error.strerror or error}")
    else:
        print(json.dumps({"probe": probe, "meeting": meeting}[what](json.loads(given))))
