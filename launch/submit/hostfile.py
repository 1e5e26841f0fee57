"""DeepSpeed's hostfile: a host a line with its slots, and which of them are taken.

`NAME slots=N`, a slot a rank; lines that are empty or begin with `#` say nothing. What is taken is
`NODE@NODE…`, where a NODE is `NAME`, or `NAME:SLOT,SLOT…`. Read as DeepSpeed's launcher reads them; unlike
it, a line that says more than a comment after the slots is an error, and every error names its line.
Source: deepspeed.launcher.runner, and DeepSpeed's documentation, "Resource Configuration (multi-node)".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UsageError, why

Slots = dict[str, list[int]]  # by host, in the order of the file; the numbers of its slots that are taken

_LINE = re.compile(r"(?P<host>\S+)\s+slots=(?P<slots>[0-9]+)\s*(#.*)?")
MOST_SLOTS = 1024  # of one host; more is a slip


def read_hostfile(path: Path) -> dict[str, int]:
    """The number of slots by host, in the order of the file. Raises: UsageError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = why(error) if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"the hostfile {path} cannot be read: {reason}") from error
    return parse_hostfile(text.splitlines(), str(path))


def parse_hostfile(lines: Sequence[str], name: str = "the hostfile") -> dict[str, int]:
    """The same of its lines. name: what messages call it."""
    found: dict[str, int] = {}
    begun: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{name}:{number}"
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise UsageError(f"{where}: {line!r} is no line of a hostfile: need `NAME slots=N`")
        host, slots = parts["host"], int(parts["slots"])
        if host in found:
            raise UsageError(f"{where}: {host} stands in line {begun[host]} already: need a line a host")
        if slots > MOST_SLOTS:
            raise UsageError(f"{where}: {host} has {slots} slots: need at most {MOST_SLOTS}")
        found[host], begun[host] = slots, number
    if not found:
        raise UsageError(f"{name} names no host: need lines such as `worker-1 slots=8`")
    return found


def take(pool: Mapping[str, int], include: str = "", exclude: str = "") -> Slots:
    """The slots that are taken of every host; hosts without any are left out.

    Raises: UsageError when both are given, and for hosts or slots that there are not.
    """
    if include and exclude:
        raise UsageError("include and exclude are both given: need one of them")
    every = {host: list(range(slots)) for host, slots in pool.items()}
    option, text = ("include", include) if include else ("exclude", exclude)
    named = _nodes(text, option, every) if text else {}
    if include:
        taken = {host: named.get(host, []) for host in every}
    else:
        taken = {
            host: [slot for slot in slots if slot not in named.get(host, ())] for host, slots in every.items()
        }
    taken = {host: slots for host, slots in taken.items() if slots}
    if not taken:
        raise UsageError(f"{option} is {text!r}: no slot is left" if text else "no host has a slot")
    return taken


def _nodes(text: str, option: str, every: Slots) -> Slots:
    """The slots that `include` or `exclude` names, by host; of one that is only ever named alone, all."""
    found: dict[str, set[int]] = {}
    for node in text.split("@"):
        host, colon, numbers = node.partition(":")
        if host not in every:
            raise UsageError(f"{option} names {host!r}: need one of {', '.join(every)}")
        slots = found.setdefault(host, set())
        for word in numbers.split(",") if colon else ():
            word = word.strip()
            if not re.fullmatch("[0-9]+", word) or int(word) not in every[host]:
                last = len(every[host]) - 1
                need = f"0 to {last}" if last >= 0 else "none, it has no slots"
                raise UsageError(f"{option} names slot {word!r} of {host}: need {need}")
            slots.add(int(word))
    return {host: sorted(slots) or every[host] for host, slots in found.items()}
