"""One process of a round trip: it meets each of the others alone, and tells how fast the link is.

`python -m launch.doctor.link PLAN`, with the plan as JSON; a line of JSON is printed for every link as soon
as it has been tried. It ends by itself after the plan's limit, and when nobody reads its output any more: on
a machine that was reached over ssh nothing is left running, whatever happens to the connection.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launch.doctor.network import interfaces, resolve

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

NUM_SMALL, NUM_CLOCKS, NUM_LARGE = 20, 5, 2
FIRST_BYTES = 1 << 20
LARGE_S = 1.0  # that one large all-reduce may take: a slow link is tried with less
POLL_S = 0.1
ALL = -1  # the peer of the round trip that all take part in


@dataclass(frozen=True)
class Plan:
    """Who takes part, and which of them this is.

    rank: this one, -1 for all; addresses, ports: by rank, at which the others find it. backend: gloo or nccl;
    device: of the GPU. num_bytes: at most, of a large all-reduce. pair_s: for one link; limit_s: for all.
    is_pairwise: each two alone; else all together. finds_interface: gloo uses the one that holds this rank's
    address, unless GLOO_SOCKET_IFNAME names another.
    """

    rank: int
    addresses: tuple[str, ...]
    ports: tuple[int, ...]
    backend: str = "gloo"
    device: int = 0
    num_bytes: int = 64 << 20
    pair_s: float = 15.0
    limit_s: float = 120.0
    is_pairwise: bool = True
    finds_interface: bool = False

    @property
    def world_size(self) -> int:
        return len(self.addresses)


@dataclass(frozen=True)
class Link:
    """What two ranks found of the link between them; the lower one tells of both.

    latency_s: of a small all-reduce. bytes_per_s: of a large one, as each side sends (bus bandwidth).
    skew_s: the other's clock less this one's. problem: a sentence where it did not come to that.
    """

    rank: int
    peer: int
    latency_s: float | None = None
    bytes_per_s: float | None = None
    skew_s: float | None = None
    problem: str | None = None


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Every two of `count` ranks once, in rounds in which each has at most one partner.

    Source: the circle method of round-robin tournaments.
    """
    places = [*range(count), *([ALL] if count % 2 else [])]
    found = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = [(places[at], places[-1 - at]) for at in range(half)]
        found.append([(min(pair), max(pair)) for pair in pairs if ALL not in pair])
        places = [places[0], places[-1], *places[1:-1]]
    return found


def main(text: str) -> None:
    """Run a plan, printing its links."""
    plain = json.loads(text)
    plan = Plan(**{**plain, "addresses": tuple(plain["addresses"]), "ports": tuple(plain["ports"])})
    signal.alarm(max(1, round(plan.limit_s)))  # ends this process, though C++ may hold it
    end_with_reader()
    if plan.finds_interface and "GLOO_SOCKET_IFNAME" not in os.environ:
        found = interface_of(plan.addresses[plan.rank])
        if found is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = found
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a timeout is raised, not an abort
    own = serve(plan)
    begin_s = time.monotonic()
    if not plan.is_pairwise:
        tell(within(plan, ALL, own, plan.limit_s - 5.0))
    else:
        for number, pairs in enumerate(rounds(plan.world_size)):
            for pair in pairs:
                if plan.rank in pair:
                    peer = pair[0] if plan.rank == pair[1] else pair[1]
                    # Another's slow link may have held the peer up for as long as all rounds before.
                    late_s = begin_s + number * plan.pair_s - time.monotonic()
                    tell(within(plan, peer, own, plan.pair_s + max(0.0, late_s)))
    stay(plan, own)
    sys.stdout.flush()
    os._exit(0)  # threads of a link that was given up would hold the end


def end_with_reader() -> None:
    """End this process when nobody reads its output any more, as when an ssh connection has ended."""

    # Its own number: the first may be given another file meanwhile, as tests do that call a command.
    own = os.dup(sys.__stdout__.fileno() if sys.__stdout__ else 1)

    def wait() -> None:
        watch = select.poll()
        watch.register(own, 0)
        watch.poll()  # with no event asked for, only the other end's close is one
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def interface_of(host: str) -> str | None:
    """The interface of this machine that has an address of `host`; None when none has."""
    wanted = resolve(host)
    return next((name for name, address in interfaces().items() if address in wanted), None)


def tell(link: Link) -> None:
    print(json.dumps(asdict(link)), flush=True)


def serve(plan: Plan) -> Store:
    """This rank's store, at which those above it find it. Raises: SystemExit with a line when it cannot."""
    try:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        dual = family == socket.AF_INET6
        listening = socket.create_server(
            ("", plan.ports[plan.rank]), family=family, dualstack_ipv6=dual, backlog=64
        )
    except OSError as error:
        problem = f"port {plan.ports[plan.rank]} cannot be had: {error.strerror}"
        tell(Link(plan.rank, ALL, problem=problem))
        sys.exit(1)
    from torch.distributed import TCPStore  # after it listens: others may come while this takes seconds

    port = listening.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
        timeout=timedelta(seconds=plan.pair_s),
    )


def stay(plan: Plan, own: Store) -> None:
    """Keep the store until those that use it have said that they are done, at most as long as a link."""
    if plan.is_pairwise:
        names = [f"done-{above}" for above in range(plan.rank + 1, plan.world_size)]
    else:
        names = [f"done-{above}" for above in range(1, plan.world_size)] if plan.rank == 0 else []
    deadline_s = time.monotonic() + plan.pair_s / 3
    while names and not own.check(names) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def within(plan: Plan, peer: int, own: Store, limit_s: float) -> Link:
    """Try a link for so long; one that hangs is given up, with what it was doing."""
    doing = ["waiting for the other"]
    found: list[Link] = []

    def attempt() -> None:
        found.append(try_link(plan, peer, own, limit_s, doing))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(limit_s)
    return (
        found[0] if found else Link(plan.rank, peer, problem=f"nothing for {limit_s:.0f} s while {doing[0]}")
    )


def try_link(plan: Plan, peer: int, own: Store, limit_s: float, doing: list[str]) -> Link:
    """Meet a peer, or all, and measure. doing: told what is being done, for whoever gives this up."""
    from torch.distributed import PrefixStore

    first = 0 if peer == ALL else min(plan.rank, peer)
    members = list(range(plan.world_size)) if peer == ALL else sorted((plan.rank, peer))
    try:
        store = own if first == plan.rank else find(plan, first, limit_s)
        doing[0] = f"{plan.backend} connects the two"
        name = "-".join(map(str, members)) if peer != ALL else "all"
        group = make_group(plan, PrefixStore(name, store), members, limit_s)
        doing[0] = "sending"
        link = measure(plan, peer, group, members)
        if first != plan.rank:
            store.set(f"done-{plan.rank}", "")
        return link
    except OSError as error:
        host = f"{plan.addresses[first]}:{plan.ports[first]}"
        reason = error.strerror or str(error) or type(error).__name__
        return Link(plan.rank, peer, problem=f"{host} cannot be reached: {reason}")
    except (RuntimeError, ValueError) as error:  # torch's DistNetworkError, DistBackendError …
        said = " ".join(str(error).split())[:200]
        if re.search(r"time(d )?\s?out", said, re.IGNORECASE):  # with a store's keys, which say nothing
            return Link(plan.rank, peer, problem=f"nothing for {limit_s:.0f} s while {doing[0]}")
        return Link(plan.rank, peer, problem=f"failed while {doing[0]}: {said}")


def find(plan: Plan, rank: int, limit_s: float) -> Store:
    """Another rank's store, once it listens. Raises: OSError when it does not in time."""
    from torch.distributed import TCPStore

    where, deadline_s = (plan.addresses[rank], plan.ports[rank]), time.monotonic() + limit_s - 1.0
    while True:
        try:
            socket.create_connection(where, timeout=3.0).close()  # torch would print its attempts
            break
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)
    limit = timedelta(seconds=plan.pair_s)
    return TCPStore(*where, is_master=False, wait_for_workers=False, timeout=limit)


def make_group(plan: Plan, store: Store, members: list[int], limit_s: float) -> Any:
    """A process group of these ranks alone, beside others that may be broken."""
    import torch.distributed as dist

    own, limit = members.index(plan.rank), timedelta(seconds=max(1.0, limit_s - 1.0))
    if plan.backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        return dist.ProcessGroupNCCL(store, own, len(members), options)
    return dist.ProcessGroupGloo(store, own, len(members), limit)


def measure(plan: Plan, peer: int, group: Any, members: list[int]) -> Link:
    """Latency, bandwidth and clocks over a group."""
    import torch

    device = torch.device("cuda", plan.device) if plan.backend == "nccl" else torch.device("cpu")

    def reduce(tensor: Tensor) -> float:
        started_s = time.perf_counter()
        group.allreduce([tensor]).wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started_s

    small = torch.zeros(1, device=device)
    reduce(small)  # connections are made at the first use
    latency_s = statistics.median(reduce(small) for _ in range(NUM_SMALL))
    skew_s = skew(group, members.index(plan.rank), len(members), device)
    first_s = max(reduce(torch.zeros(FIRST_BYTES // 4, device=device)) for _ in range(2))
    fitting = int(min(plan.num_bytes, max(FIRST_BYTES, FIRST_BYTES * LARGE_S / first_s)))
    agreed = torch.tensor([fitting], device=device, dtype=torch.int64)
    group.broadcast([agreed]).wait()
    large = torch.zeros(int(agreed.item()) // 4, device=device)
    reduce(large)
    large_s = min(reduce(large) for _ in range(NUM_LARGE))
    share = 2 * (len(members) - 1) / len(members)  # what each of them sends; nccl-tests call it busbw
    return Link(plan.rank, peer, latency_s, share * large.nbytes / large_s, skew_s)


def skew(group: Any, own: int, size: int, device: Any) -> float | None:
    """How far the other's clock is ahead, in seconds, good to the link's latency; None of more than two."""
    import torch

    found = []
    for _ in range(NUM_CLOCKS):
        group.allreduce([torch.zeros(1, device=device)]).wait()  # both leave it at about the same moment
        now = torch.tensor([time.time_ns()], device=device, dtype=torch.int64)
        gathered = [torch.zeros_like(now) for _ in range(size)]
        group.allgather([gathered], [now]).wait()
        times = [int(each.item()) for each in gathered]
        found.append((times[1 - own] - times[own]) / 1e9 if size == 2 else 0.0)
    return statistics.median(found) if size == 2 else None


if __name__ == "__main__":
    main(sys.argv[1])
