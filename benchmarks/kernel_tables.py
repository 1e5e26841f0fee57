"""The table of docs/speed/compile.md: attention alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
ATTENTION = "attention"  # the part of gpu.json that has a table of its own


def attention_table(device: str) -> str:
    """A line for each kind of rows and way to attend over them: time, against SDPA, against the floor."""
    found = json.loads((RESULTS / f"attention_{device}.json").read_text())
    return "\n".join([*_lines(found["rows"]), "", _facts(found, "larger is faster")])


def gpu_attention_table() -> str:
    """The same of what one GPU was measured for."""
    found = json.loads((RESULTS / "gpu.json").read_text())
    (rows,) = (part["rows"] for part in found["parts"] if part["name"] == ATTENTION)
    facts = (
        f"Medians of {rows[0]['n']} turns, spread by pair; larger is faster. {found['device']}, torch "
        f"{found['versions']['torch']}, xformers {found['versions']['xformers']}. Commit "
        f"{found['commit'][:10]}, {found['date']}."
    )
    return "\n".join([*_lines(rows), "", facts])


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| rows | | ms | times SDPA (from, to) | of the matrix rate |", "|---|---|---:|---:|---:|"]
    shares = {(row["case"], _way(row)): row["ours"] for row in rows if row["unit"] == "%"}
    for row in rows:
        if row["unit"] != "1/s":
            continue
        way = _way(row)
        ratio = "" if way == "sdpa" else f"{row['ratio']:.2f} ({row['min']:.2f}, {row['max']:.2f})"
        share = shares[row["case"], way]
        lines.append(f"| {row['case']} | `{way}` | {1000 / row['ours']:.3g} | {ratio} | {share:.0f} % |")
    return lines


def _way(row: dict[str, Any]) -> str:
    return str(row["metric"]).partition(":")[0]


def _facts(found: dict[str, Any], how: str) -> str:
    config = found["config"]
    return (
        f"Medians of {config['turns']} turns, spread by pair; {how}. {found['device']}, up to "
        f"{100 * max(config['busy_with_other_work']):.0f} % of it busy with other work when a turn began. "
        f"Commit {found['commit'][:10]}, {found['date']}."
    )
