"""Where the machines of a job meet: what each is told, and that a stale store is not begun with."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from data_pipeline.errors import LostPeerError, UsageError
from launch import meeting
from launch.meeting import Job, Met, meet


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def quiet(_: str) -> None:
    pass


def meet_all(jobs: list[Job]) -> list[Any]:
    """What `meet` returns or raises for each machine, each in a thread."""
    found: list[Any] = [None] * len(jobs)

    def one(place: int, job: Job) -> None:
        try:
            found[place] = meet(job, lambda: False, quiet)
        except (UsageError, LostPeerError) as error:
            found[place] = error

    threads = [threading.Thread(target=one, args=each) for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nnodes": 2}, "--nnodes needs --rendezvous HOST:PORT"),
        ({"nnodes": 2, "node_rank": 2, "rendezvous": "a:1"}, "--node-rank is 2: need 0 to 1"),
        ({"nnodes": 2, "rendezvous": "10.0.0.1"}, "need HOST:PORT, such as 10.0.0.1:29400"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Job(nproc=1, **options)


def test_one_machine_meets_nobody() -> None:
    met = meet(Job(nproc=2), lambda: False, quiet)
    assert met is not None
    assert met.environment["MASTER_ADDR"] == "127.0.0.1"
    assert int(met.environment["MASTER_PORT"]) == met.store.port > 0


def test_machines_meet_in_any_order() -> None:
    where = f"127.0.0.1:{free_port()}"
    found = meet_all([Job(2, 3, node, where) for node in (2, 0, 1)])
    assert all(isinstance(each, Met) for each in found)
    assert len({each.environment["MASTER_PORT"] for each in found}) == 1


def test_a_machine_started_differently_is_named_on_all_of_them() -> None:
    where = f"127.0.0.1:{free_port()}"
    found = meet_all([Job(2, 2, 0, where), Job(4, 2, 1, where)])
    assert all("--nproc is 4 on node 1" in str(each) for each in found)


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEETING_S", 1.0)
    where = f"127.0.0.1:{free_port()}"
    with pytest.raises(LostPeerError, match=rf"node 1 of 2 at {where} did not come within 1 s"):
        meet(Job(1, 2, 0, where), lambda: False, quiet)
    with pytest.raises(LostPeerError, match=rf"the first node \({where}\) did not come"):
        meet(Job(1, 2, 1, where), lambda: False, quiet)


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("", 0)) as server, pytest.raises(UsageError, match="cannot be had"):
        meet(Job(1, 2, 0, f"127.0.0.1:{server.getsockname()[1]}"), lambda: False, quiet)


def test_a_machine_that_comes_late_to_an_old_attempt_waits_for_the_next() -> None:
    """Its store is still there, and has told the machines of that attempt to begin."""
    port = free_port()
    where = f"127.0.0.1:{port}"
    old = meet_all([Job(1, 2, 0, where), Job(1, 2, 1, where)])
    is_stopped = threading.Event()
    late: list[Any] = []
    thread = threading.Thread(target=lambda: late.append(meet(Job(1, 2, 1, where), is_stopped.is_set, quiet)))
    thread.start()
    thread.join(3)
    assert late == [], "not told to begin with the old attempt's store"
    is_stopped.set()
    thread.join(30)
    assert late == [None]
    assert len(old) == 2
