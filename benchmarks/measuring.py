"""What benchmarks share: a quiet machine, rows of pairs, a result file."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from launch.environment import described_cpu
from launch.provenance import git, versions

RESULTS = Path(__file__).with_name("results")
QUIET = 0.1  # share of the cores that others may take while something is timed
LOOK_S, GLANCE_S = 3.0, 0.5  # how long the load is looked at: where it may be waited for, and else
SO_FAR = "so far "  # begins a line of rows of a benchmark that goes on
Row = dict[str, Any]


def _busy() -> tuple[int, int]:
    """(busy, all) ticks of all cores since the machine started."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class Quiet:
    """Waits until others leave the machine alone, up to a limit, and notes what they took."""

    def __init__(self, longest_s: float) -> None:
        self._left_s = longest_s
        self._look_s = LOOK_S if longest_s > 0 else GLANCE_S
        self.loads: list[float] = []

    def wait(self) -> None:
        while True:
            before = _busy()
            time.sleep(self._look_s)
            after = _busy()
            share = (after[0] - before[0]) / max(1, after[1] - before[1])
            if share <= QUIET or self._left_s <= 0:
                self.loads.append(round(share, 2))
                return
            self._left_s -= self._look_s


def busy_share(seconds: float = LOOK_S) -> float:
    """Share of all cores that others have taken, looked at for so long."""
    before = _busy()
    time.sleep(seconds)
    after = _busy()
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def row(
    case: str, metric: str, unit: str, ours: Sequence[float], reference: Sequence[float] = (), name: str = ""
) -> Row:
    """A row of pairs. For rates; invert both to compare times. min, max: of the ratio where there is one."""
    ratios = [a / b for a, b in zip(ours, reference, strict=True)] if reference else []
    spread = ratios or list(ours)
    return {
        "case": case,
        "metric": metric,
        "unit": unit,
        "ours": short(statistics.median(ours)),
        "reference": short(statistics.median(reference)) if reference else None,
        "reference_name": name or None,
        "ratio": short(statistics.median(ratios)) if ratios else None,
        "min": short(min(spread)),
        "max": short(max(spread)),
        "n": len(ours),
    }


def torchrun(ranks: int) -> list[str]:
    """The words that start `ranks` of what follows them, on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def short(value: float) -> float:
    return float(f"{value:.4g}")


def tell(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def so_far(rows: Sequence[Row]) -> None:
    """Print what is measured already, which `running.py` keeps of a benchmark that is ended too early."""
    print(SO_FAR + json.dumps({"rows": list(rows)}, ensure_ascii=False), flush=True)


def publish(
    name: str, config: dict[str, Any], rows: list[Row], more: dict[str, str] | None = None, *, is_whole: bool
) -> None:
    """Write results/NAME.json; a part of a benchmark is printed, and nothing written."""
    found = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "device": described_cpu(),
        "versions": versions() | (more or {}),
        "config": config,
        "rows": rows,
    }
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    if not is_whole:
        print(text)
        return
    path = RESULTS / f"{name}.json"
    path.write_text(text)
    print(f"wrote {path}")
