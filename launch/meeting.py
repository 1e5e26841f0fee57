"""Where the machines of a job meet: a store on the first of them, which all ranks then use."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from data_pipeline.errors import LostPeerError, UsageError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

MEETING_S = 600.0  # machines of a job may come so much later than its first
SAY_AFTER_S = 5.0
POLL_S = 0.2
HEARD_S = 5.0
STORE_S = 30.0  # a call to the store on a machine that was cut off


@dataclass(frozen=True)
class Job:
    """How many ranks on how many machines, and which of these this is.

    rendezvous: HOST:PORT of the first machine. Raises: UsageError when they do not fit together.
    """

    nproc: int = 1
    nnodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.nnodes:
            raise UsageError(
                f"--node-rank is {self.node_rank}: need 0 to {self.nnodes - 1}, one less than --nnodes"
            )
        if self.nnodes > 1 and self.rendezvous is None:
            raise UsageError(
                "--nnodes needs --rendezvous HOST:PORT, the first machine's address and a free port there, "
                "the same on every machine"
            )
        if self.rendezvous is not None:
            address(self.rendezvous)

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes

    @property
    def is_first(self) -> bool:
        return self.node_rank == 0


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, of which an IPv6 host may stand in brackets. Raises: UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--rendezvous is {text!r}: need HOST:PORT, such as 10.0.0.1:29400")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Met:
    """The store, kept for as long as ranks live, and what ranks are told of it."""

    store: TCPStore
    environment: dict[str, str]


def meet(job: Job, is_stopped: Callable[[], bool], say: Callable[[str], None]) -> Met | None:
    """Wait for the job's other machines; None when this process was asked to stop meanwhile.

    Raises: UsageError when they were started differently or the port is taken; LostPeerError after 600 s.
    """
    if job.nnodes == 1:
        here = _host("127.0.0.1", 0)
        return Met(here, _environment("127.0.0.1", here.port))
    host, port = address(str(job.rendezvous))
    wait = _Wait(is_stopped, say)
    own = {"nproc": job.nproc, "nnodes": job.nnodes, "host": socket.gethostname(), "visit": uuid4().hex}
    store: TCPStore | None
    reason: str | None
    if job.is_first:
        store = here = _host("", port)
        here.set("node-0", json.dumps(own))
        reason = _gather(here, job, wait)
    else:
        store, reason = _visit(host, port, job.node_rank, own, wait)
    if reason is None or store is None:
        return None
    if reason:
        raise UsageError(reason)
    return Met(store, _environment(host, port))


class _Wait:
    """Polls until something is there, the time is up, or the process was asked to stop."""

    def __init__(self, is_stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._is_stopped, self._say = is_stopped, say
        self._begin_s = time.monotonic()
        self._has_said = False

    def goes_on(self, missing: Callable[[], str]) -> bool:
        """False when asked to stop. Raises: LostPeerError, with what is missing, when the time is up."""
        waited_s = time.monotonic() - self._begin_s
        if waited_s > MEETING_S:
            raise LostPeerError(
                f"{missing()} did not come within {MEETING_S:.0f} s: start `foreframe train` with the same "
                f"--nnodes, --nproc and --rendezvous there, and look whether that port can be reached"
            )
        if waited_s > SAY_AFTER_S and not self._has_said:
            self._has_said = True
            self._say(f"  waiting for {missing()}")
        time.sleep(POLL_S)
        return not self._is_stopped()


def _gather(store: TCPStore, job: Job, wait: _Wait) -> str | None:
    """The first machine: wait for the others, tell them to begin, or why not. Returns that reason or ""."""
    names = {node: f"node-{node}" for node in range(job.nnodes)}

    def missing() -> str:
        away = [str(node) for node, name in names.items() if not store.check([name])]
        return f"node {' and '.join(away)} of {job.nnodes} at {job.rendezvous}"

    while not store.check(list(names.values())):
        if not wait.goes_on(missing):
            return None
    reason = ""
    visitors: list[dict[str, Any]] = [json.loads(store.get(name)) for name in names.values()]
    for node, found in enumerate(visitors):
        for key, own in (("nproc", job.nproc), ("nnodes", job.nnodes)):
            if found[key] != own:
                reason = f"--{key} is {found[key]} on node {node} ({found['host']}): need {own}, as on node 0"
    for found in visitors:
        store.set(f"begin-{found['visit']}", reason)
    heard = [f"heard-{found['visit']}" for found in visitors[1:]]
    deadline_s = time.monotonic() + HEARD_S
    while reason and not store.check(heard) and time.monotonic() < deadline_s:  # the store goes with this end
        time.sleep(POLL_S)
    return reason


def _visit(
    host: str, port: int, node: int, own: dict[str, Any], wait: _Wait
) -> tuple[TCPStore | None, str | None]:
    """Another machine: the first one's store, and its answer as `_gather`.

    The store may be of an earlier attempt that is about to end there: it never answers this visit, and when
    it is gone the next one is looked for.
    """
    while (store := _join(host, port, wait)) is not None:
        try:
            store.set(f"node-{node}", json.dumps(own))
            answer = f"begin-{own['visit']}"
            while not store.check([answer]):
                if not wait.goes_on(lambda: f"the job's other nodes (the first is at {host}:{port})"):
                    return None, None
            reason = bytes(store.get(answer)).decode()
            store.set(f"heard-{own['visit']}", "")
            return store, reason
        except RuntimeError:  # torch's DistNetworkError, DistStoreError
            continue
    return None, None


def _host(host: str, port: int) -> TCPStore:
    """A store on this machine; without a host, for all that reach it. Raises: UsageError."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    family = socket.AF_INET if host else socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        listening = socket.create_server(
            (host, port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        )
    except OSError as error:
        raise UsageError(
            f"--rendezvous: port {port} cannot be had on this machine: {error.strerror}"
        ) from error
    return TCPStore(
        host or "127.0.0.1",
        listening.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
        timeout=timedelta(seconds=STORE_S),
    )


def _join(host: str, port: int, wait: _Wait) -> TCPStore | None:
    """The first machine's store, once it is there; None when asked to stop."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    while True:
        try:
            socket.create_connection((host, port), timeout=2.0).close()  # torch would print its attempts
            limit = timedelta(seconds=STORE_S)
            return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
        except (OSError, RuntimeError):
            if not wait.goes_on(lambda: f"the first node ({host}:{port})"):
                return None


def _environment(host: str, port: int) -> dict[str, str]:
    return {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there, rank 0 need not make one
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
