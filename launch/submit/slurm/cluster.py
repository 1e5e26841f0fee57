"""What a Slurm cluster says of its partitions, and of a script before it is queued."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UsageError

COMMANDS = ("sbatch", "scontrol", "sinfo", "squeue", "scancel")
ANSWERS_WITHIN_S = 60.0
UNLIMITED = ("UNLIMITED", "NONE", "INFINITE", "N/A")
FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_.:=-]*")
NO_SUCH_NODES = "node configuration is not available"  # also where there are, and they are down
AWAY = "down,drain,fail,maint,no_respond,unk"
SHOW_NODES = "sinfo --format='%P %D %c %m %G %f'"


@dataclass(frozen=True)
class Partition:
    """What limits jobs there; None where nothing does."""

    name: str
    is_default: bool
    max_s: float | None
    max_nodes: int | None
    num_nodes: int
    allowed_accounts: tuple[str, ...] | None
    denied_accounts: tuple[str, ...]


def need_commands() -> None:
    """Raises: UsageError when Slurm's commands are not on PATH."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise UsageError(
            f"no {missing[0]} on PATH: submit from a machine of the Slurm cluster (its login node), where "
            "`sinfo` works; or --on ssh for hosts without a scheduler"
        )


def run(
    words: Sequence[str],
    environment: Mapping[str, str],
    text: str | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """One of Slurm's commands. text: its input. Raises: UsageError when it cannot be run or hangs."""
    try:
        return subprocess.run(
            words,
            env=dict(environment),
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            timeout=ANSWERS_WITHIN_S,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"Slurm did not answer `{words[0]}` within {ANSWERS_WITHIN_S:g} s") from error
    except OSError as error:
        raise UsageError(f"{words[0]} cannot be run: {error.strerror}") from error


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command of Slurm complained of, in a line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    plain = [
        re.sub(r"^(sbatch|scontrol|sinfo|slurm_\w+): (error|fatal): |^allocation failure: ", "", line)
        for line in lines
    ]
    return "; ".join(dict.fromkeys(plain)) or f"exit code {done.returncode}"


def _silent(done: subprocess.CompletedProcess[str]) -> UsageError:
    last = said(done).split("; ")[-1]
    return UsageError(
        f"Slurm does not answer here ({last}): type it where `sinfo` works, on a login node of the cluster; "
        f"--dry-run needs none"
    )


def partitions(environment: Mapping[str, str]) -> dict[str, Partition]:
    """Of the cluster, by name. Raises: UsageError when it does not answer."""
    done = run(["scontrol", "--oneliner", "show", "partition"], environment)
    if done.returncode:
        raise _silent(done)
    found = [read_partition(line) for line in done.stdout.splitlines() if line.startswith("PartitionName=")]
    return {each.name: each for each in found}


def read_partition(line: str) -> Partition:
    """A line of `scontrol --oneliner show partition`."""
    facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
    max_nodes, accounts = facts.get("MaxNodes", "UNLIMITED"), facts.get("AllowAccounts", "ALL")
    return Partition(
        name=facts["PartitionName"],
        is_default=facts.get("Default") == "YES",
        max_s=seconds_of(facts.get("MaxTime", "UNLIMITED")),
        max_nodes=None if max_nodes in UNLIMITED else int(max_nodes),
        num_nodes=int(facts.get("TotalNodes", "0")),
        allowed_accounts=None if accounts == "ALL" else tuple(accounts.split(",")),
        denied_accounts=tuple(each for each in facts.get("DenyAccounts", "").split(",") if each),
    )


def seconds_of(text: str) -> float | None:
    """Of Slurm's D-HH:MM:SS; None for no limit.

    >>> seconds_of("1-02:00:00")
    93600.0
    """
    if text in UNLIMITED:
        return None
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = ([0, 0, 0, *(int(part) for part in clock.split(":"))])[-3:]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)


def time_of(seconds: float) -> str:
    """Seconds as Slurm writes them, in whole minutes, as it counts them.

    >>> time_of(93601)
    '1-02:01:00'
    """
    minutes = -(-int(seconds) // 60)
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def check_partition(
    found: Mapping[str, Partition],
    wanted: str | None,
    nodes: int,
    time_limit_s: float | None,
    account: str | None,
) -> None:
    """Whether one of the partitions wanted takes such a job; Slurm itself would queue some that never start.

    wanted: names with commas between; None: the default one. Raises: UsageError.
    """
    names = wanted.split(",") if wanted else [each.name for each in found.values() if each.is_default]
    for name in names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"partition is {name!r}: Slurm has {', '.join(found) or 'none'}{hint}")
    if not names:
        raise UsageError(f"partition: Slurm has no default one; name one of {', '.join(found)}")
    reasons = [_why_not(found[name], nodes, time_limit_s, account) for name in names]
    if all(reasons):
        raise UsageError("; ".join(reason for reason in reasons if reason))


def _why_not(place: Partition, nodes: int, time_limit_s: float | None, account: str | None) -> str | None:
    most = min(place.num_nodes, place.max_nodes if place.max_nodes is not None else place.num_nodes)
    if nodes > most:
        return f"nodes is {nodes}: partition {place.name} gives a job at most {most}"
    if place.max_s is not None and time_limit_s is not None and time_limit_s > place.max_s:
        return (
            f"time_limit_s is {time_limit_s:g}: partition {place.name} allows {place.max_s:g} "
            f"({time_of(place.max_s)}); a run is queued again when its time is up, and goes on"
        )
    if account is not None and place.allowed_accounts is not None and account not in place.allowed_accounts:
        return (
            f"account is {account!r}: partition {place.name} takes {', '.join(place.allowed_accounts)} only"
        )
    if account is not None and account in place.denied_accounts:
        return f"account is {account!r}: partition {place.name} refuses it"
    return None


def features(partition: str | None, environment: Mapping[str, str]) -> set[str]:
    """That nodes of a partition have. Raises: UsageError when Slurm does not answer."""
    where = [f"--partition={partition}"] if partition else []
    done = run(["sinfo", "--noheader", "--format=%f", *where], environment)
    if done.returncode:
        raise _silent(done)
    return {each for line in done.stdout.split() for each in line.split(",") if each != "(null)"}


def check_constraint(constraint: str, known: set[str], partition: str | None) -> None:
    """Raises: UsageError when it names a feature that no node has."""
    for name in FEATURE.findall(constraint):
        if name not in known:
            has = f"have {', '.join(sorted(known))}" if known else "have no features"
            where = f" of partition {partition}" if partition else ""
            raise UsageError(f"constraint is {constraint!r}: nodes{where} {has}, none {name!r}")


def try_script(text: str, partition: str | None, environment: Mapping[str, str]) -> None:
    """Ask Slurm whether it would take a script; nothing is queued.

    Where nodes are down it cannot tell: then it is seen when the job is handed over.
    Raises: UsageError with what it says.
    """
    done = run(["sbatch", "--test-only"], environment, text)
    if not done.returncode:
        return
    reason = said(done)
    if NO_SUCH_NODES in reason:
        where = [f"--partition={partition}"] if partition else []
        if run(
            ["sinfo", "--noheader", "--format=%D", f"--states={AWAY}", *where], environment
        ).stdout.strip():
            return
        reason += f"; `{SHOW_NODES}` shows what nodes have: cores, MB of memory, gres, features"
    raise UsageError(f"Slurm would refuse the job: {reason}")
