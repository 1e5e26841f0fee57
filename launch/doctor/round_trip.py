"""Round trips between processes of this machine, and what measured links mean."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from launch.doctor.check import Check
from launch.doctor.link import ALL, Link, Plan
from launch.figures import in_bytes
from launch.submit.freeze import HERE

LOCAL_S = 60.0
FULL_BYTES, QUICK_BYTES = 64 << 20, 8 << 20
SLOW_SHARE = 0.5  # of the median: a link below it holds up every step of all
SLOW_LATENCY_S = 0.005
SKEWED_S = 1.0


def links_in(text: str) -> list[Link]:
    """The links that a process printed; other lines are passed over."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"rank"'):
            try:
                found.append(Link(**json.loads(line)))
            except (ValueError, TypeError):
                continue  # cut short by the end of the connection
    return found


def rate(bytes_per_s: float) -> str:
    """As networks are spoken of: 0.9 Gbit/s."""
    bits = 8 * bytes_per_s / 1e9
    return f"{bits:.{0 if bits >= 20 else 1 if bits >= 1 else 3}f} Gbit/s"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f} ms"


def describe(link: Link) -> str:
    """`0.20 ms, 9.4 Gbit/s`."""
    assert link.latency_s is not None
    assert link.bytes_per_s is not None
    return f"{milliseconds(link.latency_s)}, {rate(link.bytes_per_s)}"


def check_local(backend: str, links: Sequence[Link], said: str) -> Check:
    """The line for two processes here. said: what they printed beside their links."""
    name = f"{backend} here"
    good = [link for link in links if link.problem is None]
    if good:
        latency = milliseconds(good[0].latency_s or 0.0)
        speed = in_bytes(good[0].bytes_per_s or 0.0)
        found = f"two processes: all-reduce {latency}, {speed}/s"
        return Check(name, "pass", found)
    problem = next((link.problem for link in links if link.problem), "") or said or "no answer"
    remedy = (
        "GLOO_SOCKET_IFNAME=lo for one machine; see the line `hostname`"
        if backend == "gloo"
        else "NCCL_DEBUG=INFO says why; `foreframe smoke --device cuda` tries one GPU"
    )
    return Check(name, "fail", f"two processes do not reach each other: {problem}", remedy)


def run_local(backend: str, *, is_quick: bool) -> Check:
    """Two processes on this machine, as two ranks would be."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        ports = (first.getsockname()[1], second.getsockname()[1])
    plan = Plan(
        0,
        ("127.0.0.1", "127.0.0.1"),
        ports,
        backend,
        num_bytes=QUICK_BYTES if is_quick else FULL_BYTES,
        pair_s=LOCAL_S / 2,
        limit_s=LOCAL_S,
    )
    started = []
    try:
        for rank in range(2):
            own = replace(plan, rank=rank, device=rank)
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "launch.doctor.link", json.dumps(asdict(own))],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    env={**os.environ, "PYTHONPATH": path_for_code(), "OMP_NUM_THREADS": "1"},
                )
            )
        printed = [process.communicate(timeout=LOCAL_S + 5) for process in started]
    except subprocess.TimeoutExpired:
        return check_local(backend, [], f"nothing within {LOCAL_S:.0f} s")
    finally:
        for process in started:
            process.kill()
            process.wait()
    lines = [line for _, err in printed for line in err.splitlines() if line.strip()]
    return check_local(
        backend, [link for out, _ in printed for link in links_in(out)], lines[-1] if lines else ""
    )


def path_for_code() -> str:
    """PYTHONPATH that runs this very code elsewhere, before what stood there."""
    before = os.environ.get("PYTHONPATH")
    return f"{HERE}{os.pathsep}{before}" if before else str(HERE)


def check_links(hosts: Sequence[str], links: Sequence[Link]) -> list[Check]:
    """What the links between hosts are like: one line for all that are well, one for each that is not.

    links: of every two, each told by one or both of them; one that only one side finds broken is broken.
    """
    told: dict[tuple[int, int], list[Link]] = {}
    for link in links:
        if link.peer != ALL:
            told.setdefault((min(link.rank, link.peer), max(link.rank, link.peer)), []).append(link)
    broken = {pair: _problem(each) for pair, each in told.items() if any(link.problem for link in each)}
    good = {pair: each[0] for pair, each in told.items() if pair not in broken}
    for pair in _every_two(len(hosts)):
        if pair not in told:
            broken[pair] = "neither of them told of it"
    speeds = {pair: link.bytes_per_s or 0.0 for pair, link in good.items()}
    usual = statistics.median(speeds.values()) if speeds else 0.0
    slow = [pair for pair, speed in speeds.items() if speed < SLOW_SHARE * usual]
    late = [pair for pair, link in good.items() if (link.latency_s or 0.0) > SLOW_LATENCY_S]
    checks = [_summary(len(hosts), good)] if good else []
    for pair, problem in sorted(broken.items()):
        checks.append(
            Check(
                _between(hosts, pair),
                "fail",
                problem,
                f"open ports between them (firewall), see the cable or switch; both must resolve "
                f"{hosts[pair[0]]} and {hosts[pair[1]]} to addresses of one network",
            )
        )
    for pair in slow:
        found = f"{describe(good[pair])}, where the median is {rate(usual)}"
        remedy = "see the cable, the port's speed (`ethtool IF`) and other traffic: every step waits for it"
        checks.append(Check(_between(hosts, pair), "warn", found, remedy))
    for pair in sorted(set(late) - set(slow)):
        remedy = "machines of one job should stand in one room"
        checks.append(Check(_between(hosts, pair), "warn", describe(good[pair]), remedy))
    return [*checks, *_clocks(hosts, good)]


def check_all(count: int, links: Sequence[Link]) -> Check:
    """The line of a round trip of all hosts together."""
    name = f"all {count} together"
    problems = [link.problem for link in links if link.problem]
    if problems or not links:
        found = problems[0] if problems else "no answer"
        return Check(name, "fail", found, "the lines above name links that fail; else run it again")
    slowest = min(links, key=lambda link: link.bytes_per_s or 0.0)
    return Check(name, "pass", f"all-reduce {describe(slowest)}")


def _problem(links: Sequence[Link]) -> str:
    """The more telling of both sides' words."""
    said = [link.problem for link in links if link.problem]
    return next((text for text in said if "waiting" not in text), said[0])


def _every_two(count: int) -> list[tuple[int, int]]:
    return [(low, high) for low in range(count) for high in range(low + 1, count)]


def _between(hosts: Sequence[str], pair: tuple[int, int]) -> str:
    return f"{hosts[pair[0]]} – {hosts[pair[1]]}"


def _summary(num_hosts: int, good: dict[tuple[int, int], Link]) -> Check:
    latencies = sorted(link.latency_s or 0.0 for link in good.values())
    speeds = sorted(link.bytes_per_s or 0.0 for link in good.values())
    every = num_hosts * (num_hosts - 1) // 2
    count = "the link" if every == 1 else f"{len(good)} of {every} links"
    spans = [
        words(ends[0]) if len(good) == 1 else f"{words(ends[0])} to {words(ends[-1])}"
        for words, ends in ((milliseconds, latencies), (rate, speeds))
    ]
    return Check("links", "pass", f"{count}: all-reduce of two {spans[0]}, {spans[1]}")


def _clocks(hosts: Sequence[str], good: dict[tuple[int, int], Link]) -> list[Check]:
    """Clocks of hosts against each other, from links that work."""
    skews = {
        pair: link.skew_s * (1 if link.rank == pair[0] else -1)
        for pair, link in good.items()
        if link.skew_s is not None
    }
    if not skews:
        return []
    worst = max(skews, key=lambda pair: abs(skews[pair]))
    off_s = skews[worst]
    if abs(off_s) < SKEWED_S:
        return [Check("clocks", "pass", f"within {milliseconds(abs(off_s))} of each other")]
    ahead, behind = (worst[1], worst[0]) if off_s > 0 else worst
    found = f"{hosts[ahead]} is {abs(off_s):.1f} s ahead of {hosts[behind]}"
    return [Check("clocks", "warn", found, "start chrony or systemd-timesyncd on both")]
