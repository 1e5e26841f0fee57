"""This machine's name, interfaces, ports and clock."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.doctor.check import Check

RENDEZVOUS = range(29400, 29410)
PORTS = {"MLflow": (5000,), "Ray": (6379, 8265), "rendezvous": tuple(RENDEZVOUS)}
GET_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h
CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of sys/timex.h
TIMEX_BYTES = 256  # struct timex takes 208


def interfaces() -> dict[str, str]:
    """{name: IPv4 address} of the interfaces that have one, the loopback's too."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(asking, GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # without an IPv4 address
            found[name] = socket.inet_ntoa(told[20:24])
    return found


def default_interface(routes: str) -> str | None:
    """The interface of the default route, from /proc/net/route."""
    rows = (line.split() for line in routes.splitlines()[1:])
    return next((row[0] for row in rows if len(row) > 1 and row[1] == "00000000"), None)


def interface_to_name(addresses: Mapping[str, str], default: str | None) -> str | None:
    """Which interface ranks of other machines are best reached through; None when there is only loopback."""
    outside = [name for name, address in addresses.items() if not address.startswith("127.")]
    return default if default in outside else next(iter(outside), None)


def resolve(name: str) -> list[str]:
    """The addresses that this machine's own name stands for; empty when it is not known."""
    try:
        return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(name, None)))
    except OSError:
        return []


def check_hostname(
    name: str, resolved: Sequence[str], addresses: Mapping[str, str], named: str | None, best: str | None
) -> Check:
    """Whether ranks of other machines would be told an address at which they reach this one.

    resolved: what its name stands for; addresses: of its interfaces; named: GLOO_SOCKET_IFNAME; best: the
    interface to name.
    """
    if named:
        missing = [each for each in named.split(",") if each not in addresses]
        if missing:
            there = " or ".join(addresses) or "none"
            found = f"GLOO_SOCKET_IFNAME is {named}: no interface {missing[0]} with an IPv4 address"
            return Check("hostname", "fail", found, f"set it to {there}, or unset it")
        return Check("hostname", "pass", f"{name}; gloo uses {named} ({addresses[named.split(',')[0]]})")
    if best is None:
        return Check("hostname", "pass", f"{name}; no network but loopback, so one machine alone")
    remedy = f"over several machines: env.GLOO_SOCKET_IFNAME={best}, or its address in /etc/hosts"
    if not resolved:
        return Check("hostname", "warn", f"{name} stands for no address", remedy)
    if all(address.startswith("127.") or address == "::1" for address in resolved):
        found = f"{name} stands for {resolved[0]}: gloo would tell other machines that address"
        return Check("hostname", "warn", found, remedy)
    return Check("hostname", "pass", f"{name} is {resolved[0]}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of all interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind(("", port))
            trying.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def check_ports(
    ports: Mapping[str, Sequence[int]] = PORTS, free: Callable[[int], bool] = is_free
) -> list[Check]:
    """Ports that servers of a job ask for: of a range one is enough, of others each."""
    others: list[str] = []
    checks = []
    for use, wanted in ports.items():
        taken = [port for port in wanted if not free(port)]
        if use == "rendezvous":
            left = [port for port in wanted if port not in taken]
            if not left:
                found = f"{wanted[0]}–{wanted[-1]} are all taken"
                checks.append(Check("ports", "fail", found, "name another port: --rendezvous HOST:PORT"))
                continue
            others.append(f"{left[0]} for --rendezvous")
            continue
        others += [f"{port} for {use}" for port in wanted if port not in taken]
        if taken:
            found = f"{' and '.join(map(str, taken))} ({use}) taken"
            remedy = f"`ss -ltnp 'sport = :{taken[0]}'` says by whom; or use another port"
            checks.append(Check("ports", "warn", found, remedy))
    return [Check("ports", "pass", f"free: {', '.join(others)}"), *checks] if others else checks


def free_ports(count: int, wanted: Sequence[int] = RENDEZVOUS) -> list[int]:
    """Ports of the rendezvous range that are free now; the first `count`."""
    return [port for port in wanted if is_free(port)][:count]


def is_clock_synchronised() -> bool | None:
    """What the kernel says of its clock; None where it cannot be asked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))  # all zero: nothing is changed
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != CLOCK_UNSYNCHRONISED


def check_clock(synchronised: bool | None) -> Check:
    """Whether a time service keeps this machine's clock."""
    if synchronised is None:
        return Check("clock", "skipped", "the kernel does not tell whether it is kept")
    if synchronised:
        return Check("clock", "pass", "kept by a time service")
    remedy = "start chrony or systemd-timesyncd: S3 refuses requests that are 15 minutes off, logs lie"
    return Check("clock", "warn", "no time service keeps it, as far as the kernel knows", remedy)


def look_at_hostname() -> Check:
    """`check_hostname` of this machine."""
    name, addresses = socket.gethostname(), interfaces()
    routes = Path("/proc/net/route")
    default = default_interface(routes.read_text()) if routes.exists() else None
    best = interface_to_name(addresses, default)
    return check_hostname(name, resolve(name), addresses, os.environ.get("GLOO_SOCKET_IFNAME"), best)
