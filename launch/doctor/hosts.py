"""The same checks on several machines over ssh, what differs between them, and the links that join them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from launch.doctor.check import Check, Group, Report, State, report_of
from launch.doctor.link import Link, Plan
from launch.doctor.local import Doing
from launch.doctor.network import RENDEZVOUS
from launch.doctor.round_trip import (
    FULL_BYTES,
    QUICK_BYTES,
    check_all,
    check_links,
    links_in,
    path_for_code,
)
from launch.doctor.show import summary
from launch.doctor.versions import installed
from launch.paths import is_file
from launch.remote import AT_ONCE, Ran, run_on
from launch.submit.freeze import HERE, code_digest

ASKED_VARIABLE = "FOREFRAME_DOCTOR_ASKED"  # set where a doctor elsewhere reads the output
EXAMINED_S, IMPORTS_S, PAIR_S = 240.0, 45.0, 15.0
NO_FOLDER, NO_PYTHON, NO_CODE = 91, 92, 93
PASSED_ON = ("GLOO_", "NCCL_")
# What must be the same for one job, and what merely makes one machine wait for another.
MUST_AGREE = ("code", "foreframe", "python", "torch", "deepspeed", "ray", "cuda")
SHOULD_AGREE = ("xformers", "mlflow", "num_gpus", "gpus", "driver")
OF_HERE = ("code", "foreframe")
TOLD = ("warn", "fail")
NAMES = {"num_gpus": "number of GPUs", "code": "foreframe's code"}


@dataclass(frozen=True)
class HostsReport:
    """reports: by host, None of one that was not examined. lines: of hosts, and of what is between them."""

    reports: dict[str, Report | None]
    lines: tuple[Group, ...]

    @property
    def num_failed(self) -> int:
        own = sum(check.state == "fail" for group in self.lines for check in group.checks)
        return own + sum(report.num_failed for report in self.reports.values() if report is not None)

    def plain(self) -> dict[str, Any]:
        return {
            "passed": self.num_failed == 0,
            "groups": [asdict(group) for group in self.lines],
            "hosts": {name: None if each is None else each.plain() for name, each in self.reports.items()},
        }

    def told(self) -> list[Group]:
        """The groups that a person reads: what did not pass, once for all hosts where it is the same."""
        hosts_by_check: dict[Check, list[str]] = {}
        for host, report in self.reports.items():
            for check in report.checks if report is not None else ():
                if check.state in TOLD:
                    hosts_by_check.setdefault(check, []).append(host)
        checks_by_hosts: dict[tuple[str, ...], list[Check]] = {}
        for check, hosts in hosts_by_check.items():
            checks_by_hosts.setdefault(tuple(hosts), []).append(check)
        found = [
            Group(_named(hosts, len(self.reports)), tuple(checks))
            for hosts, checks in checks_by_hosts.items()
        ]
        return [*found, *self.lines]


def _named(hosts: Sequence[str], count: int) -> str:
    return f"on all {count} hosts" if len(hosts) == count > 1 else f"on {_listed(hosts)}"


def hosts_in(text: str, nproc: int | None = None) -> dict[str, int | None]:
    """The ranks by host of a DeepSpeed hostfile, its slots; or of a list with commas, where `nproc` tells.

    nproc: counts instead of slots where it is given. Raises: UsageError when there is no host, or no such
    file.
    """
    from launch.submit.hostfile import read_hostfile

    if is_file(text):
        return {host: nproc or slots for host, slots in read_hostfile(Path(text)).items()}
    if "/" in text:
        raise UsageError(f"--hosts: {text} does not exist; need a hostfile, or names such as node1,node2")
    found: dict[str, int | None] = {name.strip(): nproc for name in text.split(",") if name.strip()}
    if not found:
        raise UsageError("--hosts names nobody; need a hostfile, or names such as node1,node2")
    return found


def examine_hosts(
    ranks: Mapping[str, int | None],
    given: Sequence[str],
    *,
    is_quick: bool,
    ssh_config: Path | None,
    doing: Doing,
) -> HostsReport:
    """Run the doctor on every host at once, compare what they found, and try all links.

    ranks: meant for each host, as `hosts_in` reads them; given: the config and its overrides, as on the
    command line. Nothing stays running there.
    """
    hosts = list(ranks)
    doing(f"{len(hosts)} hosts")
    words = [sys.executable, "-m", "launch", "doctor", *given, *(["--quick"] if is_quick else []), "--json"]
    commands = {
        host: there([*words, *(["--nproc", str(count)] if count else [])]) for host, count in ranks.items()
    }
    ran = run_on(hosts, commands, timeout_s=EXAMINED_S, ssh_config=ssh_config)
    reports: dict[str, Report | None] = {}
    lines = []
    for host in hosts:
        reports[host], line = read(ran[host])
        lines.append(line)
    reached = {host: report for host, report in reports.items() if report is not None}
    between = differences({host: report.facts for host, report in reached.items()}, facts_here())
    able = [host for host, report in reached.items() if "torch" in report.facts]
    for first in range(0, len(able), AT_ONCE):  # all of a round trip must be there at once
        some = able[first : first + AT_ONCE]
        if len(some) > 1:
            doing(f"links between {len(some)} hosts")
            between += try_links(some, reached, is_quick=is_quick, ssh_config=ssh_config)
    if len(able) > AT_ONCE:
        found = f"those between groups of {AT_ONCE} hosts, in the order given, were not tried"
        between.append(Check("other links", "skipped", found))
    if len(able) < 2:
        between.append(
            Check("links", "skipped", "fewer than two hosts that could be examined and have torch")
        )
    return HostsReport(reports, (Group("hosts", tuple(lines)), Group("between hosts", tuple(between))))


def there(words: Sequence[str]) -> str:
    """A shell command that runs this very code on another machine, under the same paths."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON) and value.isprintable()
    }
    variables = {**passed, "PYTHONPATH": path_for_code(), ASKED_VARIABLE: "1"}
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return "\n".join(
        [
            f"cd {shlex.quote(os.getcwd())} 2>/dev/null || exit {NO_FOLDER}",
            f"test -x {shlex.quote(words[0])} || exit {NO_PYTHON}",
            f"test -f {shlex.quote(str(HERE / 'launch' / '__main__.py'))} || exit {NO_CODE}",
            f"export {exports}",
            f"exec {shlex.join(words)}",
        ]
    )


def read(ran: Ran) -> tuple[Report | None, Check]:
    """What a host's doctor found, and the host's line; or no report, and why."""
    host = ran.host
    if ran.problem is not None:
        text = ran.problem.removeprefix(f"{host}: ")
        found, _, remedy = text.partition(": ")
        return None, Check(host, "fail", found, remedy or f"`ssh -o BatchMode=yes {host} true` must succeed")
    missing = {
        NO_FOLDER: f"no folder {os.getcwd()}",
        NO_PYTHON: f"no Python at {sys.executable}",
        NO_CODE: f"no foreframe at {HERE}",
    }
    if ran.exit_code in missing:
        remedy = "mount the same folders there, or install under the same paths: a job starts by them"
        return None, Check(host, "fail", missing[ran.exit_code], remedy)
    try:
        report = report_of(json.loads(ran.out[ran.out.index("{") :]))
    except ValueError:
        found = f"its doctor ended with code {ran.exit_code}: {ran.last_line or 'nothing was printed'}"
        remedy = f"run `foreframe doctor` there; is it the same foreframe as {HERE} here?"
        return None, Check(host, "fail", found, remedy)
    facts = report.facts
    gpus = facts.get("num_gpus", 0)
    what = f"{gpus} GPUs" if gpus else "no GPU"
    told = f"{facts.get('host', '?')}, {what}, code {facts.get('code')}: {summary(report.checks).plain}"
    if report.num_failed:
        return report, Check(host, "fail", told, f"see the lines that fail on {host}")
    return report, Check(host, "pass", told)


def facts_here() -> dict[str, Any]:
    """What hosts' code is compared with: that of the machine that asks."""
    return {"foreframe": installed(["foreframe"]).get("foreframe"), "code": code_digest()}


def differences(facts: dict[str, dict[str, Any]], here: dict[str, Any]) -> list[Check]:
    """A line for each thing in which hosts differ, or their code from that of this machine."""
    if not facts:
        return []
    checks = []
    for key in (*MUST_AGREE, *SHOULD_AGREE):
        hosts_by_value: dict[Any, list[str]] = {}
        for host, own in facts.items():
            hosts_by_value.setdefault(_comparable(key, own.get(key)), []).append(host)
        differ = len(hosts_by_value) > 1
        if key in OF_HERE and _comparable(key, here[key]) not in hosts_by_value:
            hosts_by_value[_comparable(key, here[key])] = ["here"]
        if len(hosts_by_value) == 1:
            continue
        groups = sorted(hosts_by_value.items(), key=lambda item: -len(item[1]))
        found = "; ".join(f"{value or 'none'} on {_listed(hosts)}" for value, hosts in groups)
        state: State = "fail" if differ and key in MUST_AGREE else "warn"
        name = NAMES.get(key, key)
        if key in SHOULD_AGREE:
            remedy = "one job runs at the speed of its slowest machine"
        else:
            remedy = f"install the same on {_listed([host for _, each in groups[1:] for host in each])}"
        checks.append(Check(name, state, found, remedy))
    if not checks and len(facts) > 1:
        checks.append(Check("versions", "pass", f"the same on all {len(facts)}, and the code as here"))
    return checks


def _comparable(key: str, value: Any) -> Any:
    """Of Python the minor version alone: patches of it work together."""
    return ".".join(str(value).split(".")[:2]) if key == "python" and value else value


def _listed(hosts: Sequence[str]) -> str:
    return f"{', '.join(hosts[:4])} and {len(hosts) - 4} more" if len(hosts) > 4 else ", ".join(hosts)


def try_links(
    hosts: Sequence[str], reports: dict[str, Report], *, is_quick: bool, ssh_config: Path | None
) -> list[Check]:
    """Every two hosts alone, and then all together when there are more than two."""
    facts = [reports[host].facts for host in hosts]
    plan = Plan(
        rank=-1,
        addresses=tuple(address_of(host, ssh_config) for host in hosts),
        ports=tuple(_port(each, number) for number, each in enumerate(facts)),
        backend="nccl" if all(each.get("num_gpus") for each in facts) else "gloo",
        num_bytes=QUICK_BYTES if is_quick else FULL_BYTES,
        pair_s=PAIR_S,
        limit_s=IMPORTS_S + PAIR_S * len(hosts),
        finds_interface=True,
    )
    links, lost = _run(hosts, plan, ssh_config)
    checks = [*lost, *check_links(hosts, links)]
    if len(hosts) > 2 and not any(check.state == "fail" for check in checks):
        together, lost = _run(hosts, replace(plan, is_pairwise=False), ssh_config)
        checks += [*lost, check_all(len(hosts), together)]
    return checks


def _run(hosts: Sequence[str], plan: Plan, ssh_config: Path | None) -> tuple[list[Link], list[Check]]:
    """The links that the hosts tell of, and a line for each host that was lost meanwhile."""
    commands = {
        host: there(
            [
                sys.executable,
                "-m",
                "launch.doctor.link",
                json.dumps(asdict(replace(plan, rank=rank))),
            ]
        )
        for rank, host in enumerate(hosts)
    }
    ran = run_on(list(hosts), commands, timeout_s=plan.limit_s + 5, ssh_config=ssh_config)
    links = [link for host in hosts for link in links_in(ran[host].out)]
    remedy = "see whether it is still up; nothing is left running there"
    lost = [
        Check(
            host, "fail", f"during the round trip: {(found.problem or '').removeprefix(f'{host}: ')}", remedy
        )
        for host, found in ran.items()
        if found.problem is not None
    ]
    return links, lost


def _port(facts: dict[str, Any], number: int) -> int:
    """One that was free there a moment ago; hosts that are one machine in truth take different ones."""
    free = facts.get("free_ports") or [RENDEZVOUS[0]]
    return int(free[number % len(free)])


def address_of(host: str, ssh_config: Path | None) -> str:
    """The address that ssh connects to for `host`, which its settings may give another name."""
    settings = ["-F", str(ssh_config)] if ssh_config is not None else []
    plain = host.rpartition("@")[2]
    try:
        told = subprocess.run(
            ["ssh", *settings, "-G", "--", host], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return plain
    return next((line.split()[1] for line in told.splitlines() if line.startswith("hostname ")), plain)
