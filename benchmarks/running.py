"""Runs benchmarks one after another, each in a process and with a time limit of its own.

One that fails or hangs costs itself only: what is done is written before the next begins, and of one that is
ended the rows that it had printed stay. What an earlier call measured stays too, where it was the same code
on the same device: parts may be measured a few at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measuring import QUIET, SO_FAR, tell
from launch.processes import descendants, send
from launch.provenance import git, versions
from launch.submit.freeze import code_digest

ROOT = Path(__file__).parents[1]
TAIL = 4000  # characters of what one that failed has said last
LEAST_S = 10.0  # a part with less time left is not begun
STRETCH = 2.0  # times its limit, which a part may take of time that others have left
BUSIEST = 3.0  # times its limit, at most, where others use the machine
TIMES = "times: the median of the pairs' ratios, which need not be the quotient of the two medians"
SAME = ("benchmark", "commit", "code", "device")  # of results that may stand in one file
Found = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One benchmark. words: what follows `python`. needs: a file without which it is left out.

    limit_s: after which it is ended, with all that it has started, unless others have left time. is_extra:
    only measured where it is asked for by name.
    """

    name: str
    words: Sequence[str]
    limit_s: float
    needs: Path | None = None
    is_extra: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What is run, in words. Of a path only the last name: where things lie is this machine's own."""
        return re.sub(r"(^|[ =])/[^ ]*/([^ /]+)", r"\1\2", " ".join(self.words))


def run_part(part: Part, python: str, limit_s: float) -> Found:
    """How it ended (`done`, `failed`, `out of time`, `left out`), and the rows of JSON that it printed.

    limit_s: seconds after which it is ended.
    """
    if part.needs is not None and not part.needs.exists():
        return {"name": part.name, "ended": "left out", "why": f"{part.needs} is not there", "rows": []}
    if limit_s < min(LEAST_S, part.limit_s):
        return {"name": part.name, "ended": "left out", "why": "no time was left", "rows": []}
    began_s = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": _path(), **part.environment}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, *part.words],
            stdout=out,
            stderr=errors,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            started = descendants(process.pid)  # torchrun's ranks have sessions of their own
            with suppress(ProcessLookupError):  # its own session: what it started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            for each in started:
                send(each.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        errors.seek(0)
        printed, said = out.read(), errors.read()
    ended = "out of time" if code is None else "failed" if code else "done"
    found: Found = {
        "name": part.name,
        "command": part.command,
        "ended": ended,
        "seconds": round(time.monotonic() - began_s, 1),
        "rows": rows_of(printed) or rows_so_far(printed),
    }
    if ended != "done":
        found["why"] = f"{code=}" if code is not None else f"ended after {limit_s:.0f} s"
        found["said"] = (printed + said)[-TAIL:]
    elif not found["rows"]:
        found["printed"] = printed[-TAIL:]
    return found


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def rows_of(printed: str) -> list[Found]:
    """The rows of every JSON object that begins a line, and of every file that is said to be written.

    Each once: what was printed case by case comes again at the end.
    """
    rows: list[Found] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(printed):
        end = printed.find("\n", at) + 1 or len(printed)
        line = printed[at:end].strip()
        if line.startswith("{"):
            with suppress(json.JSONDecodeError):
                value, end = decoder.raw_decode(printed, printed.index("{", at))
                rows += value.get("rows", [])
        elif line.startswith("wrote ") and line.endswith(".json"):
            with suppress(OSError, json.JSONDecodeError):
                rows += json.loads(Path(line.removeprefix("wrote ")).read_text()).get("rows", [])
        at = max(end, at + 1)
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def rows_so_far(printed: str) -> list[Found]:
    """Of the last line in which a benchmark said what it had measured by then."""
    for line in reversed(printed.splitlines()):
        if line.startswith(SO_FAR):
            with suppress(json.JSONDecodeError):  # cut off while it was written: the one before is whole
                rows: list[Found] = json.loads(line.removeprefix(SO_FAR))["rows"]
                return rows
    return []


def code() -> str:
    """16 hex digits of what is measured and of what measures it, committed or not."""
    hashed = hashlib.sha256(code_digest().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def kept(file: Path, facts: Mapping[str, Any]) -> dict[str, Found]:
    """Parts by name that `file` holds of the same code on the same device; of any other, none."""
    try:
        found = json.loads(file.read_text())
        is_same = all(found.get(key) == facts[key] for key in SAME)
        return {part["name"]: part for part in found["parts"]} if is_same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not whole
        return {}


def left_to_do(parts: Sequence[Part], before: Mapping[str, Found]) -> list[Part]:
    """Those that are not done yet as they would be run now."""
    return [
        part
        for part in parts
        if (found := before.get(part.name)) is None
        or found["ended"] != "done"
        or found.get("command") != part.command
    ]


def better(before: Found | None, now: Found) -> Found:
    """The one that measured more, the later of equals; how a later one that measured less ended is noted."""

    def worth(found: Found) -> int:
        return 3 if found["ended"] == "done" else 2 if found["rows"] else found["ended"] != "left out"

    if before is None or worth(now) >= worth(before):
        return now
    return before | {"again": f"{now['ended']}: {now['why']}"}


def facts_of(file: Path, device: str) -> Found:
    """What a results file says of all its parts."""
    return {
        "benchmark": file.stem,
        "date": date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "code": code(),
        "device": device,
        "versions": versions(),
    }


def limit_of(part: Part, later: Sequence[Part], left_s: float) -> float:
    """Seconds that it may take: its own, or more, as far as those that come later do not need it."""
    spare_s = left_s - sum(each.limit_s for each in later)
    return min(left_s, max(part.limit_s, min(STRETCH * part.limit_s, spare_s)))


def run_parts(
    parts: Sequence[Part],
    file: Path,
    total_s: float,
    python: str,
    facts: Found,
    order: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """All of them in order, as far as `total_s` goes; `file` holds what is known after each.

    facts: of `facts_of`. order: names of all parts that the file may hold, as it then holds them.
    """
    began_s = clock()
    file.parent.mkdir(parents=True, exist_ok=True)
    known = kept(file, facts)
    found: Found = {**facts, "seconds": 0.0, "parts": list(known.values())}
    names = [*order, *(part.name for part in parts)]
    for number, part in enumerate(parts):
        left_s = total_s - (clock() - began_s)
        limit_s = limit_of(part, parts[number + 1 :], left_s)
        tell(f"{part.name}: at most {max(0.0, limit_s):.0f} s")
        now = run_part(part, python, limit_s)
        tell(f"{part.name}: {now['ended']}{', ' + now['why'] if 'why' in now else ''}")
        known[part.name] = better(known.get(part.name), now)
        found["parts"] = sorted(
            known.values(),
            key=lambda each: names.index(each["name"]) if each["name"] in names else len(names),
        )
        found["seconds"] = round(clock() - began_s, 1)
        part_file = file.with_name(f".{file.name}.part")
        part_file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        os.replace(part_file, file)
    return found


def unfinished(parts: Sequence[Part], found: Found) -> str:
    """A sentence of the parts that were asked for and are not measured; empty where all are."""
    wanted = {part.name for part in parts}
    ended = [
        f"{part['name']} ({part.get('why') or part['ended']})"
        for part in found["parts"]
        if part["name"] in wanted and part["ended"] not in ("done", "left out")
    ]
    if not ended:
        return ""
    return (
        f"not whole: {', '.join(ended)}. Where others use the machine, --total-s gives more time, and "
        f"--missing measures these parts alone"
    )


def busy_factor(load: float) -> float:
    """How much longer limits are where others take `load` of the cores: 1 to BUSIEST."""
    return min(BUSIEST, 1 / max(1e-3, 1 - load)) if load > QUIET else 1.0


def table(found: Found) -> str:
    """Every row, case by case, and every part that has none with why; names are whole."""
    lines = []
    for part in found["parts"]:
        seconds = f", {part['seconds']:.0f} s" if "seconds" in part else ""
        why = f": {part['why']}" if "why" in part else ""
        again = f"; later {part['again']}" if "again" in part else ""
        lines.append(f"{part['name']}: {part['ended']}{seconds}{why}{again}")
        said = part.get("said", "").strip().splitlines()
        lines += [f"    {said[-1]}"] if said else []
        lines += [f"    {line}" for line in part.get("printed", "").splitlines() if line.strip()]
        case = None
        for row in part["rows"]:
            if row.get("case") != case:
                case = row.get("case")
                lines += [f"  {case}"] if case else []
            lines.append(f"    {row.get('metric', '')}: {_told(row)}".rstrip(": "))
    if any(row.get("ratio") is not None for part in found["parts"] for row in part["rows"]):
        lines.append(TIMES)
    return "\n".join(lines)


def _told(row: Found) -> str:
    """A value with its unit, and where there is one what it is held against; not of a thing beside itself."""
    unit, ratio, name = row.get("unit", ""), row.get("ratio"), row.get("reference_name") or "reference"
    of_unit = "" if unit == "1" else f" {unit}" if unit else ""
    value = f"{plain(row.get('ours'))}{of_unit}"
    is_itself = ratio == 1 and row.get("metric", "").startswith(f"{name}: ")
    if row.get("reference") is None or is_itself:
        return value
    times = "" if ratio is None else f"; {ratio:g} times"
    return f"{value} ({name} {plain(row['reference'])}{times})"


def plain(value: float | None, digits: int = 4) -> str:
    """A number with so many digits, thousands apart and never as a power of ten; a dash for none."""
    if value is None:
        return "–"
    if abs(value) >= 10 ** (digits - 1):
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.{digits + 6}f}".rstrip("0") if "e" in text else text
