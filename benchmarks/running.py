"""Runs benchmarks one after another, each in a process and with a time limit of its own.

One that fails or hangs costs itself only: what is done is written before the next begins.
"""

from __future__ import annotations

import json
import os
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

from benchmarks.measuring import tell
from launch.provenance import git, versions

ROOT = Path(__file__).parents[1]
TAIL = 2000  # characters of what one that failed has said last
LEAST_S = 10.0  # a part with less time left is not begun
Found = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One benchmark. words: what follows `python`. needs: a file without which it is left out.

    limit_s: after which it is ended, with all that it has started.
    """

    name: str
    words: Sequence[str]
    limit_s: float
    needs: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def run_part(part: Part, python: str, left_s: float) -> Found:
    """How it ended (`done`, `failed`, `out of time`, `left out`), and the rows of JSON that it printed."""
    if part.needs is not None and not part.needs.exists():
        return {"name": part.name, "ended": "left out", "why": f"{part.needs} is not there", "rows": []}
    limit_s = min(part.limit_s, left_s)
    if limit_s < LEAST_S and limit_s < part.limit_s:
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
            with suppress(ProcessLookupError):  # its own session: what it started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        errors.seek(0)
        printed, said = out.read(), errors.read()
    ended = "out of time" if code is None else "failed" if code else "done"
    found: Found = {
        "name": part.name,
        "command": " ".join(part.words),
        "ended": ended,
        "seconds": round(time.monotonic() - began_s, 1),
        "rows": rows_of(printed),
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


def run_parts(
    parts: Sequence[Part],
    file: Path,
    total_s: float,
    python: str,
    facts: Mapping[str, Any],
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """All of them in order, as far as `total_s` goes; `file` holds what is known after each."""
    began_s = clock()
    found: Found = {
        "benchmark": file.stem,
        "date": date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "versions": versions(),
        **facts,
        "parts": [],
    }
    for part in parts:
        tell(f"{part.name}: at most {part.limit_s:.0f} s")
        one = run_part(part, python, total_s - (clock() - began_s))
        tell(f"{part.name}: {one['ended']}{', ' + one['why'] if 'why' in one else ''}")
        found["parts"].append(one)
        found["seconds"] = round(clock() - began_s, 1)
        part_file = file.with_name(f".{file.name}.part")
        part_file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        os.replace(part_file, file)
    return found


def table(found: Found) -> str:
    """Every row, and every part that has none with why."""
    lines = []
    for part in found["parts"]:
        seconds = f", {part['seconds']:.0f} s" if "seconds" in part else ""
        why = f": {part['why']}" if "why" in part else ""
        lines.append(f"{part['name']}: {part['ended']}{seconds}{why}")
        said = part.get("said", "").strip().splitlines()
        lines += [f"    {said[-1][:100]}"] if said else []
        lines += [f"    {line[:100]}" for line in part.get("printed", "").splitlines() if line.strip()]
        for row in part["rows"]:
            ours, unit, ratio = row.get("ours"), row.get("unit", ""), row.get("ratio")
            value = "–" if ours is None else f"{ours:g}"
            line = f"    {row.get('case', '')[:40]:40}  {row.get('metric', '')[:44]:44}  {value:>9} {unit}"
            if row.get("reference") is not None:
                times = "" if ratio is None else f", {ratio:g} times"
                line += f"  ({row.get('reference_name') or 'reference'} {row['reference']:g}{times})"
            lines.append(line.rstrip())
    return "\n".join(lines)
