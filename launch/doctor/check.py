"""What a check of a machine comes to, and how checks that may hang are run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["pass", "warn", "fail", "skipped"]
STATES: tuple[State, ...] = ("pass", "warn", "fail", "skipped")
LIMIT_S = 30.0


@dataclass(frozen=True)
class Check:
    """One line. found: what there is, in words; remedy: what to do or type, empty for a pass."""

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Group:
    """Checks of one kind, as they are printed together."""

    name: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Report:
    """All that was found on one machine. facts: what hosts are compared by, such as versions."""

    groups: tuple[Group, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        return [check for group in self.groups for check in group.checks]

    @property
    def num_failed(self) -> int:
        return sum(check.state == "fail" for check in self.checks)

    def plain(self) -> dict[str, Any]:
        """For JSON; `report_of` reads it back."""
        return {
            "passed": self.num_failed == 0,
            "groups": [asdict(group) for group in self.groups],
            "facts": self.facts,
        }


def report_of(plain: dict[str, Any]) -> Report:
    """The report that `Report.plain` wrote. Raises: ValueError when it is none."""
    try:
        groups = tuple(
            Group(group["name"], tuple(Check(**check) for check in group["checks"]))
            for group in plain["groups"]
        )
        facts = dict(plain["facts"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no report of a doctor: {error}") from error
    if any(check.state not in STATES for group in groups for check in group.checks):
        raise ValueError("no report of a doctor: unknown state")
    return Report(groups, facts)


Found = Check | Sequence[Check]


@dataclass(frozen=True)
class Task:
    """A check still to be made. name: of its line when it breaks or hangs."""

    name: str
    run: Callable[[], Found]
    limit_s: float = LIMIT_S


THREADS = "check: "


def is_one_running() -> bool:
    """Whether a check that was given up still hangs."""
    return any(thread.name.startswith(THREADS) for thread in threading.enumerate())


def make(task: Task) -> tuple[Check, ...]:
    """Run one check; what hangs, as a file system whose server is gone, is a line that says so.

    It runs on a thread that nobody waits for at the end: what the kernel holds cannot be interrupted.
    """
    made: list[Found] = []
    broken: list[Exception] = []

    def run() -> None:
        try:
            made.append(task.run())
        except Exception as error:  # a check that breaks is a finding, and the others are still wanted
            broken.append(error)

    thread = threading.Thread(target=run, name=f"{THREADS}{task.name}", daemon=True)
    thread.start()
    thread.join(task.limit_s)
    if broken:
        reason = f"{type(broken[0]).__name__}: {broken[0]}".strip()
        return (Check(task.name, "fail", f"could not be looked at ({reason})", "tell us of it"),)
    if not made:
        found = f"no answer within {task.limit_s:.0f} s"
        return (Check(task.name, "fail", found, "see what it waits for: a mount, a server, a driver"),)
    found_now = made[0]
    return (found_now,) if isinstance(found_now, Check) else tuple(found_now)
