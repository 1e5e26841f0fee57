"""Reports as a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.doctor.check import STATES, Check, Group

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}
MARKS = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}


def show(groups: Iterable[Group], console: Console) -> None:
    """Print groups of checks, each line with its remedy below it, and a sum at the end."""
    groups = list(groups)
    width = max((len(check.name) for group in groups for check in group.checks), default=0)
    for group in groups:
        console.print(Text(group.name, style="bold"))
        if console.is_terminal:
            console.print(_table(group, width))
        else:
            for check in group.checks:
                _print_plain(check, width, console)
    console.print(summary(check for group in groups for check in group.checks))


def _table(group: Group, width: int) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(width=1)
    table.add_column(min_width=1, no_wrap=True)
    table.add_column(min_width=min(width, 28), max_width=36)
    table.add_column(overflow="fold", ratio=1)
    for check in group.checks:
        style = STYLES[check.state]
        found = Text(check.found, style="dim" if check.state == "skipped" else "")
        if check.remedy and check.state != "pass":
            found.append(f"\n→ {check.remedy}", style="cyan")
        table.add_row("", Text(MARKS[check.state], style=style), Text(check.name), found)
    return table


def _print_plain(check: Check, width: int, console: Console) -> None:
    console.print(Text(f"  {check.state:<7} {check.name:<{width}}  {check.found}"))
    if check.remedy and check.state != "pass":
        console.print(Text(f"  {'':<7} {'':<{width}}  → {check.remedy}"))


def summary(checks: Iterable[Check]) -> Text:
    """`31 pass, 2 warn, 1 fail: GPUs`."""
    checks = list(checks)
    counts = Counter(check.state for check in checks)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    failed = [check.name for check in checks if check.state == "fail"]
    style = STYLES["fail"] if failed else STYLES["warn"] if counts["warn"] else STYLES["pass"]
    return Text(f"{told}: {', '.join(failed)}" if failed else told, style=style)
