"""Round trips: processes that meet, that do not, and what links between hosts mean."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from launch.doctor import network
from launch.doctor.check import Check, Group, Report
from launch.doctor.hosts import HostsReport, differences, hosts_in, read
from launch.doctor.link import ALL, Link, Plan, rounds
from launch.doctor.round_trip import check_all, check_links, check_local, links_in, rate
from launch.remote import Ran

ROOT = Path(__file__).parents[2]
HOSTS = ["node1", "node2", "node3", "node4"]


@pytest.mark.parametrize("count", range(1, 12))
def test_every_two_meet_once_and_nobody_meets_two_at_a_time(count: int) -> None:
    made = rounds(count)
    assert sorted(pair for pairs in made for pair in pairs) == list(combinations(range(count), 2))
    for pairs in made:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks))
    assert len(made) <= count


def ports(count: int) -> tuple[int, ...]:
    opened = [socket.socket() for _ in range(count)]
    for each in opened:
        each.bind(("127.0.0.1", 0))
    found = tuple(each.getsockname()[1] for each in opened)
    for each in opened:
        each.close()
    return found


def start(plan: Plan, rank: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.doctor.link", json.dumps(asdict(replace(plan, rank=rank)))],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def plan_of(count: int, **changes: object) -> Plan:
    made = Plan(-1, ("127.0.0.1",) * count, ports(count), num_bytes=1 << 20, pair_s=20.0, limit_s=60.0)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.distributed
def test_three_ranks_measure_their_links_though_a_fourth_never_comes() -> None:
    """A host that is away costs its own links alone."""
    plan = plan_of(4, pair_s=5.0)
    started = [start(plan, rank) for rank in range(3)]
    links = [link for each in started for link in links_in(each.communicate(timeout=90)[0])]
    assert [each.returncode for each in started] == [0, 0, 0]
    assert len(links) == 9
    for link in links:
        assert (link.problem is None) == (link.peer != 3), link
        if link.problem is None:
            assert link.latency_s is not None
            assert 0 < link.latency_s < 5
            assert link.bytes_per_s is not None
            assert link.bytes_per_s > 0
            assert link.skew_s is not None
            assert abs(link.skew_s) < 1  # one machine has one clock
    checks = {check.name: check.state for check in check_links(HOSTS, links)}
    assert checks.pop("links") == checks.pop("clocks") == "pass"
    assert {name for name, state in checks.items() if state == "fail"} == {
        f"{host} – node4" for host in HOSTS[:3]
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_all_together_measure_one_link_each() -> None:
    plan = plan_of(3, is_pairwise=False)
    started = [start(plan, rank) for rank in range(3)]
    links = [link for each in started for link in links_in(each.communicate(timeout=90)[0])]
    assert [(link.peer, link.problem) for link in links] == [(ALL, None)] * 3
    assert check_all(3, links).state == "pass"


@pytest.mark.distributed
def test_a_process_ends_with_who_reads_it() -> None:
    """As one on another machine whose ssh connection has gone; it waits for a peer that never comes."""
    plan = plan_of(2)
    with start(plan, 1) as process:
        deadline_s = time.monotonic() + 60
        while network.is_free(plan.ports[1]):  # until it has begun
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=15) == 1


@pytest.mark.distributed
def test_a_port_that_is_taken_is_told() -> None:
    plan = plan_of(2)
    with socket.create_server(("", plan.ports[1])), start(plan, 1) as process:
        out, _ = process.communicate(timeout=60)
    (link,) = links_in(out)
    assert link.problem is not None
    assert f"port {plan.ports[1]} cannot be had" in link.problem


def link(rank: int, peer: int, speed: float = 1.25e9, latency: float = 1e-4, skew: float = 0.0) -> Link:
    return Link(rank, peer, latency, speed, skew)


def whole(*changed: Link) -> list[Link]:
    """Links between four hosts, told by both sides, with some in the place of the good ones."""
    by_pair = {frozenset((each.rank, each.peer)): each for each in changed}
    return [
        by_pair.get(frozenset((low, high)), link(*ends))
        for low, high in combinations(range(4), 2)
        for ends in ((low, high), (high, low))
    ]


def test_links_that_are_well_are_one_line() -> None:
    checks = check_links(HOSTS, whole())
    assert [(check.name, check.state) for check in checks] == [("links", "pass"), ("clocks", "pass")]
    assert checks[0].found == "6 of 6 links: all-reduce of two 0.10 ms to 0.10 ms, 10.0 Gbit/s to 10.0 Gbit/s"


def test_one_slow_one_cut_and_one_far_link_are_named() -> None:
    cut = Link(1, 3, problem="10.0.0.4:29400 cannot be reached: timed out")
    checks = check_links(HOSTS, whole(link(0, 1, speed=1e8), cut, link(0, 3, latency=0.03)))
    told = {check.name: check for check in checks}
    assert told["node1 – node2"].state == "warn"
    assert "0.800 Gbit/s, where the median is 10.0 Gbit/s" in told["node1 – node2"].found
    assert (told["node2 – node4"].state, told["node2 – node4"].found) == ("fail", cut.problem)
    assert (told["node1 – node4"].state, "30.0 ms" in told["node1 – node4"].found) == ("warn", True)
    assert told["links"].found.startswith("5 of 6 links")
    assert set(told) == {"links", "clocks", "node1 – node2", "node2 – node4", "node1 – node4"}


def test_a_link_that_only_one_side_finds_broken_is_broken_and_one_that_nobody_tells_of_too() -> None:
    links = [each for each in whole() if {each.rank, each.peer} != {2, 3}]
    links[0] = replace(links[0], problem="failed while sending: Connection reset")
    failed = {check.name for check in check_links(HOSTS, links) if check.state == "fail"}
    assert failed == {"node1 – node2", "node3 – node4"}


@pytest.mark.parametrize("ends", [(0, 2), (2, 0)])
def test_the_clock_that_is_ahead_is_named_whoever_measured(ends: tuple[int, int]) -> None:
    ahead = 90.0 if ends == (0, 2) else -90.0  # node3 is
    (clock,) = [each for each in check_links(HOSTS, whole(link(*ends, skew=ahead))) if each.name == "clocks"]
    assert (clock.state, clock.found) == ("warn", "node3 is 90.0 s ahead of node1")


def test_what_two_processes_here_say_becomes_a_line() -> None:
    assert check_local("gloo", [link(0, 1), link(1, 0)], "").state == "pass"
    failed = check_local("gloo", [Link(0, 1, problem="failed while gloo connects the two")], "")
    assert failed.state == "fail"
    assert "gloo connects" in failed.found
    assert "it died" in check_local("nccl", [], "it died").found
    assert [rate(speed) for speed in (5e10, 1.25e9, 1e7)] == ["400 Gbit/s", "10.0 Gbit/s", "0.080 Gbit/s"]


def facts(**changes: object) -> dict[str, object]:
    same = {"foreframe": "0.1.0", "code": "aa", "python": "3.11.7", "torch": "2.13.0", "num_gpus": 8}
    return {**same, **changes}


def test_what_must_agree_fails_and_what_should_agree_warns() -> None:
    here = {"foreframe": "0.1.0", "code": "aa"}
    same = {host: facts() for host in HOSTS}
    assert [check.state for check in differences(same, here)] == ["pass"]
    odd = {**same, "node3": facts(torch="2.12.0", num_gpus=4, python="3.11.9")}
    found = {check.name: check for check in differences(odd, here)}
    assert {name: check.state for name, check in found.items()} == {"torch": "fail", "number of GPUs": "warn"}
    assert found["torch"].found == "2.13.0 on node1, node2, node4; 2.12.0 on node3"
    assert found["torch"].remedy == "install the same on node3"
    (other_here,) = differences(same, {**here, "code": "bb"})
    assert (other_here.state, other_here.found) == (
        "warn",
        "aa on node1, node2, node3, node4; bb on here",
    )


def test_a_host_that_was_not_examined_says_why() -> None:
    def line(exit_code: int | None, out: str = "", err: str = "", problem: str | None = None) -> Check:
        report, check = read(Ran("node1", exit_code, out, err, problem))
        assert report is None
        assert check.state == "fail"
        assert check.remedy
        return check

    assert (
        line(None, problem="node1: it refuses the login: put your key there").found == "it refuses the login"
    )
    assert "no folder" in line(91).found
    assert "no Python" in line(92).found
    assert "no foreframe" in line(93).found
    assert "No such command" in line(2, err="Usage: …\nNo such command 'doctor'.").found
    assert "code 1" in line(1, out='{"groups": 3}').found


def test_what_several_hosts_have_in_common_is_told_once() -> None:
    shared, own = Check("clock", "warn", "x", "y"), Check("disk", "fail", "z", "w")
    reports: dict[str, Report | None] = {
        host: Report((Group("g", (shared, *([own] if host == "node2" else []))),)) for host in HOSTS
    }
    found = HostsReport({**reports, "node5": None}, ())
    assert {group.name: group.checks for group in found.told()} == {
        "on node1, node2, node3, node4": (shared,),
        "on node2": (own,),
    }
    assert found.num_failed == 1
    assert HostsReport(reports, ()).told()[0].name == "on all 4 hosts"


def test_hosts_come_from_a_list_or_a_hostfile(tmp_path: Path) -> None:
    assert hosts_in("node1, ann@node2,node1", 4) == {"node1": 4, "ann@node2": 4}
    assert hosts_in("node1") == {"node1": None}
    (tmp_path / "hostfile").write_text("node7 slots=8\n# no\nnode8 slots=4\n")
    assert hosts_in(str(tmp_path / "hostfile")) == {"node7": 8, "node8": 4}
    assert hosts_in(str(tmp_path / "hostfile"), 2) == {"node7": 2, "node8": 2}
    for wrong, word in ((" , ", "names nobody"), (str(tmp_path / "away"), "does not exist")):
        with pytest.raises(UsageError, match=word):
            hosts_in(wrong)


def test_a_process_whose_output_becomes_another_file_is_not_ended() -> None:
    """As of pytest, which a command that looks at its reader is called in."""
    code = (
        "import os, time; from launch.doctor.link import end_with_reader; end_with_reader(); "
        "there, here = os.pipe(); os.dup2(here, 1); os.close(here); os.close(there); os.close(1); "
        "time.sleep(0.5); os._exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 7
